"""What is in the stream ``inturn:live:<session>``: the reply that is being written, for whoever listens.

=======  =========================  =================================================================================
entry    fields                     what it says
=======  =========================  =================================================================================
begin    turn, attempt              an attempt begins, and everything before it is void: it is gone from the stream
text     turn, attempt, at, text    more of the reply; ``at``: how many characters of the attempt's text come before
end      turn, attempt, end         nothing more will come of this attempt: the database says why
=======  =========================  =================================================================================

Turns and attempts of a session only grow, and so who reads can tell: an entry of an earlier one comes from a worker that
has lost the session and does not know it yet. Thanks to ``at``, an entry that was written twice says nothing new, and
one that is missing is noticed.

Nothing depends on any of it. The reply is what the database says.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
import redis

from inturn.models.content import storable
from inturn.workers.queues import live

if TYPE_CHECKING:
    from inturn.models.store.sweeping import CutOff

BEGINNING = "0-0"
ENDED_SECONDS = 60
"""How long a stream stays after its end. Who comes later finds the reply in the database."""
FORGOTTEN_SECONDS = 60
"""How long nothing is told of a session that was deleted: its worker notices at its next heartbeat."""

# One script for all that is to be told, and JSON for its arguments: a command for each would cost the worker ten times as
# much, nearly all of it for putting commands together and taking answers apart.
#
# ``MAXLEN 1`` where a DEL would do as well: it empties the stream and keeps its counter, so that who reads on from the last
# entry that it knows misses none. A stream that was lost is not begun in the middle (``NOMKSTREAM``): the script answers
# which entries have nothing before them, and they are told again from the beginning. Only beginnings and ends say how long
# a stream lives, as no call takes as long.
#
# Nothing of it is written to the append-only file (``REPL_NONE``): text that is deleted would stay in there. A string in
# the stream's place is what ``forget`` leaves.
SCRIPT = """
redis.set_repl(redis.REPL_NONE)
local torn = {}
for place, entry in ipairs(cjson.decode(ARGV[1])) do
  local key, turn, attempt, at, text, over = KEYS[place], unpack(entry)
  if redis.call('TYPE', key).ok == 'string' then
    -- forgotten
  elseif over then
    redis.call('XADD', key, '*', 'turn', turn, 'attempt', attempt, 'end', 1)
    redis.call('EXPIRE', key, ARGV[3])
  elseif text == '' then
    redis.call('XADD', key, 'MAXLEN', 1, '*', 'turn', turn, 'attempt', attempt)
    redis.call('EXPIRE', key, ARGV[2])
  elseif at == 0 then
    redis.call('XADD', key, '*', 'turn', turn, 'attempt', attempt, 'at', at, 'text', text)
    redis.call('EXPIRE', key, ARGV[2])
  elseif not redis.call('XADD', key, 'NOMKSTREAM', '*', 'turn', turn, 'attempt', attempt, 'at', at, 'text', text) then
    torn[#torn + 1] = place
  end
  redis.call('PUBLISH', key, '')
end
return torn
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: a beginning, unless it has ``text`` or is the ``end``."""

    turn: int
    attempt: int
    at: int = 0
    text: str = ""
    end: bool = False


class Stylus:
    """Writes entries, of any number of sessions at once."""

    def __init__(self, broker: redis.Redis, live_seconds: int) -> None:
        self._script = broker.register_script(SCRIPT)
        self._live_seconds = live_seconds

    def write(self, lines: Sequence[tuple[int, Entry]]) -> set[int]:
        """Append entries, each to its session's stream, and ring for who listens.

        Returns: the places (from 0) of entries that were left out, as what comes before them is lost.

        Raises:
            redis.RedisError, OSError: it is not known how many were written.
        """
        said = [(entry.turn, entry.attempt, entry.at, storable(entry.text), entry.end) for _, entry in lines]
        keys = [live(session) for session, _ in lines]
        torn: Any = self._script(keys=keys, args=(orjson.dumps(said), self._live_seconds, ENDED_SECONDS))
        return {place - 1 for place in torn}


def read(broker: redis.Redis, session_id: int, after: str = BEGINNING) -> tuple[str, list[Entry]]:
    """What stands in a session's stream behind an entry. Returns the last entry's ID, to read on from.

    Raises:
        redis.RedisError, OSError: it cannot be read now.
    """
    try:
        found: Any = broker.xrange(live(session_id), min=f"({after}")
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        found = []  # it was forgotten
    return (found[-1][0].decode() if found else after), [_entry(fields) for _, fields in found]


def joined(entries: Iterable[Entry]) -> list[Entry]:
    """Texts that follow one another as one: who has missed many of them gets them at once."""
    runs = list[list[Entry]]()
    for entry in entries:
        if runs and entry.text and entry == _continued(runs[-1], entry.text):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return [replace(run[0], text="".join(entry.text for entry in run)) for run in runs]


def _continued(run: Sequence[Entry], text: str) -> Entry:
    """What an entry with this text is that stands right behind these."""
    return replace(run[-1], at=run[-1].at + len(run[-1].text), text=text)


def forget(broker: redis.Redis, session_id: int) -> None:
    """Of a session that was deleted: what was told of it is gone, and what its worker tells until it notices is dropped."""
    with contextlib.suppress(redis.RedisError, OSError):
        broker.set(live(session_id), b"", ex=FORGOTTEN_SECONDS)


def rewrite(broker: redis.Redis) -> None:
    """Have Redis write its append-only file anew: a stream that was there when it was rewritten last is in it."""
    with contextlib.suppress(redis.RedisError, OSError):
        broker.bgrewriteaof()


def _entry(fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        int(fields[b"turn"]),
        int(fields[b"attempt"]),
        int(fields.get(b"at", 0)),
        fields.get(b"text", b"").decode(errors="replace"),
        b"end" in fields,
    )


class Transcript:
    """The text of a turn's latest attempt, put together from entries; some may come twice, and some never."""

    def __init__(self, turn: int) -> None:
        self.turn, self.attempt = turn, 0
        self._pieces: list[str] = []
        self._length = 0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def is_empty(self) -> bool:
        return not self._pieces

    def concerns(self, entry: Entry) -> bool:
        """Whether it is of this turn, and of no attempt that is over."""
        return entry.turn == self.turn and entry.attempt >= self.attempt

    def add(self, entry: Entry) -> str:
        """Take down an entry that concerns it; a new attempt's begins it anew. Returns what is new of the text."""
        if entry.attempt > self.attempt:
            self.begin_anew(entry.attempt)
        known = self._length - entry.at
        return self.append(entry.text[known:]) if 0 <= known < len(entry.text) else ""

    def append(self, text: str) -> str:
        if text:
            self._pieces.append(text)
            self._length += len(text)
        return text

    def begin_anew(self, attempt: int) -> None:
        self.attempt, self._length = attempt, 0
        self._pieces.clear()


def heard(broker: redis.Redis, turns: Iterable["CutOff"]) -> Iterator[tuple["CutOff", str]]:
    """What is left in Redis of replies whose workers died. Ends early, and raises nothing, where Redis does not answer."""
    for turn in turns:
        try:
            _, entries = read(broker, turn.session_id)
        except (redis.RedisError, OSError):
            return
        transcript = Transcript(turn.number)
        for entry in entries:
            if transcript.concerns(entry) and entry.attempt == turn.attempt:
                transcript.add(entry)
        if not transcript.is_empty:
            yield turn, transcript.text
