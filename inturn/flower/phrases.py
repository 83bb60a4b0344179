"""How pages say what they show: times, sums, rules, parts of a bar. What returns HTML says so, and has escaped it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from tornado.escape import xhtml_escape

from inturn.models.money import dollars
from inturn.models.store.batches import BatchRecord, Progress
from inturn.models.store.browsing import MessageGlance, SessionGlance
from inturn.models.store.outlook import Outlook
from inturn.models.store.rules import Rule
from inturn.records import type_of

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
NOTHING = '<span class="value-missing">&mdash;</span>'
COLOURS = {
    "running": "task-state-started",
    "in_progress": "task-state-started",
    "completed": "text-bg-success",
    "failed": "text-bg-danger",
    "halted": "text-bg-danger",
    "expired": "text-bg-warning",
    "queued": "text-bg-warning",
}
WAITING = {"nothing_waits": "nothing"}


def link(path: str, arguments: Mapping[str, object]) -> str:
    """A path with those of the arguments that say something."""
    said = {name: value for name, value in arguments.items() if value not in (None, "")}
    return f"{path}?{urlencode(said)}" if said else path


def number(value: int | None) -> str:
    """HTML: with commas between thousands."""
    return NOTHING if value is None else f"{value:,}"


def cost(usd: float | None) -> str:
    """HTML."""
    return NOTHING if usd is None else f"${xhtml_escape(dollars(usd))}"


def size(many: int) -> str:
    """Bytes, in the largest unit in which they are one at least."""
    amount, units = float(many), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"


def counted(many: int, noun: str) -> str:
    return f"{many:,} {noun}" if many == 1 else f"{many:,} {noun}s"


def span(seconds: float) -> str:
    """A length of time in its largest unit: ``30 days``, ``90 minutes``."""
    for name, length in UNITS:
        if seconds >= length and (seconds % length == 0 or seconds >= length * 10):
            return counted(round(seconds / length), name)
    return counted(round(seconds), "second") if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def moment(when: datetime | None, now: datetime | None = None) -> str:
    """HTML: how long ago, or in what time; the moment itself is its title."""
    if when is None:
        return NOTHING
    away = ((now or datetime.now(UTC)) - when).total_seconds()
    shown = "just now" if abs(away) < 1 else f"{about(away)} ago" if away > 0 else f"in {about(-away)}"
    return f'<time datetime="{when.isoformat()}" title="{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC">{shown}</time>'


def about(seconds: float) -> str:
    name, length = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    return counted(int(seconds // length), name)


def lasted(begin: datetime | None, end: datetime | None) -> str:
    """HTML: how long something took."""
    if begin is None or end is None:
        return NOTHING
    seconds = max(0.0, (end - begin).total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else about(seconds)


def badge(state: str) -> str:
    """HTML: a state in its colour."""
    return (
        f'<span class="badge {COLOURS.get(state, "text-bg-secondary")}">{xhtml_escape(state.replace("_", " "))}</span>'
    )


def state_of(session: SessionGlance) -> str:
    if session.halted_by is not None:
        return "halted"
    return "running" if session.running else "queued" if session.waiting else "idle"


def waits(code: str | None) -> str:
    """What it waits for, in words."""
    return "" if code is None else WAITING.get(code, code.replace("_", " "))


def kind_of(message: MessageGlance) -> str:
    return type_of(message.role, message.position).removesuffix(".message")


def covers(rule: Rule) -> str:
    """Which sessions."""
    if rule.own:
        return "sessions with an idle time of their own"
    found = [f"{rule.match}"] if rule.match != "*" else []
    found += [f"{name}={value}" for name, value in rule.labels.items()]
    found += [rule.model] if rule.model != "*" else []
    if rule.from_batch is not None:
        found.append("of batches" if rule.from_batch else "of no batch")
    return ", ".join(found) or "all others"


def limits(rule: Rule) -> str:
    """When they are removed."""
    found = [f"idle for {span(rule.idle_seconds)}"] if rule.idle_seconds is not None else []
    found += [f"made {span(rule.age_seconds)} ago"] if rule.age_seconds is not None else []
    found += [f"beyond the {rule.more_than:,} active last"] if rule.more_than is not None else []
    return " or ".join(found) or ("after that time" if rule.own else "never")


def becomes(found: Outlook) -> str:
    """HTML: what retention does with a session."""
    if found.rule is None:
        return "kept for ever, as it was made to be"
    rule = xhtml_escape(found.rule.name)
    if found.held:
        return f"held: rule {rule} does not touch it"
    if found.due:
        return f"due now, by rule {rule}"
    when = f", due {moment(found.due_at)}" if found.due_at else ""
    return f"rule {rule}{when}"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar.

    Attributes:
        begin, width: in percent of the whole.
    """

    name: str
    many: int
    begin: float
    width: float


def parts(progress: Progress) -> list[Part]:
    """A batch's bar, from what is done to what is running; the rest waits."""
    return list(_parts(progress))


def _parts(progress: Progress) -> Iterator[Part]:
    begin, whole = 0.0, max(progress.total, 1)
    for name in ("completed", "failed", "cancelled", "expired", "running"):
        many = getattr(progress, name)
        if many:
            width = many * 100 / whole
            yield Part(name, many, begin, width)
            begin += width


def percent(progress: Progress) -> int:
    return progress.done * 100 // max(progress.total, 1)


def counts(progress: Progress) -> list[tuple[str, int]]:
    """What to say of a batch's lines besides how many are done."""
    names = ("failed", "cancelled", "expired", "running", "retrying")
    found = [(name, getattr(progress, name)) for name in names]
    found.append(("waiting", progress.queued - progress.retrying))
    found.append(("not stored yet", 0 if progress.is_final else progress.total - progress.stored))
    return [(name, many) for name, many in found if many]


def title(batch: BatchRecord) -> str:
    return batch.name or str(batch.how.get("source") or "")
