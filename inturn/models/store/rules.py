"""Retention rules: which sessions each covers, and which of those are due."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, and_, exists, literal_column, not_, or_, select

from inturn.models.clock import ago, now
from inturn.models.states import Kept, Retention, SessionState
from inturn.models.store.selecting import has_label, has_work, is_like
from inturn.models.tables import SCHEDULES, SESSIONS


@dataclass(frozen=True, slots=True)
class Rule:
    """When sessions are removed, or what was said in them. Of several rules that would cover a session, the first does.

    Attributes:
        name: what receipts call it.
        match, model: of which IDs, and of which ``provider/model``: ``*`` is any run of characters, ``?`` any one.
        labels: what a session is labelled with, all of it.
        from_batch: whether a batch made it; None: either way.
        idle_seconds, age_seconds: due after so long without activity, or since it was made, or imported.
        more_than: due, but for so many that were active last.
        archive: where transcripts are written to before; empty: nowhere.
        keep: what is left of a session; ``metadata``: only what was said is removed, once until more is said.
        own: it covers sessions with an idle time of their own (and goes by that, if it has none itself).
    """

    name: str
    match: str = "*"
    model: str = "*"
    labels: Mapping[str, str] = field(default_factory=dict)
    from_batch: bool | None = None
    idle_seconds: float | None = None
    age_seconds: float | None = None
    more_than: int | None = None
    archive: str = ""
    keep: Kept = Kept.NOTHING
    own: bool = False

    def matches(self, dialect: str) -> ColumnElement[bool]:
        """What it says of which sessions, whatever the rules before it say."""
        found: list[ColumnElement[bool]] = [is_like(dialect, SESSIONS.c.key, self.match)]
        if self.model != "*":
            found.append(is_like(dialect, SESSIONS.c.model, self.model))
        found += [has_label(dialect, name, value) for name, value in self.labels.items()]
        if self.from_batch is not None:
            found.append(SESSIONS.c.batch_id.is_not(None) if self.from_batch else SESSIONS.c.batch_id.is_(None))
        return and_(*found)


OWN = Rule("own", own=True)
"""Sessions that were given an idle time of their own: it goes before all configured rules."""


def default_rule(idle_seconds: float) -> Rule:
    """For what no other rule covers."""
    return Rule("default", idle_seconds=idle_seconds)


def older_than(idle_seconds: float) -> Rule:
    """One for once: over all sessions but those that are held, or were made to be kept for ever."""
    return Rule("older-than", idle_seconds=idle_seconds, own=True)


def covered(dialect: str, rules: Sequence[Rule], rule: Rule) -> ColumnElement[bool]:
    """The sessions that a rule covers: the first of ``rules`` that does."""
    if rule.own:
        mine = SESSIONS.c.retention == Retention.IDLE if rule.idle_seconds is None else ~is_kept()
        return and_(mine, rule.matches(dialect))
    before = [not_(each.matches(dialect)) for each in rules[: rules.index(rule)] if not each.own]
    return and_(SESSIONS.c.retention == Retention.POLICY, rule.matches(dialect), *before)


def is_kept() -> ColumnElement[bool]:
    return SESSIONS.c.retention == Retention.NEVER


def due(db: Connection, rules: Sequence[Rule], rule: Rule) -> ColumnElement[bool] | None:
    """The sessions that a rule would remove now: covered, over its limits, and ``removable``. Where it keeps metadata, those
    without content are none of them, nor do they count as any of those that stay.

    Returns: None, if it never removes any.
    """
    dialect = db.dialect.name
    over = list[ColumnElement[bool]]()
    if rule.own and rule.idle_seconds is None:
        over.append(SESSIONS.c.last_activity_at < now(-SESSIONS.c.retention_seconds))
    if rule.idle_seconds is not None:
        over.append(SESSIONS.c.last_activity_at < ago(rule.idle_seconds))
    if rule.age_seconds is not None:
        over.append(is_older(rule.age_seconds))
    mine = covered(dialect, rules, rule)
    if rule.keep is Kept.METADATA:
        mine = and_(mine, has_content())
    if rule.more_than is not None and (last := _last_to_stay(db, mine, rule.more_than)) is not None:
        over.append(last)
    return and_(or_(*over), mine, removable()) if over else None


def is_older(seconds: float) -> ColumnElement[bool]:
    """By when it was made, or imported, which is later; but that by the index."""
    imported = or_(SESSIONS.c.imported_at.is_(None), SESSIONS.c.imported_at < ago(seconds))
    return and_(SESSIONS.c.created_at < ago(seconds), imported)


def _last_to_stay(db: Connection, mine: ColumnElement[bool], many: int) -> ColumnElement[bool] | None:
    """Behind the many that were active last. By a moment rather than a rank, which each chunk would work out anew."""
    active = SESSIONS.c.state == SessionState.ACTIVE
    if not many:
        return active
    place = (SESSIONS.c.last_activity_at, SESSIONS.c.id)
    newest = select(*place).where(mine, active).order_by(*(column.desc() for column in place))
    last = db.execute(newest.offset(many - 1).limit(1)).one_or_none()
    if last is None:
        return None
    moment, session_id = last
    return or_(
        SESSIONS.c.last_activity_at < moment,
        and_(SESSIONS.c.last_activity_at == moment, SESSIONS.c.id < session_id),
    )


def removable() -> ColumnElement[bool]:
    """Neither held, nor at work, nor sent prompts to by a schedule."""
    scheduled = exists().where(
        SCHEDULES.c.session_key == SESSIONS.c.key, SCHEDULES.c.new_session.is_(False), SCHEDULES.c.next_at.is_not(None)
    )
    return and_(SESSIONS.c.held.is_(False), SESSIONS.c.state == SessionState.ACTIVE, ~has_work(), ~scheduled)


def has_content() -> ColumnElement[bool]:
    """Whether something was said in it that is there still, or it was never looked at: ``CONTENT_IS_LEFT`` term by term, as
    only so it is plain to both databases that the indexes on it have them all.
    """
    return or_(
        SESSIONS.c.content_removed_at.is_(None),
        SESSIONS.c.next_turn > SESSIONS.c.content_removed_to + literal_column("1"),
        SESSIONS.c.system_turn.is_not(None),
    )


def order_of(rule: Rule) -> tuple[ColumnElement[object], ...]:
    """Along the index in which what is due comes first: where nothing is, that is seen at once."""
    by_age = rule.age_seconds is not None and rule.idle_seconds is None and rule.more_than is None
    return (SESSIONS.c.created_at if by_age else SESSIONS.c.last_activity_at), SESSIONS.c.id
