"""Why there is no list of models, told as what follows the provider's name: what happened, and what mends it."""

import socket
import ssl
from enum import Enum
from typing import Literal


class NoListError(Exception):
    """The provider gave none.

    Attributes:
        state: ``fail`` where no call would get through either.
    """

    def __init__(self, sentence: str, state: Literal["note", "warn", "fail"] = "fail") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.state = state


class Stage(Enum):
    """What was waited for last, and what it means that it did not come."""

    ADDRESS = (
        "cannot be reached from here: no address for {place} within {seconds:g} s. Check its base_url, and the DNS"
    )
    CONNECTION = "cannot be reached from here: no connection to {place} within {seconds:g} s. Is it up, and in reach?"
    TLS = "cannot be reached from here: no TLS with {place} within {seconds:g} s. Does it speak https?"
    ANSWER = "took the connection at {place}, and did not answer within {seconds:g} s. Is it starting, or overloaded?"
    REST = "began to answer at {place}, and was not done within {seconds:g} s. Is it a server of models?"


STAGES = {
    "connection.connect_tcp.started": Stage.CONNECTION,
    "connection.start_tls.started": Stage.TLS,
    "http11.send_request_headers.started": Stage.ANSWER,
    "http11.receive_response_body.started": Stage.REST,
}
"""By the names that httpcore gives to what it does."""

HAS_NONE = (404, 405, 501)


def late(stage: Stage, place: str, seconds: float) -> NoListError:
    """It did not come in time."""
    return NoListError(stage.value.format(place=place, seconds=seconds))


def broken(error: Exception, stage: Stage, place: str, *, tls: bool) -> NoListError:
    """The connection did not come about, or did not last.

    httpx's own exceptions do not tell a name without address from a server that is down. Their causes do, as contexts:
    httpcore takes the causes back.
    """
    cause: BaseException = error
    while (under := cause.__cause__ or cause.__context__) is not None:
        cause = under
    match cause:
        case socket.gaierror() | UnicodeError():
            fact = f"there is no address for {place}. Check its base_url, and the network here"
        case ssl.SSLCertVerificationError():
            advice = "SSL_CERT_FILE can name the certificates of a private authority"
            fact = f"no TLS with {place} ({cause.verify_message}). {advice}"
        case _ if stage is Stage.TLS:
            fact = f"no TLS with {place} ({_reason(cause)}). Where no TLS is spoken, its base_url begins with http://"
        case ConnectionRefusedError():
            fact = f"{place} refused the connection. Does the server run?"
        case _ if stage is Stage.CONNECTION:
            fact = f"no connection to {place} ({_reason(cause)}). Is it up, and in reach?"
        case _ if stage is Stage.REST:
            return NoListError(f"broke off its answer at {place}. Try again, and check its base_url if this lasts")
        case _:
            advice = "Is the port right?" if tls else "Is the port right, or is it https://?"
            return NoListError(f"took the connection at {place}, and no HTTP came back. {advice}")
    return NoListError(f"cannot be reached from here: {fact}")


def _reason(cause: BaseException) -> str:
    named = getattr(cause, "reason", None) or getattr(cause, "strerror", None) or type(cause).__name__
    return str(named).lower().replace("_", " ")[:100]
