"""Loading of an encoder from a run, a checkpoint or a backbone's folder, with all that it needs to read files.

Search uses it, and so can every other door that takes a trained model elsewhere.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.images.read import Resize
from data.text.tokens import Tokenize, load_tokenizer
from model.backbones.loading import CONFIG, FAMILIES
from model.backbones.position_embeddings import read_positions
from model.tbps import TBPS, build_encoder
from utils.checkpoints.folder import Architecture, architecture_of, read_interpolation, read_json
from utils.config.hydra_errors import user_error
from utils.config.resolvers import register_resolvers
from utils.continuing.composed import compose_options, composer, described, options_of
from utils.errors import UserError
from utils.images import read_rgb

BASE: Final = "base"  # the primary config whose other options do not matter here
CHECKPOINTS: Final = "checkpoints"  # folder of a run
OF_A_PLACE: Final = ("transformers_version", "_name_or_path")  # entries of a config.json that change no embedding


class LoadedEncoder:
    """An encoder of files and sentences, in evaluation mode and in fp32.

    Args:
        config: the config that describes the encoder.
        model: the encoder with its weights, on the CPU.
        source: the checkpoint or folder that it was loaded from.

    Attributes:
        resize, tokenize: the reading of images and of captions, as in training.
    """

    def __init__(self, config: DictConfig, model: TBPS, source: Path) -> None:
        self.config, self.model, self.source = config, model.eval().requires_grad_(False), source
        folder = Path(config.backbone.folder)
        self.resize = Resize(tuple(config.img_size), config.dataset.interpolation or read_interpolation(folder))
        self.tokenize = Tokenize(load_tokenizer(folder), config.backbone.max_length)

    @property
    def width(self) -> int:
        """The width of embeddings."""
        return self.model.embed_dim

    @property
    def device(self) -> torch.device:
        """The device on which the encoder works."""
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of what decides on embeddings: weights, architecture, and how files and captions are read."""
        backbone, folder = self.model.backbone, Path(self.config.backbone.folder)
        architecture = {key: value for key, value in read_json(folder / CONFIG).items() if key not in OF_A_PLACE}
        facts = {
            "architecture": architecture,
            "head": OmegaConf.to_container(self.config.head, resolve=True),
            "lora": OmegaConf.to_container(self.config.lora, resolve=True),
            "image": [*self.resize, backbone.mean.tolist(), backbone.std.tolist()],  # type: ignore[operator]
            "text": [self.tokenize.max_length, sorted(self.tokenize.tokenizer.get_vocab().items())],
        }
        found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def __str__(self) -> str:
        height, width = self.resize.size
        name = self.config.backbone.name
        return f"{self.source} ({name}, images {height}x{width}, embeddings of width {self.width}, on {self.device})"

    def read(self, content: bytes) -> Tensor:
        """Returns the image in the bytes of a file as RGB, uint8 ``(3, H, W)``.

        Raises:
            BadImageError: if it cannot be read.
        """
        return self.resize(read_rgb(content))

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Returns the embeddings ``(B, E)`` of uint8 pixels ``(B, 3, H, W)``, on the CPU."""
        return self.model.encode_image(pixels.to(self.device)).embedding.cpu()

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Returns the embeddings ``(B, E)`` of sentences, on the CPU. A sentence that is too long is cut."""
        ids, mask = self.tokenize(sentences)
        self.model.backbone.check_token_id(int(ids.max()))
        return self.model.encode_text(ids.to(self.device), mask.to(self.device)).embedding.cpu()


def load_encoder(source: str | Path, device: str | torch.device | None = None) -> LoadedEncoder:
    """Returns the encoder in `source`.

    Args:
        source: the folder of a run (its best checkpoint is loaded), a checkpoint that `trainer.py` wrote, or a folder
            of a backbone, such as `prepare_checkpoints.py` fills. Images of a backbone have the size of its
            pre-training.
        device: device of the encoder; None: the GPU if there is one, else the CPU.

    Raises:
        UserError: `source` is none of these, is damaged, or is ambiguous.
    """
    register_resolvers()
    path = find_model(Path(source))
    try:
        config, model = _from_folder(path) if path.is_dir() else _from_checkpoint(path)
    except InstantiationException as error:
        raise user_error(error) or error from error
    loaded = LoadedEncoder(config, model, path)
    _ = loaded.fingerprint  # of the weights as they are on the CPU
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return loaded


