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
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def files_of(recipe: str) -> dict[str, str]:
    """Path -> content of the files of a recipe, the line that names the path included."""
    blocks = re.findall(
        r"^```(?:python|yaml)\n((?:# @package _global_\n)?# (\S+\.(?:py|yaml))\n.*?)^```", RECIPES[recipe], re.M | re.S
    )
    return {path: content for content, path in blocks}


def commands_of(recipe: str) -> list[list[str]]:
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", RECIPES[recipe], re.M | re.S)).splitlines()
    found = [shlex.split(line.removeprefix("uv run "), comments=True) for line in lines if "# from the hub" not in line]
    return [command for command in found if command]


def changed(text: str, diff: str) -> str:
    """Returns the text with each line of the diff's "-" replaced by the lines of "+" after it."""
    for old, new in re.findall(r"^-(?!-)(.*)\n((?:\+.*\n)+)", diff, re.M):
        assert text.count(f"{old}\n") == 1, old
        text = text.replace(f"{old}\n", re.sub(r"^\+", "", new, flags=re.M))
    return text


def own_dataset(root: Path) -> None:
    """Writes a dataset in the format of the recipe, of the drawn one in `root`."""
    drawn, own = root / "DRAWN-PEDES", root / "MY-PEOPLE"
    records = json.loads((drawn / "data_captions.json").read_text(encoding="utf-8"))
    records = [
        {"id": r["id"], "split": r["split"], "image": r["file_path"], "sentences": r["en_captions"]} for r in records
    ]
    shutil.copytree(drawn / "imgs", own / "imgs")
    (own / "people.json").write_text(json.dumps(records), encoding="utf-8")


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
        for path, diff in re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", RECIPES[recipe], re.M | re.S):
            (folder / path).write_text(changed((folder / path).read_text(encoding="utf-8"), diff), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outputs(checkout: Path, small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of all commands, one for each, named 0, 1, ..."""
    root = tmp_path_factory.mktemp("extended") / "root"
    shutil.copytree(small_root, root)
    own_dataset(root)
    small = [f"dataset_root_dir={root}", "dataset.batch_size=8", "dataset.num_workers=0", "trainer=cpu"]
    small += ["shown_queries=0", "~evaluation.plots.tsne"]
    commands, out = [], checkout / "outputs"
    for recipe in RECIPES:
        for command in commands_of(recipe):
            if command[:2] == ["python", "-m"]:
                file = command[2].replace(".", "/") + "/__main__.py"
                commands.append([file, *command[3:], "--root", str(root)])
            else:
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


def test_the_dataset_and_the_backbone_are_trained(outputs: Path) -> None:
    assert metrics_of(run_of(outputs, "A dataset", 1))["run"]["dataset"] == "my_people-en"
    assert metrics_of(run_of(outputs, "A backbone", 1))["run"]["backbone"] == "tiny_narrow_clip"


def test_the_screen_shows_the_group_the_task_and_the_terms(outputs: Path) -> None:
    screen = (outputs / "screen.txt").read_text(encoding="utf-8")
    assert "| words " in screen
    assert "gap     " in screen
    assert "projected_itc" in (run_of(outputs, "A loss with weights of its own") / "metrics.csv").read_text("utf-8")
    assert metrics_of(run_of(outputs, "An experiment with values per dataset"))["run"]["strategy"] == "sdm_id"
