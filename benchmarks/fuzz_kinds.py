"""The kinds of files in the fuzz: valid files, functions that damage them, and functions that use them."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import save_file

import trainer
from benchmarks.fuzz_mutations import copied
from benchmarks.fuzz_spoilers import (
    DATASET,
    FILES,
    TINY,
    last_checkpoint,
    spoil_annotations,
    spoil_archive,
    spoil_backbone,
    spoil_checkpoint,
    spoil_published,
    write_tar,
)
from data.annotations import read_dataset
from data.doctor import examine
from data.synthetic import SyntheticSpec, generate
from data.text.tokens import Tokenize, load_tokenizer
from lightning_models import LitTBPS
from lightning_ranker import LitRanker
from model.backbones import load_backbone
from model.backbones.position_embeddings import write_positions
from model.published.converted import HEADS_FILE, ranking_notes
from prepare_checkpoints import prepare
from tests.model.openai_clip import PATCH, TEXT_WIDTH, VOCABULARY, WIDTH, Irra
from tests.small_run import CONFIG_DIR, SMALL
from utils.checkpoints.folder import SMALL_FILES, Architecture, check_folder
from utils.continuing.composed import described
from utils.download.archives import install
from utils.report.provenance import code

SPEC: Final = SyntheticSpec(train=8, val=4, test=4, images_per_identity=2, height=64, width=32)


class AcceptedError(Exception):
    """Raised when a damaged file has been read completely and accepted."""


class Kind(NamedTuple):
    """copy: copies a valid file. spoil: damages the copy and returns how. use: uses it as a user would.

    The three functions get the folder of valid files and the working folder.
    """

    name: str
    copy: Callable[[Path, Path], object]
    spoil: Callable[[Random, Path, Path], str]
    use: Callable[[Path, Path], object]


def make_sound(sound: Path, work: Path) -> None:
    """Fills `sound` with a small dataset, a backbone, a run of one epoch (made in `work`), and weights of IRRA."""
    root = sound / "root"
    generate(root, SPEC, workers=1)
    prepare(TINY, root, steps=1)
    folder = root / f"{TINY}_checkpoints"
    torch.manual_seed(0)
    write_positions(folder, torch.randn(8, 128), (4, 2))
    save_file({"id.classifier.weight": torch.randn(8, 128), "id.classifier.bias": torch.zeros(8)}, folder / HEADS_FILE)
    torch.save({"model": Irra(patches=12, identities=7).state_dict(), "epoch": 3}, sound / "irra.pth")
    trainer.train(_config(sound, work, "trainer.max_epochs=1"))
    shutil.copytree(work / "run", sound / "run")


def stop_where_nothing_more_is_read() -> None:
    """Ends training after its first step, and a test at its first batch."""

    def accepted(*_: Any) -> None:
        raise AcceptedError

    code()  # the result is cached, so that no child starts git
    LitTBPS.on_train_batch_end = accepted  # type: ignore[method-assign]
    LitRanker.test_step = accepted  # type: ignore[method-assign, assignment]


def import_all(names: list[str]) -> None:
    """Imports all modules that a run with valid files imports, so that any new import comes from a damaged file."""
    for name in names:
        if name not in sys.modules and not name.startswith(("_", "tests", "triton")):
            try:
                importlib.import_module(name)
            except Exception as error:  # a module created at run time, or for another platform
                print(f"not imported: {name} ({error})", file=sys.stderr)


def _config(sound: Path, work: Path, *overrides: str) -> DictConfig:
    options = [*SMALL, "logger=csv", "shown_queries=0", f"dataset_root_dir={sound / 'root'}", f"run_dir={work / 'run'}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("demo", overrides=[*options, *overrides])


def _copy_run(sound: Path, work: Path) -> None:
    copied(sound / "run", work / "run")


def _copy_published(sound: Path, work: Path) -> None:
    tokenizer = sound / "root" / f"{TINY}_checkpoints"
    for file in (tokenizer / name for name in SMALL_FILES if (tokenizer / name).is_file()):
        copied(file, work / "clip_checkpoints" / file.name)
    copied(sound / "irra.pth", work / "irra.pth")


def _copy_backbone(sound: Path, work: Path) -> None:
    copied(sound / "root" / f"{TINY}_checkpoints", work / "folder")


def _copy_annotations(sound: Path, work: Path) -> None:
    copied(sound / "root" / DATASET, work / DATASET)


def _pack_sound(sound: Path, work: Path) -> None:
    write_tar(Random(), work / "archive.tar", FILES, hostile=0)


def _continue(sound: Path, work: Path) -> None:
    trainer.train(_config(sound, work, f"ckpt_path={last_checkpoint(work)}", "trainer.max_epochs=2"))


def _test(sound: Path, work: Path) -> None:
    trainer.test(_config(sound, work, "task=test", f"ckpt_path={last_checkpoint(work)}", f"run_dir={work / 'tested'}"))


def _convert(sound: Path, work: Path) -> None:
    clip = described("backbone", "clip")
    text, vision = (clip.description.architecture[f"{tower}_config"] for tower in ("text", "vision"))
    text.hidden_size, text.vocab_size, vision.hidden_size, vision.patch_size = TEXT_WIDTH, VOCABULARY, WIDTH, PATCH
    other = work / "irra.safetensors"
    prepare(clip, work, source=other if other.exists() else work / "irra.pth", target=work / "converted")


def _load(sound: Path, work: Path) -> None:
    folder = work / "folder"
    check_folder(folder, Architecture.described(described("backbone", TINY)))
    backbone = load_backbone(TINY, "siglip", folder, (64, 32), sigmoid=True, max_length=16)
    tokenize = Tokenize(load_tokenizer(folder), 16)
    tokenize.count(["a man in a red coat"])
    tokens = tokenize(["a man in a red coat"])
    ranking_notes(folder, None, 5)
    if int(tokens.ids.max()) < backbone.vocab_size:  # otherwise the datamodule refuses
        backbone.text(*tokens)
    backbone.image(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))


def _prepare(sound: Path, work: Path) -> None:
    siglip = described("backbone", TINY)
    siglip.description.repository, siglip.description.architecture.text_config.vocab_size = "google/siglip", None
    prepare(siglip, work, source=work / "folder", target=work / "copied")


def _read(sound: Path, work: Path) -> None:
    try:
        read_dataset("drawn", work)
    finally:  # the doctor continues after errors that stop reading
        report = examine("drawn", work, decode=False)
        longest = max((*report["errors"], *report["warnings"]), key=len, default="")
        if len(longest) > 500:
            raise RuntimeError(f"the doctor says {len(longest)} characters: {longest[:200]}")


def _unpack(sound: Path, work: Path) -> None:
    names = [path for path in work.iterdir() if path.name.startswith("archive")]
    install(names[0] if names else work / "archive.zip", work / "DATA")


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("checkpoints, continued", _copy_run, spoil_checkpoint, _continue),
        Kind("checkpoints, tested", _copy_run, spoil_checkpoint, _test),
        Kind("published weights", _copy_published, spoil_published, _convert),
        Kind("backbone folders", _copy_backbone, spoil_backbone, _load),
        Kind("backbone folders, copied", _copy_backbone, spoil_backbone, _prepare),
        Kind("annotation files", _copy_annotations, spoil_annotations, _read),
        Kind("archives", _pack_sound, spoil_archive, _unpack),
    )
}
