"""Folders of open_clip: from the hub, from another folder, from a file of weights, or with random weights."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from utils.checkpoints.backbone_facts import library_config, open_clip_config
from utils.checkpoints.disk import scratch_folder
from utils.checkpoints.folder import has_tokenizer, move_in, to_safetensors
from utils.checkpoints.layouts import OPEN_CLIP, OPEN_CLIP_CONFIG, TOKENIZER_FILES
from utils.download.download import UnreachableError, writing
from utils.download.hub import download_folder
from utils.errors import UserError, library_errors

RANDOM: Final = "random"  # --pretrained: no pre-trained weights


def prepare_open_clip(
    model: str | None, folder: Path, *, pretrained: str | None = None, source: Path | None = None
) -> Path:
    """Returns the folder of a model of open_clip, complete and in the library's own format.

    Args:
        model: an architecture of the library.
        folder: the folder to fill.
        pretrained: tag of the library's weights of `model`, or `RANDOM`.
        source: folder of open_clip to copy, or file of weights to convert, instead of a tag.

    Raises:
        UserError: no such architecture or tag, a wrong or damaged source, or no network; says what to do.
    """
    if model is None:
        raise UserError("name an architecture of open_clip, such as: prepare_checkpoints.py open_clip --model ViT-B-16")
    library_config(model)
    if (folder / OPEN_CLIP.weights).is_file():
        open_clip_config(folder, model)
        print(f"{model}: {folder} is complete and kept")
        return folder
    if source is None and pretrained != RANDOM:
        repo = _repository(model, pretrained)
        print(f"{model}: downloading {repo} to {folder}")
        with _advice(model):
            download_folder(repo, folder, layout=OPEN_CLIP)
        open_clip_config(folder, model)
    else:
        with writing(folder), scratch_folder(folder) as staging:
            if source is not None and source.is_dir():
                _copy(source, staging)
            else:
                _write(model, staging, source, pretrained)
                add_tokenizer(model, folder, staging)
            open_clip_config(staging, model)
            move_in(staging, folder)
    print(f"{model}: {folder} is ready")
    return folder


def _repository(model: str, tag: str | None) -> str:
    """Returns the repository on the hub with the weights `tag` of `model`."""
    known = _tags(model)
    if tag not in known:
        said = "no weights are named" if tag is None else f"{model} has no weights {tag!r}"
        raise UserError(
            f"{said}: give --pretrained one of {', '.join(known) or 'none'} or {RANDOM}, or --from a folder or file"
        )
    repo = known[tag]["hf_hub"]
    if not repo.endswith("/"):
        raise UserError(f"the weights {tag!r} of {model} have no folder on the hub: choose another tag")
    return repo.removesuffix("/")


def _tags(model: str) -> dict[str, Any]:
    """Returns the weights of the library for `model`: tag -> repository, mean, std and interpolation."""
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    return {tag: get_pretrained_cfg(model, tag) for tag in list_pretrained_tags_by_model(model)}


def _copy(source: Path, staging: Path) -> None:
    """Copies the files of open_clip in `source`; pickled weights are converted without executing code."""
    for name in (*OPEN_CLIP.small_files, OPEN_CLIP.weights):
        if (source / name).is_file():
            shutil.copyfile(source / name, staging / name)
    if not (source / OPEN_CLIP.weights).is_file():
        if not (source / OPEN_CLIP.pickled).is_file():
            raise UserError(f"{source} has neither {OPEN_CLIP.weights} nor {OPEN_CLIP.pickled}: choose another folder")
        to_safetensors(source / OPEN_CLIP.pickled, staging / OPEN_CLIP.weights)


def _write(model: str, staging: Path, source: Path | None, tag: str | None) -> None:
    """Fills `staging` with the config and weights of `model`: those of the file `source`, or random ones.

    Mean, deviation and interpolation are those of the weights `tag`, or of the first weights of the architecture.
    """
    import torch
    from open_clip import create_model
    from safetensors.torch import save_file

    from model.backbones.open_clip import build
    from model.published.file import read_state

    options = library_config(model)
    with torch.device("meta"):
        build(options, model)  # refuses what this project does not read
    with scratch_folder(staging / "weights") as scratch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = scratch / OPEN_CLIP.weights
        if source is not None:
            save_file(read_state(source), path)
        with library_errors(f"{source or model} cannot be loaded", f"expected weights of open_clip's {model}"):
            library = create_model(model, pretrained=None if source is None else str(path))
    state = {name: tensor.contiguous() for name, tensor in library.state_dict().items()}
    save_file(state, staging / OPEN_CLIP.weights, metadata={"format": "pt"})
    tags = _tags(model)
    of_tag = tags.get(tag or "", next(iter(tags.values()), {}))
    preprocess = {key: of_tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in of_tag}
    content = {"model_cfg": options, "preprocess_cfg": preprocess}
    (staging / OPEN_CLIP_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def add_tokenizer(model: str, folder: Path, staging: Path) -> None:
    """Fills `staging` with the tokenizer of `model` from the hub, unless `folder` has it or the library brings it."""
    repo = library_config(model)["text_cfg"].get("hf_tokenizer_name")
    if repo is None or has_tokenizer(folder):
        return
    with _advice(model, f"only the tokenizer of {repo} is needed: put its tokenizer.json into {folder}"):
        download_folder(repo, staging, weights=False, layout=replace(OPEN_CLIP, small_files=TOKENIZER_FILES))


@contextmanager
def _advice(model: str, otherwise: str = "") -> Iterator[None]:
    """Adds what to do without network to an `UnreachableError`."""
    copied = (
        f"copy the folder from another machine with 'prepare_checkpoints.py open_clip --model {model} --from FOLDER'"
    )
    try:
        yield
    except UnreachableError as error:
        raise UserError(f"{error}; {otherwise or copied}, or set HF_ENDPOINT to a mirror") from error
