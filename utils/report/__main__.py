"""python -m utils.report FOLDER_OR_FILE...: compares finished runs over seeds, and with a baseline."""

from utils.errors import run_command
from utils.report.reports import main

run_command(main)
