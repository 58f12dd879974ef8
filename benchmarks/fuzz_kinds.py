"""What the fuzz spoils: sound files of each kind, how each is spoiled, and what a user does with it."""

import importlib
import io
import json
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

import trainer
from benchmarks.fuzz_mutations import (
    VALUES,
    copied,
    files_below,
    spoil_file,
    spoil_json,
    spoil_tensor,
    spoil_tree,
    write_pickled,
    write_raw_pickle,
)
from data.annotations import read_dataset
from data.doctor import examine
from data.synthetic import SyntheticSpec, generate
from data.tokens import Tokenize, load_tokenizer
from lightning_models import LitRanker, LitTBPS
from model.backbones import load_backbone
from model.converted import HEADS_FILE, classifier_note
from model.positions import write_positions
from prepare_checkpoints import CHECKPOINTS, prepare
from tests.model.openai_clip import PATCH, TEXT_WIDTH, VOCABULARY, WIDTH, Irra
from tests.small_run import CONFIG_DIR, SMALL
from utils.archives import install
from utils.checkpoint_folder import PICKLED, SMALL_FILES, WEIGHTS, Architecture, check_folder

TINY: Final = "tiny_siglip"
DATASET: Final = "SYNTH-PEDES"
SPEC: Final = SyntheticSpec(train=8, val=4, test=4, images_per_identity=2, height=64, width=32)


class AcceptedError(Exception):
    """Raised where a spoiled file has been used so far that nothing of it is left to be read."""


class Kind(NamedTuple):
    """spoil: changes the copy in a folder and tells how. use: what a user does with it."""

    name: str
    spoil: Callable[[Random, Path, Path], str]
    use: Callable[[Path], None]


def make_sound(sound: Path, work: Path) -> None:
    """Fills `sound` with a small dataset, a backbone, a run of one epoch (made in `work`), weights of IRRA."""
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

    LitTBPS.on_train_batch_end = accepted  # type: ignore[method-assign]
    LitRanker.test_step = accepted  # type: ignore[method-assign, assignment]


def kinds(work: Path) -> dict[str, Kind]:
    """Returns the kinds by name; spoiled copies lie in `work`."""
    listed = (
        Kind("checkpoints, continued", _spoil_checkpoint, lambda sound: _continue(sound, work)),
        Kind("checkpoints, tested", _spoil_checkpoint, lambda sound: _test(sound, work)),
        Kind("published weights", _spoil_published, lambda sound: _convert(work)),
        Kind("backbone folders", _spoil_backbone, lambda sound: _load(work)),
        Kind("backbone folders, copied", _spoil_backbone, lambda sound: _copy(work)),
        Kind("annotation files", _spoil_annotations, lambda sound: _read(work)),
        Kind("archives", _spoil_archive, lambda sound: _unpack(work)),
    )
    return {kind.name: kind for kind in listed}


def import_all(names: list[str]) -> None:
    """Imports what a sound run imported, so that whatever a spoiled file imports is something else."""
    for name in names:
        if name not in sys.modules and not name.startswith(("_", "tests")):
            try:
                importlib.import_module(name)
            except Exception as error:  # made at run time, or for another platform
                print(f"not imported: {name} ({error})", file=sys.stderr)


def _config(sound: Path, work: Path, *overrides: str) -> DictConfig:
    options = [*SMALL, "logger=csv", "shown_queries=0", f"dataset_root_dir={sound / 'root'}", f"run_dir={work / 'run'}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("demo", overrides=[*options, *overrides])


def _continue(sound: Path, work: Path) -> None:
    trainer.train(_config(sound, work, f"ckpt_path={_checkpoint(work)}", "trainer.max_epochs=2"))


def _test(sound: Path, work: Path) -> None:
    trainer.test(_config(sound, work, "task=test", f"ckpt_path={_checkpoint(work)}"))


def _checkpoint(work: Path) -> Path:
    return work / "run" / "checkpoints" / "last.ckpt"


def _convert(work: Path) -> None:
    clip = Architecture("clip", TEXT_WIDTH, WIDTH, PATCH, VOCABULARY)
    CHECKPOINTS["clip"] = CHECKPOINTS["clip"]._replace(architecture=clip)
    source = next(path for path in work.iterdir() if path.name.startswith("irra"))
    prepare("clip", work, source=source, target=work / "converted")


def _load(work: Path) -> None:
    folder = work / "folder"
    check_folder(folder, CHECKPOINTS[TINY].architecture)
    backbone = load_backbone(TINY, "siglip", folder, (64, 32), sigmoid=True, max_length=16)
    tokenize = Tokenize(load_tokenizer(folder), 16)
    tokenize.count(["a man in a red coat"])
    tokens = tokenize(["a man in a red coat"])
    classifier_note(folder, 5)
    if int(tokens.ids.max()) < backbone.vocab_size:  # else the datamodule refuses
        backbone.text(*tokens)
    backbone.image(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))


def _copy(work: Path) -> None:
    prepare(TINY.replace("tiny_", ""), work, source=work / "folder", target=work / "copied")


