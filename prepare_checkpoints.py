"""Fills <name>_checkpoints/ with a backbone of config/backbone/: downloaded, copied, converted, or made from scratch.

uv run prepare_checkpoints.py                               m_siglip, from the Hugging Face hub
uv run prepare_checkpoints.py siglip clip                   several
uv run prepare_checkpoints.py m_siglip --from ~/models/msiglip
uv run prepare_checkpoints.py clip --from irra.pth --to irra_checkpoints      converts a file: IRRA, RDE, open_clip, ...
uv run prepare_checkpoints.py open_clip --model ViT-B-16 --pretrained datacomp_xl_s13b_b90k
uv run prepare_checkpoints.py tiny_siglip                   no network needed

HF_ENDPOINT chooses a mirror of the hub. A folder that is complete already is kept as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from utils.checkpoints.disk import scratch_folder
from utils.checkpoints.folder import (
    Architecture,
    IncompleteError,
    check_folder,
    copy_folder,
    copy_small_files,
    has_tokenizer,
    move_in,
)
from utils.checkpoints.layouts import OPEN_CLIP, WEIGHTS
from utils.config.resolvers import parse_size
from utils.continuing.composed import composer, described, options_of
from utils.download.download import UnreachableError, sha256_of, writing
from utils.errors import UserError, run_command

if TYPE_CHECKING:
    from model.published.settings import Activation


def prepare(
    backbone: str | DictConfig,
    root: Path = Path(),
    *,
    source: Path | None = None,
    target: Path | None = None,
    img_size: tuple[int, int] | None = None,
    activation: Activation | None = None,
    steps: int | None = None,
    pretrained: str | None = None,
) -> Path:
    """Returns the folder of a checkpoint, complete and of the right architecture.

    Args:
        backbone: its name, or what its YAML says.
        root: the folder that also holds the datasets.
        source: what to use instead of downloading: a `save_pretrained` folder, which is copied, or a file of
            weights, as `model.published.convert.convert` takes it, which is converted.
        target: the folder; None: ``<root>/<name>_checkpoints``.
        img_size: (height, width) that a file's positions are for, where their number does not tell.
        activation: of the blocks of a file's towers, where it does not tell.
        steps: how long a tiny backbone is pre-trained; None: as long as its YAML says.
        pretrained: for open_clip: the tag of the library's weights, or "random".

    Raises:
        UserError: unknown name, no network, a wrong or damaged source, a full disk; says what to do.
    """
    if isinstance(backbone, str):
        backbone = described("backbone", backbone)
    if "model" in backbone:
        from model.published.open_clip import prepare_open_clip

        model = backbone.get("model")
        folder = target or root / f"open_clip_{model}_checkpoints"
        return prepare_open_clip(model, folder, pretrained=pretrained, source=source)
    name, architecture = backbone.name, Architecture.described(backbone)
    repo, steps = backbone.description.repository, backbone.description.steps if steps is None else steps
    folder = target or root / f"{name}_checkpoints"
    if folder.exists():
        try:
            check_folder(folder, architecture)
        except IncompleteError as error:
            if repo is None:
                raise UserError(f"{error}; delete {folder} and run the same command again") from error
            if source is None:
                print(f"{name}: {error}")
        else:
            other = "" if source is None else f"; {source} was not read: delete the folder, or name another with --to"
            print(f"{name}: {folder} is complete and kept{other}")
            return folder
    if repo is None:
        if source is not None:
            raise UserError(f"{name} is made here from scratch; --from is for those that are downloaded")
        if steps is None:
            raise UserError(f"description in {name}.yaml: neither repository nor steps has a value; give one of them")
        _make(backbone, folder, root, steps)
    elif source is not None and source.is_file():
        _convert(backbone, source, folder, root, img_size=img_size, activation=activation)
    elif source is not None:
        copy_folder(source, folder, architecture)
    elif backbone.description.vision_repository is not None:
        _join(backbone, folder, root)
    else:
        _download(name, repo, folder)
    check_folder(folder, architecture)
    print(f"{name}: {folder} is ready")
    return folder


def prepare_folder(backbone: DictConfig, root: Path) -> Path:
    """Returns the folder of the backbone of a run.

    A backbone that comes from scratch is made where it is not there yet. A file of published weights is converted once,
    into a folder beside it that is named after the file and the start of its SHA-256.

    Args:
        backbone: the part of the config; its `folder` is the folder, or the file.
        root: the folder that also holds the datasets.

    Raises:
        UserError: the folder of another backbone is not there, or a file that cannot be converted.
    """
    name, place = backbone.name, Path(backbone.folder)
    if place.is_file():
        return _converted_once(backbone, place, root)
    if place.exists():
        return place
    if backbone.description.steps is None:
        command = f"open_clip --model {backbone.model}" if backbone.get("model") else name
        raise UserError(
            f"backbone {name!r}: {place} does not exist; run 'uv run prepare_checkpoints.py {command}', or "
            "set backbone.folder to where it lies"
        )
    with FileLock(root / f".{name}_checkpoints.lock"):  # other jobs and processes wait for the first
        if not place.exists():
            prepare(name, root)  # by its own YAML: what is made does not depend on the options of a run
    return place


def _converted_once(backbone: DictConfig, file: Path, root: Path) -> Path:
    name, of_open_clip = backbone.name, bool(backbone.get("model"))
    if not of_open_clip and (backbone.description.repository is None or backbone.family != "clip"):
        raise UserError(
            f"backbone.folder: {file} is a file; published weights are those of a CLIP: choose -cn clip or "
            f"backbone=clip, or name a folder of {name}"
        )
    folder = file.with_name(f"{file.stem}-{sha256_of(file)[:8]}_checkpoints")
    with writing(folder), FileLock(file.with_name(f".{folder.name}.lock")):
        if (folder / (OPEN_CLIP.weights if of_open_clip else WEIGHTS)).is_file():  # they are moved in last
            print(f"{name}: {folder} holds {file}, converted")
        else:
            prepare(backbone, root, source=file, target=folder)
    return folder


def _download(name: str, repo: str, folder: Path) -> None:
    from utils.download.hub import download_folder

    print(f"{name}: downloading {repo} to {folder}")
    try:
        download_folder(repo, folder)
    except UnreachableError as error:
        raise UserError(
            f"{error}; without network, copy the folder from another machine with 'uv run "
            f"prepare_checkpoints.py {name} --from FOLDER', set HF_ENDPOINT to a mirror, or use "
            "backbone=tiny_siglip"
        ) from error


def _join(backbone: DictConfig, folder: Path, root: Path) -> None:
    """Downloads an image tower and a text tower below downloads/, where they stay, and joins them."""
    from utils.checkpoints.folder import write_record

    vision, text = backbone.description.vision_repository, backbone.description.repository
    sources = {repo: root / "downloads" / repo.replace("/", "--") for repo in (vision, text)}
    for repo, source in sources.items():
        _download(backbone.name, repo, source)

    from model.backbones.bert import join_folders

    with scratch_folder(folder) as temporary:
        width = backbone.description.architecture.projection_dim
        joined = join_folders(sources[vision], sources[text], temporary, width=width)
        files = [path.name for path in joined.iterdir()]
        write_record(joined, repo=f"{vision} and {text}", revision="newest", files=files)
        copy_folder(joined, folder, Architecture.described(backbone))


def _convert(backbone: DictConfig, source: Path, folder: Path, root: Path, **told: Any) -> None:
    """Converts a file of weights, `told` what it does not tell; the tokenizer is that of the backbone itself."""
    from model.published.convert import convert
    from model.published.converted import write_converted
    from model.published.file import read_state

    if backbone.family != "clip":
        raise UserError(f"{source} is a file, and {backbone.name} is copied from folders; files are those of a CLIP")
    published = convert(read_state(source), source=source, **told)
    with writing(folder), scratch_folder(folder) as temporary:
        staging = temporary / "converted"
        staging.mkdir()
        _add_tokenizer(backbone.description.repository, [folder, root / f"{backbone.name}_checkpoints"], staging)
        write_converted(published, staging, source=source)
        check_folder(staging, Architecture.described(backbone), source=source)
        move_in(staging, folder)
    print(published.report())


def _add_tokenizer(repo: str, folders: list[Path], staging: Path) -> None:
    """Fills `staging` with the tokenizer of `repo`, from the first of `folders` that has one, else from the hub."""
    from utils.download.hub import download_folder

    for folder in folders:
        if has_tokenizer(folder):
            copy_small_files(folder, staging)
            return
    try:
        download_folder(repo, staging, weights=False)
    except UnreachableError as error:
        raise UserError(
            f"{error}; only the tokenizer of {repo} is needed: fill {folders[-1]} with its tokenizer.json, or "
            "vocab.json and merges.txt, from any machine, and run the same command again"
        ) from error


def _make(backbone: DictConfig, folder: Path, root: Path, steps: int) -> None:
    """Makes a tiny backbone and pre-trains it on the strangers of the embedded dataset, in both languages."""
    import torch

    from data.batch import Tokens
    from data.images.read import Resize, read_image
    from data.synthetic import generate_once
    from data.synthetic.strangers import read_strangers
    from data.text.tokens import Tokenize, load_tokenizer
    from model.backbones import load_backbone, save_backbone
    from model.tiny.build import IMAGE_SIZE, make_tiny
    from model.tiny.pretrain import pretrain

    generate_once(root)
    languages = [read_strangers(root, language) for language in ("en", "vi")]
    print(f"{backbone.name}: making {folder} from scratch, {steps} steps of pre-training")
    with (
        scratch_folder(folder) as temporary,
        torch.random.fork_rng(devices=[]),
    ):
        captions = (c for records in languages for r in records for c in r.captions)
        architecture: Any = OmegaConf.to_container(backbone.description.architecture)
        made = make_tiny(backbone.family, architecture, captions, temporary / "made")
        size = (IMAGE_SIZE, IMAGE_SIZE // 2)
        own = {key: backbone[key] for key in ("name", "family", "sigmoid", "max_length")}
        model = load_backbone(folder=made, img_size=size, **own)
        tokenize = Tokenize(load_tokenizer(made), backbone.max_length)
        pretrain(
            model,
            images=torch.stack([read_image(record, Resize(size, "bicubic")) for record in languages[0]]),
            texts=[
                Tokens(*map(torch.stack, zip(*(tokenize(record.captions) for record in records), strict=True)))
                for records in languages
            ],
            steps=steps,
        )
        save_backbone(model, made)
        made.rename(folder)


def main() -> None:
    """Parses the command line and prepares what it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with composer():
        known = ", ".join(options_of("backbone"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known} (default: m_siglip)")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="PATH", help="a folder to copy, or a file to convert"
    )
    parser.add_argument("--to", dest="target", type=Path, metavar="FOLDER", help="default: <NAME>_checkpoints")
    parser.add_argument("--img-size", metavar="HxW", help="of the file (default: a square, or 3 to 1 as 384x128)")
    parser.add_argument("--activation", choices=("gelu", "quick_gelu"), help="of the file, where it does not tell")
    parser.add_argument("--model", help="of open_clip: an architecture, such as ViT-B-16")
    parser.add_argument("--pretrained", metavar="TAG", help="of open_clip: the name of the weights, or random")
    parser.add_argument("--root", type=Path, default=Path(), help="where to put the folders (default: here)")
    parser.add_argument("--steps", type=int, help="pre-training of a backbone from scratch (default: as its YAML says)")
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="holds backbone/NAME.yaml of your own")
    args = parser.parse_args()
    names = args.names or ["m_siglip"]
    if (args.source or args.target) and len(names) > 1:
        option = "--from" if args.source else "--to"
        raise UserError(f"{option} holds one checkpoint, but {' and '.join(names)} are named; name one")
    if (args.img_size or args.activation) and (args.source is None or args.source.is_dir()):
        raise UserError("--img-size and --activation are of a file to convert; name it with --from FILE")
    img_size: Any = None if args.img_size is None else tuple(parse_size(args.img_size, "--img-size"))
    with composer(args.config_dir):
        options = {key: getattr(args, key) for key in ("source", "target", "activation", "steps", "pretrained")}
        for backbone in [described("backbone", name) for name in names]:
            if args.model:
                backbone.model = args.model  # only open_clip has one
            prepare(backbone, args.root, img_size=img_size, **options)


if __name__ == "__main__":
    run_command(main)
