"""The command that writes shards: ``python -m data.shards OUT dataset=custom dataset.annotations=people.csv ...``"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hydra import compose, initialize_config_dir

from data.annotations.layouts import SPLITS, given_options
from data.images.readers import ON_BROKEN
from data.loading.chosen import READING, chosen_dataset, division
from data.shards.layout import check_extra
from data.shards.writer import QUALITY, ShardWriter
from utils.config.hydra_errors import CONFIG_ERRORS, sentence
from utils.config.resolvers import parse_size, register_resolvers
from utils.continuing.composed import CONFIG_DIR
from utils.errors import UserError, check_choice
from utils.report.provenance import file_hash

CHOOSING: Final = (*READING, "noise_rate", "noise_file", "overfit_pairs")  # options that decide what is written
UNUSED: Final = {"further_captions": None, "all_languages": False, "shards": None}  # -> value without effect


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the shards that the command line describes, and prints what was written.

    Raises:
        UserError: the dataset or an option is wrong, or an image cannot be read.
    """
    options = _parse(arguments)
    out = _folder(options.out)
    check_extra()
    register_resolvers()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            cfg = compose("demo", overrides=options.overrides)
    except CONFIG_ERRORS as error:
        raise UserError(sentence(error, CONFIG_DIR, "demo", options.overrides)) from error
    check_choice("dataset.on_broken", cfg.dataset.on_broken, ON_BROKEN)
    for key, value in UNUSED.items():
        if cfg.dataset[key] != value:
            raise UserError(f"dataset.{key}={cfg.dataset[key]} has no effect on shards; leave it out")
    size = None if options.size is None else parse_size(options.size, "--size")
    if cfg.dataset.name == "drawn":
        from data.synthetic import generate_once

        generate_once(Path(cfg.dataset_root_dir))
    dataset = chosen_dataset(cfg, [options.split])
    records = getattr(dataset, options.split)
    if not records:
        raise UserError(f"--split {options.split}: {dataset.name} has no record of this split")
    for note in dataset.notes:
        print(note, flush=True)
    made_of = {
        "dataset": dataset.name,
        "language": dataset.language,
        "split": options.split,
        "file": dataset.file and dataset.file.name,
        "annotations": dataset.file and file_hash(dataset.file),
        "records": len(records),
        "divided_by": division(cfg),
    }
    chosen = {key: cfg.dataset[key] for key in CHOOSING} | {"given": given_options(cfg.dataset)}
    skip = cfg.dataset.on_broken == "skip"
    writer = ShardWriter(out, made_of, chosen, size=size, skip=skip, with_pids=not dataset.pairs_only)
    index = writer.write(records)
    if writer.resumed:
        print(f"went on after {writer.resumed:,} records that a stopped command had written")
    told = f"encoded again at {size[0]}x{size[1]}, JPEG quality {QUALITY}" if size else "files as they are"
    people = f"{index.identities:,} identities" if index.identities else "no identities"
    total = sum(shard.bytes for shard in index.shards) / 1e6
    print(f"shards  {out}: {len(index.shards):,} files, {total:,.1f} MB ({told})")
    print(f"pairs   {index.pairs:,} of {index.images:,} images, {people}, from {dataset.name} ({options.split})")
    if writer.skipped:
        print(f"skipped {writer.skipped:,} images that cannot be read, with their captions")
    if options.split == "train":
        print(f"train with dataset.shards={out} dataset.sampler=random")
    return 0


def _folder(out: str) -> Path:
    """Returns the folder that the command line names."""
    if not out or "://" in out or re.match(r"[+~]*[\w./@]+=", out):
        what = "is no local folder; write to one and copy it" if "://" in out else "is no folder"
        raise UserError(f"{out!r} {what}; the command is `python -m data.shards FOLDER dataset=NAME ...`")
    try:
        return Path(out).expanduser()
    except RuntimeError as error:
        raise UserError(f"{out!r} is no folder ({error})") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.shards", description="Writes a dataset into shards.")
    parser.add_argument("out", help="folder of the shards")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options that choose the dataset")
    parser.add_argument("--split", choices=SPLITS, default="train", help="the split that is written (default: train)")
    parser.add_argument("--size", metavar="HxW", help="encode images again at this size (default: files as they are)")
    return parser.parse_intermixed_args(arguments)
