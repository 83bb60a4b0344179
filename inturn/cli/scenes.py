"""The scenes of ``inturn demo``. Its figures are counted in the database, by SQL that does not go through inturn."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inturn.cli import render
from inturn.cli.stage import CheckFailedError, Stage, check, say
from inturn.client import Client, Session
from inturn.settings import Settings
from inturn.workers.processes import ProcessIdentity

CONVERSATION = "user-123-conversation"
CROWD = [f"user-{number}-support" for number in range(201, 301)]
CROWD_LIKE = "user-%-support"
CALM_QUESTIONS, LATE_QUESTIONS = range(1, 6), range(6, 8)
CALM, SLOW = {"latency": [0.05, 0.3]}, {"latency": [0.5, 1.5]}
"""Seconds that the stand-in takes; in the second case long enough for a worker to have calls in hand when it dies."""
IN_HAND = 4
ANSWERED_SECONDS = 120.0
POLL_SECONDS = 0.1
SENDS_PER_LOOK = 20

TURNS = """
SELECT count(*), coalesce(sum(turns.state = 'completed'), 0), coalesce(sum(attempts > 1), 0), coalesce(sum(rescues), 0),
       (julianday(max(finished_at)) - julianday(min(turns.created_at))) * 86400,
       (julianday(max(CASE WHEN rescues > 0 THEN finished_at END)) - 2440587.5) * 86400
