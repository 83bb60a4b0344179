"""A provider asked for the list of its models, which costs nothing and is bounded in all ways."""

import socket
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from inturn.cli.checkup.endpoint import Endpoint
from inturn.cli.checkup.model_list import Answer, Page, read_page
from inturn.cli.checkup.no_list import HAS_NONE, STAGES, NoListError, Stage, broken, late
from inturn.provider_settings import ProviderSettings

SECONDS = 5.0
"""For one provider in all. httpx's own timeouts are per operation, so who waits for an inquiry has to look at the clock."""

_BODY_LIMIT = 4 * 1024 * 1024
_REFUSAL_LIMIT = 64 * 1024
_PAGES = 10
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Listing:
    """The models that a provider has.

    Attributes:
        names: as they may be shown.
        unknown: of those that were asked for.
        remark: why the list does not say which names can be called; empty: it does.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    remark: str = ""


class Inquiry:
    """One provider, asked once, in a thread that nobody has to wait for.

    Args:
        wanted: the provider's own names of the models that should be there.

    Attributes:
        outcome: what came of it; None: nothing yet.

    Raises:
        NoListError: it cannot be asked.
    """

    def __init__(self, provider: ProviderSettings, wanted: tuple[str, ...]) -> None:
        self.outcome: Listing | NoListError | None = None
        self._wanted = wanted
        self._stage = Stage.ADDRESS
        self._endpoint = Endpoint(provider)
        # The transport alone: no redirect, no cookie, no proxy of the environment, as it is with workers.
        self._transport = httpx.HTTPTransport(verify=self._endpoint.certificates(), trust_env=False)

    def run(self) -> None:
        """Ask. Every end is an outcome; none of them holds the key or a header's value."""
        try:
            with self._transport:
                self.outcome = self._ask()
        except NoListError as error:
            self.outcome = error
        except httpx.TimeoutException:
            self.outcome = self.late()
        except (httpx.HTTPError, OSError, UnicodeError) as error:
            endpoint = self._endpoint
            self.outcome = broken(error, self._stage, endpoint.place, tls=endpoint.url.scheme == "https")

    def late(self) -> NoListError:
        """The outcome for who has waited for long enough."""
        return late(self._stage, self._endpoint.place, SECONDS)

    def _ask(self) -> Listing:
        url = self._endpoint.url
        socket.getaddrinfo(url.raw_host.decode("ascii"), url.port or url.scheme)
        self._stage = Stage.CONNECTION
        page = self._pages()
        unknown = [name for name in self._wanted if not page.has(name)]
        if self._endpoint.is_anthropic:  # it lists no aliases, and knows them
            unknown = [name for name in unknown if self._get(self._endpoint.below("models", name)).status != 200]
        azure = "Azure lists no deployments, so no name was looked up" if self._endpoint.lists_no_names else ""
        return Listing(tuple(map(self._endpoint.shown, page.names)), tuple(unknown), page.remark or azure)

    def _pages(self) -> Page:
        url = self._endpoint.below("models")
        if not self._endpoint.is_anthropic:
            return self._page(url)
        page = self._page(url.copy_merge_params({"limit": _PAGE}))
        for _ in range(_PAGES - 1):
            if not page.after:
                return page
            page += self._page(url.copy_merge_params({"limit": _PAGE, "after_id": page.after}))
        return page.cut_off() if page.after else page

    def _page(self, url: httpx.URL) -> Page:
        answer = self._get(url)
        page = read_page(answer.body) if answer.status == 200 else None
        if page is not None:
            return page
        if answer.status == 200 or answer.status in HAS_NONE:
            self._look_below()
        raise _refusal(answer, self._endpoint)

    def _look_below(self) -> None:
        """The mistake that is made most often.

        Raises:
            NoListError: the list is where it would be if the base URL ended with /v1.
        """
        if self._endpoint.may_lack_version:
            answer = self._get(self._endpoint.below("v1", "models"))
            if answer.status == 200 and read_page(answer.body) is not None:
                advice = f"set it to {self._endpoint.below('v1')}"
                raise NoListError(f"is reached, and its base_url lacks the /v1: {advice}")

    def _get(self, url: httpx.URL) -> Answer:
        extensions = {"timeout": httpx.Timeout(SECONDS).as_dict(), "trace": self._note}
        request = httpx.Request("GET", url, headers=self._endpoint.headers, extensions=extensions)
        with closing(self._transport.handle_request(request)) as response:
            # Nothing but these has a body that says more than the status does.
            body = _read(response) if response.status_code in (200, 401) else b""
            kind = response.headers.get("content-type", "no content type")
            return Answer(response.status_code, kind, response.headers.get("location", ""), body)

    def _note(self, event: str, info: dict[str, Any]) -> None:
        self._stage = STAGES.get(event, self._stage)


def _read(response: httpx.Response) -> bytes:
    """Not decoded: no encoding was asked for, and a small one may unfold to anything."""
    is_list = response.status_code == 200
    chunks: list[bytes] = []
    left = _BODY_LIMIT if is_list else _REFUSAL_LIMIT
    for chunk in response.iter_raw():
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0 and is_list:
            most = f"{_BODY_LIMIT // 1024**2} MiB"
            raise NoListError(f"answered with more than {most}, which is no list of models: check its base_url")
        if left < 0:
            break
    return b"".join(chunks)


def _refusal(answer: Answer, endpoint: Endpoint) -> NoListError:
    """What stands in the place of a list."""
    match answer.status:
        case 200:
            kind = f"no list of models ({len(answer.body)} bytes of {endpoint.shown(answer.kind)})"
            advice = "check its base_url" + ("; does it end with /v1?" if endpoint.may_lack_version else "")
            return NoListError(f"answered with {'a web page' if answer.is_page else kind}: {advice}")
        case 401 | 403:
            return _turned_away(answer, endpoint)
        case 429:
            return NoListError("is reached, and has no time (429): check its quota if this lasts", "warn")
        case status if status in HAS_NONE:
            return NoListError(f"is reached; it does not list its models ({status}), so no name was looked up", "note")
        case status if 300 <= status < 400:
            there = f" to {endpoint.shown(answer.origin)}" if answer.origin else ""
            advice = "give it its final base_url"
            return NoListError(f"redirects ({status}){there}, which inturn does not follow: {advice}")
        case status if status >= 500:
            advice = "is it starting, overloaded, or gone from behind its gateway?"
            return NoListError(f"is reached, and answered {status}: {advice}")
        case status:
            return NoListError(f"is reached, and answered {status} when it was asked for its models", "warn")


def _turned_away(answer: Answer, endpoint: Endpoint) -> NoListError:
    status, which = answer.status, endpoint.key_place
    if endpoint.lacks_key:  # which is told elsewhere
        return NoListError(f"is reached, and wants its key ({status})", "note")
    if not which:
        advice = "name the variable that holds it in its api_key_env"
        return NoListError(f"is reached, and wants a key ({status}): {advice}")
    if status == 403 or answer.lacks_scope:
        return NoListError(f"does not let {which} list models ({status}): check what it may use", "warn")
    return NoListError(f"refuses {which} ({status}), as it is in this environment: check it")
