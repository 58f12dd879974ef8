"""Export of a trained encoder: a folder of the Hugging Face hub, ONNX files, and what they cost on the test split."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from prettytable import PrettyTable
from torch import Tensor
from torch.nn.functional import cosine_similarity

from data.annotations import Record
from data.images.read import read_image
from data.loading.chosen import chosen_dataset
from encoder_loading import LoadedEncoder, load_encoder
from model.backbones.lora import merge_lora
from model.export.hub import HEADS, hub_refusal, write_hub, write_image_processor, write_tokenizer
from model.export.onnx_towers import OPSET, TOWERS, OnnxEncoder, check_packages, quantize, size_of, write_onnx
from model.published.converted import load_head
from model.tbps import TBPS, build_encoder
from prepare_checkpoints import prepare_folder
from utils.checkpoints.disk import scratch_folder, why_not_written, write_whole
from utils.checkpoints.folder import read_interpolation
from utils.checkpoints.weights import read_checkpoint
from utils.config.dataset_name import dataset_name
from utils.errors import UserError, check_choice
from utils.ranking.metrics import DIRECTIONS, measure
from utils.ranking.retrieval import rank_both, top_k
from utils.report.model_card import model_card, results_of, usage
from utils.report.run_record import KEY
from utils.training.log_filters import quiet_libraries
from utils.training.threads import in_threads

FORMATS: Final = ("hub", "onnx", "onnx_int8")
RECORD: Final = "export.json"
BEST: Final = 10  # images that every query is compared by
SAME: Final = 1e-5  # scores nearer than this are the same: their order is rounding


def encoder_of(cfg: DictConfig, path: Path | None, device: str | None = None) -> LoadedEncoder:
    """Returns the encoder of the checkpoint at `path`; if it is None, the backbone of `cfg` as it is.

    Args:
        device: as in `load_encoder`.
    """
    quiet_libraries()
    if path is not None:
        return load_encoder(path, device)
    folder = prepare_folder(cfg.backbone, Path(cfg.dataset_root_dir))
    cfg.backbone.folder, cfg.compile = str(folder), False
    model = build_encoder(cfg)
    for line in load_head(model.head, folder):
        print(f"note    {line}", flush=True)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedEncoder(cfg, model, folder)


def export_encoder(cfg: DictConfig, path: Path | None) -> dict[str, float]:
    """Writes the encoder in `cfg.export.formats` to `cfg.run_dir`, measures the ONNX files, and writes export.json.

    Args:
        path: the checkpoint; None: the backbone as it is.

    Returns:
        What was measured, such as ``export/onnx_int8/t2i/R1``.

    Raises:
        UserError: a format is unknown, packages are absent, or files cannot be written.
    """
    formats = [cfg.export.formats] if isinstance(cfg.export.formats, str) else list(cfg.export.formats)
    for name in formats:
        check_choice("export.formats", str(name), FORMATS)
    towers = [name for name in FORMATS[1:] if name in formats]
    if towers:
        check_packages()
    loaded, folder = encoder_of(cfg, path, "cpu"), Path(cfg.run_dir)
    if loaded.model.backbone.has_adapters:
        merge_lora(loaded.model.backbone)
    print(f"exports {loaded}\nto      {folder}", flush=True)
    record: dict[str, Any] = {"source": str(loaded.source), "formats": formats}
    try:
        if "hub" in formats:
            export_hub(loaded.config, loaded.model, folder / "hub", path)
        if towers:
            _write_towers(loaded, folder, towers)
    except OSError as error:
        why = why_not_written(error, folder)
        raise UserError(f"export: {folder} cannot be written ({why}); make room or set run_dir=") from error
    figures: dict[str, float] = {}
    if towers:
        record["onnx"] = {"opset": OPSET, "towers": TOWERS, "size": list(loaded.resize.size)}
        record["onnx"]["max_length"] = loaded.tokenize.max_length
        record["test"] = _measured(cfg, loaded, {name: folder / name for name in towers})
        figures = _figures(record["test"])
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"saved   {folder}: {', '.join([*formats, RECORD])}", flush=True)
    return figures


def export_hub(cfg: DictConfig, encoder: TBPS, folder: Path, checkpoint: Path | None) -> None:
    """Writes an encoder without adapters to `folder`, as `write_hub` does.

    Args:
        cfg: the config that describes the encoder.
        checkpoint: the checkpoint that its weights come from; None: its backbone's folder.

    Raises:
        UserError: as `hub_refusal` says.
    """
    if (refusal := hub_refusal(encoder)) is not None:
        raise UserError(refusal)
    backbone, source, (height, width) = encoder.backbone, Path(cfg.backbone.folder), cfg.img_size
    found: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = {}
    if checkpoint is not None:
        found = results_of(checkpoint.parent.parent, checkpoint)
        trained: Any = read_checkpoint(checkpoint) if found is None else found
        record = trained.get(KEY) or {}
    head: Any = OmegaConf.to_container(cfg.head, resolve=True)
    kind = HEADS[type(encoder.head).__name__]
    code = usage(
        cfg.backbone.family,
        max_length=cfg.backbone.max_length,
        grid=backbone.grid,
        has_positions=backbone.positions() is not None,
    )
    options = {
        "backbone": cfg.backbone.name,
        "backbone.folder": "THIS_FOLDER",
        "backbone.max_length": cfg.backbone.max_length,
        "img_size_str": f"{height}x{width}",
        "head": kind,
        **{f"head.{key}": value for key, value in head.items() if not key.startswith("_")},
    }
    told = " ".join(f"{key}={value}" for key, value in options.items())
    card = model_card(
        f"{cfg.backbone.name}, images {height}x{width}" + ("" if checkpoint is None else f", {cfg.loss.name}"),
        code,
        command=f"uv run trainer.py task=test {told}",
        head=kind,
        found=found,
        record=record,
        source=(checkpoint or source).name,
    )
    interpolation = cfg.dataset.interpolation or read_interpolation(source)
    write_hub(
        encoder,
        folder,
        source=source,
        size=(height, width),
        max_length=cfg.backbone.max_length,
        interpolation=interpolation,
        card=card,
    )


def _write_towers(loaded: LoadedEncoder, folder: Path, towers: Sequence[str]) -> None:
    """Writes the ONNX files of `towers`, with the tokenizer and the numbers of the image processor beside them."""
    size, max_length = loaded.resize.size, loaded.tokenize.max_length
    source = Path(loaded.config.backbone.folder)
    with scratch_folder(folder / FORMATS[1]) as scratch:
        write_onnx(loaded.model, scratch / "onnx", size=size, max_length=max_length)
        if "onnx_int8" in towers:
            quantize(scratch / "onnx", scratch / "onnx_int8")
        for name in towers:
            write_tokenizer(scratch / name, source, max_length)
            write_image_processor(scratch / name, source, *loaded.resize)
            shutil.rmtree(folder / name, ignore_errors=True)
            (scratch / name).replace(folder / name)


class _Runs(Protocol):
    def images(self, pixels: Tensor) -> Tensor: ...
    def texts(self, ids: Tensor, mask: Tensor) -> Tensor: ...


class _PyTorch:
    """The encoder itself, with the methods of `OnnxEncoder`."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self._model = loaded.model

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        return self._model.encode_image(pixels).embedding

    @torch.inference_mode()
    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._model.encode_text(ids, mask).embedding


