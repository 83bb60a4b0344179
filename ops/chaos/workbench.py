"""The tool of a chaos run's workers. It takes long enough for a worker to be killed over it."""

import random
import time

from inturn import tool

SECONDS = (0.0, 0.3)
NOTED = "noted"


@tool
def note() -> str:
    """Write it down."""
    time.sleep(random.uniform(*SECONDS))
    return NOTED
