"""Shared fixtures: small backbones in Hugging Face format, a small dataset with tiny backbones beside it.

Fixtures import what they need themselves: the process that hands the tests out to others loads only this file.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # figures of the tests are those of a CPU; a GPU has benchmarks/gpu.py
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time; before torch counts the cores


def share_bytecode() -> None:
    """Gives all processes of the tests one folder for bytecode, if Python is told to write none.

    Without it, each command that a test starts compiles libraries for 8 s.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        folder = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


share_bytecode()


@pytest.fixture(scope="session")
def hub_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family, or image tower of a BERT -> folder as `prepare_checkpoints.py` leaves it, without a tokenizer."""
    from model.backbones.bert import join_towers
    from tests.small_models import FAMILIES, save_model, small_model, small_towers

    models = {family: small_model(family) for family in FAMILIES}
    models |= {vision: join_towers(*small_towers(vision), width=24) for vision in ("resnet", "vit")}
    folders = {name: save_model(model, tmp_path_factory.mktemp(name)) for name, model in models.items()}
    return {**folders, "vision-text-dual-encoder": folders["resnet"]}


@pytest.fixture(scope="module")
def fit_to_fork() -> Iterator[None]:
    """One thread, because those of a pool are not there in a fork; no pictures, which take as long as the training."""
    import torch

    from utils.report.run_report import RunReport

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "draw", lambda *_: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_root_dir` with 12 + 4 + 4 drawn persons, two pictures of each, and the tiny backbones."""
    from data.synthetic import SyntheticSpec, generate
    from prepare_checkpoints import prepare

    folder = tmp_path_factory.mktemp("root")
    spec = SyntheticSpec(train=12, val=4, test=4, pretrain=12, images_per_identity=2, height=64, width=32)
    generate(folder, spec, workers=1)
    for name in ("tiny_siglip", "tiny_clip", "tiny_resnet_bert"):
        prepare(name, folder, steps=1)
    return folder