FROM turns JOIN sessions ON sessions.id = session_id
WHERE key LIKE ? AND number BETWEEN ? AND ?"""
REPLIES = """
SELECT count(*), count(DISTINCT session_id || '.' || turn_number)
FROM messages JOIN sessions ON sessions.id = session_id
WHERE key LIKE ? AND turn_number BETWEEN ? AND ? AND role = 'assistant'"""
CALLS = """
WITH calls AS (
    SELECT attempts.* FROM attempts JOIN sessions ON sessions.id = session_id
    WHERE key LIKE ? AND turn_number BETWEEN ? AND ?
), changes AS (
    SELECT started_at AS at, 1 AS change FROM calls UNION ALL SELECT ended_at, -1 FROM calls
)
SELECT (SELECT sum(julianday(ended_at) - julianday(started_at)) * 86400 FROM calls), max(running)
FROM (SELECT sum(change) OVER (ORDER BY at, change) AS running FROM changes)"""
BUSIEST = "SELECT owner, count(*) FROM leases WHERE owner IS NOT NULL GROUP BY owner ORDER BY 2 DESC LIMIT 1"


def play(stage: Stage) -> None:
    """Tell the whole story.

    Raises:
        CheckFailedError: It is not true.
    """
    began = time.monotonic()
    render.heading("inturn demo: a conversation that survives everything, in about a minute")
    say(
        f"It runs in {stage.home} and touches nothing else. What stands behind $ and >>> really runs; "
        "to type it yourself, begin with"
    )
    if shutil.which("inturn") is None:
        render.command(f"$ export PATH={Path(sys.executable).parent}:$PATH")
    render.command(f"$ export INTURN_HOME={stage.home}")
    scenes: list[tuple[str, Callable[[Stage], None]]] = [
        ("one command, and nothing to set up", set_up),
        ("a conversation, under an ID of your own", talk),
        ("every process stops, and the conversation goes on", come_back),
        ("500 prompts to 100 sessions", ask_the_crowd),
        ("kill -9 in the middle of 200 more", kill_a_worker),
        ("look around, and leave nothing running", look_around),
    ]
    for number, (title, act) in enumerate(scenes, 1):
        render.heading(f"Scene {number} of {len(scenes)}: {title}")
        act(stage)
    render.data("")
    say(f"That took {time.monotonic() - began:.0f} s. `inturn chat` begins a conversation of your own.")


def set_up(stage: Stage) -> None:
    settings = Settings.load()
    if not settings.is_embedded:
        raise CheckFailedError("it would not run on a database of its own: see `inturn config show`")
    stage.start()
    model = settings.effective_default_model
    if model.startswith("echo/"):
        say("No model is configured, so a stand-in answers: it repeats what is said, and remembers.")
    else:
        say(f"{model} answers the conversation. The crowd of scene 4 talks to a stand-in, which costs nothing.")


def talk(stage: Stage) -> None:
    stage.run(f"inturn session create {CONVERSATION}")
    stage.run(f'inturn send {CONVERSATION} "Let\'s discuss TypeScript generics" --wait')


def come_back(stage: Stage) -> None:
    stage.stop()
    stage.start()
    reply = stage.run(f'inturn send {CONVERSATION} "What were we discussing?" --wait')
    check(
        "typescript" in reply.lower() or "generics" in reply.lower(),
        "remembered",
        "the right answer, out of the stored history",
        "asked what was discussed, the model spoke of neither TypeScript nor generics",
    )


def ask_the_crowd(stage: Stage) -> None:
    render.command(
        ">>> client = inturn.Client()\n"
        '>>> latency = {"latency": [0.05, 0.3]}  # seconds that the stand-in takes\n'
        '>>> crowd = [client.create_session(f"user-{n}-support", model="echo/echo")\n'
        "...          for n in range(201, 301)]\n"
        ">>> for question in range(1, 6):\n"
        "...     for session in crowd:\n"
        '...         session.send(f"question {question}", options=latency)'
    )
    with Client() as client:
        crowd = [client.create_session(session_id, model="echo/echo") for session_id in CROWD]
        sent = send_all(stage, crowd, CALM_QUESTIONS, CALM)
        figures = Figures.of(stage, CALM_QUESTIONS)
        check_replies(figures, sent)
        check_order(crowd, CALM_QUESTIONS)
    speed = f"{figures.turns / figures.seconds:.0f} turns a second"
    render.verdict("ok", "speed", f"{speed}, each on disk before send() returned")
    render.verdict(
        "ok", "at once", f"up to {figures.most_calls} calls; one by one they would take {figures.call_seconds:.0f} s"
    )


def kill_a_worker(stage: Stage) -> None:
    render.command(
        '>>> latency = {"latency": [0.5, 1.5]}  # slower, to have calls in hand\n'
        '>>> crowd = [client.resume_session(f"user-{n}-support")\n'
        "...          for n in range(201, 301)]\n"
        ">>> for question in range(6, 8):\n"
        "...     for session in crowd:\n"
        '...         session.send(f"question {question}", options=latency)'
    )
    killer = Killer(stage, after=len(CROWD) * len(LATE_QUESTIONS) // 4)
    with Client() as client:
        crowd = [client.resume_session(session_id) for session_id in CROWD]
        sent = send_all(stage, crowd, LATE_QUESTIONS, SLOW, killer.look)
        if not killer.pid:
            raise CheckFailedError("no worker had enough in hand to be worth a kill")
        render.command(f"$ kill -9 {killer.pid}  # {killer.circumstances}")
        render.data(stage.up_said("killed by"))
        figures = Figures.of(stage, LATE_QUESTIONS)
        check_replies(figures, sent)
        check_order(crowd, range(1, LATE_QUESTIONS.stop))
    died = render.counted(figures.rescues, "turn")
    check(
        figures.rescues > 0 and figures.last_rescue is not None,
        "rescued",
        f"{died} died with it, and {figures.tried_again} took a second attempt",
        "the worker was killed with turns in hand, and none was rescued",
    )
    render.verdict(
        "ok", "recovery", f"all of them were answered {(figures.last_rescue or 0) - killer.at:.1f} s after the kill"
    )


def look_around(stage: Stage) -> None:
    stage.run("inturn session create guest-42 --retention 0.1s")
    stage.run("inturn session list --limit 4", table=True)
    stage.run("inturn cleanup --dry-run", table=True)
    [(left,)] = stage.query("SELECT count(*) FROM sessions WHERE key = 'guest-42'")
    check(left == 1, "dry run", "it names what is due, and removes nothing", "a dry run removed a session")
    stage.stop()


def send_all(
    stage: Stage,
    crowd: Sequence[Session],
    questions: range,
    options: dict[str, list[float]],
    look: Callable[[int], None] = lambda answered: None,
) -> int:
    """Ask every session every question and wait for all replies; returns how many prompts were accepted.

    Args:
        look: is told from time to time how many are answered.

    Raises:
        CheckFailedError: They do not come.
    """
    sent, total = 0, len(crowd) * len(questions)
    with render.progress("answered", total) as bar:

        def look_again() -> int:
            answered = int(stage.query(TURNS, *about(questions))[0][1])
            bar.update(answered)
            look(answered)
            return answered

        for question in questions:
            for session in crowd:
                session.send(f"question {question}", options=options)
                sent += 1
                if sent % SENDS_PER_LOOK == 0:
                    look_again()
        deadline = time.monotonic() + ANSWERED_SECONDS
        while (answered := look_again()) < sent:
            if time.monotonic() > deadline:
                raise CheckFailedError(f"{answered} of {sent} prompts were answered within {ANSWERED_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
    return sent


def about(questions: range) -> tuple[str, int, int]:
    """What the SQL above is asked about."""
    return CROWD_LIKE, questions.start, questions.stop - 1


@dataclass(frozen=True)
class Figures:
    """What the database says of the crowd's turns."""

    turns: int
    completed: int
    tried_again: int
    rescues: int
    seconds: float
    last_rescue: float | None
    """Seconds since 1970."""
    replies: int
    answered: int
    call_seconds: float
    most_calls: int

    @classmethod
    def of(cls, stage: Stage, questions: range) -> "Figures":
        return cls(*(value for sql in (TURNS, REPLIES, CALLS) for value in stage.query(sql, *about(questions))[0]))


