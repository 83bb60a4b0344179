"""What a batch is made of, from outside to its checked lines: read as a stream, checked whole, and kept in a private file.

``sources`` opens, ``reading`` finds the lines, ``lines`` and ``chat`` tell what one says (in the two forms; ``speech`` is
what both have), ``custom_ids`` whose ID was there before, ``spool`` keeps them, and ``taking`` does all of it. Nothing here
knows a database.
"""

from inturn.intake.spool import Spool
from inturn.intake.taking import Intake, check_lines, take_in

__all__ = ["Intake", "Spool", "check_lines", "take_in"]
