"""Everything of ours that is in Redis, and the only place that puts it there or names it.

===========================  =======  ==========================================================  =====================
name                         type     what                                                        who takes it away
===========================  =======  ==========================================================  =====================
chat, batch, maintenance     list     Celery's queues, one a lane. A hint says that a session     the worker that reads
                                      has work; losing one delays, never loses: the sweep sends   it
                                      another
inturn:replies:<session>     channel  rung when a turn of the session became final                nobody: not stored
inturn:cancels               channel  rung when a running turn is to be cancelled                 nobody: not stored
inturn:live:<session>        stream   the reply that is being written, of a turn that was sent    expires: a minute after
                                      to be heard (``streams``): its latest attempt from the      its end, some minutes
                                      beginning, in entries that ``live.py`` describes. Losing    longer than any call;
                                      it costs liveness: the reply comes from the database        deleted with its session,
                                                                                                  when an empty string
                                                                                                  stands there for a minute
inturn:live:<session>        channel  rung when the stream of that name has more                  nobody: not stored
inturn:limit:<provider>      hash     when its next call is due (``limits.lua``)                  expiry, once nobody calls
inturn:limit:<provider>:...  sorted   ``slots``, ``chat``: turns with a moment reserved;          expiry, once nobody calls
                             sets     ``flight``: with a call under way
inturn:cool:<model>          string   there while all workers are to leave the model alone (429)  expiry
inturn:checkup               string   `inturn doctor` tried whether anything can be written         expiry, at once
_kombu...celery.pidbox       set      hosts that had workers, Celery's; of those that were killed,  each cleanup: who is
                                      too, for ever                                               alive joins it again
_kombu.*, unacked*, *.pidbox various  Celery's own bookkeeping                                    Celery
===========================  =======  ==========================================================  =====================

No text of a conversation is in any of them but the live stream, and there only where its sender asked for it.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from inturn.models.errors import BrokerUnreachableError
from inturn.models.states import Lane
from inturn.urls import masked_url

logger = logging.getLogger(__name__)

SEND_MESSAGE = "inturn.send_message"
REMOVE_EXPIRED_SESSIONS = "inturn.remove_expired_sessions"
CARRY_OUT_RULES = "inturn.carry_out_rules"
CANCELS = "inturn:cancels"
CHECKUP = "inturn:checkup"
MAILBOXES = "_kombu.binding.celery.pidbox"

BROKER_TIMEOUT_SECONDS = 1.0
"""The longest that a producer waits for Redis, to connect and to be answered."""
BREAKER_SECONDS = 30.0
"""How long nothing is published after Redis kept a producer waiting."""
SWEEPER_SECONDS = 2.0
"""The same for who sweeps: others rely on it, and nobody waits for its threads."""
REFUSED_SECONDS = 1.0
"""How long nothing is published after Redis refused at once, as one that is being restarted does."""

NO_RETRIES = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
ONCE: dict[str, Any] = {"ignore_result": True, "retry": False, "retry_policy": NO_RETRIES}


class HasWork(Protocol):
    """What a hint is made of: ``Sent`` and ``Ready`` both are."""

    @property
    def session_id(self) -> int: ...
    @property
    def lane(self) -> Lane: ...


def replies(session_id: int) -> str:
    """The channel that is rung when a turn of the session became final."""
    return f"inturn:replies:{session_id}"


def limit_keys(provider: str) -> list[str]:
    """What counts a provider's calls: how often, who may call when, and who is calling; ``limits.lua`` says how."""
    name = f"inturn:limit:{provider}"
    return [name, f"{name}:slots", f"{name}:flight", f"{name}:chat"]


def cooldown(model: str) -> str:
    """The key that is there for as long as a model is to be left alone."""
    return f"inturn:cool:{model}"


def live(session_id: int) -> str:
    """The stream of the reply that is being written in the session, and the channel that is rung when there is more."""
    return f"inturn:live:{session_id}"