def find_model(source: Path) -> Path:
    """Returns the checkpoint or the backbone's folder that `source` means.

    Raises:
        UserError: if `source` is not there, holds no model, or holds several best checkpoints.
    """
    if source.is_file() or (source / CONFIG).is_file():
        return source
    if not source.exists():
        raise UserError(f"model {source}: there is no such file or folder; name a run, a checkpoint or a backbone")
    folder = source / CHECKPOINTS if (source / CHECKPOINTS).is_dir() else source
    best = sorted(folder.glob("best-*.ckpt"))
    if len(best) == 1:
        return best[0]
    if best:
        raise UserError(f"model {source}: it has {len(best)} best checkpoints; name one of them, such as {best[-1]}")
    last = folder / "last.ckpt"
    has = f"no best checkpoint yet; wait for it, or name {last}" if last.is_file() else f"neither {CONFIG} nor a run"
    raise UserError(f"model {source}: the folder has {has}")


def _from_checkpoint(path: Path) -> tuple[DictConfig, TBPS]:
    """Returns config and encoder of a checkpoint. They are composed of this project's YAML, as for ``task=test``.

    A relative folder of the backbone is looked for from the folders above the checkpoint, the nearest first, and then
    from the working folder. So a run is found from any working folder, and a copied run takes its own backbone.
    """
    from utils.checkpoints.weights import encoder_weights, load_weights, read_checkpoint
    from utils.continuing.taken_over import model_config

    checkpoint: Any = read_checkpoint(path)
    config = model_config(compose_options(BASE, {}, is_whole=False), checkpoint["config"], path)
    trained_in = checkpoint["config"].get("dataset_root_dir")
    if isinstance(trained_in, str):
        config.dataset_root_dir = trained_in
    named = Path(config.backbone.folder)
    above = (folder / named for folder in (*path.absolute().parents, Path.cwd()))
    config.backbone.folder = str(next((folder for folder in above if folder.is_dir()), named))
    model = build_encoder(config)
    weights = encoder_weights(checkpoint)
    model.grow_like(weights)
    load_weights(model, weights, source=path)
    return config, model


def _from_folder(folder: Path) -> tuple[DictConfig, TBPS]:
    """Returns config and encoder of a backbone's folder, as it is."""
    content = read_json(folder / CONFIG)
    name = _option_of(folder, content)
    config = compose_options(BASE, {"backbone": name}, is_whole=False)
    config.backbone.folder = str(folder)
    vision, text = (content.get(f"{tower}_config") or {} for tower in ("vision", "text"))
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if (native := read_positions(folder)) is not None and type(patch) is int:
        rows, columns = native[1]
        config.img_size_str = f"{rows * patch}x{columns * patch}"
    elif type(side) is int:
        config.img_size_str = f"{side}x{side}"
    tokenizer = folder / "tokenizer_config.json"
    padded = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    for most in (text.get("max_position_embeddings"), padded):  # the second of an exported encoder
        if type(most) is int:
            config.backbone.max_length = min(config.backbone.max_length, most)
    return config, build_encoder(config)


def _option_of(folder: Path, content: dict[str, Any]) -> str:
    """Returns the option of the group "backbone" for a folder: of its name, else of its architecture or family."""
    with composer():
        options = options_of("backbone")
        name = folder.resolve().name.removesuffix("_checkpoints")
        if name in options:
            return name
        family = content.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"{folder / CONFIG} is of a {family!r} model; expected one of {', '.join(FAMILIES)}")
        found = architecture_of(folder)
        own_files = ("folder", "open_clip")  # their YAML reads the folder, which is named later
        fitting = {option: described("backbone", option) for option in options if option not in own_files}
        same = [option for option, own in fitting.items() if Architecture.described(own).fits(found)]
        return (same or [option for option, own in fitting.items() if own.family == family])[0]
