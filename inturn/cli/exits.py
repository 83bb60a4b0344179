"""Exit codes by name, and which error ends the command with which."""

from enum import IntEnum

from inturn.models import errors


class Exit(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """The command, an argument or a setting is wrong; nothing was done."""
    LINES_FAILED = 3
    """The batch is over, and some of its lines have no reply."""
    NOT_FOUND = 4
    """No such session, turn, batch, webhook delivery or schedule."""
    UNREACHABLE = 69
    """Database, broker or provider cannot be reached, or no worker is alive (EX_UNAVAILABLE of sysexits.h)."""
    TIMED_OUT = 124
    """Waiting took too long; the turn or batch goes on (what timeout(1) says)."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT, as shells say)."""


CODES: dict[type[errors.InturnError], Exit] = {
    errors.InvalidInputError: Exit.USAGE,
    errors.SettingsError: Exit.USAGE,
    errors.SessionNotFoundError: Exit.NOT_FOUND,
    errors.TurnNotFoundError: Exit.NOT_FOUND,
    errors.BatchNotFoundError: Exit.NOT_FOUND,
    errors.DeliveryNotFoundError: Exit.NOT_FOUND,
    errors.ScheduleNotFoundError: Exit.NOT_FOUND,
    errors.DatabaseUnreachableError: Exit.UNREACHABLE,
    errors.BrokerUnreachableError: Exit.UNREACHABLE,
    errors.NoWorkerError: Exit.UNREACHABLE,
    errors.SendTimeoutError: Exit.TIMED_OUT,
    errors.BatchTimeoutError: Exit.TIMED_OUT,
}


NO_PROVIDER = {"refused", "unreachable", "dns", "tls", "connect_timeout", "unavailable"}
"""Types of a failed turn's error that say that nobody answered (the working side's ``retries`` describes them all)."""


def exit_code(error: errors.InturnError) -> Exit:
    """The code of an error: its own, or that of the nearest kind above it in the tree."""
    if isinstance(error, errors.TurnFailedError) and error.error_type in NO_PROVIDER:
        return Exit.UNREACHABLE
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), Exit.FAILURE)
