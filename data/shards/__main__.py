"""Command line that writes shards."""

from data.shards.command import main
from utils.errors import run_command

run_command(main)
