"""URLs of databases and brokers: as they are used, and as they may be shown."""

import re
from pathlib import Path

MASK = "***"


def masked_url(url: str) -> str:
    """The URL with its password, in the authority or in the query, replaced by ``***``."""
    url = re.sub(r"(?<=://)([^:/?#@]*):.*@", rf"\1:{MASK}@", url)
    return re.sub(r"(?i)([?&][^=&]*password)=[^&]*", rf"\1={MASK}", url)


def normalised_database(url: str) -> str:
    """The database as SQLAlchemy writes it; empty stays empty.

    Raises:
        ValueError: It is none that inturn works with.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg") and rest:
        return f"postgresql+psycopg://{rest}"
    if not url or (scheme == "sqlite" and rest.startswith("/") and rest[1:].partition("?")[0] not in ("", ":memory:")):
        return absolute_sqlite(url)
    raise ValueError(
        "a database is sqlite:///FILE (a file: workers are processes of their own) or postgresql://USER@HOST/NAME; "
        "leave it out to get a SQLite file in the home"
    )


def absolute_sqlite(url: str) -> str:
    """Tied to a place: a worker that was started in another directory would otherwise open another database."""
    file, mark, query = url.removeprefix("sqlite:///").partition("?")
    return f"sqlite:///{Path(file).expanduser().absolute()}{mark}{query}" if url else ""


def normalised_broker(url: str) -> str:
    """The broker as Celery writes it.

    Raises:
        ValueError: It is no single Redis.
    """
    scheme, _, rest = url.partition("://")
    if any(word in scheme for word in ("sentinel", "cluster")) or ";" in url:
        raise ValueError(
            "Sentinel, Cluster and lists of brokers are not supported: name one Redis server (redis://HOST:6379/0)"
        )
    if scheme == "rediss" and rest:
        return with_certificates(url)
    if not url or (scheme in ("redis", "redis+socket") and rest):
        return url
    if scheme == "unix" and rest:
        return f"redis+socket://{rest}"
    raise ValueError(
        "a broker is redis://, rediss://, redis+socket:// or unix://; leave it out to get the embedded one"
    )


def with_certificates(url: str) -> str:
    """Say that the server's certificate is verified, unless the URL says otherwise: Celery verifies none of itself.

    It is told in words that redis-py takes as well; those of Celery's documentation (``CERT_REQUIRED``) become them.
    """
    url = re.sub(r"(?<=[?&]ssl_cert_reqs=)CERT_(REQUIRED|OPTIONAL|NONE)(?=&|$)", lambda word: word[1].lower(), url)
    return url if re.search(r"[?&]ssl_cert_reqs=", url) else f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def broker_or_none(url: str) -> str | None:
    """The same; None, if it is none."""
    try:
        return normalised_broker(url)
    except ValueError:
        return None
