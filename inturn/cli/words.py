"""Errors and ways back in words of the command line, where the SDK's would be Python."""

from collections.abc import Iterator
from contextlib import contextmanager

from inturn.models import errors

NO_REPLY_WILL_COME = (errors.TurnFailedError, errors.TurnCancelledError, errors.TurnNotFoundError)


def sentence(error: errors.InturnError) -> str:
    """What an error says to who types commands."""
    match error:
        case errors.SessionExistsError(session_id=taken):
            go_on = f"go on with `inturn chat {taken}` or `inturn send {taken} PROMPT`"
            told = str(error).replace("resume it, or use get_or_create_session", go_on)
            return told.replace("--skip-existing (skip_existing=True)", "--skip-existing")
        case errors.NoWorkerError():
            return str(error).removesuffix(", and wait for the turn again")
        case errors.SendTimeoutError():
            return str(error).partition(". ")[0]  # behind it stands how Python waits again
        case errors.BatchConflictError():
            return str(error).replace("another name", "another --name").replace("`--again`, or again=True", "--again")
        case errors.InvalidBatchError():
            return str(error).replace("--skip-invalid, skip_invalid=True", "--skip-invalid")
    return str(error)


@contextmanager
def way_back(turn: errors.HasId, *, embedded: bool) -> Iterator[None]:
    """Give every end of waiting that is not the turn's own a note on how to get the reply later."""
    try:
        yield
    except NO_REPLY_WILL_COME:
        raise
    except (errors.InturnError, KeyboardInterrupt) as end:
        how = " (for which `inturn up` has to run)" if embedded else ""
        end.add_note(f"turn {turn.id} is kept: `inturn turn show {turn.id}` has the reply once it is answered{how}")
        raise


def size(many: int) -> str:
    """Bytes in the largest unit in which they are one at least: ``1.2 MB``."""
    amount, units = float(many), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}" if amount != 1 or units[0] != "bytes" else "1 byte"
