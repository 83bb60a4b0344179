"""What workers, beat and Flower log: sentences with fields for people, and the same as JSON for machines, an object a line.

The fields of an object are read off the sentence that our code writes, ``action=lease_lost session=%s: ...``, with the
values that it was given: a text with blanks stays one, and a number a number.
"""

import json
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson

from inturn.workers.processes import ProcessIdentity

DIRECTIVE = re.compile(r"(?:\b(?P<name>[a-z_]+)=)?%[-+ #0]*\d*(?:\.\d+)?(?P<kind>[a-zA-Z%])")
"""A place of a template that a value goes into, with the name that stands before it."""
ACTION = re.compile(r"action=(\w+)")


def is_json(log_format: str) -> bool:
    return log_format == "json" or (log_format == "auto" and not sys.__stderr__.isatty())  # type: ignore[union-attr]


class JsonLines(logging.Formatter):
    """Makes an object of each record; its ``message`` is the sentence as it would be without.

    Args:
        role: ``worker``, ``beat``, ``flower`` or ``up``.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self._ours = {"role": role, "process": str(ProcessIdentity.mine()), "pid": ProcessIdentity.mine().pid}

    def of(self, logger: str, sentence: str) -> str:
        """For who has a sentence, and no logger."""
        return self.format(logging.LogRecord(logger, logging.INFO, "", 0, sentence, None, None))

    def write(self, logger: str, sentence: str) -> None:
        """To stderr, past all locks: a signal handler may have interrupted who holds one."""
        os.write(2, f"{self.of(logger, sentence)}\n".encode())

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            **({"action": found[1]} if (found := ACTION.match(message)) else {}),
            "message": message,
            **self._ours,
            **span_ids(),
            **(told_of(record.exc_info) if record.exc_info else {}),
        }
        line |= {name: value for name, value in fields_of(record).items() if name not in line}
        try:
            return orjson.dumps(line).decode()
        except TypeError:  # half a character of somebody's text, or a number of theirs that is too large
            return json.dumps(line)


@cache
def names_of(template: str) -> tuple[str, ...]:
    """For each value that goes into the template, the name before it; empty: it has none."""
    return tuple(found["name"] or "" for found in DIRECTIVE.finditer(template) if found["kind"] != "%")


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the sentence names; Celery's own name nothing."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str) or not record.msg.startswith("action="):
        return {}
    named = zip(names_of(record.msg), record.args, strict=False)
    return {name: value if isinstance(value, int | float) else str(value) for name, value in named if name}


def told_of(error: Any) -> dict[str, Any]:
    kind, value, trace = error
    if kind is None:
        return {}
    stack = "".join(traceback.format_exception(kind, value, trace))
    return {"exception": {"type": kind.__name__, "message": str(value), "stack": stack}}


def span_ids() -> dict[str, str]:
    """Where we are in a trace, if anybody here traces."""
    if (api := sys.modules.get("opentelemetry.trace")) is None:
        return {}
    where = api.get_current_span().get_span_context()
    return {"trace_id": f"{where.trace_id:032x}", "span_id": f"{where.span_id:016x}"} if where.is_valid else {}
