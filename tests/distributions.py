"""Packages that somebody has installed, made without pip."""

import shutil
import tomllib
from pathlib import Path


def install(project: Path, target: Path) -> None:
    """What pip makes of a project of one module; not every environment has setuptools, and CI has no network."""
    about = tomllib.loads((project / "pyproject.toml").read_text())
    for module in about["tool"]["setuptools"]["py-modules"]:
        shutil.copy(project / f"{module}.py", target)
    groups = about["project"]["entry-points"]
    write_metadata(target, about["project"]["name"], about["project"]["version"], groups)


def write_metadata(target: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    info = target / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in ours.items()) for group, ours in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
