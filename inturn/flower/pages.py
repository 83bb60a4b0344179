"""Our pages: sessions, one session, batches, retention. Each asks the database in a thread, page by page, by keys."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError

from inturn.client import Client
from inturn.flower import phrases
from inturn.flower.door import Guarded
from inturn.models.content import checked_pattern, checked_session_id
from inturn.models.database import Database
from inturn.models.errors import InturnError, InvalidInputError, InvalidSessionIdError, SessionNotFoundError
from inturn.models.states import BatchState
from inturn.models.store import batches, browsing, receipts
from inturn.models.store.batches import BatchRecord, Progress
from inturn.models.store.browsing import MessageGlance, Place, SessionGlance
from inturn.models.store.lanes import LaneInfo
from inturn.models.store.selecting import SessionFilter

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
PAGE = 25
FEW = 10
PATIENCE_SECONDS = 30.0
SHOWN = {"all": "All", "conversations": "Conversations", "batch": "Of batches", "busy": "Busy", "held": "Held"}

Row = TypeVar("Row")
Result = TypeVar("Result")


class Page(Guarded, BaseHandler):  # type: ignore[misc]
    """One page, asked for by GET."""

    async def look(self, read: Callable[..., Result], *arguments: Any) -> Result:
        """Have something read in a thread. Raises: HTTPError: it is not there, or cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await loop.run_in_executor(self.application.readers, read, *arguments)
        except SessionNotFoundError as error:
            raise HTTPError(404, escaped(str(error))) from None
        except TimeoutError:
            raise HTTPError(503, f"The database has not answered for {PATIENCE_SECONDS:g} s: try again.") from None
        except InturnError as error:
            logger.warning("action=page_not_read path=%s reason=%s", self.request.path, error)
            raise HTTPError(503, "The database does not answer: `inturn doctor` says why.") from None

    def show(self, template: str, tab: str, **what: Any) -> None:
        self.render(template, say=phrases, tab=tab, show_content=self.application.show_content, **what)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What was asked for in vain looks like a page, too."""
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, HTTPError) and error.log_message and status_code in (400, 404):
            tab = self.request.path.split("/")[1]
            self.show("refused.html", {"session": "sessions"}.get(tab, tab), told=error.log_message.replace("%%", "%"))
            return
        super().write_error(status_code, **kwargs)

    def asset(self, name: str) -> str:
        """Where a file of the pages is; another one whenever its content is."""
        return self.reverse_url("asset", name) + f"?v={fingerprint(name)}"

    def asked(self, name: str) -> str:
        return self.get_query_argument(name, "").strip()

    def number(self, name: str) -> int | None:
        """Raises: HTTPError."""
        text = self.asked(name)
        if text and not (text.isdecimal() and len(text) < 19):
            raise HTTPError(400, f"{name} is no number")
        return int(text) if text else None

    def link(self, **changed: str | int | None) -> str:
        """This page with other arguments; those that are None are left out."""
        kept: dict[str, str | int | None] = {name: self.asked(name) for name in self.request.query_arguments}
        return phrases.link(self.request.path, kept | changed)


@cache
def fingerprint(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def escaped(text: str) -> str:
    """For an error's text, which Tornado formats with ``%``."""
    return text.replace("%", "%%")


def split(rows: Sequence[Row]) -> tuple[Sequence[Row], Row | None]:
    """What a page shows of the rows that were read, one more than it shows; and the last of them, if more come."""
    return rows[:PAGE], rows[PAGE - 1] if len(rows) > PAGE else None


class SessionsPage(Page):
    async def get(self) -> None:
        """Sessions, those used last first."""
        refused = ""
        found: list[SessionGlance] = []
        lanes: list[LaneInfo] = []
        try:
            wanted, how = self._wanted()
        except InvalidInputError as error:
            refused = str(error)
            self.set_status(400)
        else:
            found, lanes = await self.look(read_sessions, self.application.client, wanted, how)
        shown, last = split(found)
        self.show(
            "sessions.html", "sessions", sessions=shown, lanes=lanes, refused=refused, views=SHOWN,
            view=self.asked("show") or "all", older=last and self.link(before=place_as_text(last.place)),
            is_first=not self.asked("before"),
        )  # fmt: skip

    def _wanted(self) -> tuple[SessionFilter, dict[str, Any]]:
        """Raises: InvalidInputError, HTTPError."""
        text, label, view = self.asked("q"), self.asked("label"), self.asked("show")
        name, equals, value = label.partition("=")
        if label and not (name and equals):
            raise InvalidInputError(f"{label!r:.100} is no label: write name=value")
        pattern = checked_pattern(text if "*" in text or "?" in text else f"{text}*") if text else None
        wanted = SessionFilter(
            labels={name: value} if label else None,
            model=self.asked("model") or None,
            busy=True if view == "busy" else None,
        )
        return wanted, {
            "pattern": pattern,
            "held": True if view == "held" else None,
            "of_batch": {"conversations": False, "batch": True}.get(view),
            "before": text_as_place(self.asked("before")),
        }


