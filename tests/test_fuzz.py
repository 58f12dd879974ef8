"""A small, seeded slice of `benchmarks/fuzz.py`; the whole of it takes minutes."""

import subprocess
import sys
from pathlib import Path

from tests.small_run import CONFIG_DIR

ROOT = CONFIG_DIR.parent


def test_a_slice_of_the_fuzz_is_refused_in_one_sentence_or_accepted(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--mutations", "14", "--seed", "11"]
    ended = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    assert ended.stdout.count("\n|") == 8, ended.stdout  # a head and seven kinds
