"""``docker-compose.yml``, as Docker Compose reads it: that it is one, and that no service is left at a loose end."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from inturn import Settings, __version__
from inturn.models.states import Lane
from tests.composition import EXAMPLE, FILE, ROOT, compose, image, seconds, services

OURS = {"worker-chat", "worker-batch", "worker-maintenance", "beat", "flower", "migrate"}
THEIRS = {"postgres", "redis", "prometheus", "grafana"}
PROCESSES = OURS - {"flower", "migrate"}


@pytest.fixture(scope="module")
def file() -> dict[str, dict[str, Any]]:
    return services()


def test_compose_takes_the_file(file: dict[str, dict[str, Any]]) -> None:
    assert file.keys() == OURS | THEIRS


def test_compose_refuses_what_is_no_compose_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = yaml.safe_load(FILE.read_text())
    wrong["services"]["redis"]["helthcheck"] = {}
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump(wrong))
    monkeypatch.setattr("tests.composition.FILE", tmp_path / "docker-compose.yml")
    done = compose("config", "--quiet")
    assert done.returncode != 0
    assert "helthcheck" in done.stderr


@pytest.mark.parametrize("name", sorted(OURS | THEIRS))
def test_a_service_is_kept_small_and_started_again(file: dict[str, dict[str, Any]], name: str) -> None:
    what = file[name]
    tag = what["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-\w+)?", tag), "a version, and no moving name"
    assert what["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert what["read_only"] is True
    assert what["cap_drop"] == ["ALL"]
    assert what["security_opt"] == ["no-new-privileges:true"]
    assert what["user"].split(":")[0] not in ("", "0", "root")
    limits = what["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert int(limits["memory"]) > 0
    assert limits["pids"] > 0
    assert {port["host_ip"] for port in what.get("ports", [])} <= {"127.0.0.1"}
    assert "privileged" not in what
    assert "network_mode" not in what
    assert all(volume.get("read_only") for volume in what.get("volumes", []) if volume["type"] == "bind")
    assert what["healthcheck"] == {"disable": True} if name == "migrate" else what["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_process_waits_for_what_it_needs_and_is_asked_how_it_is(file: dict[str, dict[str, Any]], name: str) -> None:
    what = file[name]
    waits = {other: how["condition"] for other, how in what["depends_on"].items()}
    assert waits == {"migrate": "service_completed_successfully", "redis": "service_healthy"}
    assert what["healthcheck"]["test"] == ["CMD", "inturn", "ping"]
    assert what["environment"]["INTURN_METRICS_HOST"] == "0.0.0.0", "Prometheus is in another container"


def test_a_stopping_worker_is_given_the_time_that_its_calls_may_take(file: dict[str, dict[str, Any]]) -> None:
    fields = Settings.model_fields
    needs = fields["attempt_deadline_seconds"].default + fields["shutdown_grace_seconds"].default
    for lane in Lane:
        assert seconds(file[f"worker-{lane}"]["stop_grace_period"]) > needs
    assert all("stop_grace_period" in what for what in file.values())


def test_every_lane_has_a_worker_that_can_be_scaled(file: dict[str, dict[str, Any]]) -> None:
    for lane in Lane:
        what = file[f"worker-{lane}"]
        assert what["command"] == ["worker", "--lanes", lane]
        assert not what.get("ports"), "two containers cannot publish one port"
        assert "container_name" not in what


def test_the_broker_loses_nothing_and_asks_for_a_password(file: dict[str, dict[str, Any]]) -> None:
    what = file["redis"]
    options = dict(zip(what["command"][::2], what["command"][1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "requirepass $REDIS_PASSWORD" in what["entrypoint"][2]
    assert what["environment"]["REDIS_PASSWORD"] not in str(what["entrypoint"] + what["command"])


def test_only_monitoring_is_a_profile(file: dict[str, dict[str, Any]]) -> None:
    profiles = {name: what.get("profiles", []) for name, what in file.items()}
    assert profiles == {name: ["monitoring"] if name in ("prometheus", "grafana") else [] for name in file}


def test_no_secret_stands_in_the_file() -> None:
    """Each is asked for, and without it nothing starts."""
    text = FILE.read_text()
    variables = dict(re.findall(r"\$\{(\w*(?:PASSWORD|AUTH|KEY))\b([^}]*)\}", text))
    required = {name for name, rest in variables.items() if rest.startswith(":?")}
    assert required == {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "INTURN_FLOWER_BASIC_AUTH", "GRAFANA_PASSWORD"}
    assert {rest for name, rest in variables.items() if name not in required} == {":-"}, "nor a key"
    assert set(re.findall(r":[\w-]+@", text)) == {":change-me@"}, "in the example of the heading only"


@pytest.mark.parametrize(
    "name", ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "INTURN_FLOWER_BASIC_AUTH", "GRAFANA_PASSWORD"]
)
def test_nothing_starts_without_a_secret(tmp_path: Path, name: str) -> None:
    (tmp_path / "env").write_text(re.sub(rf"^{name}=.*$", "", EXAMPLE.read_text(), flags=re.MULTILINE))
    done = compose("config", "--quiet", environment=tmp_path / "env")
    assert done.returncode != 0
    assert name in done.stderr


def test_the_example_holds_what_the_file_asks_for_and_nothing_else() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text()))
    assert set(re.findall(r"^(\w+)=", EXAMPLE.read_text(), re.MULTILINE)) == asked


def test_what_is_built_is_called_what_it_is(file: dict[str, dict[str, Any]]) -> None:
    assert {file[name]["image"] for name in OURS} == {f"inturn:{__version__}"}
    about = yaml.safe_load((ROOT / "ops/k8s/base/kustomization.yaml").read_text())
    assert [image["newTag"] for image in about["images"]] == [__version__]


def test_secrets_are_kept_out_of_git_and_of_the_image() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/.env", "/.env.inturn"} <= set(ignored)


def test_prometheus_asks_every_process_where_it_answers(file: dict[str, dict[str, Any]]) -> None:
    about = yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())
    ours, itself = about["scrape_configs"]
    [found] = ours["dns_sd_configs"]
    assert ours["job_name"] == "inturn", "by which the alerts go"
    assert set(found["names"]) == PROCESSES
    assert {file[name]["environment"]["INTURN_METRICS_PORT"] for name in PROCESSES} == {str(found["port"])}
    assert {"metrics"} <= file["prometheus"]["networks"].keys()
    assert all("metrics" in file[name]["networks"] for name in PROCESSES)
    [port] = file["prometheus"]["ports"]
    assert itself["static_configs"] == [{"targets": [f"127.0.0.1:{port['target']}"]}]
    for name in about["rule_files"]:
        assert (ROOT / "ops" / "prometheus" / name).is_file()


def test_passwords_are_made_as_the_page_says(tmp_path: Path) -> None:
    [line] = re.findall(
        r"^\$ (\(umask .*?> \.env\))$", (ROOT / "docs/deploying.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert line in FILE.read_text().replace("\n#   ", "\n"), "the heading of the file says the same"
    (tmp_path / "ops").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "ops")
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True)
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o077 == 0
    secrets = re.findall(r"(?:PASSWORD=|inturn:)([0-9a-f]{48})$", made.read_text(), re.MULTILINE)
    assert len(set(secrets)) == 4
    assert compose("config", "--quiet", environment=made).returncode == 0


def test_a_lane_has_as_many_workers_as_is_said(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(EXAMPLE.read_text().replace("CHAT_WORKERS=1", "CHAT_WORKERS=3"))
    done = compose("config", "--format", "json", environment=tmp_path / "env")
    assert json.loads(done.stdout)["services"]["worker-chat"]["scale"] == 3


def test_the_page_names_services_and_variables_that_there_are(file: dict[str, dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    for line in re.findall(r"docker compose .*(?:up|exec|run) (.*)$", page, re.MULTILINE):
        named = [word for word in line.replace("--scale ", "").split("=")[0].split() if re.match(r"[a-z]+(-|$)", word)]
        assert {word for word in named if word not in ("inturn", "doctor", "pg_dump", "custom")} <= file.keys()
    known = {f"INTURN_{name.upper()}" for name in Settings.model_fields} | set(re.findall(r"\w+", EXAMPLE.read_text()))
    assert set(re.findall(r"\b(?:INTURN|SHARED)_\w+", page)) <= known
    for path in re.findall(r"`(ops/[\w/.]+)`", page):
        assert (ROOT / path).exists()


def test_what_is_mounted_is_there(file: dict[str, dict[str, Any]]) -> None:
    mounted = [volume for what in file.values() for volume in what.get("volumes", []) if volume["type"] == "bind"]
    assert {Path(each["source"]).relative_to(ROOT).as_posix() for each in mounted} == {
        "ops/prometheus",
        "ops/grafana/provisioning",
        "ops/grafana/dashboards",
    }
    assert all(Path(each["source"]).is_dir() for each in mounted)
    home = file["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "ops/grafana/dashboards" / Path(home).name).is_file()


def test_the_file_and_the_image_mean_the_same_user(file: dict[str, dict[str, Any]]) -> None:
    assert image()["entrypoint"] == ["tini", "--", "inturn"]
    assert {file[name]["user"] for name in OURS} == {"10001:10001"}
