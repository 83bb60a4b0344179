"""The tools of the deployments: copied into a worker's home, from where the worker imports it. They keep a book there."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

from inturn import ToolContext, ToolError, tool

BOOK = "toolbook.jsonl"
PATIENCE_SECONDS = 25


def enter(context: ToolContext, name: str) -> None:
    line = {"session": context.session_id, "turn": context.turn_id, "key": context.key, "name": name}
    with Path(BOOK).open("a") as book:
        book.write(json.dumps(line | {"pid": os.getpid()}) + "\n")


@tool
def note(text: str, context: ToolContext) -> str:
    """Write something down."""
    enter(context, "note")
    return f"noted {text}"


@tool
def add(a: int, b: int = 1) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@tool
def refuse() -> str:
    """Do nothing."""
    raise ToolError("we are closed")


@tool
def break_down() -> str:
    """Fail."""
    raise LookupError("a secret of ours")


@tool(deadline=timedelta(seconds=0.5))
def oversleep(context: ToolContext) -> str:
    """Take too long."""
    while not context.is_cancelled():
        time.sleep(0.05)
    return "too late"


@tool
def linger(name: str, context: ToolContext) -> str:
    """The first time it is called with a name, it does not return before there is a file NAME.go."""
    enter(context, "linger")
    begun, until = Path(f"{name}.begun"), time.monotonic() + PATIENCE_SECONDS
    if not begun.exists():
        begun.write_text(str(os.getpid()))
        while not Path(f"{name}.go").exists() and not context.is_cancelled() and time.monotonic() < until:
            time.sleep(0.05)
        Path(f"{name}.over").touch()
    return f"{name} is done"


@tool
def choke(text: str) -> str:
    """Fail over what it was told."""
    raise ToolError(f"{text} does not go down")
