"""The checker can fail: each lie in one of the books is a violation of the right kind."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inturn import Settings
from inturn.models import migrations
from inturn.models.database import Database
from ops.chaos.archives import Archive, Copy
from ops.chaos.books import Books
from ops.chaos.figures import figures
from ops.chaos.model import Call
from ops.chaos.nemesis import Fault
from ops.chaos.promises import Accepted, Cancel, Deleted, Guest, Hold, Log, Population, Refused
from ops.chaos.spending import repeated_calls, wasted_replies
from ops.chaos.traces import search

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
START = NOON.timestamp()
CONTEXT, CAP, AMBIGUOUS = 2, 5, 2


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def honest_books() -> Books:
    """One session of five turns, each answered at the first attempt, and one that was deleted."""
    caps = Settings.load(context_turns=CONTEXT, max_attempts=CAP, max_ambiguous_attempts=AMBIGUOUS)
    books = Books(Log("run"), [], caps)
    said: list[list[str]] = []
    for number in range(1, 6):
        prompt = f"prompt {number}"
        shown = [text for turn in said[-CONTEXT:] for text in turn]
        reply = f"reply to: {prompt} (seen {len(shown) + 1} messages)"
        said.append([prompt, reply])
        books.log.accepted.append(Accepted(7, number, prompt, 0.01, START))
        books.calls.append(a_call(number, [*shown, prompt]))
        books.turns[7, number] = a_turn("completed", finished_at=at(number))
        for position, (role, content) in enumerate((("user", prompt), ("assistant", reply)), start=1):
            row = a_message(position, role, content, at(number))
            books.messages[7, number].append(row)
        books.tries[7, number] = [a_try(number, number * 2)]
    books.leases.append(SimpleNamespace(session_id=7, owner=None, ready_at=None, token=10))
    books.sessions.append(SimpleNamespace(id=7, key="run-plain-0", state="active", created_at=NOON))
    books.log.accepted.append(Accepted(8, 1, "doomed canary-8", 0.01, START, Population.DOOMED))
    books.log.deleted.append(Deleted(8, "run-doomed-0", "canary-8", START, since=START - 9))
    book(books, a_removal(1, -1, session_key="run-doomed-0", rule="erasure", run_id=0))
    return books


def a_message(position: int, role: str, content: str, created_at: datetime) -> SimpleNamespace:
    return SimpleNamespace(position=position, role=role, content=content, created_at=created_at, data=None)


def a_call(number: int, texts: list[str], **changes: Any) -> Call:
    """From half a second before the full one."""
    messages = [{"role": "user", "content": text} for text in texts]
    end = START + number
    return replace(Call(number, end - 0.5, 1, "model", messages, {}, {}, end, "200"), **changes)


def a_turn(state: str, **values: Any) -> SimpleNamespace:
    fixed = {"attempts": 1, "rounds": 0, "steps": 0, "error_type": None, "error_message": None, "merged_into": None}
    fixed |= {"input_tokens": 3}
    return SimpleNamespace(state=state, **(fixed | values))


def a_try(end: float, token: int, **values: Any) -> SimpleNamespace:
    fixed = {"number": 1, "outcome": "completed", "error_type": None, "started_at": at(end - 0.6), "ended_at": at(end)}
    fixed |= {"input_tokens": 3}
    return SimpleNamespace(token=token, turn_number=0, **(fixed | values))


def test_honest_books_have_no_violations():
    books = honest_books()
    assert books.violations() == []
    assert (repeated_calls(books), wasted_replies(books)) == (0, 0)


def again(books: Books, **changes: Any) -> None:
    """The third turn is called a second time."""
    books.calls.append(replace(books.calls[2], **({"number": 9, "start": START + 3.1, "end": START + 3.4} | changes)))


def recorded_again(books: Books, **changes: Any) -> None:
    """So it was, and the first attempt was lost when its worker was killed."""
    books.faults = [Fault("kill", "kill", START + 2.8, START + 2.92, {"sessions": [7], "drains": [0.5]})]
    books.tries[7, 3] = [
        a_try(2.9, 6, outcome="lost"),
        a_try(3, 7, number=2, started_at=at(2.95)),
    ]
    books.turns[7, 3].attempts = 2
    again(books, **({"start": START + 2.95, "end": START + 3} | changes))
    books.calls[2].end = START + 2.9


def beyond_the_cap(books: Books) -> None:
    books.turns[7, 1].attempts = CAP + 1
    books.tries[7, 1] = [a_try(0.1 * each, each, number=each) for each in range(1, CAP + 2)]


def fail(books: Books, *outcomes: str, prompt: str = "prompt 5") -> None:
    """The last turn fails, after attempts that ended so; something was broken at the time."""
    books.faults = [Fault("cut", "model", START + 4, START + 5)]
    books.turns[7, 5] = a_turn(
        "failed", attempts=len(outcomes), error_type="odd", error_message="odd", finished_at=at(5)
    )
    books.tries[7, 5] = [
        a_try(5, 10 + place, number=place + 1, outcome=outcome, started_at=at(4.5), ended_at=at(4.5))
        for place, outcome in enumerate(outcomes)
    ]
    books.leases[0].token = 20
    books.messages[7, 5] = [a_message(1, "user", prompt, at(5))]
    books.log.accepted[4] = replace(books.log.accepted[4], prompt=prompt)
    del books.calls[4]


def cancel(books: Books, **changes: Any) -> None:
    """The last turn is cancelled before it is called."""
    books.turns[7, 5] = a_turn("cancelled", attempts=0, finished_at=at(5), **changes)
    books.tries.pop((7, 5))
    books.messages[7, 5].pop()
    del books.calls[4]


def join(books: Books, prompt: str, when_busy: str = "coalesce") -> None:
    """The last turn is joined into a sixth one, which holds this prompt."""
    cancel(books, merged_into=6)
    shown = [text for number in (3, 4) for text in (f"prompt {number}", books.said((7, number), "assistant")[0])]
    reply = f"reply to: {prompt} (seen 5 messages)"
    books.log.accepted.append(Accepted(7, 6, "prompt 6", 0.01, START, Population.MEDDLED, when_busy))
    books.turns[7, 6] = a_turn("completed", finished_at=at(6))
    books.tries[7, 6] = [a_try(6, 12)]
    books.leases[0].token = 20
    for position, (role, content) in enumerate((("user", prompt), ("assistant", reply)), start=1):
        books.messages[7, 6].append(a_message(position, role, content, at(6)))
    books.calls.append(a_call(6, [*shown, prompt]))


def break_redis(books: Books, kind: str, seconds: float) -> None:
    """A send takes as long while Redis is in that state; another one before took 10 ms."""
    books.faults = [Fault("redis", kind, START + 20, START + 30)]
    books.log.accepted[4] = replace(books.log.accepted[4], seconds=seconds, at=START + 25)


def expire(
    books: Books,
    *,
    turns: int = 1,
    population: Population = Population.EXPIRING,
    rule: str = "own",
    key: str = "run-own-0",
    expired: bool = True,
    **changes: Any,
) -> None:
    """A session was removed by a rule of retention, or erased by its user, with one prompt."""
    books.log.accepted.append(Accepted(9, 1, "short", 0.01, START, population))
    books.log.deleted.append(Deleted(9, key, "canary-9", START + 9, expired=expired, since=START))
    book(books, a_removal(turns, 8, rule=rule, session_key=key, **changes))
    books.calls.append(a_call(7, ["short"], outcome="200"))


def a_removal(turns: int, when: float, **changes: Any) -> SimpleNamespace:
    fixed = {
        "session_key": "run-own-0",
        "rule": "own",
        "run_id": 1,
        "kept": "nothing",
        "asked_by": "beat",
        "messages": 2,
        "bytes": 9,
        "last_activity_at": NOON,
    }
    return SimpleNamespace(turns=turns, removed_at=at(when), **(fixed | changes))


def book(books: Books, row: SimpleNamespace) -> None:
    """In its run, which may have removed others."""
    books.receipts.append(row)
    mine = books.removals if row.kept == "nothing" else books.strippings
    (mine if row.session_key.startswith("run-") else books.guest_removals).append(row)
    run = books.runs.setdefault(row.run_id, a_run(row.run_id, row.rule, row.asked_by))
    run.sessions += 1
    for name in ("turns", "messages", "bytes"):
        setattr(run, name, getattr(run, name) + getattr(row, name))


def to(books: Books, population: Population) -> None:
    books.log.accepted[:5] = [replace(one, population=population) for one in books.log.accepted[:5]]


def a_run(number: int, rule: str, asked_by: str) -> SimpleNamespace:
    sums = dict.fromkeys(("sessions", "turns", "messages", "bytes"), 0)
    return SimpleNamespace(id=number, rule=rule, asked_by=asked_by, checksum=None, **sums)


def file(books: Books, *turns: tuple[str, list[str]], key: str = "run-filed-0", **changes: Any) -> None:
    """A session was archived so, and removed."""
    expire(books, rule="filed", key=key, population=Population.FILED)
    copies = [Copy(key, b"", list(turns))] if turns else []
    archive = Archive(Path("inturn-20261129T030000Z-filed-1.jsonl.gz"), 1, "abc", copies)
    books.runs[1].checksum = "abc"
    books.archives.append(replace(archive, **changes))


def welcome(books: Books, *, standing: int | None = None, removed: int | None = None) -> None:
    """A session with two turns was imported, and has as many by now; or it was removed."""
    books.log.guests.append(Guest("back-run-1", 2))
    if standing is not None:
        books.guests["back-run-1"] = standing
    if removed is not None:
        book(books, a_removal(removed, 8, rule="filed", session_key="back-run-1", run_id=2))
        copies = [Copy("back-run-1", b"", [FILED] * removed)]
        books.archives.append(Archive(Path("inturn-20261129T030000Z-filed-2.jsonl.gz.partial"), 2, "def", copies))


def strip(books: Books, when: float = 3.2, **changes: Any) -> None:
    """What was said in the first turns of the session was removed, by the rule for it, before the next one was asked."""
    books.sessions[0].key = "run-text-0"
    to(books, Population.STRIPPED)
    book(books, a_removal(3, when, **({"rule": "text", "session_key": "run-text-0", "kept": "metadata"} | changes)))
    books.stripped_to = {7: 3}
    for number in range(1, 4):
        del books.messages[7, number]
    for number in (4, 5):
        call = books.calls[number - 1]
        call.messages[:] = [each for each in call.messages if not re.search("prompt [123]", each["content"])]


def born_late(books: Books) -> None:
    """A second and a half before it was removed."""
    books.log.deleted[-1] = replace(books.log.deleted[-1], since=START + 6.5)


def crowd(books: Books, *since: float) -> None:
    """A session was removed as there are more than two of its kind; others were made at these times."""
    expire(books, rule="few", key="run-few-0")
    for number, when in enumerate(since, 1):
        books.sessions.append(
            SimpleNamespace(id=20 + number, key=f"run-few-{number}", state="active", created_at=at(when))
        )


FILED = ("completed", ["short", "reply to: short (seen 1 messages)"])


def late_settlement(books: Books) -> None:
    """Who had lost the lease came back, and its attempt counts."""
    recorded_again(books)
    books.tries[7, 3][0] = a_try(3.1, 6, started_at=at(2.4))
    books.tries[7, 3][1].outcome, books.tries[7, 3][1].ended_at = None, None


def both(*deeds: Callable[[Books], Any]) -> Callable[[Books], Any]:
    return lambda books: [deed(books) for deed in deeds]


TRUTHS: list[Callable[[Books], Any]] = [
    recorded_again,
    lambda books: fail(books, "ambiguous", "ambiguous"),
    lambda books: fail(books, *["safe"] * CAP),
    lambda books: fail(books, *["lost"] * (books.caps.max_rescues + 1)),
    lambda books: fail(books, "permanent", prompt='prompt 5 !{"status": 400}'),
    both(cancel, lambda books: books.log.cancels.append(Cancel(7, 5, START, confirmed=True))),
    lambda books: join(books, "prompt 5\n\nprompt 6"),
    lambda books: break_redis(books, "redis_frozen", 1.2),
    expire,
    lambda books: expire(books, rule="erasure", key="run-erased-0", expired=False, population=Population.ERASED),
    both(expire, lambda books: books.log.holds.append(Hold("run-own-0", START + 1, START + 7))),
    both(expire, lambda books: setattr(books.calls[-1], "end", START + 8.05)),
    strip,
    both(strip, lambda books: books.traces.append("Redis: prompt 2")),
    lambda books: expire(books, rule="yearly", key="run-yearly-0", run_id=3, asked_by="ann@host"),
    lambda books: file(books, FILED),
    lambda books: file(books, ("failed", ["short"]), path=Path("inturn-20261129T030000Z-filed-1.jsonl.gz.partial")),
    lambda books: welcome(books, standing=2),
    lambda books: welcome(books, removed=2),
    lambda books: crowd(books, 1, 2),
    both(
        expire,
        lambda books: books.calls.pop(),
        lambda books: setattr(books, "faults", [Fault("network.cut_off", "model", START - 1, START + 1)]),
    ),
]


@pytest.mark.parametrize("truth", TRUTHS, ids=[f"truth-{number}" for number, _ in enumerate(TRUTHS)])
def test_what_may_happen_is_no_violation(truth: Callable[[Books], Any]):
    books = honest_books()
    truth(books)
    assert books.violations() == []


WANTED = {"id": "call", "type": "function", "function": {"name": "note", "arguments": "{}"}}

LIES: list[tuple[str, Callable[[Books], Any]]] = [
    # 1. lost, or ended as nobody wanted
    ("lost", lambda books: books.turns.pop((7, 5))),
    ("lost", lambda books: setattr(books.turns[7, 2], "state", "queued")),
    ("lost", lambda books: books.log.accepted.pop(4)),
    ("lost", lambda books: setattr(books.messages[7, 1][0], "content", "another")),
    ("contradicted", lambda books: books.log.accepted.append(Accepted(7, 6, "prompt 1", 0.01))),
    ("contradicted", lambda books: books.log.contradictions.append("another turn for the same key")),
    ("unjustified", lambda books: setattr(books.turns[7, 2], "state", "failed")),
    ("unjustified", lambda books: fail(books, "ambiguous")),
    ("unjustified", lambda books: fail(books, "permanent")),
    ("unjustified", lambda books: fail(books, *["lost"] * books.caps.max_rescues)),
    ("unfounded", lambda books: fail(books, "permanent")),
    (
        "unfounded",
        both(lambda books: fail(books, "ambiguous", "ambiguous"), lambda books: setattr(books, "faults", ())),
    ),
    ("unfounded", lambda books: fail(books, "permanent", prompt='prompt 5 !{"status": 500}')),
    ("revoked", cancel),
    ("revoked", lambda books: books.log.cancels.append(Cancel(7, 5, START, confirmed=True))),
    ("merged", lambda books: join(books, "prompt 6")),
    ("merged", lambda books: join(books, "prompt 5\n\nprompt 6", when_busy="enqueue")),
    ("merged", lambda books: cancel(books, merged_into=4)),
    ("lost", lambda books: join(books, "prompt 6\n\nprompt 5")),
    # 2. replies
    ("doubled", lambda books: books.messages[7, 1].append(books.messages[7, 1][1])),
    ("doubled", lambda books: books.messages[7, 1].pop()),
    ("doubled", lambda books: setattr(books.messages[7, 1][1], "content", "reply to: prompt 2 (seen 1 messages)")),
    ("doubled", lambda books: books.missing_guards.append("two replies are taken")),
    ("disordered", lambda books: setattr(books.turns[7, 2], "finished_at", at(3600))),
    ("disordered", lambda books: setattr(books.messages[7, 4][1], "created_at", NOON)),
    ("disordered", lambda books: books.turns.update({(7, 9): books.turns.pop((7, 5))})),
    ("disordered", lambda books: setattr(books.tries[7, 5][0], "started_at", at(3.9))),
    ("early", lambda books: books.log.accepted.append(replace(books.log.accepted.pop(4), not_before=START + 5))),
    # 3. context
    ("misinformed", lambda books: books.calls[4].messages.pop(0)),
    ("misinformed", lambda books: books.calls[0].messages.insert(0, {"role": "user", "content": "prompt 0"})),
    ("misinformed", lambda books: books.calls[3].messages.reverse()),
    ("misinformed", lambda books: books.calls[4].messages[1].update(tool_calls=[WANTED])),
    ("misinformed", lambda books: setattr(books.turns[7, 3], "state", "failed")),
    # 4. attempts
    ("uncounted", again),
    ("uncounted", lambda books: setattr(books.calls[1], "outcome", "client gone")),
    ("uncounted", lambda books: setattr(books.turns[7, 1], "attempts", 2)),
    ("uncounted", beyond_the_cap),
    # 5. overlap
    ("overlapping", lambda books: recorded_again(books, start=START + 2.7)),
    ("overlapping", lambda books: setattr(books.calls[0], "end", None)),
    # 6. stale tokens
    ("stale", late_settlement),
    ("stale", lambda books: setattr(books.tries[7, 2][0], "outcome", None)),
    ("stale", lambda books: setattr(books.tries[7, 2][0], "outcome", "lost")),
    ("stale", lambda books: setattr(books.tries[7, 2][0], "token", 9)),
    ("stale", lambda books: setattr(books.tries[7, 2][0], "ended_at", at(60))),
    ("stale", lambda books: setattr(books.leases[0], "token", 3)),
    # 7. deleted
    (
        "undeleted",
        lambda books: books.sessions.append(SimpleNamespace(id=8, key="run-doomed-0", state="active", created_at=NOON)),
    ),
    ("undeleted", lambda books: books.tries[8, 1].append(a_try(5, 1))),
    ("undeleted", lambda books: books.traces.append("said.1: told: canary-8")),
    ("undeleted", lambda books: books.tries[6, 1].append(a_try(5, 1))),
    ("removed", lambda books: expire(books, turns=0)),
    ("removed", both(expire, lambda books: books.removals.pop())),
    ("removed", lambda books: books.removals.pop()),
    ("removed", lambda books: expire(books, population=Population.HELD)),
    ("removed", lambda books: expire(books, population=Population.KEPT)),
    ("removed", both(expire, lambda books: book(books, a_removal(0, 10)))),
    ("removed", both(expire, lambda books: books.removals.insert(0, a_removal(1, 7)))),
    # 9. interrupted
    ("interrupted", both(expire, lambda books: books.calls.pop())),
    ("interrupted", both(expire, lambda books: setattr(books.calls[-1], "end", START + 8.5))),
    ("interrupted", both(expire, lambda books: setattr(books.calls[-1], "end", None))),
    # 12. rules, receipts, archives
    ("unruly", lambda books: expire(books, rule="idle")),
    ("unruly", lambda books: expire(books, rule="default", key="run-plain-1")),
    ("unruly", lambda books: expire(books, rule="kept", key="run-kept-0")),
    ("unruly", lambda books: expire(books, last_activity_at=at(7.5))),
    ("unruly", both(lambda books: expire(books, rule="aged", key="run-aged-0"), born_late)),
    ("unruly", lambda books: crowd(books, 1)),
    ("unruly", lambda books: crowd(books, 1, 9)),
    ("unruly", lambda books: crowd(books, 1, -1)),
    ("unruly", lambda books: expire(books, rule="erasure")),
    ("unruly", both(expire, lambda books: books.log.holds.append(Hold("run-own-0", START + 7, START + 9)))),
    ("misbooked", both(expire, lambda books: books.receipts.append(books.receipts[-1]))),
    ("misbooked", both(expire, lambda books: books.receipts.pop())),
    ("misbooked", both(expire, lambda books: books.runs.clear())),
    ("misbooked", both(expire, lambda books: setattr(books.runs[1], "bytes", 8))),
    ("misbooked", both(expire, lambda books: setattr(books.runs[1], "rule", "idle"))),
    ("unarchived", file),
    ("unarchived", lambda books: file(books, FILED, FILED)),
    ("unarchived", lambda books: file(books, ("completed", ["short"]))),
    ("unarchived", lambda books: file(books, ("completed", ["long", "reply to: long (seen 1 messages)"]))),
    ("unarchived", lambda books: file(books, FILED, run=2)),
    ("unarchived", lambda books: file(books, FILED, checksum="abd")),
    ("unarchived", lambda books: file(books, FILED, fault="line 3: cut off")),
    ("unarchived", both(lambda books: welcome(books, removed=2), lambda books: books.archives.clear())),
    ("unwelcome", welcome),
    ("unwelcome", lambda books: welcome(books, standing=1)),
    ("unwelcome", lambda books: welcome(books, removed=1)),
    ("removed", lambda books: expire(books, population=Population.STRIPPED)),
    ("interrupted", lambda books: strip(books, when=2.4)),
    ("interrupted", both(strip, lambda books: books.calls.pop(2))),
    ("unruly", lambda books: strip(books, rule="idle")),
    ("unruly", lambda books: strip(books, last_activity_at=at(3))),
    ("unruly", lambda books: expire(books, rule="text", key="run-text-0")),
    ("unruly", lambda books: expire(books, kept="metadata")),
    ("unruly", lambda books: expire(books, rule="lines", key="run-spoken-0")),
    ("unruly", lambda books: expire(books, rule="yearly", key="run-yearly-0")),
    ("unruly", both(strip, lambda books: books.log.holds.append(Hold("run-text-0", START + 3, START + 4)))),
    ("stripped", both(strip, lambda books: to(books, Population.PLAIN))),
    ("stripped", both(strip, lambda books: to(books, Population.HELD))),
    ("stripped", both(strip, lambda books: books.strippings.clear())),
    ("stripped", both(strip, lambda books: books.stripped_to.update({7: 2}))),
    ("lost", both(strip, lambda books: books.stripped_to.clear())),
    ("lost", both(strip, lambda books: books.turns.pop((7, 2)))),
    ("lost", both(strip, lambda books: books.messages.pop((7, 4)))),
    ("unstripped", both(strip, lambda books: books.messages[7, 2].append(a_message(1, "user", "prompt 2", at(2))))),
    ("unstripped", both(strip, lambda books: books.traces.append("turns: prompt 2"))),
    ("unstripped", both(strip, lambda books: books.calls[3].messages.insert(0, {"content": "prompt 3"}))),
    ("diminished", both(strip, lambda books: setattr(books.turns[7, 2], "input_tokens", None))),
    ("diminished", both(strip, lambda books: setattr(books.tries[7, 2][0], "input_tokens", None))),
    ("diminished", both(strip, lambda books: books.calls[4].messages.pop(0))),
    ("uncounted", both(strip, lambda books: books.tries.pop((7, 2)))),
    # 8. afterwards
    ("left", lambda books: setattr(books.leases[0], "owner", "somebody")),
    ("left", lambda books: setattr(books.leases[0], "ready_at", NOON)),
    ("left", lambda books: setattr(books.sessions[0], "state", "deleting")),
    ("left", lambda books: setattr(books.turns[7, 5], "state", "queued")),
    ("left", lambda books: setattr(books.turns[7, 5], "state", "running")),
    # 10. and 11.
    ("slow", lambda books: break_redis(books, "redis_frozen", 2.0)),
    ("slow", lambda books: break_redis(books, "redis_restarted", 0.4)),
    ("unhealthy", lambda books: books.found_wrong.append("integrity_check says: row 1 missing from index")),
]


@pytest.mark.parametrize(("kind", "lie"), LIES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(LIES)])
def test_a_lie_is_found(kind: str, lie: Callable[[Books], Any]):
    books = honest_books()
    lie(books)
    assert kind in {violation.partition(":")[0] for violation in books.violations()}


def test_as_many_overlaps_are_excused_as_workers_came_back_late():
    books = honest_books()
    recorded_again(books, start=START + 2.7)
    books.faults = [Fault("stop", "pause", START, START + 3, {"outlasts_lease": True})]
    assert books.violations() == []
    books.calls[3].start = START + 2.8
    assert [violation.partition(":")[0] for violation in books.violations()] == ["overlapping"]


def test_a_session_may_have_come_and_gone_before_anybody_knew_that_it_was_made():
    books = honest_books()
    expire(books)
    assert books.violations() == []
    book(books, a_removal(0, 3))
    books.removals.reverse()
    assert books.violations() == []


def test_a_send_that_was_refused_may_have_been_stored():
    books = honest_books()
    lost = books.log.accepted.pop(4)
    books.log.refused.append(Refused(lost.prompt, 1.0, START, "away"))
    assert books.violations() == []


def test_repeated_and_wasted_calls_are_counted():
    books = honest_books()
    again(books)
    again(books, outcome="client gone")
    assert (repeated_calls(books), wasted_replies(books)) == (2, 1)


def test_figures():
    books = honest_books()
    recorded_again(books)
    books.calls[2].outcome = "client gone"
    found = figures(books, books.faults, books.log)
    assert found["extra_calls"] == {"kill": 1}
    assert found["recovery"]["kill"] == {"count": 1, "p50_s": 0.05, "p99_s": 0.05}
    assert (found["accepted"], found["lost"], found["overlaps"], found["violations"]) == (6, 0, {}, {})
    assert found["send"]["healthy"] == {"count": 6, "p50_ms": 10.0, "p99_ms": 10.0}
    assert found["drain"]["p50_s"] == 0.5
    assert (found["removed"], found["by_beat"]) == ({"erasure": 1}, 1)


def test_a_database_that_guards_itself_has_no_violations(database_url: str):
    database = Database(database_url)
    migrations.upgrade(database)
    books = Books(Log("run"), [], Settings.load()).read(database)
    assert books.violations() == []
    database.close()


def test_traces_are_found_wherever_they_are(database_url: str, tmp_path: Path):
    database, log = Database(database_url), tmp_path / "said.1"
    migrations.upgrade(database)
    assert list(search(database, [log], "")) == []
    log.write_text("one\nis told: canary-8 and more\n")
    with database.writing() as db:
        db.exec_driver_sql(
            "INSERT INTO removals (session_key, rule, turns, messages, last_activity_at, removed_at) "
            "VALUES ('canary-8', 'idle', 1, 2, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
        )
    found = list(search(database, [log], ""))
    assert [trace.partition(":")[0] for trace in found] == ["said.1", "removals"]
    database.close()