class Killer:
    """Kills the busiest worker, once so many replies are there and while it has calls in hand."""

    def __init__(self, stage: Stage, after: int) -> None:
        self._stage, self._after = stage, after
        self.pid, self.at = 0, 0.0
        self.circumstances = ""

    def look(self, answered: int) -> None:
        if self.pid or answered < self._after:
            return
        for owner, in_hand in self._stage.query(BUSIEST):
            victim = ProcessIdentity.parse(owner)
            if in_hand >= IN_HAND and victim.signal(signal.SIGKILL):
                name = next((name for name, process in self._stage.workers.items() if process == victim), "a worker")
                self.pid, self.at = victim.pid, time.time()
                self.circumstances = f"{name}, after {answered} replies, with {in_hand} more in hand"


def check_replies(figures: Figures, sent: int) -> None:
    check(
        figures.turns == figures.completed == figures.answered == sent,
        "lost",
        f"none: {sent} prompts accepted, {figures.answered} of them have a reply",
        f"{sent} prompts were accepted, {figures.turns} are stored, and {figures.answered} have a reply",
    )
    doubled = figures.replies - figures.answered
    check(not doubled, "doubled", f"none: {figures.replies} replies in all", f"{doubled} replies were stored twice")


def check_order(crowd: Iterable[Session], questions: range) -> None:
    wrong = [session.session_id for session in crowd if not in_order(session, questions)]
    check(
        not wrong,
        "order",
        "kept: each reply answers its prompt and knows all before it",
        f"the history of {', '.join(wrong)} is not in order",
    )


def in_order(session: Session, questions: range) -> bool:
    """Whether the history is question, reply, question, reply, and each reply was given in knowledge of all before."""
    expected = []
    for question in questions:
        known = "your first message" if question == 1 else f"{question} messages of yours"
        reply = f'You said: "question {question}"\nI remember {known}. (echo, not a real model)'
        expected += [("user.message", f"question {question}"), ("assistant.message", reply)]
    return [(message.type, message.data.content) for message in session.get_messages()] == expected
