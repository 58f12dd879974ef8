"""python -m utils.download DATASET --from ADDRESS_OR_FILE: fetches the archive of a dataset and unpacks it."""

from utils.download.fetch import main
from utils.errors import run_command

run_command(main)
