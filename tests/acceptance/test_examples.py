"""The examples and the README, taken at their word: programs run with nothing set up, commands are commands."""

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from inturn import Client, Settings
from inturn.cli import cli
from inturn.cli.invocation import Invocation
from ops import reference_pages
from ops.chaos.model import ModelServer
from tests.acceptance.deployment import clean_environment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
PROMISE = """at most one stored reply per turn, in order, always; at most one
live model call per session unless a worker is paused or cut off for longer than the lease; never more calls than
attempts recorded before they were made. No lease or lock can promise more."""

PERSISTING_SESSIONS = """\
assistant: You said: "Let's discuss TypeScript generics"
I remember your first message. (echo, not a real model)
--- a second process ---
resuming example-123-typescript: 2 messages, model echo/echo
assistant: We were discussing: "Let's discuss TypeScript generics".
I read it in the stored history. (echo, not a real model)
--- the first one again ---
  example-123-typescript: 2 turns, last used DATE
about TypeScript: example-123-typescript
  [user.message] Let's discuss TypeScript generics
  [assistant.message] You said: "Let's discuss TypeScript generics"
  [user.message] What were we discussing?
  [assistant.message] We were discussing: "Let's discuss TypeScript generics".
due for removal: example-123-scratch
example-123-typescript is gone
"""

SAID_BY_THREE = """\
  ann 1: You said: "Plan a day in Lisbon"
  ann 2: You said: "Make it rainy-day proof"
  ann 3: You said: "Add one good lunch"
  ben 1: You said: "Explain leases to me"
  ben 2: You said: "Now to my grandmother"
  ben 3: We were discussing: "Explain leases to me", then "Now to my grandmother".
  eve 1: You said: "Draft a release note"
  eve 2: You said: "Shorter, please"
  eve 3: You said: "And now as a haiku"
  nine replies, three at a time: SECONDS s
"""

MULTIPLE_SESSIONS = f"""\
--- all sent, then waited for ---
{SAID_BY_THREE}\
--- a task for each ---
{SAID_BY_THREE}\
--- what there is now ---
  multi-ann (3 turns), multi-ben (3 turns), multi-eve (3 turns)
"""

ERROR_HANDLING = """\
the model is slow
  not yet; the turn goes on
  later: You said: "Think about it"
the model is down for a moment
  answered at attempt 3: You said: "Is anybody there?"
the model refuses
  invalid_request (400), worth another try: no
  the next one: You said: "Never mind"
the user changes their mind
  taken back: True
  turn 5 is cancelled; turn 6 asks the same again
the user is impatient
  one thing at a time; nothing was stored
the network repeats a request
  sent twice, one turn: True
  the same key for something else is refused
the caller is wrong
  SessionNotFoundError: no session 'errors-nobody'
  InvalidSessionIdError: 'no such ID!' is no session ID
  UnknownModelError: model 'nobody/gpt-0' cannot be used
"""

pytestmark = pytest.mark.timeout(240)