def read_sessions(
    client: Client, wanted: SessionFilter, how: dict[str, Any]
) -> tuple[list[SessionGlance], list[LaneInfo]]:
    found = browsing.list_recent(client.connections.database, wanted, **how, limit=PAGE + 1)
    return found, client.list_lanes()


def place_as_text(place: Place) -> str:
    return f"{place[0].isoformat()}~{place[1]}"


def text_as_place(text: str) -> Place | None:
    """Raises: HTTPError."""
    if not text:
        return None
    moment, _, number = text.partition("~")
    try:
        when = datetime.fromisoformat(moment)
        if when.tzinfo is None or not 0 < int(number) < 2**63:
            raise ValueError(text)
    except ValueError:
        raise HTTPError(400, "before is the end of no page") from None
    return when, int(number)


class SessionPage(Page):
    async def get(self, session_id: str) -> None:
        """One session: what it is, what becomes of it, and its turns, the latest first."""
        before, client = self.number("before"), self.application.client
        try:
            key = checked_session_id(session_id)
        except InvalidSessionIdError:
            raise HTTPError(404, "There is no session of that ID.") from None
        found = await self.look(read_session, client, key, before, self.application.show_content)
        shown, last = split(found.pop("turns"))
        self.show(
            "session.html", "sessions", **found, turns=shown, older=last and self.link(before=last.number),
            is_first=before is None,
        )  # fmt: skip


def read_session(client: Client, key: str, before: int | None, with_content: bool) -> dict[str, Any]:
    """Raises: SessionNotFoundError."""
    database = client.connections.database
    session = browsing.get_glance(database, key)
    if session is None:
        raise SessionNotFoundError(key)
    turns = browsing.list_turns(database, session.id, before, PAGE + 1)
    messages: dict[int, list[MessageGlance]] = {}
    for message in browsing.list_messages(
        database, session.id, [turn.number for turn in turns[:PAGE]], with_content=with_content
    ):
        messages.setdefault(message.turn_number, []).append(message)
    waits_for = client.why(key).code if session.waiting or session.running else None
    return {
        "session": session,
        "turns": turns,
        "messages": messages,
        "outlook": client.outlook(key),
        "waits_for": waits_for,
    }


class BatchesPage(Page):
    async def get(self) -> None:
        """Batches, newest first, with how far each is."""
        state = self.asked("state")
        if state not in ("", *BatchState):
            raise HTTPError(400, "there is no such state of a batch")
        wanted = BatchState(state) if state else None
        found = await self.look(read_batches, self.application.client, wanted, self.number("before"))
        shown, last = split(found)
        self.show(
            "batches.html", "batches", batches=shown, states=list(BatchState), state=state,
            older=last and self.link(before=last[0].id), is_first=not self.asked("before"),
        )  # fmt: skip


def read_batches(
    client: Client, state: BatchState | None, before: int | None
) -> list[tuple[BatchRecord, Progress | None]]:
    """Each with its progress; the one that only says that more come has none."""
    database = client.connections.database
    found = batches.list_batches(database, before=before, state=state, limit=PAGE + 1)
    return [(batch, standing(database, batch) if number < PAGE else None) for number, batch in enumerate(found)]


def standing(database: Database, batch: BatchRecord) -> Progress:
    """As ``Batch.progress``, which moves a batch on as well: a page only looks."""
    if batch.is_final:
        counts = {name: getattr(batch, name) for name in batches.COUNTS}
        return Progress(batch.state, batch.total, batch.stored, **counts)
    with database.reading() as db:
        return batches.count(db, batch)


class RetentionPage(Page):
    async def get(self) -> None:
        """Rules and when they are carried out, what is held, what was removed; of one ID all that is known."""
        asked, refused = self.asked("session"), ""
        try:
            key = checked_session_id(asked) if asked else None
        except InvalidSessionIdError as error:
            key, refused = None, str(error)
            self.set_status(400)
        found = await self.look(read_retention, self.application.client, key, self.number("before"))
        shown, last = split(found.pop("runs"))
        self.show(
            "retention.html", "retention", **found, runs=shown, key=key, asked=asked, refused=refused,
            older=last and self.link(before=last.id), is_first=not self.asked("before"),
        )  # fmt: skip


def read_retention(client: Client, key: str | None, before: int | None) -> dict[str, Any]:
    database = client.connections.database
    held = browsing.list_recent(database, SessionFilter(key=key), held=True, limit=FEW + 1)
    return {
        "rules": client.list_rules(),
        "expiries": client.list_expiries(),
        "runs": receipts.list_runs(database, before, PAGE + 1),
        "held": held[:FEW],
        "more_held": len(held) > FEW,
        "receipts": client.list_receipts(key) if key else [],
        "past_holds": client.list_past_holds(key) if key else [],
        "removals": [] if key else browsing.list_removals(database, limit=FEW),
    }
