"""The check-up: what it finds on a bare machine, and in a dangerous place."""

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from inturn.archives import objects
from inturn.cli.checkup import archives
from inturn.cli.checkup.archives import check_archives
from inturn.cli.checkup.finding import Finding
from inturn.cli.doctor import check_up
from inturn.cli.exits import exit_code
from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.errors import SettingsError
from inturn.models.states import ProcessKind
from inturn.models.store import opening, presence
from inturn.models.store.opening import NewSession
from inturn.models.store.presence import Process
from inturn.models.tables import LEASES
from inturn.settings import Settings
from inturn.workers import embedded
from inturn.workers.children import SETTINGS_REFUSED


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INTURN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def findings(settings: Settings, subject: str) -> list[Finding]:
    return [finding for finding in check_up(settings, offline=True) if finding.subject == subject]


def test_a_bare_machine_is_well() -> None:
    found = list(check_up(Settings.load()))
    assert not [finding for finding in found if finding.state == "fail"]
    assert "is not there yet" in found[0].sentence


def test_the_stand_in_is_a_note_and_no_danger() -> None:
    assert [one.state for one in findings(Settings.load(), "model")] == ["note"]


def test_nobody_alive_is_only_a_warning_where_commands_start_a_stack(tmp_path: Path) -> None:
    with closing(Database(Settings.load().effective_database_url)) as database:
        migrations.prepare(database)
    assert [one.state for one in findings(Settings.load(), "workers")] == ["warn"]
    elsewhere = Settings.load(database_url=f"sqlite:///{tmp_path}/home/inturn.db")
    assert [one.state for one in findings(elsewhere, "workers")] == ["fail"]
    assert [one.state for one in findings(elsewhere, "beat")] == ["warn"]


def test_a_database_without_tables_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    [found] = findings(Settings.load(database_url=f"sqlite:///{tmp_path}/empty.db"), "database")
    assert found.state == "fail"
    assert "inturn db upgrade" in found.sentence


def test_what_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"redis://:hidden@127.0.0.1:1/{0}"
    [found] = findings(Settings.load(broker_url=url), "broker")
    assert found.state == "fail"
    assert "redis://:***@127.0.0.1:1/0 does not answer" in found.sentence
    [found] = findings(Settings.load(database_url="postgresql://u:hidden@127.0.0.1:1/x"), "database")
    assert found.state == "fail"
    assert "hidden" not in found.sentence


def test_an_embedded_broker_that_hangs_keeps_inturn_from_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECONDS", 0.2)
    (tmp_path / "home").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "home" / "broker.sock"))
        hanging.listen()
        [found] = findings(Settings.load(), "broker")
    assert found.state == "fail"
    assert found.sentence == (
        "the embedded broker runs and does not answer: `inturn up` stops it and starts another one"
    )
    [found] = findings(Settings.load(), "broker")
    assert found.state == "warn", "it does not run, and commands start it"


