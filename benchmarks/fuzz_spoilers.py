"""Damage to checkpoints, weights, backbone folders, annotation files and archives, for the fuzz."""

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from benchmarks.fuzz_mutations import VALUES, files_below, spoil_file, spoil_json, spoil_tensor, spoil_tree
from benchmarks.fuzz_pickles import write_pickled, write_raw_pickle
from utils.checkpoints.folder import PICKLED, WEIGHTS

TINY: Final = "tiny_siglip"
DATASET: Final = "DRAWN-PEDES"
FILES: Final = ("imgs/a/1.jpg", "imgs/2.jpg", "reid_raw.json")  # members of an archive


def last_checkpoint(work: Path) -> Path:
    """Returns the checkpoint of the run in `work`."""
    return work / "run" / "checkpoints" / "last.ckpt"


def spoil_checkpoint(rng: Random, sound: Path, work: Path) -> str:
    """Damages the last checkpoint of the run in `work` and returns how."""
    path = last_checkpoint(work)
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


def spoil_published(rng: Random, sound: Path, work: Path) -> str:
    """Damages weights in OpenAI's layout and returns how."""
    path = work / "irra.pth"
    how = rng.choice(("tree",) * 5 + ("file", "pickle", "safetensors"))
    if how == "file":
        return spoil_file(
            rng, path, [sound / "run" / "checkpoints" / "last.ckpt", sound / "root" / f"{TINY}_checkpoints" / WEIGHTS]
        )
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
    """Writes `tensors` with one damaged tensor or with a wrong header, and returns how."""
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


def spoil_backbone(rng: Random, sound: Path, work: Path) -> str:
    """Damages one file of a backbone's folder, or makes the folder request code. Returns how."""
    folder = work / "folder"
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
    """Writes files to `folder` that request code, and returns a config that requests code from transformers."""
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


def spoil_annotations(rng: Random, sound: Path, work: Path) -> str:
    """Damages an annotation file and returns how."""
    folder = work / DATASET
    return spoil_json(rng, folder / "data_captions.json", [folder / "synthetic.json", sound / "irra.pth"])


def spoil_archive(rng: Random, sound: Path, work: Path) -> str:
    """Writes an archive with hostile names and members, and damages some archives. Returns how."""
    (work / "archive.tar").unlink()
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
    entries = [*FILES, *chosen]
    rng.shuffle(entries)
    suffix = rng.choice(("zip", "tar", "tar.gz", "tar.bz2", "tar.xz"))
    path = work / f"archive.{suffix}"
    writer = _write_zip if suffix == "zip" else write_tar
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


def write_tar(rng: Random, path: Path, names: Sequence[str], hostile: float = 0.15) -> str:
    """Writes a tar whose members are hostile with probability `hostile`. Returns a description."""
    told = ""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            data = b"x" * 100
            member.size = len(data)
            if rng.random() < hostile:
                member.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"Z")
                )
                member.linkname = rng.choice(("/etc/passwd", "../..", name, "imgs"))
                member.size = 0
                told += f", type {member.type!r}"
            if rng.random() < hostile:
                key = rng.choice(("path", "size", "mtime", "GNU.sparse.map", "GNU.sparse.realsize", "hdrcharset"))
                member.pax_headers = {key: str(rng.choice(VALUES))[:2000].encode("utf-8", "replace").decode()}
                told += f", pax {key}"
            try:
                archive.addfile(member, io.BytesIO(data[: member.size]))
            except (ValueError, UnicodeError) as error:
                told += f" ({error})"
    return told
