"""Checkpoint folders in Hugging Face format: checking, reading and copying."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, Self

from safetensors import SafetensorError, safe_open

from utils.checkpoints.disk import scratch_folder
from utils.checkpoints.layouts import CONFIGS, OPEN_CLIP, OPEN_CLIP_CONFIG, PICKLED, SMALL_FILES, VOCABULARIES, WEIGHTS
from utils.download.download import sha256_of, writing
from utils.errors import UserError, first_line

RECORD: Final = "hub.json"
LARGEST_JSON: Final = 10_000_000  # bytes
RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow's filters
_TOKEN_TABLES: Final = (
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.word_embeddings.weight",  # BERT
)
_PATCHES: Final = (
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.patch_embeddings.projection.weight",  # ViT
    "vision_model.embedder.embedder.convolution.weight",  # ResNet
)
_PROJECTION: Final = "visual_projection.weight"


class IncompleteError(UserError):
    """A checkpoint folder with a missing or damaged file."""


@dataclass(frozen=True)
class Architecture:
    """The numbers that distinguish dual encoders; None matches any number.

    text_width, vision_width: hidden sizes of the towers. patch: side of an image patch in pixels, or the kernel size
    of a ResNet's first convolution. vocab: rows of the token table.
    """

    model_type: str
    text_width: int | None
    vision_width: int | None
    patch: int | None
    vocab: int | None

    @classmethod
    def described(cls, backbone: Mapping[str, Any]) -> Self:
        """Returns the architecture in a backbone's YAML; `vocab` is None for a backbone made from scratch."""
        description = backbone["description"]
        text, vision = (description["architecture"].get(f"{tower}_config", {}) for tower in ("text", "vision"))
        vocab = text.get("vocab_size") if description["repository"] else None
        sizes = text.get("hidden_size"), vision.get("hidden_size"), vision.get("patch_size")
        return cls(backbone["family"], *sizes, vocab)

    def fits(self, found: Architecture) -> bool:
        """Returns whether all numbers that are not None equal the numbers of `found`."""
        return all(mine in (None, other) for mine, other in zip(astuple(self), astuple(found), strict=True))

    def __str__(self) -> str:
        kind, text, vision, patch, vocab = ("any" if number is None else number for number in astuple(self))
        return f"{kind} model (text width {text}, vision width {vision}, {patch}-pixel patches, {vocab} tokens)"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in one of the small files of a checkpoint.

    Raises:
        IncompleteError: if the file is absent, damaged, too large or not a JSON object.
    """
    if not path.is_file():
        raise IncompleteError(f"{path} does not exist")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise IncompleteError(f"{path} has {path.stat().st_size:,} bytes, expected a small JSON object")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IncompleteError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise IncompleteError(f"{path} is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise IncompleteError(f"{path} is not a JSON object")
    return content


def check_folder(
    folder: Path, expected: Architecture, *, weights: Path | None = None, source: Path | None = None
) -> None:
    """Checks that `folder` is a complete checkpoint of the architecture.

    It checks the configs, the header and length of the weights, the vocabulary and, if the folder was downloaded,
    the SHA-256 of every file.

    Args:
        weights: the safetensors file, if it is not the one in `folder`.
        source: the path that error messages name instead of `folder`.

    Raises:
        IncompleteError: if a file is missing or damaged.
        UserError: if the checkpoint has another architecture.
    """
    configs = {name: read_json(folder / name) for name in CONFIGS}
    check_fixed_resolution(configs["config.json"], source or folder)
    found = _architecture(weights or folder / WEIGHTS, str(configs["config.json"].get("model_type")))
    if not expected.fits(found):
        raise UserError(f"{source or folder} holds a {found}; expected a {expected}: choose another one")
    if not has_tokenizer(folder):
        raise IncompleteError(f"{folder} has no tokenizer (tokenizer.json or spiece.model)")
    for name, sha256 in read_record(folder).get("sha256", {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
            raise IncompleteError(f"{folder / name} is not what was downloaded")


def check_fixed_resolution(config: Mapping[str, Any], source: Path | str) -> None:
    """Raises `UserError` if `config`, the config.json of `source`, is that of a NaFlex checkpoint of SigLIP 2."""
    if config.get("model_type") == "siglip2":
        raise UserError(
            f"{source} holds a NaFlex checkpoint of SigLIP 2 (Siglip2Model), whose images have no fixed size and which "
            "this project does not read: choose one of a fixed resolution, such as google/siglip2-base-patch16-256"
        )


def is_open_clip(folder: Path) -> bool:
    """Returns whether `folder` is one of open_clip, and not one of transformers as well."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / CONFIGS[0]).is_file()


def architecture_of(folder: Path) -> Architecture:
    """Returns the architecture of the checkpoint in `folder`.

    Raises:
        IncompleteError: if a file is missing or damaged.
        UserError: if it is not a dual encoder.
    """
    return _architecture(folder / WEIGHTS, str(read_json(folder / "config.json").get("model_type")))


