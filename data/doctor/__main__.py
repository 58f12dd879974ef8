"""Command line of the dataset doctor."""

from data.doctor import main
from utils.errors import run_command

run_command(main)
