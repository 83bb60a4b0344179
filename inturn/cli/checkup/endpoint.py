"""Where a provider is and what it is asked with: the same as from a worker.

What workers do is in ``workers/providers/endpoint.py``, and who asks must not load it: a test compares the two.
"""

import re
import ssl
from urllib.parse import quote

import httpx

from inturn.cli.checkup.no_list import NoListError
from inturn.cli.render import clean
from inturn.provider_settings import ProviderSettings

_ANTHROPIC = {"anthropic-version": "2023-06-01"}
_SECRET = 8
_SHOWN = 100
_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_VERSION = re.compile(r"/v\d")
_AZURE = (".azure.com", ".azure.us", ".azure.cn")


class Endpoint:
    """One configured base URL, the key read now.

    Attributes:
        key_place: what would be wrong if it turned us away; empty: nothing is sent that could be.
        lacks_key: a variable is named, and this environment has none of that name.

    Raises:
        NoListError: it cannot be asked.
    """

    def __init__(self, provider: ProviderSettings) -> None:
        secret = provider.api_key()
        self._provider = provider
        self._key = secret.get_secret_value() if secret else ""
        self.is_anthropic = provider.type == "anthropic"
        self.lacks_key = bool(provider.api_key_env) and not self._key
        headers = "what its headers say" if provider.headers else ""
        self.key_place = f"the key in {provider.api_key_env}" if provider.api_key_env else headers
        self.url = self._checked_url()
        self.headers = self._checked_headers()

    @property
    def place(self) -> str:
        """Host and port, as they are written."""
        return self.url.netloc.decode("ascii")

    @property
    def may_lack_version(self) -> bool:
        """Whether the most frequent mistake may have been made."""
        return not (self.is_anthropic or self.url.query or _VERSION.search(self.url.path))

    @property
    def lists_no_names(self) -> bool:
        """Azure is called by the names of deployments, and lists models."""
        return self._provider.api_key_header.lower() == "api-key" or self.url.host.endswith(_AZURE)

    def below(self, *parts: str) -> httpx.URL:
        """What is there under the base URL, whose query (Azure) stays behind it."""
        path = "".join(f"/{quote(part, safe=':@')}" for part in parts)
        return self.url.copy_with(path=self.url.path.rstrip("/") + path)

    def certificates(self) -> ssl.SSLContext:
        """Those that a worker trusts: certifi's, or those that SSL_CERT_FILE names.

        Raises:
            NoListError: there are none.
        """
        try:
            is_tls = self.url.scheme == "https"
            return httpx.create_ssl_context() if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except OSError as error:
            fact = f"SSL_CERT_FILE names no certificates that can be read ({error.strerror})"
            raise NoListError(f"was not asked: {fact}, in this environment. Unset it") from None

    def shown(self, text: str) -> str:
        """What a stranger sent, in one short line and without what was sent to it."""
        for secret in (self._key, *self._provider.headers.values()):
            if len(secret) >= _SECRET:  # a shorter one is a version or a flag
                text = text.replace(secret, "***")
        return " ".join(clean(text).split())[:_SHOWN]

    def _checked_url(self) -> httpx.URL:
        try:
            url = httpx.URL(self._provider.base_url.strip())
        except httpx.InvalidURL:
            advice = "correct it, for example http://127.0.0.1:11434/v1"
            raise NoListError(f"has a base_url that is none: {advice}") from None
        path = url.path.rstrip("/")
        return url.copy_with(path=path.removesuffix("/v1") + "/v1" if self.is_anthropic else path, fragment=None)

    def _checked_headers(self) -> dict[str, str]:
        theirs = {name.lower(): value for name, value in self._provider.headers.items()}
        other = self._provider.api_key_header.lower()
        key_header = other or ("x-api-key" if self.is_anthropic else "authorization")
        prefix = "" if other or self.is_anthropic else "Bearer "
        for header, value in {**theirs, key_header: ""}.items():
            if not _HEADER.fullmatch(header) or not _fits_a_header(value):
                raise NoListError(f"has a header that cannot be sent: correct {header!r}")
        if not _fits_a_header(self._key):
            advice = f"was {self._provider.api_key_env} pasted whole?"
            raise NoListError(f"has a key with characters that no key has, in this environment: {advice}")
        return {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "inturn",
            **(_ANTHROPIC if self.is_anthropic else {}),
            **theirs,
            **({key_header: prefix + self._key} if self._key else {}),
        }


def _fits_a_header(value: str) -> bool:
    return value.isascii() and (value.isprintable() or not value)
