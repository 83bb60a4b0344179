"""The ``inturn`` command. Commands are loaded when they are asked for; ``inturn --help`` loads none of them."""

import difflib
import os
import sys
import traceback
from importlib import import_module
from typing import Any, NamedTuple

import click

from inturn import __version__
from inturn.cli import render
from inturn.cli.exits import Exit, exit_code
from inturn.cli.invocation import global_flags
from inturn.cli.words import sentence
from inturn.models.errors import InturnError


class Door(NamedTuple):
    """Where a command is, and what ``--help`` says about it without going there."""

    section: str
    target: str
    help: str


COMMANDS: dict[str, Door] = {
    "demo": Door("Begin", "inturn.cli.demo:demo", "See what inturn is for, in about a minute."),
    "chat": Door("Talk", "inturn.cli.chat:chat", "Hold a conversation in the terminal."),
    "send": Door("Talk", "inturn.cli.send:send", "Send one prompt to a session."),
    "session": Door(
        "Talk",
        "inturn.cli.session:session",
        "Create, list, show, fork, rename, export, import, hold and delete sessions.",
    ),
    "turn": Door("Talk", "inturn.cli.turn:turn", "List, show, cancel and retry turns."),
    "batch": Door(
        "Talk", "inturn.cli.batch:batch", "Submit, run, list, watch, cancel and retry batches, and get their results."
    ),
    "schedule": Door(
        "Talk",
        "inturn.cli.schedule:schedule",
        "Add, list, show, pause, resume and remove schedules: prompts by the clock.",
    ),
    "why": Door("Talk", "inturn.cli.why:why", "Say what a session or a turn waits for."),
    "up": Door("Run", "inturn.cli.up:up", "Run broker, worker and beat together, with nothing set up."),
    "worker": Door("Run", "inturn.cli.worker:worker", "Run a worker, which answers turns."),
    "beat": Door("Run", "inturn.cli.beat:beat", "Run the timetable: schedules, cleanup and sweep."),
    "flower": Door(
        "Run",
        "inturn.cli.flower:flower",
        "Run Flower: a look at workers, sessions, batches and retention in a browser.",
    ),
    "top": Door("Look after", "inturn.cli.top:top", "Watch lanes, workers, failures, spending, and who waits longest."),
    "lane": Door("Look after", "inturn.cli.lane:lane", "List, pause and resume lanes."),
    "cleanup": Door(
        "Look after", "inturn.cli.cleanup:cleanup", "Remove sessions whose retention is over, and what else expired."
    ),
    "retention": Door(
        "Look after",
        "inturn.cli.retention:retention",
        "Show the rules of retention, test a session, and read receipts of removals.",
    ),
    "usage": Door("Look after", "inturn.cli.usage:usage", "Say what was used, what it cost, and how budgets stand."),
    "webhook": Door("Look after", "inturn.cli.webhook:webhook", "List, test and redeliver webhooks."),
    "config": Door("Look after", "inturn.cli.config:config", "Show every setting and where it comes from."),
    "db": Door("Look after", "inturn.cli.db:db", "Upgrade, check, back up, restore and copy the database."),
    "doctor": Door("Look after", "inturn.cli.doctor:doctor", "Say what works, what does not, and how to mend it."),
    "ping": Door("Look after", "inturn.cli.ping:ping", "Ask the worker or beat on this host whether it is at work."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported by who runs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise click.UsageError(f"no command {name!r}" + (f": did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(door.section for door in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, door.help) for name, door in COMMANDS.items() if door.section == section])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@global_flags(hidden=False)
@click.version_option(__version__, prog_name="inturn", message="%(prog)s %(version)s")
def cli() -> None:
    """inturn answers conversations in turn.

    Start with `inturn chat`: it needs no server, no key and no configuration. The options may stand behind the command,
    too.

    Exit codes: 0 ok, 1 failure, 2 usage, 3 lines of a batch failed, 4 not found, 69 database, broker or provider
    unreachable, 124 wait timed out, 130 interrupted. With --json, every line on stdout is one JSON object.
    """  # noqa: D403 (its name is written small)


def main() -> None:
    """Run the command that was typed, and leave with its exit code."""
    render.prepare()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read us has gone (`| head`). Python flushes stdout once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.FAILURE
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; errors become a sentence on stderr and an exit code."""
    try:
        result: Any = cli.main(arguments, prog_name="inturn", standalone_mode=False, color=render.color())
    except BrokenPipeError:
        raise
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        _pass_on_notes(error.__cause__ or error)  # click makes an Abort out of Ctrl-C
        return Exit.INTERRUPTED
    except InturnError as error:
        code = _failed(sentence(error), exit_code(error))
        _pass_on_notes(error)
        return code
    except OSError as error:
        return _failed(str(error), Exit.FAILURE)
    except Exception as error:  # noqa: BLE001 (a traceback is no answer to who typed a command)
        return _failed(f"{type(error).__name__}: {error}. This is a bug in inturn: please report it", Exit.FAILURE)
    return result if isinstance(result, int) else Exit.OK


def _failed(reason: str, code: Exit) -> Exit:
    if os.environ.get("INTURN_DEBUG"):
        render.talk(traceback.format_exc().rstrip())
    render.complain(reason)
    return code


def _pass_on_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        render.talk(note)
