import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

import prepare_checkpoints
from tests.http_server import web_server

REPOSITORY = Path(prepare_checkpoints.__file__).parent
TOOLS = ("bash", "sh", "cat", "chmod", "dirname", "basename", "mkdir")


class Machine:
    """A machine with a copy of setup.sh, the usual tools, no network, and what `program` puts on its PATH."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = home / "repo"
        self.log = home / "log"
        self.bin = home / "bin"
        for folder in (self.repository, self.bin, home / "elsewhere"):
            folder.mkdir()
        shutil.copy(REPOSITORY / "setup.sh", self.repository)
        shutil.copytree(REPOSITORY / "config", self.repository / "config")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def program(self, name: str, *lines: str, folder: Path | None = None) -> None:
        """Puts a shell script on the PATH that logs how it was called and runs `lines`."""
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", f'echo "$PWD: {name} $*" >> {self.log}', *lines]) + "\n")
        path.chmod(0o755)

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.repository / "setup.sh"), *arguments],
            cwd=self.home / "elsewhere",
            env={"PATH": str(self.bin), "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was called, each after the folder where it ran, which has to be the repository."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line.removeprefix(f"{self.repository}: ") for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def with_uv(machine: Machine) -> Machine:
    machine.program("uv")
    return machine


def test_without_options_it_syncs_and_prepares_the_default(with_uv: Machine) -> None:
    for _ in range(2):
        with_uv.log.unlink(missing_ok=True)
        done = with_uv.setup()
        assert done.returncode == 0, done.stderr
        assert with_uv.calls() == ["uv sync", "uv run prepare_checkpoints.py"]


def test_every_step_runs_in_the_repository_and_a_relative_file_is_the_callers(with_uv: Machine) -> None:
    (with_uv.home / "elsewhere" / "my data.zip").write_bytes(b"")
    done = with_uv.setup(
        "--checkpoint",
        "siglip",
        "--checkpoint",
        "tiny_clip",
        "--dataset",
        "icfg_pedes",
        "--from",
        "my data.zip",
    )
    assert done.returncode == 0, done.stderr
    assert with_uv.calls() == [
        "uv sync",
        "uv run prepare_checkpoints.py siglip tiny_clip",
        f"uv run python -m utils.download icfg_pedes --from {with_uv.home}/elsewhere/my data.zip",
        "uv run python -m data.doctor icfg_pedes",
    ]


def test_a_dry_run_only_prints(machine: Machine) -> None:
    arguments = ("--no-checkpoint", "--dataset", "vn3k_vi", "--from", "gdrive:abc", "--sha256", "0" * 64)
    done = machine.setup("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == []
    assert done.stdout.splitlines()[1:] == [
        "+ uv sync",
        f"+ uv run --extra drive python -m utils.download vn3k_vi --from gdrive:abc --sha256 {'0' * 64}",
        "+ uv run python -m data.doctor vn3k_vi",
    ]


@pytest.mark.parametrize("group", ["backbone", "dataset"])
def test_it_knows_what_has_a_yaml_and_nothing_else(with_uv: Machine, group: str) -> None:
    folder = with_uv.repository / "config" / group
    (folder / "a_new_one.yaml").write_text("name: a_new_one")
    usage = with_uv.setup("--help").stdout
    option = {"backbone": "--checkpoint", "dataset": "--dataset"}[group]
    for file in folder.glob("*.yaml"):
        is_option = not file.stem.startswith("_")
        assert bool(re.search(rf"\b{file.stem}\b", usage)) == is_option
        assert with_uv.setup("--dry-run", option, file.stem).returncode == (0 if is_option else 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset"], "--dataset needs a value"),
        (["--dataset", "vn3k"], "there is no dataset 'vn3k'; expected one of cuhk_pedes"),
        (["--checkpoint", "blip"], "there is no checkpoint 'blip'; expected one of clip, folder, m_siglip"),
        (["--checkpoint", "clip", "--no-checkpoint"], "exclude each other"),
        (["--from", "https://example.org/x.zip"], "need --dataset NAME"),
        (["--dataset", "vn3k_vi", "--sha256", "00"], "--sha256 needs --from SOURCE"),
        (["--dataset", "vn3k_vi", "--from", "absent.zip"], "there is no file 'absent.zip'"),
        (["--verbose"], "there is no option --verbose"),
    ],
)
def test_a_wrong_call_is_one_sentence_before_anything_runs(
    with_uv: Machine, arguments: list[str], message: str
) -> None:
    done = with_uv.setup(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert with_uv.calls() == []


def test_a_step_that_fails_stops_the_rest_with_its_status(machine: Machine) -> None:
    machine.program("uv", '[ "$1" = sync ] || exit 7')
    assert machine.setup("--dataset", "vn3k_vi").returncode == 7
    assert machine.calls() == ["uv sync", "uv run prepare_checkpoints.py"]


def test_uv_comes_from_its_own_script(machine: Machine) -> None:
    machine.program("uv", folder=machine.home / "ready")
    install = f"mkdir -p $HOME/.local/bin; ln=$HOME/.local/bin/uv; cat {machine.home}/ready/uv > $ln; chmod +x $ln"
    machine.program("curl", f"echo '{install}'")
    done = machine.setup("--no-checkpoint")
    assert done.returncode == 0, done.stderr
    assert machine.calls() == ["curl -LsSf https://astral.sh/uv/install.sh", "uv sync"]


def test_uv_comes_from_pip_where_the_script_cannot_be_had(machine: Machine) -> None:
    machine.program("uv", folder=machine.home / "ready")
    machine.program("curl", "exit 6")
    machine.program("python3", f"cat {machine.home}/ready/uv > {machine.bin}/uv", f"chmod +x {machine.bin}/uv")
    done = machine.setup("--no-checkpoint")
    assert done.returncode == 0, done.stderr
    assert machine.calls()[1:] == ["python3 -m pip install uv", "uv sync"]


def test_where_uv_cannot_be_had_it_says_so(machine: Machine) -> None:
    machine.program("python3", "exit 1")
    done = machine.setup("--no-checkpoint")
    assert done.returncode == 2
    assert "error: uv cannot be installed; install it by hand" in done.stderr


def pack_vn3k(path: Path) -> bytes:
    """Returns an archive of the least VN3K that the doctor passes."""
    records = []
    with ZipFile(path, "w") as archive:
        for identity, split in enumerate(["train", "train", "validate", "test"], start=1):
            name = f"{identity}.png"
            Image.new("RGB", (20, 50), (40 * identity, 90, 120)).save(path.with_name(name))
            archive.write(path.with_name(name), f"VN3K/imgs/{name}")
            captions = [f"Người thứ {identity} mặc áo đỏ."]
            records.append({"id": identity, "split": split, "file_path": name, "captions": captions})
        archive.writestr("VN3K/data_captions.json", json.dumps(records))
    return path.read_bytes()


def test_a_dataset_is_fetched_unpacked_and_examined(machine: Machine) -> None:
    machine.program("uv", f'[ "$1 $2" != "run python" ] || {{ shift 2; exec {sys.executable} "$@"; }}')
    with web_server() as server:
        server.files["/VN3K.zip"] = pack_vn3k(machine.home / "packed.zip")
        source = ("--no-checkpoint", "--dataset", "vn3k_vi", "--from", f"{server.url}/VN3K.zip")
        first = machine.setup(*source)
        again = machine.setup(*source)
        assert len(server.requests) == 1
    assert first.returncode == 0, first.stdout + first.stderr
    assert "VN3K is in place" in first.stdout
    assert again.returncode == 0
    assert "VN3K holds images already and is kept" in again.stdout
    assert len(list((machine.repository / "VN3K" / "imgs").iterdir())) == 4


def test_it_may_be_run_by_everyone() -> None:
    assert (REPOSITORY / "setup.sh").stat().st_mode & stat.S_IXOTH
