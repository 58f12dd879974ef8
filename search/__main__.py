"""Command line of search."""

import os

from search.extra import check_extra
from utils.errors import run_command


def main() -> int:
    """Runs the command line; raises `UserError` if packages are missing."""
    check_extra()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep, as in trainer.py
    from search.command_line import main

    return main()


run_command(main)
