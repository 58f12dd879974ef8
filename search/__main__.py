"""Command line of search."""

from search.extra import check_extra
from utils.errors import run_command


def main() -> int:
    """Runs the command line; raises `UserError` if packages are missing."""
    check_extra()
    from search.command_line import main

    return main()


run_command(main)