def run(words: list[str], home: Path, **more: str) -> str:
    """What a Python program prints."""
    done = subprocess.run(
        [sys.executable, *words],
        env=clean_environment(home) | {"INTURN_HOME": str(home)} | more,
        cwd=home.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def blocks(language: str, page: str = README) -> list[str]:
    """A page's blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def shown_in(page: str) -> Iterator[str]:
    """The inturn commands of a page's blocks."""
    for block in blocks("console", page):
        yield from re.findall(r"^\$ (?:.*\| )?(inturn [^|\n]*)", block, re.MULTILINE)


def named_in(page: str) -> Iterator[str]:
    """The inturn commands in a page's sentences."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"`(inturn [a-z][^`]*)`", text):
        *shared, last = command.split(" | ")
        if not shared:
            yield command
            continue
        first = shared[0].rpartition(" ")[0]  # `inturn turn list | show`
        yield from (f"{first} {word} --help" for word in [shared[0].rpartition(" ")[2], *shared[1:], last])


def refusal(command: str) -> click.ClickException | None:
    """What a command line would be refused for; it is parsed as the command would, and no further."""
    try:
        parse(command)
    except click.ClickException as error:
        return error
    return None


def parse(command: str) -> None:
    """Raises: click.ClickException: there is no such command, argument or option."""
    command_or_group: click.Command | None = cli
    context = click.Context(cli, info_name="inturn", obj=Invocation())
    _, words, _ = cli.make_parser(context).parse_args(shlex.split(command)[1:])
    while isinstance(command_or_group, click.Group) and words:
        _, command_or_group, words = command_or_group.resolve_command(context, words)
    if command_or_group is not None and words != ["--help"]:
        command_or_group.make_context(command_or_group.name, words, parent=context)


def test_persisting_sessions(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Client(home=home) as client:
        client.create_session("example-1234-typescript")  # of somebody else, whose ID begins alike
        client.create_session("example-123-typescript")  # of an earlier run that was interrupted

    said = run([str(EXAMPLES / "persisting_sessions.py")], home)
    before, _, after = PERSISTING_SESSIONS.partition("DATE")
    assert said.startswith(before)
    assert said[len(before) + len("2025-12-31") :] == after

    with Client(home=home) as client:
        assert [metadata.session_id for metadata in client.list_sessions()] == ["example-1234-typescript"]


def test_multiple_sessions(tmp_path: Path) -> None:
    said = run([str(EXAMPLES / "multiple_sessions.py")], tmp_path / "home")
    assert re.sub(r"\d+\.\d s$", "SECONDS s", said, flags=re.MULTILINE) == MULTIPLE_SESSIONS
    with Client(home=tmp_path / "home") as client:
        assert list(client.list_sessions()) == []


def test_error_handling(tmp_path: Path) -> None:
    assert run([str(EXAMPLES / "error_handling.py")], tmp_path / "home") == ERROR_HANDLING
    with Client(home=tmp_path / "home") as client:
        assert list(client.list_sessions()) == []


def test_every_example_is_run() -> None:
    run_above = {"error_handling.py", "multiple_sessions.py", "persisting_sessions.py"}
    run_with_batches = {"interview.py", "read_reviews.py"}  # test_batch_examples
    assert {path.name for path in EXAMPLES.glob("*.py")} == run_above
    assert {path.name for path in EXAMPLES.glob("batches/*.py")} == run_with_batches


def test_the_tour_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    tour, said = blocks("python")[0], blocks("text")[0]
    assert run(["-c", tour], tmp_path / "home") == said


def test_the_readme_can_be_followed_from_top_to_bottom() -> None:
    made = re.findall(r'create_session\(\s*session_id="(.+?)"', "".join(blocks("python")))
    assert made
    for session_id in made:
        assert made.count(session_id) == 1
        assert session_id not in "".join(blocks("console"))


def test_the_other_programs_of_the_readme_run(tmp_path: Path, model: ModelServer) -> None:
    programs = textwrap.indent("\n".join(blocks("python")[1:]), "    ")
    program = f"from inturn import Client\nwith Client() as client:\n{programs}"
    said = run(["-c", program], tmp_path / "home", OPENAI_API_KEY="sk-readme", OPENAI_BASE_URL=model.base_url)
    assert said == "completed 1 None\n"


def test_the_settings_file_of_the_readme_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inturn.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    settings = Settings.load()
    assert settings.effective_default_model == "ollama/llama3.2"
    assert set(settings.providers) == {"ollama", "openrouter"}


@pytest.mark.parametrize("command", sorted({*shown_in(README), *named_in(README), *shown_in(DOCS)}))
def test_a_command_that_is_shown_is_one(command: str) -> None:
    assert refusal(command) is None


@pytest.mark.parametrize("command", sorted(set(named_in(DOCS))))
def test_a_command_that_a_page_speaks_of_is_there(command: str) -> None:
    """With all its options, if not with everything that it needs."""
    assert isinstance(refusal(command), click.MissingParameter | click.BadOptionUsage | None)


def test_the_page_of_settings_names_each_with_its_default() -> None:
    page = reference_pages.SETTINGS.read_text()
    assert page == reference_pages.rewritten(reference_pages.SETTINGS), "python -m ops.reference_pages writes it"
    rows = dict(re.findall(r"^\| `(\w+)`<br>(`INTURN_\w+` \|[^|]*)\|", page, re.MULTILINE))
    assert list(rows) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert f"`INTURN_{name.upper()}`" in rows[name]
        if isinstance(field.default, int | float):
            shown = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default:g}"
            assert rows[name].rpartition("|")[2].strip().removesuffix(", off") == shown


def test_the_readme_states_the_promise_exactly() -> None:
    assert PROMISE in README
