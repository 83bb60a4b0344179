"""The guides' settings, taken at their word; their grants are in ``integration/test_roles.py``."""

import textwrap
from pathlib import Path

import platformdirs
import pytest

from inturn.settings import Settings
from tests.guides import GUIDES, blocks

CONFIGURED = [path.name for path in sorted(GUIDES.glob("*.md")) if blocks(path, "toml")]


def test_there_are_guides_with_settings():
    assert {"ollama.md", "openai.md", "anthropic.md"} <= set(CONFIGURED)


@pytest.mark.parametrize("name", CONFIGURED)
def test_settings_are_taken_as_they_stand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "user" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    written = "\n".join(textwrap.dedent(block) for block in blocks(GUIDES / name, "toml"))
    Path("inturn.toml").write_text(written)
    settings = Settings.load()
    assert settings.origins()["providers"] == "./inturn.toml"
    used = settings.effective_default_model.partition("/")[0]
    chained = [model.partition("/")[0] for one in settings.providers.values() for model in one.fallbacks]
    assert {used, *chained} <= set(settings.available_providers)
