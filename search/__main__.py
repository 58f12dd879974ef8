"""Command line of search."""

from utils.errors import run_command


def main() -> int:
    """Runs the command line, or says which packages are missing."""
    from search.command_line import main

    return main()


run_command(main)
