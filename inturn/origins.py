"""Where settings come from: the sources, the strongest first, and which of them a value has."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from inturn.models.errors import SettingsError

ENVIRONMENT_PREFIX = "INTURN_"
PROJECT_FILE = "./inturn.toml"
FLAG = "flag"
"""The origin of what a command line's flag or a program's argument says."""


def user_file() -> Path:
    """Where the user's own settings live."""
    return platformdirs.user_config_path("inturn") / "inturn.toml"


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a file; none when there is no such file.

    Raises:
        SettingsError: The file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if not os.access(path.parent, os.X_OK):
            return {}  # somebody else's directory: nobody wrote settings for us there
        raise SettingsError(
            f"settings file {path} cannot be read: {error.strerror}. Correct its permissions, or move it away"
        ) from None
    except ValueError as error:
        raise SettingsError(f"settings file {path} is not valid TOML: {error}. Correct it, or move it away") from None


def _environment() -> dict[str, str]:
    """The variables that may be ours, by upper-case name; an empty one counts as unset."""
    return {
        name.upper(): value
        for name, value in os.environ.items()
        if value and name.upper().startswith(ENVIRONMENT_PREFIX)
    }


def layers_of(flags: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Origin and values of every source, the strongest first."""
    yield FLAG, flags
    for name, value in _environment().items():
        yield f"environment {name}", {name.removeprefix(ENVIRONMENT_PREFIX).lower(): value}
    yield PROJECT_FILE, read_toml(Path(PROJECT_FILE))
    yield str(user_file()), read_toml(user_file())


def origin_of(path: tuple[int | str, ...], layers: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Which source a value came from; for the merged providers, all that have some."""
    origins = [origin for origin, values in layers if _has(values, path)]
    return (", ".join(origins) if path == ("providers",) else origins[0]) if origins else "default"


def _has(values: Any, path: tuple[int | str, ...]) -> bool:
    if not path or isinstance(values, str):
        return True  # a variable holds the whole of a nested value, as JSON
    if isinstance(values, list):
        return isinstance(path[0], int) and path[0] < len(values) and _has(values[path[0]], path[1:])
    return isinstance(values, Mapping) and path[0] in values and _has(values[path[0]], path[1:])
