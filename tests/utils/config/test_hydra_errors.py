import errno
import re
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from tests.forked import run_python
from utils.config.hydra_errors import hydra_errors_in_one_sentence, job_sentence, let_go, sentence
from utils.config.resolvers import register_resolvers
from utils.errors import UserError

register_resolvers()

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"


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
            ["~loss.terms.nict"],
            r"loss.terms.nict: the config has no such key. Did you mean 'loss.terms.nitc'\?",
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
        (["ckpt_path=a/epoch=1.ckpt"], r"ckpt_path=a/epoch=1.ckpt: there is no such file"),
        (["--experiment=irra"], r"written without dashes, experiment=irra"),
        (["ckpt_path=last", "run_name=never"], r"ckpt_path=last: no run of never under .+ has a checkpoint"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_command_line_ends_in_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run_python("trainer.py", f"output_dir={tmp_path}", *arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


def told(*arguments: str) -> str:
    """What `sentence` says where Hydra refuses these overrides of the embedded default."""
    with pytest.raises(Exception, match=r"(?s).") as caught, initialize_config_dir(str(CONFIG), version_base="1.3"):
        compose("demo", overrides=list(arguments))
    return sentence(caught.value, CONFIG, "demo", arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "optimizer.lr=1e-3",
            "optimizer.lr: the config has no such key. Did you mean 'optimizer.param_groups.default.lr'?",
        ),
        ("lr=1e-3", "lr: the config has no such key. Did you mean 'optimizer.param_groups.default.lr'?"),
        ("optimizer.weight_decay=0", "Did you mean 'optimizer.param_groups.default.weight_decay'?"),
        ("batch_size=8", "Did you mean 'dataset.batch_size'?"),
        ("loss.gamma=64", "Did you mean 'loss.terms.cross_modal_circle.gamma'?"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run: the config has no such key; use debug=fast instead"),
        ("+seed=3", "An item is already at 'seed'; Either remove + prefix: 'seed=3'"),
        ("~loss.terms.nict", "loss.terms.nict: the config has no such key. Did you mean 'loss.terms.nitc'?"),
        ("backbone=openai/clip", "backbone=openai/clip: no such option. Did you mean 'open_clip'? Choose one of clip,"),
    ],
)
def test_a_refused_override_is_answered_with_what_helps(argument: str, message: str) -> None:
    assert message in told(argument)
    assert len(told(argument)) <= 500


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is..."), "docker run --shm-size="),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "or set dataset.num_workers=0"),
        (RuntimeError("Too many open files. Communication with the workers..."), "ulimit -n 4096"),
        (OSError(errno.EROFS, "Read-only file system", "data/.lock"), "data/.lock: Read-only file system; make it"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free disk space, or"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "x: Too many open files; allow more with 'ulimit -n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            "task=plan tells the largest",
        ),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error: Exception, message: str) -> None:
    assert message in str(job_sentence(error))


def test_what_a_failed_job_of_a_sweep_held_is_let_go() -> None:
    class Model:
        pass

    held = []

    def train() -> None:
        model = Model()
        held.append(weakref.ref(model))
        raise RuntimeError("CUDA out of memory")

    def job() -> None:
        model = Model()
        held.append(weakref.ref(model))
        try:
            train()
        except RuntimeError as error:
            raise UserError("told") from error

    with pytest.raises(UserError) as caught:
        job()
    assert all(model() is not None for model in held)
    let_go(caught.value)
    assert all(model() is None for model in held)


@pytest.mark.parametrize("error", [RuntimeError("a fault"), ValueError("a fault"), KeyError("a"), OSError("a fault")])
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    assert job_sentence(error) is None


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher: str, extra: str) -> None:
    error = MissingConfigException(f"Could not find 'hydra/launcher/{launcher}'", None)
    answer = sentence(error, CONFIG, "demo", ["-m", f"hydra/launcher={launcher}"])
    assert answer == f"hydra/launcher={launcher} is not installed; install it with 'uv sync --extra {extra}'"


def test_slurm_without_slurm_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["trainer.py"])
    told = 'Could not detect "srun", are you indeed on a slurm cluster?'  # submitit's
    with pytest.raises(SystemExit), hydra_errors_in_one_sentence(ROOT / "config", "demo"):
        raise RuntimeError(told)
    assert re.fullmatch(r"error: hydra/launcher=submitit_slurm: there is no srun here.*\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="another"), hydra_errors_in_one_sentence(ROOT / "config", "demo"):
        raise RuntimeError("another")
