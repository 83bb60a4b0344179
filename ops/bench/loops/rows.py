"""The one table of the bare loops, as SQLAlchemy's ORM sees it."""

from sqlalchemy import Select, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ops.bench.workload import CONTEXT_MESSAGES


class Base(DeclarativeBase):
    pass


class MessageRow(Base):
    """A message. ``created_at`` is the database's to fill and the meter's to read, so it is not mapped."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[int]
    turn_number: Mapped[int]
    position: Mapped[int]
    role: Mapped[str]
    content: Mapped[str]


def last_messages(session: int, turn: int) -> Select[MessageRow]:
    """The context of a turn, newest first."""
    return (
        select(MessageRow)
        .where(MessageRow.session_id == session, MessageRow.turn_number <= turn)
        .order_by(MessageRow.turn_number.desc(), MessageRow.position.desc())
        .limit(CONTEXT_MESSAGES)
    )


def as_prompt(newest_first: list[MessageRow]) -> list[dict[str, str]]:
    """Messages as chat completions want them: oldest first, role and content."""
    return [{"role": row.role, "content": row.content} for row in reversed(newest_first)]


def reply_row(session: int, turn: int, content: str) -> MessageRow:
    return MessageRow(session_id=session, turn_number=turn, position=1, role="assistant", content=content)
