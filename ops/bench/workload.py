"""What is asked and answered: the same sessions, prompts and replies for every subject."""

from dataclasses import dataclass

TURNS_PER_SESSION = 4
RAMP_TURNS = 4  # that a slot may finish before it is measured, and by chance more than one a second
CONTEXT_MESSAGES = 20
PROMPT = "What would you change about the third paragraph, and why? Answer in two sentences, please. " * 2
REPLY = "The third paragraph makes two points at once; I would split it and lead with the second, which is newer. " * 3


@dataclass(frozen=True, slots=True)
class Load:
    """How much is in flight, and for how long.

    Attributes:
        in_flight: turns whose model call may be under way at once.
        seconds: how long it is measured, once every slot is at work.
    """

    in_flight: int
    seconds: float

    @property
    def sessions(self) -> int:
        """Sessions that nobody can work off in time: a call takes one second on average, and every slot keeps one."""
        return round(self.in_flight * (self.seconds + RAMP_TURNS) / TURNS_PER_SESSION) + self.in_flight
