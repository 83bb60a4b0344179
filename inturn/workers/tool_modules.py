"""Whether the modules of ``tool_modules`` are where a worker would look for them. Nothing of them is imported."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from inturn.settings import Settings


def about_missing(settings: Settings) -> str | None:
    """What to say of the first module that is not there; None when all are.

    Looked for as ``Toolbox.load`` does: installed, or last of all in the working directory, which workers share with
    whoever starts them.
    """
    here = str(Path.cwd())
    path = sys.path if here in sys.path else [*sys.path, here]
    for module in settings.tool_modules:
        if not _is_there(module, path):
            return (
                f"tool_modules ({settings.origins()['tool_modules']}) names {module!r:.200}, which is not found: it is "
                f"neither installed beside inturn nor in {here}. Correct the name, install its package, or start this "
                "in the directory where it is"
            )
    return None


def _is_there(module: str, path: Sequence[str] | None) -> bool:
    """By the finders themselves: ``importlib.util.find_spec`` imports the packages that a module is in."""
    spec, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _spec(name, path) if part and path is not None else None
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    found = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)
