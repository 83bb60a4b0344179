"""What is measured: something that answers turns, alone on the machine, for a while."""

from typing import Protocol

from ops.bench.meter import Reading
from ops.bench.workload import Load


class Subject(Protocol):
    """Attributes:
    name: what the table calls it.
    database: ``postgresql`` or ``sqlite``.
    """

    name: str
    database: str

    def prepare(self, load: Load) -> None:
        """Do once what every run of this load would do again."""
        ...

    def run(self, load: Load) -> Reading:
        """Work under this load and report what it took."""
        ...
