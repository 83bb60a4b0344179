"""A reply while it is put together, out of one payload or out of many events; and what keeps it from being one."""

from typing import Any

import inturn.workers.providers.payload as read
from inturn.workers.provider import FailureKind, OnDelta, ProviderError, Reply
from inturn.workers.providers.calls import Calls
from inturn.workers.providers.exchange import Answer
from inturn.workers.providers.overlong import FAILURE
from inturn.workers.providers.question import Question
from inturn.workers.providers.refusals import broken_off, error_of
from inturn.workers.providers.scrubbing import one_line

_NO_ROOM = "model_context_window_exceeded"
"""Anthropic's word: the prompt fitted, and the reply did not."""
_TOO_LONG = ("length", "max_tokens")


class Draft:
    """What there is of a reply.

    Attributes:
        stop: why the model ended, in the provider's own word; None as long as it has not.
        is_refused: the model said that it will not answer.
        input_tokens, output_tokens: the provider's latest figures. They go along with a failure, too: it was paid for.
        calls: of tools; nobody's where no tools were offered.
        request_id: the provider's name of the reply, used where no header has one.
        model: the provider's name of who answers.
    """

    def __init__(self, question: Question, on_delta: OnDelta | None = None) -> None:
        self._question = question
        self._on_delta = on_delta
        self._pieces: list[str] = []
        self.calls = Calls(question)
        self.stop: str | None = None
        self.is_refused = False
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cache_read_tokens = self.cache_write_tokens = 0
        self.request_id: Any = None
        self.model: Any = None

    def add(self, content: Any) -> None:
        """Another piece, as a text or as parts."""
        for text in read.texts(content):
            if text:
                self._pieces.append(text)
                if self._on_delta is not None:
                    self._on_delta(text)

    def take(self, text: bytes | str, answer: Answer | None = None) -> dict[str, Any]:
        """What the provider sent, as the object that it has to be.

        Args:
            answer: of which it is the body; without one it is of an event.

        Raises:
            ProviderError: it is none, or an error.
        """
        payload = read.read_json(text)
        if not isinstance(payload, dict):
            raise self._no_object(answer)
        if error_of(payload) is not None:
            raise self._counted(broken_off(self._question, payload, has_part=bool(self._pieces or self.calls)))
        return payload

    def stopped(self, reason: Any) -> None:
        """Note why it ended, if this says so."""
        if isinstance(reason, str) and reason:
            self.stop = reason

    def reply(self, answer: Answer) -> Reply:
        """The reply, at its end.

        Raises:
            ProviderError: there is neither text nor a call, or the model or a filter kept it back.
        """
        if self.is_refused or self.stop == "refusal":
            raise self._kept_back(answer, "refusal", "refused to answer")
        if self.stop == "content_filter":
            raise self._kept_back(answer, "content_filter", "was stopped by the provider's content filter")
        if self.stop == "error":  # OpenRouter's word, should the error itself be missing
            fact = f"answered {answer.status} and broke off with an error. It was at work; ask again"
            raise self._failed("ambiguous", "error_in_reply", fact, answer.status)
        if not self._pieces and not self.calls:
            raise self._empty(answer)
        if not self.calls.are_named:
            fact = f"answered {answer.status} and called a tool without naming it. Offer it fewer, or ask another model"
            raise self._failed("ambiguous", "bad_reply", fact, answer.status)
        headers = answer.headers
        request_id = headers.get("x-request-id") or headers.get("request-id") or self.request_id
        return Reply(
            "".join(self._pieces),
            self.input_tokens,
            self.output_tokens,
            one_line(request_id)[:200] if isinstance(request_id, str) else None,
            self.calls.finished(),
            self.cache_read_tokens,
            self.cache_write_tokens,
            one_line(self.stop)[:60] if self.stop else None,
            one_line(self.model)[:200] if isinstance(self.model, str) and self.model else None,
        )

    def _empty(self, answer: Answer) -> ProviderError:
        if self.stop == _NO_ROOM:
            kind, error_type, advice = FAILURE
            fact = f"answered {answer.status} with no text in it, as there was no room for any. {advice}"
            return self._failed(kind, error_type, fact, answer.status)
        reason = one_line(str(self.stop))[:40]
        advice = "Raise max_tokens" if self.stop in _TOO_LONG else "Check the options of the session"
        fact = f"answered {answer.status} with no text in it (it stopped for the reason {reason}). {advice}"
        return self._failed("ambiguous", "bad_reply", fact, answer.status)

    def _kept_back(self, answer: Answer, error_type: str, fact: str) -> ProviderError:
        fact += f" (status {answer.status}). The same again would end alike: change the prompt, what it is shown, "
        fact += "or the model"
        return self._failed("permanent", error_type, fact, answer.status)

    def _no_object(self, answer: Answer | None) -> ProviderError:
        """The content type is all that is told of it."""
        remedy = f"Check the base_url of provider {self._question.provider}; does it end with /v1?"
        if answer is None:
            fact = f"answered 200 with a stream, and in it an event that is no JSON object. {remedy}"
            return self._failed("ambiguous", "bad_reply", fact, 200)
        kind = one_line(answer.headers.get("content-type", "no content type"))[:60]
        fact = f"answered {answer.status} with no JSON object ({len(answer.body)} bytes of {kind}). {remedy}"
        return self._failed("ambiguous", "bad_reply", fact, answer.status)

    def _failed(self, kind: FailureKind, error_type: str, fact: str, status_code: int) -> ProviderError:
        return self._counted(self._question.failed(kind, error_type, fact, status_code=status_code))

    def _counted(self, error: ProviderError) -> ProviderError:
        error.input_tokens, error.output_tokens = self.input_tokens, self.output_tokens
        return error
