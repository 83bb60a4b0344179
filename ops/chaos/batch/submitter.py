"""The submitter: ``inturn batch run``, killed at random and started again, until it ends by itself."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from inturn.cli.exits import Exit
from inturn.models.errors import InturnError
from inturn.workers.stack import inturn_command
from ops.chaos.fleet import Fleet, Process, end_group

DONE = (Exit.OK, Exit.LINES_FAILED)
GIVEN_UP = (*DONE, Exit.UNREACHABLE)
"""How it may end when nobody kills it: with all workers gone, it says so."""
LOOK_SECONDS, CLOSE_LOOK_SECONDS = 0.02, 0.005
"""Between two looks; the latter until it has checked its lines, of which 10,000 take 40 ms."""
PHASE_SECONDS = {"starting": 2.0, "checking": 0.03, "writing": 12.0}
"""How long after a phase was seen to begin, at most; mostly sooner."""
STORED_SHARE = (0.05, 0.9)
FIRST = ("checking", "storing", "storing", "writing", "checking")
LATER = ("starting", "checking", "writing", "writing", "writing", "writing")
MERCY = 3
"""How often it is killed once all lines are final: the end must come."""


class Submitter:
    """Run a command in a thread until it is done.

    Args:
        source, output: the files that it reads and writes: which of them it has open says what it is at.
        first: in what it is killed at first; later, dice decide.

    Attributes:
        kills: how often it was killed in what.
        endings: its exit codes, where it ended by itself.
        complaints: what it must not have said, as sentences.
    """

    def __init__(
        self, fleet: Fleet, words: Sequence[str], source: Path, output: Path, seed: str, first: Sequence[str] = FIRST
    ) -> None:
        self._fleet, self._words, self._dice, self._first = fleet, list(words), random.Random(seed), list(first)
        self._opened = {os.path.realpath(source): "checking", os.path.realpath(output): "writing"}
        self._mercy = MERCY
        self.kills: Counter[str] = Counter()
        self.endings: list[int] = []
        self.complaints: list[str] = []
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="submitter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float) -> int | None:
        """Wait until it is done; returns its exit code, None if it is not. Raises what went wrong."""
        self._thread.join(seconds)
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.endings[-1] if self.endings and self.endings[-1] in DONE else None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and not set(self.endings).intersection(DONE):
                self._live()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the end raises it
            self._error = error

    def _live(self) -> None:
        """From one start to one end."""
        said = self._fleet.logs / f"submitter.{threading.get_ident()}.{len(self.endings) + self.kills.total()}"
        with said.open("wb") as out:
            process = subprocess.Popen(
                inturn_command(*self._words), env=self._fleet.environment(), cwd=self._fleet.home, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip
        phase = self._await_fate(process, self._first.pop(0) if self._first else self._dice.choice(LATER))
        end_group(process)
        process.wait()
        if process.returncode == -signal.SIGKILL:
            self.kills[phase] += 1
            self._mercy -= self._state()[0] == "completed"
        else:
            self._note_end(process.returncode, said.read_text(errors="replace"))

    def _note_end(self, code: int, said: str) -> None:
        self.endings.append(code)
        if code not in GIVEN_UP or "Traceback" in said:
            self.complaints.append(f"the submitter ended with {code}: {said[-3000:]}")

    def _await_fate(self, process: Process, fate: str) -> str:
        """Wait for the moment of its death, or for its end. Returns: in which phase it was."""
        seen = {"starting": time.monotonic()}
        waits = {phase: seconds * self._dice.random() ** 2 for phase, seconds in PHASE_SECONDS.items()}
        share, phase = self._dice.uniform(*STORED_SHARE), "starting"
        while process.poll() is None and not self._stopping.is_set():
            time.sleep(CLOSE_LOOK_SECONDS if phase in ("starting", "checking") else LOOK_SECONDS)
            phase = self._phase(process, phase)
            since = seen.setdefault(phase, time.monotonic())
            is_late = phase == "writing" or phase == fate
            if self._mercy > 0 and is_late and self._is_due(phase, time.monotonic() - since, waits, share):
                break
        return phase

    def _is_due(self, phase: str, seconds: float, waits: Mapping[str, float], share: float) -> bool:
        if phase == "storing":
            _, stored, total = self._state()
            return stored > share * total > 0
        return seconds >= waits[phase]

    def _phase(self, process: Process, before: str) -> str:
        """By the files that it has open. Between them it stores."""
        with suppress(psutil.Error):
            for file in psutil.Process(process.pid).open_files():
                if file.path in self._opened:
                    return self._opened[file.path]
            return "starting" if before == "starting" else "storing"
        return before

    def _state(self) -> tuple[str, int, int]:
        """The batch's state, lines stored, and all lines."""
        with suppress(InturnError):
            for row in self._fleet.query("SELECT state, stored, total FROM batches"):
                return str(row.state), row.stored, row.total
        return "", 0, 0
