"""The documentation, taken at its word: no link of the site is dead, and the tutorial's commands say what it says."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ops.servers import free_port
from tests.acceptance.deployment import clean_environment
from tests.stacks import wait_until

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOT_RUN, GOES_ON = "not run", "goes on"
PORTS = 9464, 9465, 5555
"""Those that pages name; a test takes free ones."""
CURL = """#!{python}
import sys, urllib.request
for word in sys.argv[1:]:
    if word.startswith("http"):
        sys.stdout.buffer.write(urllib.request.urlopen(word).read())
"""
"""As much of it as pages need, for a machine that has none."""

pytestmark = pytest.mark.timeout(240)


class Step(NamedTuple):
    """A command or program of a page, and what it says there: a line of dots is any lines, dots in a line are any text."""

    code: str
    said: str
    goes_on: bool = False


def steps(page: str) -> Iterator[Step]:
    """What is to be run, in order: commands of console blocks, and programs with the text that follows them."""
    blocks = re.findall(r"(?:<!-- ([^:>]*)[^>]*-->\n)?^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for place, (remark, language, text) in enumerate(blocks):
        if remark.strip() == NOT_RUN:
            continue
        if language == "console":
            for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                code, _, said = shown.partition("\n")
                yield Step(code, said, remark.strip() == GOES_ON)
        elif language == "python":
            _, follows, said = blocks[place + 1]
            assert follows == "text", "a program stands before what it prints"
            yield Step(f"{shlex.quote(sys.executable)} -c {shlex.quote(text)}", said)


def pattern(said: str) -> str:
    """A regular expression for what is said; a table's columns are as wide as they are."""
    lines = []
    for line in said.splitlines():
        parts = [re.sub(r"(?:\\ |\\t|\s)+", r"\\s+", re.escape(part.strip())) for part in line.split("...")]
        lines.append(r"(?:.*\n)*?" if line == "..." else r"[^\n]*?".join(parts) + r"[ \t]*\n")
    return "".join(lines)


def test_the_site_is_built_and_no_link_is_dead(tmp_path: Path) -> None:
    made = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {page for page in pages if not (tmp_path / "site" / page).exists()} == set()


def free_ports() -> tuple[int, int, int]:
    """Two in a row, and another one."""
    while True:
        first = free_port()
        with socket.socket() as second, suppress(OSError):
            second.bind(("127.0.0.1", first + 1))
            return first, first + 1, free_port()


def as_here(page: str, ports: tuple[int, ...]) -> str:
    for shown, free in zip(PORTS, ports, strict=True):
        page = page.replace(str(shown), str(free))
    return page


def tools(directory: Path) -> str:
    """A PATH on which all is that pages use."""
    directory.mkdir()
    if shutil.which("curl") is None:
        curl = directory / "curl"
        curl.write_text(CURL.format(python=sys.executable))
        curl.chmod(0o755)
    return os.pathsep.join([str(directory), str(Path(sys.executable).parent), os.environ["PATH"]])


def test_the_tutorial_is_what_happens(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path / "config")
    ports = free_ports()
    environment |= {"INTURN_HOME": str(tmp_path / "home"), "INTURN_FLOWER_PORT": str(ports[-1])}
    environment |= {"PATH": tools(tmp_path / "bin")}
    how: dict[str, Any] = {"env": environment, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
    going_on, ran = list[subprocess.Popen[bytes]](), 0
    try:
        for step in steps(as_here((DOCS / "tutorial.md").read_text(), ports)):
            ran += 1
            if step.goes_on:
                log = tmp_path / f"said-{ran}"
                with log.open("wb") as out:
                    going_on.append(subprocess.Popen(shlex.split(step.code), stdout=out, stderr=out, **how))
                wait_until(partial(said, log, step))
                continue
            done = subprocess.run(
                ["bash", "-c", step.code], capture_output=True, text=True, check=False, timeout=60, **how
            )
            assert done.returncode == 0, f"{step.code}: {done.stdout}{done.stderr}"
            both = done.stdout + done.stderr
            assert not step.said or re.fullmatch(pattern(step.said), both), f"{step.code} says:\n{both}"
    finally:
        for process in going_on:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert going_on
    assert ran > 15


def said(log: Path, step: Step) -> bool:
    return re.search(pattern(step.said), log.read_text()) is not None