def _read(work: Path) -> None:
    try:
        read_dataset("synthetic", work)
    finally:  # the doctor goes on where reading stops
        report = examine("synthetic", work, decode=False)
        longest = max((*report["errors"], *report["warnings"]), key=len, default="")
        if len(longest) > 500:
            raise RuntimeError(f"the doctor says {len(longest)} characters: {longest[:200]}")


def _unpack(work: Path) -> None:
    install(next(path for path in work.iterdir() if path.name.startswith("archive")), work / "DATA")


def _spoil_checkpoint(rng: Random, sound: Path, work: Path) -> str:
    copied(sound / "run", work / "run")
    path = _checkpoint(work)
    for beside in set(path.parent.iterdir()) - {path}:
        beside.unlink()  # a checksum would refuse everything alike
    how = rng.choice(("tree",) * 8 + ("file", "pickle"))
    if how == "file":
        return spoil_file(rng, path, [sound / "irra.pth", sound / "root" / f"{TINY}_checkpoints" / WEIGHTS])
    if how == "pickle":
        return write_raw_pickle(rng, path)
    content = torch.load(path, weights_only=True)
    told = []
    for _ in range(rng.choice((1, 1, 2))):
        part = rng.choice(
            [None, None, "config", "loops", "callbacks", "optimizer_states", "lr_schedulers", "state_dict"]
        )
        if not isinstance(content, dict) or part is None or part not in content:
            content, how = spoil_tree(rng, content, calls=True)
        else:
            content[part], how = spoil_tree(rng, content[part], calls=True)
            how = f"{part}.{how}"
        told.append(how)
    return ", ".join(told) + write_pickled(rng, content, path)


def _spoil_published(rng: Random, sound: Path, work: Path) -> str:
    tokenizer = sound / "root" / f"{TINY}_checkpoints"
    for file in (tokenizer / name for name in SMALL_FILES if (tokenizer / name).is_file()):
        copied(file, work / "clip_checkpoints" / file.name)
    path = copied(sound / "irra.pth", work / "irra.pth")
    how = rng.choice(("tree",) * 5 + ("file", "pickle", "safetensors"))
    if how == "file":
        return spoil_file(rng, path, [sound / "run" / "checkpoints" / "last.ckpt", tokenizer / WEIGHTS])
    if how == "pickle":
        return write_raw_pickle(rng, path)
    content = torch.load(path, weights_only=True)
    if how == "safetensors":
        path.unlink()
        return "safetensors, " + _spoil_safetensors(rng, content["model"], work / "irra.safetensors")
    prefix = rng.choice(("", "_orig_mod.", "module.", "module._orig_mod.", "clip.model.", "backbone.base_model."))
    content["model"] = {prefix + name: value for name, value in content["model"].items()}
    content[rng.choice(("model", "net", "weights", "x", "model_state_dict"))] = content.pop("model")
    if rng.random() < 0.5:
        wrapper = next(key for key, value in content.items() if isinstance(value, dict))
        content[wrapper], how = spoil_tree(rng, content[wrapper], calls=True)
    else:
        content, how = spoil_tree(rng, content, calls=True)
    return how + write_pickled(rng, content, path)


def _spoil_safetensors(rng: Random, tensors: dict[str, torch.Tensor], path: Path) -> str:
    """Writes `tensors` with one of them spoiled, or with a header that lies."""
    told = ""
    if rng.random() < 0.6:
        name = rng.choice(sorted(tensors))
        spoiled, told = spoil_tensor(rng, tensors[name])
        plain = isinstance(spoiled, torch.Tensor) and spoiled.layout == torch.strided and spoiled.device.type == "cpu"
        if not plain or vars(spoiled) or spoiled.numel() > 10**9 or rng.random() < 0.2:
            told, spoiled = "drop", None
        tensors = {n: t for n, t in tensors.items() if n != name} | ({} if spoiled is None else {name: spoiled.data})
        told = f"{name}: {told}"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    if told:
        return told
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header: Any = json.loads(content[8 : 8 + size])
    header, told = spoil_tree(rng, header)
    text = json.dumps(header).encode(errors="replace")
    length = rng.choice((len(text), len(text), len(text), 2**40, 0, 2**63))
    path.write_bytes(length.to_bytes(8, "little") + text + content[8 + size :])
    return f"header: {told}, said to be of {length} bytes"


def _spoil_backbone(rng: Random, sound: Path, work: Path) -> str:
    folder = copied(sound / "root" / f"{TINY}_checkpoints", work / "folder")
    others = list(files_below(folder))
    if rng.random() < 0.1:
        (folder / "config.json").write_text(json.dumps(_redirected(rng, folder)))
        return "files of code, of adapters, of shards"
    if rng.random() < 0.1:
        weights, _ = spoil_tree(rng, load_file(folder / WEIGHTS), calls=True)
        (folder / WEIGHTS).unlink()
        return "pickled, " + write_pickled(rng, weights, folder / PICKLED)
    path = rng.choice([file for file in others for _ in range(1 + 4 * (file.suffix == ".json"))])
    if rng.random() < 0.1:
        return spoil_file(rng, path, others)
    if path.suffix == ".json":
        return spoil_json(rng, path, others)
    return f"{path.name}: {_spoil_safetensors(rng, load_file(path), path)}"