class Hints:
    """Publishes hints, bounded in time: a hint is worth waiting for Redis once, and not again for a while.

    After a timeout nothing is published for 30 s (the sweep covers what is left out): with Redis frozen, one send in
    30 s takes 1.5 s, and the others no longer than the database does.
    """

    def __init__(self, app: Celery, breaker_seconds: float = BREAKER_SECONDS) -> None:
        self.app, self._breaker_seconds = app, breaker_seconds
        self.failed = 0
        # An embedded broker that nobody has started yet is no trouble: whoever waits for a reply starts it.
        self._level = logging.DEBUG if app.settings.has_embedded_broker else logging.WARNING
        self._closed_until = 0.0

    def publish(self, work: HasWork, key: str) -> bool:
        """Tell the lane's workers that a session has work. Returns False, and never raises, if Redis did not take it."""
        return self._bounded(lambda: self._send(work, key), f"session={key}")

    def ask(self, task: str, expires_seconds: float) -> bool:
        """Have whoever serves maintenance do something, unless that takes too long to begin. Returns as ``publish`` does."""
        how = {"queue": str(Lane.MAINTENANCE), "expires": expires_seconds, **ONCE}
        return self._bounded(lambda: self.app.send_task(task, **how), f"task={task}")

    def _bounded(self, send: Callable[[], object], what: str) -> bool:
        began = time.monotonic()
        if began < self._closed_until:
            self.failed += 1
            return False
        try:
            send()
        except (OperationalError, redis.RedisError, OSError) as error:
            self.failed += 1
            now = time.monotonic()
            self._closed_until = now + (
                self._breaker_seconds if now - began > BROKER_TIMEOUT_SECONDS / 2 else REFUSED_SECONDS
            )
            missed = "action=hint_failed %s reason=%r: workers will find it by themselves"
            logger.log(self._level, missed, what, str(error))
            return False
        return True

    def retry_now(self) -> None:
        """Redis was just started: the next hint is published again."""
        self._closed_until = 0.0

    def _send(self, work: HasWork, key: str) -> None:
        self.app.send_task(
            SEND_MESSAGE,
            args=({"v": 1, "session": work.session_id},),
            argsrepr=f"({key!r},)",
            kwargsrepr="{}",
            queue=str(work.lane),
            **ONCE,
        )


def queued(broker: redis.Redis, lane: Lane) -> int | None:
    """How many hints a lane's queue holds; None if Redis does not say."""
    try:
        length: Any = broker.llen(lane)
    except (redis.RedisError, OSError) as error:
        logger.info("action=queue_not_read lane=%s reason=%s", lane, error)
        return None
    return int(length)


def forget_mailboxes(broker_url: str) -> None:
    """Of workers that were killed. Remote control goes through a channel, so nobody misses anything until those who are
    alive have signed on again. Raises nothing where Redis does not answer: the next cleanup is soon.
    """
    try:
        with connect(broker_url) as client:
            client.delete(MAILBOXES)
    except (redis.RedisError, OSError) as error:
        logger.info("action=mailboxes_not_forgotten reason=%s", error)


def about(broker_url: str) -> dict[str, Any]:
    """What the broker says of itself (Redis' INFO).

    Raises:
        BrokerUnreachableError: it does not answer, or is no Redis.
    """
    try:
        with connect(broker_url) as client:
            told: dict[str, Any] = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        raise BrokerUnreachableError(
            f"{masked_url(broker_url)} does not answer ({error}): start it, or set INTURN_BROKER_URL"
        ) from error
    return told


def redis_url(broker_url: str) -> str:
    """The broker's URL as redis-py writes it (Celery says ``redis+socket`` for a unix socket)."""
    return broker_url.replace("redis+socket://", "unix://", 1)


def connect(broker_url: str, **options: Any) -> redis.Redis:
    """A client for everything but Celery's messages. Its commands wait no longer than ``BROKER_TIMEOUT_SECONDS``."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    bounded = {"socket_timeout": BROKER_TIMEOUT_SECONDS, "socket_connect_timeout": BROKER_TIMEOUT_SECONDS}
    return redis.Redis.from_url(redis_url(broker_url), retry=Retry(NoBackoff(), 0), **(bounded | options))
