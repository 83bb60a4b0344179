"""``python -m inturn`` is the ``inturn`` command."""

from inturn.cli import main

main()
