"""``ops/Dockerfile``: what it says, and its build steps run here: on the files that a builder gets, the very commands.

Wheels of others are not fetched again: the environment that is made sees those of the tests.
"""

import fnmatch
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from inturn.models import migrations
from tests.composition import DOCKERFILE, ROOT, image, stage

BUILD_TOOLS = {"build-essential", "gcc", "g++", "cpp", "clang", "make", "cmake", "git", "python3-dev", "pkg-config"}
FOR_THE_TEST = {
    # The build backend and all wheels are here: nothing is asked of any index.
    "pip wheel": "pip wheel --no-index --no-build-isolation",
    "install --only-binary": "install --no-deps --no-index --only-binary",
}


def arguments(name: str, *, last: bool = True) -> list[str]:
    return [argument for each, argument in stage(last) if each == name]


def test_a_stage_builds_and_the_other_is_the_image() -> None:
    [build], [result] = arguments("FROM", last=False), arguments("FROM")
    assert build == f"{result} AS build"
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", result), "pinned, slim, with glibc"
    assert arguments("COPY") == ["--from=build /opt/inturn /opt/inturn"], "nothing else of the build"


def test_the_image_has_no_tool_that_builds() -> None:
    run = " ".join(arguments("RUN"))
    installed = [words.split() for words in re.findall(r"apt-get install ([^&]*)", run)]
    packages = {word for words in installed for word in words if not word.startswith("-")}
    assert packages == {"tini"}
    assert not packages & BUILD_TOOLS
    assert re.search(r"pip uninstall [^&]* pip\b", run)
    assert "--without-pip" in " ".join(arguments("RUN", last=False))
    assert "rm -rf /var/lib/apt/lists/*" in run


def test_it_runs_as_nobody_in_particular_under_an_init() -> None:
    [user], about = arguments("USER"), image()
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "a number: Kubernetes cannot tell that a name is not root"
    assert f"useradd --uid {user.split(':')[0]}" in " ".join(arguments("RUN"))
    assert about["entrypoint"][:2] == ["tini", "--"]
    assert [name for name, _ in stage()].index("USER") > max(
        number for number, (name, _) in enumerate(stage()) if name == "RUN"
    )


def test_no_secret_is_built_in() -> None:
    assert not re.search(r"(?i)(password|secret|token|api_key)", DOCKERFILE.read_text())


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """The files that the builder is given, by ``Dockerfile.dockerignore``."""
    allowed: list[str] = []
    denied: list[str] = []
    for line in (ROOT / "ops" / "Dockerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            (allowed if line.startswith("!") else denied).append(line.lstrip("!"))
    assert denied == ["*", "**/__pycache__"], "only what is named goes there"
    for name in allowed:
        source, target = ROOT / name, tmp_path / "context" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return tmp_path / "context"


def test_its_steps_make_an_inturn_that_runs(context: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    sources = root / "src"
    sources.mkdir(parents=True)
    for argument in arguments("COPY", last=False):
        *names, target = argument.split()
        for name in names:
            copy = shutil.copytree if (context / name).is_dir() else shutil.copy
            copy(context / name, sources / name if target == "./" else sources / target)
    [command] = arguments("RUN", last=False)
    for given, here in FOR_THE_TEST.items():
        assert command.count(given) == 1
        command = command.replace(given, here)
    command = re.sub(r"(?<![\w.])(/wheels|/opt/inturn)", rf"{root}\1", command)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "PACKAGES": ""}
    done = subprocess.run(
        ["sh", "-ec", command], cwd=sources, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(sources)

    [packages] = (root / "opt" / "inturn" / "lib").glob("python3.*/site-packages")
    assert not fnmatch.filter([path.name for path in packages.iterdir()], "pip*")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    inturn = root / "opt" / "inturn" / "bin" / "inturn"
    place = [str(inturn.with_name("python")), "-c", "import inturn; print(inturn.__file__)"]
    made = {"HOME": str(tmp_path), "INTURN_HOME": str(tmp_path / "home")}
    where = subprocess.run(place, env=made, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(packages))
    upgraded = subprocess.run(
        [inturn, "db", "upgrade"], env=made, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert upgraded.returncode == 0, upgraded.stderr
    assert migrations.HEAD in upgraded.stdout + upgraded.stderr, "migrations are in the wheel"
    assert (packages / "inturn" / "workers" / "limits.lua").is_file()
