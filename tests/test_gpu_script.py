"""benchmarks/gpu.py: claims fail alone, keep their time and leave their figures; what it measures with."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_claims import runner
from benchmarks.gpu_claims.kernels import Kernel, busy_time, longest, place_of, shares_by_kind
from benchmarks.gpu_claims.ranking import same_clusters
from benchmarks.gpu_claims.runner import Claim, Runner, Settings

ROOT = Path(__file__).parents[1]
NAMES = ("breaks", "is_wrong", "dies", "without_gpu", "holds")
FAKE = tuple(Claim(name, f"it {name}", 10, f"tests.fake_claims:{name}") for name in ("hangs", *NAMES))


class Outcome(NamedTuple):
    status: int
    printed: str
    found: dict[str, Any]
    failures: str


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    file = tmp_path_factory.mktemp("figures") / "new" / "gpu.json"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = gpu.main([*NAMES, "--json", str(file)], FAKE)
    found = json.loads(file.read_text())
    return Outcome(status, printed.getvalue(), found, file.with_suffix(".failures.txt").read_text())


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("worker")
    started = Runner(Settings(12, folder), folder / "log.txt", lambda text: None)
    started.start()
    yield started
    started.close()


def test_each_claim_comes_to_its_end_whatever_the_others_do(outcome: Outcome) -> None:
    states = {name: claim["status"] for name, claim in outcome.found["claims"].items()}
    assert states == dict.fromkeys(("breaks", "is_wrong", "dies"), "failed") | {
        "without_gpu": "left out",
        "holds": "holds",
    }
    assert outcome.status == 1


def test_what_breaks_or_kills_a_part_leaves_the_other_parts(outcome: Outcome) -> None:
    rows = {name: claim["rows"] for name, claim in outcome.found["claims"].items()}
    assert rows["breaks"] == [{"after": "broken"}]
    assert rows["is_wrong"] == [{"after": "wrong"}]
    assert rows["dies"] == [{"alive": "before"}, {"alive": "after"}]


def test_failures_are_told_in_a_line_and_in_full(outcome: Outcome) -> None:
    end = outcome.printed.split("## Together")[1]
    assert "- breaks: broken: ValueError: not a number\n" in end
    assert "- is_wrong: 1 is not above 2\n" in end
    assert "- dies: deadly: the process died with status 3\n" in end
    assert "3 failures; their tracebacks are in" in end
    assert "Traceback (most recent call last)" in outcome.failures
    assert "of any kind" in outcome.failures
    assert "never said" not in outcome.printed


def test_a_table_has_one_header(outcome: Outcome) -> None:
    assert "| name | size |\n|---|---|\n| a | 1.50 |\n| b | 1,234 |\n" in outcome.printed
    assert outcome.found["claims"]["holds"]["rows"] == [{"name": "a", "size": 1.5}, {"name": "b", "size": 1234.5}]
    assert outcome.found["claims"]["holds"]["notes"] == ["that was all"]


def test_the_machine_is_told(outcome: Outcome) -> None:
    assert outcome.found["machine"]["torch"] == torch.__version__.split("+")[0]
    assert outcome.printed.splitlines()[0].startswith("No CUDA device: a reduced set")


def test_what_the_time_does_not_suffice_for_is_named(worker: Runner) -> None:
    found = worker.run(Claim("slow", "", 2, "tests.fake_claims:is_slow"), 2.0)
    assert not found.failures
    assert found.status == "left out", "it has no rows"
    assert found.notes[0].startswith("left out, for lack of time: part ")
    assert found.seconds < 5


def test_what_hangs_is_ended(worker: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 1.0)
    found = worker.run(Claim("hangs", "", 1, "tests.fake_claims:hangs"), 1.0)
    assert found.rows == [{"name": "quick"}]
    assert found.failures == [("endless: still busy 1 s after its 1 s were up; ended", "")]
    again = worker.run(Claim("holds", "", 9, "tests.fake_claims:holds"), 60.0)
    assert again.status == "holds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe"], "there is no claim 'recipe'; there are hangs, breaks"),
        (["--minutes", "0"], "--minutes has to be above 0"),
        (["--memory-gb", "-1"], "--memory-gb above 1"),
        (["--json", "/proc/no/figures.json"], "--json: /proc/no/figures.json cannot be written"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments, FAKE)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_claim_can_be_called(capsys: pytest.CaptureFixture[str]) -> None:
    for claim in gpu.CLAIMS:
        module, function = claim.target.split(":")
        assert callable(getattr(importlib.import_module(module), function))
    with pytest.raises(SystemExit):
        gpu.main(["--help"])
    printed = capsys.readouterr().out
    assert all(claim.name in printed and claim.sentence in printed for claim in gpu.CLAIMS)


def test_nothing_that_a_gpu_machine_may_lack_is_imported(tmp_path: Path) -> None:
    """A machine without network has neither W&B nor TensorBoard nor bitsandbytes, and trains all the same."""
    code = """
import importlib, pathlib, sys
for file in pathlib.Path("benchmarks/gpu_claims").glob("*.py"):
    importlib.import_module(f"benchmarks.gpu_claims.{file.stem}")
import lightning_data, lightning_models, lightning_plan, prepare_checkpoints, trainer, utils.report.run_report
from utils.report.loggers import build_loggers
build_loggers({"csv": True, "tensorboard": False, "wandb": {"mode": "disabled"}, "others": {}}, sys.argv[1], {}, {})
print("loaded:", *{"wandb", "tensorboard", "bitsandbytes", "gdown"} & {name.split(".")[0] for name in sys.modules})
"""
    line = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["loaded:"], done.stderr


def test_busy_time_counts_what_overlaps_once() -> None:
    ran = [Kernel("a", 0, 10), Kernel("b", 5, 12), Kernel("c", 20, 21), Kernel("d", 6, 7)]
    assert busy_time(ran) == 13
    assert busy_time(reversed(ran)) == 13


def test_kernels_are_known_by_their_names() -> None:
    names = {
        "void pytorch_flash::flash_fwd_kernel<...>": "attention",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(...)": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop": "attention",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn": "matrix products",
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT": "matrix products",
        "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n": "matrix products",
        "Memcpy DtoD (Device -> Device)": "copies",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
        "void at::native::vectorized_elementwise_kernel<4, ...>": "other",
    }
    for name, kind in names.items():
        assert shares_by_kind([Kernel(name, 0, 3)]) == {kind: 1.0}, name
    ran = [Kernel("gemm", 0, 3_000_000), Kernel("other", 3_000_000, 4_000_000)]
    assert shares_by_kind(ran) == {"matrix products": 0.75, "other": 0.25}
    assert longest(ran, steps=2) == ["gemm 1.50", "other 0.50"]


def test_a_synchronization_is_told_by_its_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert place_of(caught[0]) == f"tests/test_gpu_script.py:{caught[0].lineno}"


def test_clusters_are_the_same_whatever_their_numbers() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, -1])
    assert same_clusters(labels, torch.tensor([1, 1, 0, 0, 0, -1])) == 1
    assert same_clusters(labels, torch.tensor([0, 0, 1, 1, 2, -1])) == pytest.approx(3 / 6)
    assert same_clusters(labels, torch.tensor([0, 0, 1, 1, 1, 1])) == pytest.approx(2 / 6)
