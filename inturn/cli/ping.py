"""``inturn ping``: a health check, quick enough to be asked every few seconds."""

from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from inturn.cli import render
from inturn.cli.checkup.finding import Finding
from inturn.cli.exits import Exit
from inturn.cli.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    from inturn.settings import Settings

PATIENCE_SECONDS = 5.0
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""What listens on all addresses is asked on loopback."""


@click.command()
@click.option("--live", is_flag=True, help="Whether it runs and does not hang: true even while the database is away.")
@click.option("--url", metavar="URL", help="Ask this page instead, such as Flower's /healthcheck.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Its port [metrics_port of the settings]."
)
@pass_invocation
def ping(invocation: Invocation, live: bool, url: str | None, as_json: bool, metrics_port: int | None) -> int:
    """Ask the worker or beat on this host whether it is at work.

    It is asked where it serves its metrics. Ends with 0 when it is at work, else with 1, and says why.
    """
    invocation.flags["metrics_port"] = metrics_port
    found = ask(url) if url else ask_process(invocation.settings, "/livez" if live else "/readyz")
    if as_json:
        render.json_line(asdict(found))
    else:
        render.verdict(found.state, found.subject, found.sentence)
    return Exit.OK if found.state == "ok" else Exit.FAILURE


def ask_process(settings: "Settings", path: str) -> Finding:
    """What the process that serves its metrics on this host says of itself."""
    if not settings.metrics_port:
        return failed("metrics_port is 0, so none can be asked: set INTURN_METRICS_PORT for it, and here")
    host = EVERYWHERE.get(settings.metrics_host, settings.metrics_host)
    return ask(f"http://{f'[{host}]' if ':' in host else host}:{settings.metrics_port}{path}")


def ask(url: str) -> Finding:
    """What a health page says.

    Raises:
        click.BadParameter: It is no address of one.
    """
    host, port, path = parts_of(url)
    try:
        status, said = fetch(host, port, path)
    except (OSError, HTTPException) as error:
        return failed(f"{url} does not answer ({error}): nothing runs there, or it is not ready yet")
    if status == 200 and said.lower() == "ok":
        return Finding("ok", "process", f"{url} says that all is well")
    if status == 503:
        return failed(said)
    return failed(f"{url} answers {status}, as no process of inturn does: name another port")


def failed(sentence: str) -> Finding:
    return Finding("fail", "process", sentence)


def parts_of(url: str) -> tuple[str, int, str]:
    """Host, port and path. Raises: click.BadParameter."""
    try:
        place = urlsplit(url)
        if place.scheme == "http" and place.hostname:
            return place.hostname, place.port or 80, place.path or "/"
    except ValueError:  # a port that is none
        pass
    raise click.BadParameter(f"{url!r} is no http:// address of a page", param_hint="--url")


def fetch(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and text. No proxy is asked, whatever the environment says.

    Raises:
        OSError: It cannot be reached, or does not answer in time.
        HTTPException: What it says is no HTTP.
    """
    connection = HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1000).decode(errors="replace").strip()
    finally:
        connection.close()
