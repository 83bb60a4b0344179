"""What a provider is: somebody who is shown a prompt and replies. The bodies live in ``providers/``.

One ``reply`` is one POST: no provider retries, follows redirects or waits for its turn, because every try at a turn is
an attempt row that was committed before. What went wrong is told in one of three ways, and only in these:

==========  ===============================================================  =================================
kind        meaning                                                          what becomes of the turn
==========  ===============================================================  =================================
safe        the provider did no work for it (refused, 429, 503, 529)         tried again
ambiguous   it may have (deadline, reset, cut off, garbage, 500)             tried again, a few times only
permanent   the same call would fail again (400, 401, 404, a bad setting)    failed at once
==========  ===============================================================  =================================

``retries.py`` decides; ``models/states.py`` uses the same three words for an attempt's outcome.
"""

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

from inturn.models.content import storable

if TYPE_CHECKING:
    from pydantic import SecretStr

FailureKind = Literal["safe", "ambiguous", "permanent"]

REPLY_LIMIT = 4 * 1024 * 1024
"""Bytes of a decoded reply. More is no conversation, and would have to be read, stored and shown again every turn."""
CALLS_LIMIT = 128
"""Tools that one reply may call: as many as OpenAI lets a prompt offer."""

_MESSAGE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that a model may call.

    Attributes:
        parameters: a JSON schema of one object, whose properties are the arguments.
    """

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model wants a tool called.

    Attributes:
        id: the provider's, by which the result is given back.
        arguments: as the model wrote them: a JSON object, or what it took for one.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is shown.

    Attributes:
        model: the provider's own name of it, without ``provider/``.
        messages: oldest first, each with ``role`` and ``content``: a text, or a list of parts as OpenAI writes them
            (``text``, and ``image_url`` with an URL or with the image itself). An assistant's message may have
            ``tool_calls``, as OpenAI writes them, and is followed by one of role ``tool``, with ``tool_call_id``, for each.
        options: of the session and the turn, merged; what they mean is the provider's affair.
        key: stable over all attempts at one call; sent as the idempotency key.
        tools: what the model may call.
    """

    model: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    key: str
    tools: tuple[ToolSpec, ...] = ()

    @property
    def offers_tools(self) -> bool:
        """Ours, or in the provider's own words (the option ``tools``): then whoever asked does what is called."""
        return bool(self.tools or self.options.get("tools"))


@dataclass(frozen=True, slots=True)
class Reply:
    """What it answered. ``content`` is empty only beside ``tool_calls``, which come only where tools were offered."""

    content: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    request_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    cache_read_tokens: int = 0
    """Those of the input tokens that came out of a cache of the provider's: they have a price of their own."""
    cache_write_tokens: int = 0
    """Those that went into one."""
    finish_reason: str | None = None
    """Why it stopped, in its provider's word."""
    answered_by: str | None = None
    """The model, as the provider calls the one that it let answer."""


class ProviderError(Exception):
    """There is no reply.

    Attributes:
        kind: see the table above.
        error_type: in snake_case, for machines: ``rate_limited``, ``timeout``, ``http_500``.
        message: one line for people, with no key and no prompt text in it; cut at 500 characters.
        status_code: the provider's, when it sent one.
        retry_after: seconds that the provider asked to be left alone for.
        input_tokens, output_tokens: what the provider counted all the same, as for a refusal.
    """

    def __init__(
        self,
        kind: FailureKind,
        error_type: str,
        message: str,
        *,
        status_code: int | None = None,
        retry_after: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        self.message = message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 3] + "..."
        super().__init__(self.message)
        self.kind: FailureKind = kind
        self.error_type = error_type
        self.status_code = status_code
        self.retry_after = retry_after
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens


OnDelta = Callable[[str], None]
"""Told each piece of a reply as it arrives, on the loop; has to be quick."""


class Provider(Protocol):
    """Answers prompts. One object per process and configured name, used by thousands of turns at once."""

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """Make one call.

        Args:
            on_delta: given when somebody wants to read along. Who can streams the reply and tells each piece as it
                comes; who cannot leaves it be. Any pieces will do: ``Providers`` makes them fit to be passed on.

        Raises:
            ProviderError: there is no reply. Nothing else; the deadline is the caller's.
        """

    async def aclose(self) -> None:
        """Let go of connections."""