def _measured(cfg: DictConfig, loaded: LoadedEncoder, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Returns metrics, time and size of the encoder and of the ONNX files in `folders` on the test split of `cfg`.

    If the dataset cannot be read, it says so and returns the reason: the files are written already.
    """
    try:
        if cfg.dataset.name == "drawn":
            from data.synthetic import generate_once

            generate_once(Path(cfg.dataset_root_dir))
        dataset = chosen_dataset(cfg, ["test"])
        records, tested_on = dataset.test, dataset_name(cfg.dataset.name, dataset.language)
        runs: dict[str, _Runs] = {"pytorch": _PyTorch(loaded)}
        runs |= {name: OnnxEncoder(folder) for name, folder in folders.items()}
        encoded = _encode(loaded, records, runs, cfg.dataset.eval_batch_size)
    except UserError as error:
        print(f"note    not measured: {error}", flush=True)
        return {"not_measured": str(error)}
    image_pids = torch.tensor([record.pid for record in records])
    text_pids = torch.tensor([record.pid for record in records for _ in record.captions])
    found: dict[str, Any] = {"dataset": tested_on, "images": len(image_pids), "captions": len(text_pids)}
    images, texts, _ = encoded["pytorch"]
    for name, (own_images, own_texts, milliseconds) in encoded.items():
        ranks = rank_both(own_texts, own_images, text_pids, image_pids)
        entry: dict[str, Any] = {key: measure(own).as_dict() for key, own in zip(DIRECTIONS, ranks, strict=True)}
        entry |= milliseconds
        if name in folders:
            cosines = torch.cat([cosine_similarity(images, own_images), cosine_similarity(texts, own_texts)])
            entry |= {"cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}
            entry["same_ten_best"] = _same_best(texts, images, own_texts, own_images)
            entry["bytes"] = size_of(folders[name])
        found[name] = entry
    print(_table(found), flush=True)
    return found


def _encode(
    loaded: LoadedEncoder, records: Sequence[Record], runs: Mapping[str, _Runs], batch: int
) -> dict[str, tuple[Tensor, Tensor, dict[str, float]]]:
    """Returns, for each of `runs`, embeddings of images and captions, and milliseconds for one of each.

    Each image is read once. Reading and tokenising are not part of the time.
    """
    images: dict[str, list[Tensor]] = {name: [] for name in runs}
    texts: dict[str, list[Tensor]] = {name: [] for name in runs}
    seconds = {(name, side): 0.0 for name in runs for side in ("image", "caption")}

    def encode(side: str, into: dict[str, list[Tensor]], *inputs: Tensor) -> None:
        for name, run in runs.items():
            start = time.perf_counter()
            into[name].append(run.images(*inputs) if side == "image" else run.texts(*inputs))
            seconds[name, side] += time.perf_counter() - start

    pixels: list[Tensor] = []
    reads = in_threads(
        lambda record: read_image(record, loaded.resize), records, total=len(records), title="encoding", unit="img"
    )
    for place, one in enumerate(reads, 1):
        pixels.append(one)
        if len(pixels) == batch or place == len(records):
            encode("image", images, torch.stack(pixels))
            pixels.clear()
    captions = [caption for record in records for caption in record.captions]
    for start in range(0, len(captions), batch):
        encode("caption", texts, *loaded.tokenize(captions[start : start + batch]))
    counts = {"image": len(records), "caption": len(captions)}
    return {
        name: (
            torch.cat(images[name]),
            torch.cat(texts[name]),
            {f"{side}_ms": round(1e3 * seconds[name, side] / count, 4) for side, count in counts.items()},
        )
        for name in runs
    }


def _same_best(texts: Tensor, images: Tensor, other_texts: Tensor, other_images: Tensor) -> float:
    """Returns the share of texts whose ten best images are the same, but for the order of scores nearer than `SAME`."""
    chosen, _ = top_k(other_texts, other_images, BEST)
    _, wanted = top_k(texts, images, BEST)
    scores = [(text * images[best.long()]).sum(dim=1) for text, best in zip(texts, chosen, strict=True)]
    return float(((torch.stack(scores) - wanted).abs().amax(dim=1) <= SAME).float().mean())


def _table(found: Mapping[str, Any]) -> str:
    table = PrettyTable(["", "MB", "ms image", "ms caption", "cosine min", "same ten best", "t2i R1", "i2t R1"])
    for name, entry in found.items():
        if isinstance(entry, dict):
            told = [f"{entry['image_ms']:.2f}", f"{entry['caption_ms']:.2f}", "", ""]
            if "bytes" in entry:
                told[2:] = [f"{entry['cosine_min']:.6f}", f"{100 * entry['same_ten_best']:.2f} %"]
            size = f"{entry['bytes'] / 1e6:.1f}" if "bytes" in entry else ""
            table.add_row([name, size, *told, *(f"{entry[direction]['R1']:.2f}" for direction in DIRECTIONS)])
    return f"{found['dataset']}, test split: {found['images']:,} images, {found['captions']:,} captions\n{table}"


def _figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns R@1 of each format, such as ``export/onnx_int8/t2i/R1``."""
    entries = {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    return {f"export/{name}/{key}/R1": entry[key]["R1"] for name, entry in entries.items() for key in DIRECTIONS}