def _redirected(rng: Random, folder: Path) -> dict[str, Any]:
    """Returns a config that asks transformers for code, after writing what else in `folder` asks for it."""
    code = "open('canary', 'w')\nclass X:\n    pass\n"
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "configuration_x.X", "AutoModel": "modeling_x.X", "AutoTokenizer": ["tokenization_x.X", None]}
    more: list[dict[str, Any]] = [
        {"auto_map": maps},
        {"auto_map": maps, "model_type": "x"},
        {"auto_map": {name: f"repo/x--{value}" for name, value in maps.items()}},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"transformers_weights": "../x.bin"},
        {
            "tokenizer_class": rng.choice(
                ["X", "LlamaTokenizer", "MistralCommonBackend", "Trainer", "BertJapaneseTokenizer"]
            )
        },
        {"num_hidden_layers": 10**9},
    ]
    config |= rng.choice(more)
    config["text_config"] |= rng.choice([*more, {}, {}])
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= rng.choice(
        [*more, {"tokenizer_file": "/etc/passwd"}, {"auto_map": ["tokenization_x.X", "tokenization_x.X"]}]
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if rng.random() < 0.3:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "..", "peft_type": "LORA"}))
    if rng.random() < 0.3:
        shards = {"weight_map": {"x": "../irra.pth"}, "metadata": {}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(shards))
    if rng.random() < 0.3:
        (folder / "tokenizer.json").unlink()
        (folder / "spiece.model").write_bytes(rng.randbytes(2000))
    return config


def _spoil_annotations(rng: Random, sound: Path, work: Path) -> str:
    folder = copied(sound / "root" / DATASET, work / DATASET)
    return spoil_json(rng, folder / "data_captions.json", [folder / "synthetic.json", sound / "irra.pth"])


def _spoil_archive(rng: Random, sound: Path, work: Path) -> str:
    names = ["imgs/a/1.jpg", "imgs/2.jpg", "reid_raw.json"]
    hostile = [
        "../evil",
        "imgs/../../evil",
        "/evil",
        "C:\\evil",
        "imgs\\..\\..\\evil",
        "x" * 300,
        "a/" * 2000,
        "imgs",
        "",
    ]
    hostile += [
        "imgs/a",
        "imgs/a/1.jpg/x",
        "\0",
        "a\0b",
        "imgs/\udc80",
        "imgs/\u202e\x1b[31m",
        "imgs/e\u0301",
        ".",
        "./",
        "//x",
    ]
    hostile += ["imgs/a/1.jpg", "IMGS/A/1.JPG", "imgs/ ", "con", "imgs/a/"]
    chosen = rng.sample(hostile, rng.choice((0, 1, 1, 2)))
    entries = [*names, *chosen]
    rng.shuffle(entries)
    suffix = rng.choice(("zip", "tar", "tar.gz", "tar.bz2", "tar.xz"))
    path = work / f"archive.{suffix}"
    writer = _write_zip if suffix == "zip" else _write_tar
    told = writer(rng, path, entries)
    how = f"{suffix} with {chosen!a:.150}{told}"
    return how if rng.random() < 0.6 else f"{how}, {spoil_file(rng, path, [sound / 'irra.pth'])}"


def _write_zip(rng: Random, path: Path, names: list[str]) -> str:
    told = ""
    with zipfile.ZipFile(
        path, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
    ) as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            if rng.random() < 0.1:
                info.external_attr = rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR)) << 16
                told += f", mode {info.external_attr >> 16:o}"
            archive.writestr(info, b"/etc/passwd")
        for info in archive.infolist():
            if rng.random() < 0.05:
                info.file_size = rng.choice((0, 2**31, 2**50))
                told += f", a size of {info.file_size}"
    if rng.random() < 0.1:
        content = bytearray(path.read_bytes())
        for start in _places(content, b"PK\x01\x02"):
            content[start + 8] |= 1
        path.write_bytes(content)
        told += ", encrypted"
    return told


def _places(content: bytearray, mark: bytes) -> Iterator[int]:
    start = content.find(mark)
    while start >= 0:
        yield start
        start = content.find(mark, start + 1)


def _write_tar(rng: Random, path: Path, names: list[str]) -> str:
    told = ""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            data = b"x" * 100
            member.size = len(data)
            if rng.random() < 0.15:
                member.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"Z")
                )
                member.linkname = rng.choice(("/etc/passwd", "../..", name, "imgs"))
                member.size = 0
                told += f", type {member.type!r}"
            if rng.random() < 0.1:
                key = rng.choice(("path", "size", "mtime", "GNU.sparse.map", "GNU.sparse.realsize", "hdrcharset"))
                member.pax_headers = {key: str(rng.choice(VALUES))[:2000].encode("utf-8", "replace").decode()}
                told += f", pax {key}"
            try:
                archive.addfile(member, io.BytesIO(data[: member.size]))
            except (ValueError, UnicodeError) as error:
                told += f" ({error})"
    return told