def test_who_is_missing_is_started_by_what_brings_the_embedded_broker_along(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/inturn.db"
    with closing(Database(url)) as database:
        migrations.upgrade(database)
    for broker, commands in ("", ("inturn up", "inturn up")), ("redis://127.0.0.1:1", ("inturn worker", "inturn beat")):
        settings = Settings.load(database_url=url, broker_url=broker)
        for subject, command in zip(("workers", "beat"), commands, strict=True):
            [found] = findings(settings, subject)
            assert f"`{command}` starts" in found.sentence
            assert found.sentence.count("`") == 2


def test_a_key_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = {"lab": {"base_url": "http://lab.example/v1", "api_key_env": "LAB_KEY"}}
    [key] = findings(Settings.load(providers=lab, default_model="lab/small"), "key")
    assert key == Finding(
        "fail",
        "key",
        "LAB_KEY, the key of provider lab, is not set: export it where workers start (in this environment it is missing)",
    )
    assert [one.state for one in findings(Settings.load(providers=lab), "key")] == ["warn"]
    monkeypatch.setenv("LAB_KEY", "hidden")
    settings = Settings.load(providers=lab, default_model="lab/small")
    assert [one.state for one in findings(settings, "key")] == ["ok"]
    assert "plain http" in findings(settings, "settings")[0].sentence
    assert "hidden" not in str(list(check_up(settings, offline=True)))
    [model] = findings(Settings.load(default_model="ghost/x"), "model")
    assert model.state == "fail"
    assert "[providers.ghost]" in model.sentence


def test_fallbacks_that_nobody_can_ask_are_named() -> None:
    fallbacks = ["openai/gpt-5", "ghost/x", "echo/echo", "lab/large"]
    lab = {"lab": {"base_url": "http://127.0.0.1:1/v1", "fallbacks": fallbacks}}
    _, vendor, ghost = findings(Settings.load(providers=lab, default_model="lab/small"), "model")
    assert (vendor.state, ghost.state) == ("warn", "warn")
    assert vendor.sentence == (
        "openai/gpt-5, in the fallbacks of lab, cannot be asked: in this environment there is no provider openai: add "
        "[providers.openai] to inturn.toml, or set OPENAI_API_KEY"
    )
    assert ghost.sentence.endswith("there is no provider ghost: add [providers.ghost] to inturn.toml")


def test_dangers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    monkeypatch.setenv("INTURN_HOEM", "x")
    found = " ".join(one.sentence for one in findings(Settings.load(), "settings"))
    assert "INTURN_HOEM is set and means nothing" in found
    assert "chmod 700" in found


def test_a_lane_that_nobody_serves_is_named() -> None:
    settings = Settings.load()
    process = Process("p1", ProcessKind.WORKER, "host", 1, "chat,batch", 10, "0")
    with closing(Database(settings.effective_database_url)) as database:
        migrations.prepare(database)
        database.transact(lambda db: presence.appear(db, process))
    assert [one.state for one in findings(settings, "workers")] == ["ok", "warn"]
    assert "the lane maintenance" in findings(settings, "workers")[1].sentence


def test_sessions_that_stand_still_are_counted() -> None:
    settings = Settings.load()
    with closing(Database(settings.effective_database_url)) as database:
        migrations.prepare(database)
        for key in ("well", "odd", "careful"):
            opening.create_session(database, NewSession(key=key, model="echo/echo"))
        assert findings(settings, "sessions") == []
        database.transact(lambda db: db.execute(LEASES.update().where(LEASES.c.session_id > 1).values(halted_by=1)))
    [found] = findings(settings, "sessions")
    assert found.state == "warn"
    assert found.sentence == (
        "2 sessions halted behind a quarantined turn: `inturn why careful` says why, and "
        "`inturn session continue careful` lets it go on"
    )


def test_a_module_of_tools_that_is_not_there_keeps_workers_from_working(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    for name in ("__init__", "tools"):
        (package / f"{name}.py").write_text("raise SystemExit('a check-up imports nobody')")
    assert findings(Settings.load(tool_modules=["shop", "shop.tools", "json.decoder"]), "tools") == []
    for missing in ("shop.nowhere", "nowhere", "shop.tools.deeper", "", "."):
        [found] = findings(Settings.load(tool_modules=["shop.tools", missing]), "tools")
        assert found.state == "fail"
        assert f"tool_modules (flag) names {missing!r}, which is not found" in found.sentence
        assert str(tmp_path) in found.sentence


def test_a_supervisor_knows_the_code_of_refused_settings() -> None:
    assert exit_code(SettingsError("")) == SETTINGS_REFUSED


ARCHIVES = """
[[retention]]
name = "one"
match = "one-*"
idle_days = 1
archive = "there"

[[retention]]
name = "two"
match = "two-*"
idle_days = 1
archive = "there"

[[retention]]
name = "lost"
match = "lost-*"
idle_days = 1
archive = "missing"

[[retention]]
name = "afar"
match = "afar-*"
idle_days = 1
archive = "memory://ann:secret@bucket/x"
"""


def test_archives_that_cannot_be_written_are_told_with_what_mends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("inturn.toml").write_text(ARCHIVES)
    Path("there").mkdir()
    there, lost, afar = findings(Settings.load(), "archives")
    assert (there.state, there.sentence) == ("ok", "of one, two: can be written")
    assert (lost.state, afar.state) == ("warn", "note")
    assert lost.sentence.startswith(f"of lost: cannot archive sessions in {tmp_path / 'missing'} (No such file or dir")
    assert "make the directory, or name another one" in lost.sentence
    assert afar.sentence == "of afar: not asked (--offline)"
    assert list(Path("there").iterdir()) == []
    online = list(check_archives(Settings.load(), offline=False))
    assert (online[2].state, online[2].sentence) == ("ok", "of afar: can be written")
    monkeypatch.setattr(archives, "SECONDS", 0.1)
    monkeypatch.setattr(objects, "probe", lambda target: time.sleep(1))
    silent = list(check_archives(Settings.load(), offline=False))[2]
    assert silent.state == "warn"
    assert "memory://ann:***@bucket/x (no answer within 0.1 s): see whether" in silent.sentence
