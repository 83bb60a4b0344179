"""Asking what a session or a turn waits for: with what the settings say about waiting, and what Redis says about hints."""

from inturn.connections import Connections
from inturn.models.content import checked_session_id, checked_turn_id, is_turn_id
from inturn.models.errors import SessionNotFoundError
from inturn.models.store import diagnosis
from inturn.models.store.situation import Reason, Terms
from inturn.settings import Settings
from inturn.workers.queues import queued


def why(connections: Connections, settings: Settings, asked: str) -> Reason:
    """See ``Client.why``. A session may be called like a turn, and comes first then.

    Raises:
        SessionNotFoundError, TurnNotFoundError: there is none of that ID.
    """
    key, terms = checked_session_id(asked), terms_of(connections, settings)
    try:
        return diagnosis.why(connections.database, key, terms)
    except SessionNotFoundError:
        if not is_turn_id(key):
            raise
    return diagnosis.why_turn(connections.database, *checked_turn_id(key), terms)


def terms_of(connections: Connections, settings: Settings) -> Terms:
    def deadline(model: str) -> float:
        provider = settings.available_providers.get(model.partition("/")[0])
        return (provider and provider.deadline_seconds) or settings.attempt_deadline_seconds

    return Terms(
        max_attempts=settings.max_attempts,
        max_rescues=settings.effective_max_rescues,
        sweep_seconds=settings.sweep_seconds,
        silent_seconds=settings.silent_seconds,
        batch_share=settings.batch_share,
        has_embedded_broker=settings.has_embedded_broker,
        deadline_seconds=deadline,
        queued_hints=lambda lane: queued(connections.broker, lane),
    )
