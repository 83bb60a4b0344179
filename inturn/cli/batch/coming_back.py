"""What is said of a batch to whoever stops waiting for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inturn.cli.batch.submitting import has_worker
from inturn.models.errors import BatchNotFoundError, InturnError, InvalidInputError

if TYPE_CHECKING:
    from inturn.client import Client


@contextmanager
def way_back_to_batch(client: "Client", batch_id: str) -> Iterator[None]:
    """Give every end of waiting that is not the batch's own a note on how to come back."""
    try:
        yield
    except (BatchNotFoundError, InvalidInputError):
        raise
    except (InturnError, KeyboardInterrupt) as end:
        end.add_note(f"batch {batch_id} goes on{when(client)}: `inturn batch watch {batch_id}` looks again")
        raise


def when(client: "Client") -> str:
    """When a batch goes on that nobody waits for any more; empty: nobody can say."""
    try:
        if stays_at_work(client):
            return " by itself"
    except InturnError:  # perhaps what the waiting broke off for
        return ""
    if client.settings.is_embedded:
        return " as soon as `inturn up` runs, or somebody waits for it"
    return f" as soon as `{'inturn up' if client.settings.has_embedded_broker else 'inturn worker'}` runs"


def stays_at_work(client: "Client") -> bool:
    """Whether a worker is alive that does not go with this command. Raises: InturnError."""
    from inturn.workers.stack import running_stack

    if not client.settings.is_embedded:
        return has_worker(client)
    stack = running_stack(client.settings.home)
    return stack is not None and not stack.linked and not stack.stopping
