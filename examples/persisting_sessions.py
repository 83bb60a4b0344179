"""Sessions that outlive their program: create, let go, resume in another process, list, read, clean up, delete.

    python examples/persisting_sessions.py

It needs no server and no key: inturn starts what it needs and stops it again, and a stand-in for a model answers, which
repeats and remembers. With OPENAI_API_KEY in the environment the default model of OpenAI answers.
"""

import subprocess
import sys
from datetime import timedelta

from inturn import Client, SessionNotFoundError

# An ID carries who it is about, and what it is about. Then it can be found by its beginning, nobody needs a table of
# who has which session, and it tells in every log what it is.
USER = "example-123"
CONVERSATION = f"{USER}-typescript"
SCRATCH = f"{USER}-scratch"


def begin(client: Client) -> None:
    """Create a session under an ID of one's own, talk, and let go of it."""
    session = client.create_session(session_id=CONVERSATION, labels={"topic": "typescript"})
    reply = session.send_and_wait("Let's discuss TypeScript generics", timeout=60)
    print("assistant:", reply.data.content)

    session.disconnect()  # Lets go of the handle. Everything is kept, and prompts that still wait are answered.


def go_on(session_id: str) -> None:
    """Take the session up again: from another process, another machine, another day."""
    with Client() as client:
        # Ask first where the ID comes from outside (a link, a cookie). Metadata costs little, and creates nothing.
        metadata = client.get_session_metadata(session_id)
        if metadata is None:
            print(f"{session_id} was deleted, or it was never there: begin a new one")
            return
        print(f"resuming {metadata.session_id}: {metadata.messages} messages, model {metadata.model}")

        with client.resume_session(session_id) as session:
            reply = session.send_and_wait("What were we discussing?", timeout=60)
            print("assistant:", reply.data.content)


def list_them(client: Client) -> None:
    """Find one user's sessions: by prefix, by label, by when they were used."""
    for metadata in client.list_sessions(prefix=f"{USER}-"):
        print(f"  {metadata.session_id}: {metadata.turns} turns, last used {metadata.last_activity_at:%Y-%m-%d}")

    labelled = client.list_sessions(labels={"topic": "typescript"})
    print("about TypeScript:", ", ".join(metadata.session_id for metadata in labelled))


def read_history(client: Client) -> None:
    """Read what was said. Pages are fetched as the loop goes, so a long history needs no memory."""
    with client.resume_session(CONVERSATION) as session:
        for message in session.get_messages():
            print(f"  [{message.type}] {message.data.content.splitlines()[0]}")


def clean_up(client: Client) -> None:
    """Let old sessions go by policy, and not by a script that somebody has to remember.

    A session that nobody used for ``retention_days`` (30) is removed by beat, which looks once an hour. A session can
    have a time of its own, or none (``retention=None``), and one that is held stays whatever its time is.
    """
    client.create_session(SCRATCH, retention=timedelta(milliseconds=1))
    client.hold_session(CONVERSATION)

    due = client.list_due()  # What beat would remove now; client.cleanup() removes it.
    print("due for removal:", ", ".join(removal.session_id for removal in due if removal.session_id.startswith(USER)))


def delete(client: Client) -> None:
    """Delete for good: the session, its messages, and every record of its calls."""
    client.delete_session(CONVERSATION)
    client.delete_session(SCRATCH, missing_ok=True)  # Beat may have been here before us.

    try:
        client.resume_session(CONVERSATION)
    except SessionNotFoundError as error:
        print(f"{error.session_id} is gone")


def main() -> None:
    with Client() as client:
        for leftover in (CONVERSATION, SCRATCH):  # of an earlier run of this example that was interrupted
            client.delete_session(leftover, missing_ok=True)

        begin(client)
        print("--- a second process ---", flush=True)
        subprocess.run([sys.executable, __file__, CONVERSATION], check=True)
        print("--- the first one again ---")
        list_them(client)
        read_history(client)
        clean_up(client)
        delete(client)


if __name__ == "__main__":
    go_on(sys.argv[1]) if len(sys.argv) > 1 else main()