def has_tokenizer(folder: Path) -> bool:
    """Returns whether `folder` has the files of one of `VOCABULARIES`."""
    return any(all((folder / name).is_file() for name in names) for names in VOCABULARIES)


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record that `write_record` wrote in `folder` (repo, revision, ``sha256`` by file name), or {}."""
    if not (folder / RECORD).is_file():
        return {}
    record = read_json(folder / RECORD)
    sums = record.get("sha256", {})
    if not isinstance(sums, dict) or any(Path(name).name != name for name in sums):
        raise IncompleteError(f"{folder / RECORD} names other files than those of its folder")
    return record


def read_interpolation(folder: Path) -> str:
    """Returns the interpolation with which images are resized, from preprocessor_config.json in `folder`.

    A folder of open_clip has it in its open_clip_config.json.

    dataset.interpolation=null uses this value. If the file has none, it is bicubic, as in the pre-training of CLIP
    and SigLIP.

    Raises:
        UserError: if the file is absent, damaged, or names neither bilinear nor bicubic.
    """
    advice = "fill the folder again with 'uv run prepare_checkpoints.py', or set dataset.interpolation"
    try:
        if is_open_clip(folder):
            preprocess = read_json(folder / OPEN_CLIP_CONFIG).get("preprocess_cfg") or {}
            found = preprocess.get("interpolation", "bicubic")
            if found not in RESAMPLE.values():
                raise IncompleteError(f"{folder / OPEN_CLIP_CONFIG} names the interpolation {found!r}")
            return str(found)
        resample = read_json(folder / CONFIGS[1]).get("resample")
    except IncompleteError as error:
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} holds LoRA adapters and no backbone; merge them with task=export ckpt_path=FILE "
                "export.formats=[hub], and name the hub/ folder that it writes"
            ) from error
        raise UserError(f"{error}, so the interpolation of images is unknown; {advice}") from error
    if resample is None:
        return "bicubic"
    if type(resample) is not int or resample not in RESAMPLE:
        raise UserError(
            f"{folder / CONFIGS[1]}: resample is {resample!r}, expected 2 (bilinear) or 3 (bicubic); {advice}"
        )
    return RESAMPLE[resample]


def write_record(folder: Path, *, repo: str, revision: str, files: list[str]) -> None:
    """Writes the origin and the SHA-256 of the files of `folder` to `RECORD`."""
    sha256 = {name: sha256_of(folder / name) for name in sorted(files)}
    record = {"repo": repo, "revision": revision, "sha256": sha256}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def copy_folder(source: Path, folder: Path, expected: Architecture) -> None:
    """Checks that the checkpoint in `source` has the expected architecture and copies it to `folder`.

    If `source` has only ``pytorch_model.bin``, it is converted without executing anything in it.
    """
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; --from takes a folder that save_pretrained wrote")
    with writing(folder), scratch_folder(folder) as staging:
        converted = not (source / WEIGHTS).is_file() and (source / PICKLED).is_file()
        if converted:
            to_safetensors(source / PICKLED, staging / WEIGHTS)
        check_folder(source, expected, weights=staging / WEIGHTS if converted else None)
        copy_small_files(source, staging)
        for name in (WEIGHTS, RECORD):
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
        move_in(staging, folder)


def move_in(staging: Path, folder: Path) -> None:
    """Moves all files of `staging` into `folder`, weights last, so that a folder with weights is complete."""
    folder.mkdir(exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    make_way(folder / WEIGHTS)
    for file in sorted(staging.iterdir(), key=lambda path: path.name in (WEIGHTS, OPEN_CLIP.weights)):
        file.replace(folder / file.name)


def copy_small_files(source: Path, folder: Path) -> None:
    """Copies the config and tokenizer files that `source` has into `folder`."""
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def make_way(path: Path) -> None:
    """Renames intact weights before other weights replace them, so that no training is lost."""
    if path.name != WEIGHTS or not path.is_file():
        return
    try:
        with safe_open(path, framework="numpy"):
            kept = path.with_name(f"model.{sha256_of(path)[:8]}.safetensors")
    except (SafetensorError, OSError):
        return
    path.rename(kept)
    print(f"{path} held other weights, which are now {kept.name}")


def to_safetensors(pickled: Path, target: Path) -> None:
    """Writes the tensors of a ``pytorch_model.bin`` to `target`; raises `UserError` if it holds anything else."""
    import torch
    from safetensors.torch import save_file

    from utils.checkpoints.tensor_files import UnreadableError, read_pickled

    try:
        state = read_pickled(pickled)
    except UnreadableError as error:
        raise UserError(
            f"{pickled} is refused ({error}); save the model again with save_pretrained, which writes {WEIGHTS}"
        ) from error
    is_table = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not is_table:
        raise UserError(f"{pickled} is not a table of tensors; expected the weights of a transformers model")
    own = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    with scratch_folder(target) as folder:
        try:
            save_file(own, folder / target.name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"cannot write {target} ({error}); make room and run the same command again") from error
        (folder / target.name).replace(target)


def _architecture(weights: Path, model_type: str) -> Architecture:
    if not weights.is_file():
        raise IncompleteError(f"{weights} does not exist")
    try:
        with safe_open(weights, framework="numpy") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise IncompleteError(f"{weights} is damaged ({error})") from error
    table: list[int] = next((shapes[name] for name in _TOKEN_TABLES if name in shapes), [])
    convolution: list[int] = next((shapes[name] for name in _PATCHES if name in shapes), [])
    projection = shapes.get(_PROJECTION)
    if len(table) != 2 or len(convolution) != 4 or len(projection or (0, 0)) != 2:
        raise UserError(f"{weights} is not a dual encoder: no {_TOKEN_TABLES[0]} or no {_PATCHES[0]} in it")
    vocab, text_width = table
    vision_width = projection[1] if projection else convolution[0]
    patch = convolution[2]
    return Architecture(model_type, text_width, vision_width, patch, vocab)
