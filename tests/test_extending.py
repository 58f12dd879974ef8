"""docs/extending.md, done literally: its files are written into a copy of the repository, its commands run there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
# One process runs all commands: most of the time of each would go into imports.
DRIVER = """
import json, runpy, sys
sys.path.insert(0, ".")
for command in json.load(sys.stdin):
    sys.argv = command
    print("$", *command, flush=True)
    runpy.run_path(command[0], run_name="__main__")
"""


def files_of(recipe: str) -> dict[str, str]:
    """Path -> content of the files of a recipe, the line that names the path included."""
    blocks = re.findall(r"^```(?:python|yaml)\n(# (\S+/\S+)\n.*?)^```", RECIPES[recipe], re.M | re.S)
    return {path: content for content, path in blocks}


def commands_of(recipe: str) -> list[list[str]]:
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", RECIPES[recipe], re.M | re.S)).splitlines()
    return [shlex.split(line.removeprefix("uv run ")) for line in lines]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of all recipes."""
    folder = tmp_path_factory.mktemp("checkout") / "tbps"
    leave = shutil.ignore_patterns(".*", "tests", "benchmarks", "build", "outputs", "*_checkpoints", "*-PEDES")
    shutil.copytree(ROOT, folder, ignore=leave)
    for recipe in RECIPES:
        for path, content in files_of(recipe).items():
            assert not (folder / path).exists(), path
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outputs(checkout: Path, small_root: Path) -> Path:
    """The folder of the runs of all commands, one for each, named 0, 1, ..."""
    small = [f"dataset_root_dir={small_root}", "dataset.batch_size=8", "dataset.num_workers=0", "trainer=cpu"]
    commands, out = [], checkout / "outputs"
    for recipe in RECIPES:
        for command in commands_of(recipe):
            commands.append([*command, *small, f"hydra.run.dir={out / str(len(commands))}"])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(commands), cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (out / "screen.txt").write_text(done.stdout, encoding="utf-8")
    return out


def run_of(outputs: Path, recipe: str, which: int = 0) -> Path:
    return outputs / str(sum(len(commands_of(other)) for other in list(RECIPES)[: list(RECIPES).index(recipe)]) + which)


def metrics_of(run: Path) -> dict[str, object]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_there_are_ten_recipes_and_each_has_a_command() -> None:
    assert len(RECIPES) == 10
    assert all(commands_of(recipe) for recipe in RECIPES)


def test_the_metric_is_in_the_record(outputs: Path) -> None:
    assert "RP" in json.dumps(metrics_of(run_of(outputs, "A metric")))


def test_the_reranker_stands_beside_the_plain_ranking(outputs: Path) -> None:
    assert '"name": "query_expansion"' in json.dumps(metrics_of(run_of(outputs, "A re-ranker")))


def test_the_plot_is_drawn(outputs: Path) -> None:
    assert (run_of(outputs, "A plot") / "first_ranks.png").stat().st_size > 1000
