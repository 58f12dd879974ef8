import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from utils.hydra_errors import hydra_errors_in_one_sentence, sentence

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trainr.max_epochs=3"],
            r"trainr.max_epochs: the config has no such key. Did you mean 'trainer.max_epochs'\?",
        ),
        (
            ["dataset.smapler=random"],
            r"dataset.smapler: the config has no such key. Did you mean 'dataset.sampler'\?",
        ),
        (
            ["loss.terms.cross_modal_circle.gama=64"],
            r"gama: the config has no such key. Did you mean 'loss.terms.cross_modal_circle.gamma'\?",
        ),
        (
            ["~loss.terms.ctic"],
            r"loss.terms.ctic: the config has no such key. Did you mean 'loss.terms.citc'\?",
        ),
        (
            ["loss=hybird_circle"],
            r"loss=hybird_circle: no such option. Did you mean 'hybrid_circle'\? Choose one of",
        ),
        (["optimzer=cir"], r"optimzer: the config has no such key. Did you mean 'optimizer'\?"),
        (["-cn", "m_sigilp"], r"-cn m_sigilp: there is no config/m_sigilp.yaml. Did you mean 'm_siglip'\?"),
        (["img_size_str=384"], r"img_size_str: 384 is not a size; write height and width as \(384,128\)"),
        (["task=trian"], r"task=trian: no such task. Did you mean 'train'\?"),
        (["task=test", "-cn", "clip"], r"clip_checkpoints does not exist; run 'uv run prepare_checkpoints.py clip'"),
        (["-m", "--cfg", "job"], r"--multirun, --cfg, --info and --run exclude each other: give one of them"),
        (["ckpt_path=none.ckpt"], r"none.ckpt does not exist"),
        (["ckpt_path=last", "run_name=never"], r"never/<time>/checkpoints/last.ckpt does not exist"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_command_line_ends_in_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "trainer.py"), f"output_dir={tmp_path}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher: str, extra: str) -> None:
    error = MissingConfigException(f"Could not find 'hydra/launcher/{launcher}'", None)
    told = sentence(error, ROOT / "config", "demo", ["-m", f"hydra/launcher={launcher}"])
    assert told == f"hydra/launcher={launcher} is not installed; install it with 'uv sync --extra {extra}'"


def test_slurm_without_slurm_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # put back afterwards
    told = 'Could not detect "srun", are you indeed on a slurm cluster?'  # submitit's
    with pytest.raises(SystemExit), hydra_errors_in_one_sentence(ROOT / "config", "demo"):
        raise RuntimeError(told)
    assert re.fullmatch(r"error: hydra/launcher=submitit_slurm: there is no srun here.*\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="another"), hydra_errors_in_one_sentence(ROOT / "config", "demo"):
        raise RuntimeError("another")
