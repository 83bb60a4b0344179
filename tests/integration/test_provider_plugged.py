"""A provider that another package brings: ``examples/own_provider``, installed and used as a stranger would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributions import install, write_metadata
from tests.stacks import ROOT

EXAMPLE = ROOT / "examples" / "own_provider"

PROGRAM = """
import asyncio, json, sys
from inturn.models.errors import SettingsError
from inturn.settings import Settings
from inturn.workers.cell import Cells
from inturn.workers.provider import Prompt, ProviderError, Providers, ToolSpec
from inturn.workers.providers import BUILDERS

async def main(configured):
    settings = Settings.load(providers=configured)
    providers = Providers(settings.available_providers, BUILDERS, deadline_seconds=5)
    said = {"types": list(BUILDERS)}
    now = (ToolSpec("now", "Says what time it is.", {}),)
    for name in configured:
        told, prompt = [], Prompt("", [{"role": "user", "content": "Pretty Polly"}], {}, "1.1")
        try:
            reply = await providers.reply(f"{name}/m", prompt, told.append)
            inside = await Cells(settings).reply(f"{name}/m", prompt)
            said[name] = [reply.content, told, inside.content]
            asked = Prompt("", [{"role": "user", "content": "what time is it now"}], {}, "1.1", now)
            calls = (await Cells(settings).reply(f"{name}/m", asked)).tool_calls
            said[name].append([[call.name, call.arguments] for call in calls])
        except ProviderError as error:
            again = [None, None]
            try:
                await providers.reply(f"{name}/m", prompt)
            except ProviderError as second:
                again = second.message
            said[name] = [error.kind, error.error_type, error.message, again == error.message]
    return said

try:
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
except SettingsError as error:
    print(json.dumps(str(error)))
"""


def use(target: Path, **configured: Any) -> Any:
    """What a process says in which the packages in ``target`` are installed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(configured)],
        env=os.environ | {"PYTHONPATH": f"{target}:{ROOT}", "INTURN_HOME": str(target)},
        cwd=target,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    install(EXAMPLE, tmp_path)
    return tmp_path


def test_the_example_answers_whole_streamed_and_in_a_cell(installed: Path) -> None:
    said = use(
        installed, polly={"type": "parrot"}, echo={"type": "echo"}, rude={"type": "parrot", "options": {"voice": 7}}
    )
    assert said["types"] == ["openai", "anthropic", "echo", "parrot"]
    assert said["polly"] == ["pretty polly", ["pretty ", "polly"], "pretty polly", [["now", "{}"]]]
    assert said["rude"][:3] == ["permanent", "invalid_request", "rude/m has no voice 7: take one of soft, loud"]


@pytest.mark.parametrize(
    ("value", "code", "why"),
    [
        (
            "nowhere:Provider",
            None,
            "and nowhere:Provider in it cannot be imported (ModuleNotFoundError: No module named",
        ),
        ("broken:Provider", "", "cannot be imported (AttributeError: module 'broken' has no attribute 'Provider')"),
        ("broken:Provider", "1 / 0", "cannot be imported (ZeroDivisionError in broken.py, line 2)"),
        ("broken:Provider", "raise SystemExit", "cannot be imported (SystemExit in broken.py, line 2)"),
        ("broken:Provider", "Provider = 7", "and broken:Provider in it is a int, where a Builder should be"),
    ],
)
def test_one_that_is_broken_fails_alone(installed: Path, value: str, code: str | None, why: str) -> None:
    if code is not None:
        (installed / "broken.py").write_text(f"open('imported', 'a').write('once')\n{code}")
    write_metadata(installed, "Broken-Things", "1.2", {"inturn.providers": {"broken": value}})
    said = use(installed, odd={"type": "broken"}, polly={"type": "parrot"})
    kind, error_type, message, is_the_same_again = said["odd"]
    assert (kind, error_type, is_the_same_again) == ("permanent", "provider_not_loaded", True)
    assert message.startswith("the provider type 'broken' comes with Broken-Things 1.2, ")
    assert why in message
    assert said["polly"][0] == "pretty polly"
    if code is not None:
        assert (installed / "imported").read_text() == "once"


def test_nobody_takes_the_name_of_one_of_ours(installed: Path) -> None:
    write_metadata(installed, "impostor", "6.6", {"inturn.providers": {"echo": "inturn_parrot:Parrot"}})
    said = use(installed, echo={"type": "echo"})
    assert said["echo"][0].startswith('You said: "Pretty Polly"')


def test_a_type_that_nobody_brings_is_refused_with_those_that_are_there(installed: Path) -> None:
    sentence = use(installed, polly={"type": "parot"})
    assert "providers.polly.type is 'parot' (flag), which is refused: " in sentence
    assert "the types here are openai, anthropic, echo, parrot. " in sentence
