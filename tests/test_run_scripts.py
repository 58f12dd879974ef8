"""The run scripts with a `uv` that only records what it is asked to run."""

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from utils.config.resolvers import register_resolvers

ROOT = Path(__file__).parents[1]
LORA = {"run_cir_loss": "default", "run_cir_full": "none"}
LOSSES = ["baseline", "in_modal_circle", "nc_itc", "pure_circle", "hybrid_circle"]
NAMES = ["baseline", "in_modal", "nc_itc", "pure", "hybrid"]

UV = """#!/usr/bin/env bash
[[ -z $SLEEPS ]] || trap 'exit 0' INT
printf '%s\\0' "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
[[ " $* " != *" $FAILS "* ]] || exit 3
[[ -z $SLEEPS ]] || for _ in {1..300}; do sleep 0.1; done
[[ $* != *utils.report* ]] || echo "THE TABLE"
"""


class Checkout:
    """A folder with the scripts, and a recording `uv` first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        (folder / "utils").mkdir()
        for name in ("run_cir_loss.sh", "run_cir_full.sh", "utils/run_strategies.sh"):
            shutil.copy(ROOT / name, folder / name)
        uv = folder / "bin" / "uv"
        uv.parent.mkdir()
        uv.write_text(UV)
        uv.chmod(0o755)

    def put_real_data(self) -> None:
        """The dataset and the checkpoint of the paper, as far as the scripts look."""
        (self.folder / "VN3K").mkdir()
        (self.folder / "m_siglip_checkpoints").mkdir()
        (self.folder / "m_siglip_checkpoints" / "config.json").write_text("{}")

    def command(self, script: str, *arguments: str) -> list[str]:
        return [str(self.folder / f"{script}.sh"), *arguments]

    def environment(self, fails: str = "-", sleeps: str = "") -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "CALLS": str(self.calls_file), "FAILS": fails, "SLEEPS": sleeps}

    def run(self, script: str, *arguments: str, fails: str = "-") -> subprocess.CompletedProcess[str]:
        """Runs the script from another folder, without a terminal."""
        return subprocess.run(
            self.command(script, *arguments),
            cwd="/",
            env=self.environment(fails),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def calls(self) -> list[list[str]]:
        """The arguments of every call of `uv`."""
        if not self.calls_file.exists():
            return []
        return [line.split("\0")[:-1] for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def losses(calls: list[list[str]]) -> list[str]:
    return [call[5].removeprefix("loss=") for call in calls if call[:2] == ["run", "trainer.py"]]


@pytest.mark.parametrize("script", LORA)
def test_dry_run_prints_a_command_per_strategy_and_runs_nothing(checkout: Checkout, script: str):
    checkout.put_real_data()
    done = checkout.run(script, "--dry-run", "all")
    assert done.returncode == 0
    assert checkout.calls() == []
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    folder = commands[0][7].removeprefix("output_dir=")
    assert re.fullmatch(rf"outputs/{script}_\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d", folder)
    fixed = ["uv", "run", "trainer.py", "-cn", "cir_msiglip", f"lora={LORA[script]}"]
    assert commands == [[*fixed, f"loss={loss}", f"output_dir={folder}"] for loss in LOSSES]


def test_another_form_of_adapters_is_an_override_of_the_script_that_trains_them(checkout: Checkout):
    done = checkout.run("run_cir_loss", "--dry-run", "--demo", "hybrid", "lora=dora", "seed=1")
    command = shlex.split(done.stdout)
    assert [part for part in command if part.startswith("lora=")] == ["lora=dora"]
    assert command[-1] == "seed=1"
    refused = checkout.run("run_cir_full", "--dry-run", "--demo", "hybrid", "lora=dora")
    assert refused.returncode == 2
    assert "lora=dora: run_cir_loss.sh trains adapters" in refused.stderr


@pytest.mark.parametrize("script", LORA)
@pytest.mark.parametrize("options", [[], ["--demo"]])
def test_the_commands_of_a_dry_run_compose(checkout: Checkout, script: str, options: list[str]):
    checkout.put_real_data()
    register_resolvers()
    done = checkout.run(script, "--dry-run", "all", *options)
    for line, loss in zip(done.stdout.splitlines(), LOSSES, strict=True):
        config, *overrides = shlex.split(line)[4:]
        with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
            cfg = compose(config, overrides=overrides)
        assert (cfg.loss.name, cfg.lora.name) == (loss, "lora" if LORA[script] == "default" else "full")


@pytest.mark.parametrize("script", LORA)
def test_all_trains_five_strategies_into_one_folder_and_ends_in_their_table(checkout: Checkout, script: str):
    done = checkout.run(script, "all", "--demo")
    assert done.returncode == 0
    *trainings, report = checkout.calls()
    folder = trainings[0][6].removeprefix("output_dir=")
    fixed = ["run", "trainer.py", "-cn", "demo", f"lora={LORA[script]}"]
    assert trainings == [[*fixed, f"loss={loss}", f"output_dir={folder}"] for loss in LOSSES]
    assert report == ["run", "python", "-m", "utils.report", folder]
    assert done.stdout == "THE TABLE\n"


@pytest.mark.parametrize("position", range(6))
def test_a_strategy_goes_by_its_name_or_its_number(checkout: Checkout, position: int):
    name, loss = [*NAMES, "curriculum"][position], [*LOSSES, "curriculum_circle"][position]
    for choice in (name, str(position + 1)):
        assert checkout.run("run_cir_loss", choice, "--demo").returncode == 0
    assert losses(checkout.calls()) == [loss] * 2


def test_overrides_arrive_as_they_were_given(checkout: Checkout):
    overrides = ["img_size_str='(256,256)'", "~loss.terms.citc", '+note=it\'s a "test" $HOME *', "empty="]
    options = [overrides[0], "2", overrides[1], "--demo", *overrides[2:]]
    assert checkout.run("run_cir_loss", *options, "output_dir=my runs").returncode == 0
    training, report = checkout.calls()
    assert training[5:] == ["loss=in_modal_circle", "output_dir=my runs", *overrides]
    assert report[-1] == "my runs"
    checkout.calls_file.unlink()
    dry = checkout.run("run_cir_loss", *options, "output_dir=my runs", "--dry-run")
    assert shlex.split(dry.stdout)[1:] == training


def test_a_failed_strategy_does_not_stop_the_others_and_is_named_after_the_table(checkout: Checkout):
    done = checkout.run("run_cir_full", "all", "--demo", fails="loss=nc_itc")
    assert done.returncode == 1
    assert losses(checkout.calls()) == LOSSES
    assert done.stdout == "THE TABLE\n"
    assert done.stderr.splitlines()[-1] == "error: failed and missing from the table: nc_itc (status 3)."


def test_no_table_when_every_strategy_failed(checkout: Checkout):
    done = checkout.run("run_cir_loss", "pure", "--demo", fails="loss=pure_circle")
    assert (done.returncode, done.stdout, len(checkout.calls())) == (1, "", 1)
    assert "pure (status 3)" in done.stderr


def test_a_table_that_cannot_be_made_is_a_failure(checkout: Checkout):
    assert checkout.run("run_cir_loss", "pure", "--demo", fails="utils.report").returncode == 1


def test_without_data_and_checkpoint_the_demo_runs_and_says_so(checkout: Checkout):
    done = checkout.run("run_cir_loss", "all")
    assert done.returncode == 0
    assert losses(checkout.calls()) == LOSSES
    assert all(call[3] == "demo" for call in checkout.calls()[:-1])
    assert "neither m_siglip_checkpoints/ nor VN3K/ is here" in done.stderr.splitlines()[0]
    assert " demo " in checkout.run("run_cir_loss", "all", "--dry-run").stdout


def test_one_of_data_and_checkpoint_missing_is_named_and_demo_offered(checkout: Checkout):
    (checkout.folder / "VN3K").mkdir()
    done = checkout.run("run_cir_loss", "all")
    assert (done.returncode, checkout.calls()) == (2, [])
    assert len(done.stderr.splitlines()) == 1
    assert "m_siglip_checkpoints/ not found" in done.stderr
    assert "--demo" in done.stderr


def test_real_data_and_checkpoint_are_trained_on(checkout: Checkout):
    checkout.put_real_data()
    assert checkout.run("run_cir_loss", "all").returncode == 0
    assert losses(checkout.calls()) == LOSSES
    assert all(call[3] == "cir_msiglip" for call in checkout.calls()[:-1])


def test_data_and_backbone_chosen_by_override_are_left_to_the_trainer(checkout: Checkout):
    done = checkout.run("run_cir_loss", "1", "dataset=drawn", "backbone=tiny_siglip")
    assert done.returncode == 0
    assert checkout.calls()[0][3] == "cir_msiglip"
    assert checkout.calls()[0][-2:] == ["dataset=drawn", "backbone=tiny_siglip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no strategy given: name one of baseline, in_modal, nc_itc, pure, hybrid, curriculum, all or 1-6"),
        (["7"], "there is no strategy 7"),
        (["hybrid_circle"], "there is no strategy hybrid_circle"),
        (["pure", "hybrid"], "two strategies, pure and hybrid"),
        (["all", "--dryrun"], "there is no option --dryrun"),
        (["all", "loss=irra"], "loss=irra is what this script sets"),
        (["all", "lora=none"], "lora=none: run_cir_loss.sh trains adapters"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(checkout: Checkout, arguments: list[str], message: str):
    done = checkout.run("run_cir_loss", "--demo", *arguments)
    assert (done.returncode, done.stdout, checkout.calls()) == (2, "", [])
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_help_names_every_strategy_and_option(checkout: Checkout):
    done = checkout.run("run_cir_full", "--help")
    assert (done.returncode, done.stderr, checkout.calls()) == (0, "", [])
    for word in (*NAMES, "all", "--demo", "--dry-run", "output_dir", "./run_cir_full.sh", "all its weights"):
        assert word in done.stdout


def test_a_terminal_is_shown_the_menu_and_asked_until_it_answers(checkout: Checkout):
    ours, theirs = pty.openpty()
    command = checkout.command("run_cir_loss", "--demo")
    process = subprocess.Popen(
        command, env=checkout.environment(), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, b"seven\n4\n")
    out, err = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == 0
    assert [f"{i}  {name}" in err.decode() for i, name in enumerate(NAMES, 1)] == [True] * 5
    assert losses(checkout.calls()) == ["pure_circle"]
    assert out == b"THE TABLE\n"


def test_ctrl_c_ends_everything_even_when_the_training_ends_well(checkout: Checkout):
    process = subprocess.Popen(
        checkout.command("run_cir_loss", "all", "--demo"),
        env=checkout.environment(sleeps="yes"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not checkout.calls() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Interrupted" in err
    assert losses(checkout.calls()) == ["baseline"]
    assert len(checkout.calls()) == 1


def test_without_uv_the_script_says_so(checkout: Checkout):
    (checkout.folder / "bin" / "uv").unlink()
    tools = {name: shutil.which(name) for name in ("bash", "dirname", "date")}
    for name, path in tools.items():
        assert path is not None
        (checkout.folder / "bin" / name).symlink_to(path)
    environment = {**checkout.environment(), "PATH": str(checkout.folder / "bin")}
    command = checkout.command("run_cir_loss", "all", "--demo")
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: uv is not installed; run ./setup.sh.\n"
