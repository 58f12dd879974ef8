"""What only looks at the config imports nothing heavy, and so answers at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "peft",
    "sklearn",
    "scipy",
    "numpy",
    "matplotlib",
    "PIL",
    "wandb",
}
RUN = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded:", *sorted(set(sys.modules) & set({heavy!r}))))
sys.argv = ["trainer.py", *{arguments!r}]
runpy.run_path("trainer.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "Powered by Hydra"),
        (["--cfg", "job"], 0, "dataset_root_dir: ."),
        (["sedd=1"], 2, "Did you mean 'seed'?"),
        (["task=trian"], 2, "Did you mean 'train'?"),
        (["ckpt_path=nowhere.ckpt"], 2, "nowhere.ckpt: there is no such file"),
        (["img_size_str=large"], 2, "'large' is not a size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported_before_the_config_is_known(
    arguments: list[str], status: int, says: str, tmp_path: Path
) -> None:
    if "--cfg" not in arguments and "--help" not in arguments:
        arguments = [*arguments, f"output_dir={tmp_path}"]
    code = RUN.format(heavy=sorted(HEAVY), arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stderr
    assert says in result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].split() == ["loaded:"]
