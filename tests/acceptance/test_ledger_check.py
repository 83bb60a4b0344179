"""The checker can fail: each lie in one of the books is a violation of the right kind."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.acceptance.ledger_check import Accepted, Books
from tests.model_server import Call

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONTEXT, CAP = 2, 5


def honest_books() -> Books:
    """One session of five turns, each answered at the first attempt."""
    books = Books([], [], CONTEXT, CAP)
    said: list[list[str]] = []
    for number in range(1, 6):
        prompt, end = f"prompt {number}", float(number)
        shown = [text for turn in said[-CONTEXT:] for text in turn]
        reply = f"reply to: {prompt} (seen {len(shown) + 1} messages)"
        said.append([prompt, reply])
        books.accepted.append(Accepted(7, number, prompt, 0.01))
        messages = [{"role": "user", "content": text} for text in (*shown, prompt)]
        books.calls.append(Call(number, end - 0.5, 1, "model", messages, {}, {}, end, "200"))
        finished = NOON + timedelta(seconds=number)
        books.turns[7, number] = SimpleNamespace(
            state="completed", attempts=1, finished_at=finished, error_type=None, error_message=None
        )
        for role, content in ("user", prompt), ("assistant", reply):
            books.messages[7, number].append(SimpleNamespace(role=role, content=content, created_at=finished))
        books.attempts[7, number] = 1
    books.leases.append(SimpleNamespace(session_id=7, owner=None, ready_at=None))
    books.sessions.append(SimpleNamespace(id=7, state="active"))
    return books


def test_honest_books_have_no_violations():
    books = honest_books()
    assert books.violations() == []
    assert (books.repeated_calls(), books.wasted_replies()) == (0, 0)


def again(books: Books, **changes: Any) -> None:
    """The third turn is called a second time."""
    call = books.calls[2]
    values = {name: getattr(call, name) for name in call.__dataclass_fields__} | {"number": 9, "start": 3.5, "end": 4.0}
    books.calls.append(Call(**values | changes))


def at_once(books: Books) -> None:
    books.attempts[7, 3] += 1
    again(books, start=2.7)


def beyond_the_cap(books: Books) -> None:
    books.turns[7, 1].attempts = books.attempts[7, 1] = CAP + 1


LIES: list[tuple[str, Callable[[Books], Any]]] = [
    ("lost", lambda books: books.turns.pop((7, 5))),
    ("lost", lambda books: setattr(books.turns[7, 2], "state", "failed")),
    ("lost", lambda books: setattr(books.turns[7, 2], "state", "queued")),
    ("lost", lambda books: books.accepted.pop()),
    ("lost", lambda books: setattr(books.messages[7, 1][0], "content", "another")),
    ("doubled", lambda books: books.messages[7, 1].append(books.messages[7, 1][1])),
    ("doubled", lambda books: books.messages[7, 1].pop()),
    ("doubled", lambda books: setattr(books.messages[7, 1][1], "content", "reply to: prompt 2 (seen 1 messages)")),
    ("doubled", lambda books: books.accepted.append(Accepted(7, 6, "prompt 1", 0.01))),
    ("disordered", lambda books: setattr(books.turns[7, 2], "finished_at", NOON + timedelta(hours=1))),
    ("disordered", lambda books: setattr(books.messages[7, 4][1], "created_at", NOON)),
    ("disordered", lambda books: books.turns.update({(7, 9): books.turns.pop((7, 5))})),
    ("misinformed", lambda books: books.calls[4].messages.pop(0)),
    ("misinformed", lambda books: books.calls[0].messages.insert(0, {"role": "user", "content": "prompt 0"})),
    ("misinformed", lambda books: books.calls[3].messages.reverse()),
    ("uncounted", again),
    ("uncounted", lambda books: setattr(books.calls[1], "outcome", "client gone")),
    ("uncounted", lambda books: setattr(books.turns[7, 1], "attempts", 2)),
    ("uncounted", beyond_the_cap),
    ("overlapping", at_once),
    ("overlapping", lambda books: setattr(books.calls[0], "end", None)),
    ("left", lambda books: setattr(books.leases[0], "owner", "somebody")),
    ("left", lambda books: setattr(books.leases[0], "ready_at", NOON)),
    ("left", lambda books: setattr(books.sessions[0], "state", "deleting")),
]


@pytest.mark.parametrize(("kind", "lie"), LIES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(LIES)])
def test_a_lie_is_found(kind: str, lie: Callable[[Books], Any]):
    books = honest_books()
    lie(books)
    assert kind in {violation.partition(":")[0] for violation in books.violations()}


def test_repeated_and_wasted_calls_are_counted():
    books = honest_books()
    again(books)
    again(books, outcome="client gone")
    assert (books.repeated_calls(), books.wasted_replies()) == (2, 1)