class ProviderConfig(Protocol):
    """The settings of one provider (``settings.ProviderSettings`` is one). The key is read at each use, never kept."""

    @property
    def type(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def api_key_env(self) -> str: ...
    @property
    def api_key_header(self) -> str: ...
    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def deadline_seconds(self) -> float | None: ...
    def model_name(self, model: str) -> str: ...
    def context_tokens(self, model: str) -> int | None: ...
    def api_key(self) -> "SecretStr | None": ...


Builder = Callable[[str, ProviderConfig], Provider]
"""Makes the provider of a type out of its configured name and its settings; runs once, on the loop."""


class Providers:
    """The configured providers of one process, and the deadline around every call to them.

    A provider is built when it is first asked, on the loop that asks: a connection pool belongs to its loop.

    Args:
        configured: settings by provider name.
        builders: what can be made, by ``type``.
        deadline_seconds: for one reply in total, where the provider's settings name none. httpx's own timeouts are
            per operation: a server that drips a byte a second never trips them.
    """

    def __init__(
        self, configured: Mapping[str, ProviderConfig], builders: Mapping[str, Builder], *, deadline_seconds: float
    ) -> None:
        self._configured = configured
        self._builders = builders
        self._deadline_seconds = deadline_seconds
        self._built: dict[str, Provider] = {}

    async def reply(self, model: str, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """Ask ``provider/model``, once.

        Args:
            on_delta: told the reply while it arrives. Whatever the provider does, the pieces can be stored as they are,
                and the reply is their sum; a reply that was not told in pieces is told at its end, as one. Tool calls
                are not told.

        Raises:
            ProviderError: there is no reply. Nothing else but a cancellation leaves here. The pieces that were told by
                then are what there was.
        """
        name, _, bare_model = model.partition("/")
        deadline, telling = self._deadline(name), _Telling(model, on_delta)
        try:
            provider = self._provider(name)
            asked = replace(prompt, model=self._configured[name].model_name(bare_model))
            async with asyncio.timeout(deadline):
                reply = await provider.reply(asked, telling.tell if on_delta is not None else None)
            content = telling.whole(reply.content)
            calls = _storable_calls(model, content, reply.tool_calls) if prompt.offers_tools else ()
            return replace(reply, content=content, tool_calls=calls)
        except ProviderError:
            raise
        except TimeoutError:
            message = f"{model} gave no whole reply within {deadline:g} s. If it needs longer, raise "
            message += f"deadline_seconds of provider {name}"
            raise ProviderError("ambiguous", "timeout", message) from None
        except Exception as error:  # noqa: BLE001 (whoever wrote the provider, a turn has to end)
            raise _bug(model, error) from None
        finally:
            telling.is_over = True

    async def aclose(self) -> None:
        """Close every provider that was built; a failure to close is nobody's problem any more."""
        while self._built:
            _, provider = self._built.popitem()
            with contextlib.suppress(Exception):
                await provider.aclose()

    def _deadline(self, name: str) -> float:
        config = self._configured.get(name)
        return (config and config.deadline_seconds) or self._deadline_seconds

    def _provider(self, name: str) -> Provider:
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    def _build(self, name: str) -> Provider:
        config = self._configured.get(name)
        if config is None:
            raise _not_configured(name, f"this worker has {', '.join(sorted(self._configured)) or 'none'}")
        builder = self._builders.get(config.type)
        if builder is None:
            raise _not_configured(name, f"its type {config.type!r} is none of {', '.join(sorted(self._builders))}")
        return builder(name, config)


class _Telling:
    """One reply on its way from a provider to who reads along: fit to be stored, and capped.

    Attributes:
        is_over: nothing is passed on any more, should a provider go on talking.
    """

    def __init__(self, model: str, on_delta: OnDelta | None) -> None:
        self._model = model
        self._on_delta = on_delta
        self._told: list[str] = []
        self._half = ""
        self._left = REPLY_LIMIT
        self.is_over = False

    def tell(self, piece: str) -> None:
        """Pass a piece on. The first half of a surrogate pair waits for the other one.

        Raises:
            ProviderError: the reply is over the cap.
        """
        text = self._half + piece
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self._pass_on(text[: len(text) - len(self._half)])

    def whole(self, content: str) -> str:
        """The reply: what was told of it, or else ``content``, which is told now.

        Raises:
            ProviderError: the reply is over the cap.
        """
        self._pass_on(self._half if self._told or self._half else content)
        if self._left < 0:
            raise too_large(self._model)  # whoever was told so before paid no heed
        return "".join(self._told)

    def _pass_on(self, text: str) -> None:
        text = storable(text)
        if not text or self.is_over:
            return
        self._left -= len(text) if text.isascii() else len(text.encode())
        if self._left < 0:
            raise too_large(self._model)
        self._told.append(text)
        if self._on_delta is not None:
            self._on_delta(text)


def _storable_calls(model: str, content: str, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """Tool calls that can be stored, and no more of them than may be.

    Raises:
        ProviderError: there are too many, or they and the content are over the cap.
    """
    if len(calls) > CALLS_LIMIT:
        raise too_many_calls(model)
    storables = tuple(ToolCall(storable(one.id), storable(one.name), storable(one.arguments)) for one in calls)
    texts = (content, *(text for one in storables for text in (one.id, one.name, one.arguments)))
    if calls and sum(len(text.encode()) for text in texts) > REPLY_LIMIT:
        raise too_large(model)
    return storables


def too_many_calls(model: str) -> ProviderError:
    """A model that has lost its way; the next time it may not."""
    message = f"{model} called more than {CALLS_LIMIT} tools at once; none was. Ask for less, or offer fewer tools"
    return ProviderError("ambiguous", "bad_reply", message)


def too_large(model: str) -> ProviderError:
    """The reply went over the cap; asking again would most likely make another one like it."""
    return ProviderError(
        "permanent",
        "reply_too_large",
        f"{model} replied with more than {REPLY_LIMIT // 1024**2} MiB; it was cut off and not kept. "
        "Ask for less, or limit max_tokens",
    )


def _bug(model: str, error: Exception) -> ProviderError:
    """A mistake in a provider's code: told by its place only, as its message and its causes may hold prompt or key."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {PurePath(frame.filename).name}, line {frame.lineno}"
    return ProviderError("ambiguous", "provider_bug", f"{model}: the provider's code failed with {place}. Report it")


def _not_configured(name: str, because: str) -> ProviderError:
    key = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}.get(name)
    remedy = f"Set {key} in the worker's environment" if key else f"Add [providers.{name}] to the worker's inturn.toml"
    message = f"provider {name!r} is not configured: {because}. {remedy} and restart it"
    return ProviderError("permanent", "provider_not_configured", message)
