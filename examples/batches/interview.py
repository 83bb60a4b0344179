"""Two questions to each of sixteen people, as one batch; then, in one of the conversations, a third one.

    python examples/batches/interview.py

It needs no server and no key: inturn starts what it needs and stops it again, and a stand-in for a model answers, which
repeats and remembers. With OPENAI_API_KEY in the environment the default model of OpenAI answers.
"""

import sys
from datetime import timedelta
from pathlib import Path

from inturn import Batch, Client

QUESTIONS = Path(__file__).with_name("interview.jsonl")
STUDY = "meals-2026"


def first_line(text: str | None) -> str:
    return (text or "").splitlines()[0]


def submit(client: Client) -> Batch:
    """Once this returns, all prompts are stored. Run it again, after Ctrl-C or a power cut, and it is the same batch."""
    batch = client.submit_batch(QUESTIONS, name=STUDY, keep=timedelta(days=7))
    people = sum(1 for _ in client.list_sessions(labels={"study": STUDY}))  # by the label that the lines gave them
    print(f"{batch.total} questions to {people} people")
    return batch


def wait(batch: Batch) -> None:
    """Watch it until its last line has ended. The workers do not need this program: it may as well go, and come back."""
    for progress in batch.watch(timeout=300):
        print(f"\r{progress.done} of {progress.total}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{progress.completed} answers, {progress.failed} without one")


def read(batch: Batch) -> None:
    """Results come in the order in which lines ended; ``custom_id`` says which is which."""
    answers = {result.custom_id: result for result in batch.results()}
    for custom_id in ("ines-1", "ines-2"):
        print(f"  {answers[custom_id].session_id}: {first_line(answers[custom_id].reply)}")


def ask_one_more(client: Client) -> None:
    """The sessions of a batch are like all others: what was asked and answered is the history of what comes next."""
    with client.resume_session(f"{STUDY}:ines") as session:
        reply = session.send_and_wait("What did we talk about?", timeout=60)
        print(f"  turn {reply.turn}: {reply.data.content}")


def main() -> None:
    with Client() as client:
        batch = submit(client)
        wait(batch)
        read(batch)
        ask_one_more(client)


if __name__ == "__main__":
    main()
