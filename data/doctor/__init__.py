"""The dataset doctor: an examination of a dataset folder before training.

    uv run python -m data.doctor cuhk_pedes [--root .] [--tokenizer m_siglip_checkpoints] [--fast] [--json]
    uv run python -m data.doctor custom dataset.annotations=people.csv dataset.images=photos/

The exit status is 0 if the dataset can be trained on (oddities are warnings), 1 if an error in it would break
training, and 2 if there is nothing to examine.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from data.annotations import cut
from data.annotations.layouts import given_options, layout_of
from data.annotations.paths import nearest_name
from data.annotations.records import load_annotations
from data.annotations.values import short
from data.doctor.columns import column_summary
from data.doctor.images import look_at_images
from data.doctor.summary import (
    DatasetSummary,
    caption_summary,
    duplicate_summary,
    id_summary,
    image_summary,
    split_summary,
    token_summary,
)
from data.doctor.tables import NAMED_AT_MOST, render
from data.images.oddities import ODDITIES
from utils.continuing.composed import composer, described, options_of
from utils.errors import EXIT_STATUS, UserError, one_line

FAULT_WORDS: Final = {
    "missing": "the image is missing",
    "empty": "the image has 0 bytes",
    "unreadable": "the image cannot be read",
}


def examine(
    name: str,
    root: str | Path,
    *,
    language: str | None = None,
    tokenizer: Path | None = None,
    max_length: int | None = None,
    decode: bool = True,
    given: Mapping[str, Any] | None = None,
) -> DatasetSummary:
    """Returns a report on dataset `name` below `root`, ready for JSON.

    Unlike `read_dataset`, it continues after a bad record. Problems that break training are under ``errors``,
    other oddities under ``warnings``.

    Args:
        name: the dataset, as in `data.annotations.read_dataset`.
        root: the folder that holds the dataset's folder.
        language: language of the captions; the dataset's own by default.
        tokenizer: folder of a tokenizer, to count the tokens of captions.
        max_length: tokens that a caption may have; the tokenizer's own limit by default.
        decode: whether to decode every image, or only check that it exists.
        given: the options that name its files and columns, as in `layout_of`.

    Raises:
        UserError: if the dataset, annotation file or tokenizer is absent or cannot be used at all.
    """
    annotations = load_annotations(name, layout_of(name, language, given=given), root)
    images = annotations.images
    tokens = token_summary(images, tokenizer, max_length) if tokenizer else None
    files = [annotations.image_file(image) for image in images]
    states = look_at_images(files, decode=decode)
    report: DatasetSummary = {
        "dataset": name,
        "language": annotations.layout.language,
        "folder": str(annotations.folder),
        "annotation_file": annotations.file.name if annotations.layout.given_file is None else str(annotations.file),
        "read_as": annotations.notes(),
        "records": annotations.records,
        "splits": split_summary(annotations),
        "validation": None,
        "ids": id_summary(annotations),
        "captions": caption_summary(images),
        "tokens": tokens,
        "images": {"decoded": decode} | image_summary(annotations, states),
        "duplicates": duplicate_summary(annotations, states),
        "respelled": annotations.respelled,
        "further_captions": column_summary(annotations),
    }
    errors = [annotations.sentence(problem) for problem in annotations.problems] + _image_errors(report)
    try:
        splits = cut(annotations)
        report["validation"] = {"from": splits.validation, "ids": len({record.pid for record in splits.val})}
    except UserError as error:
        errors.append(str(error))
    errors = [one_line(error) for error in errors]
    return report | {"errors": errors, "warnings": _warnings(report), "trainable": not errors}


def _image_errors(report: DatasetSummary) -> list[str]:
    """Returns one sentence for each missing image folder, and for each faulty image in the other folders."""
    folders = report["images"]["folders"]
    absent = {folder: counts["images"] for folder, counts in folders.items() if not counts["exists"]}
    whole = [
        f"{report['folder']}/{folder}: the folder is missing, and all images in it ({count:,})"
        + nearest_name(Path(report["folder"], folder))
        for folder, count in absent.items()
    ]
    single = [image for image in report["images"]["faulty"] if image["folder"] not in absent]
    sentences = []
    for number, image in enumerate(single):
        file = Path(report["folder"], image["path"])
        nearest = nearest_name(file) if image["fault"] == "missing" and number < NAMED_AT_MOST else ""
        detail = f" ({image['detail']})" if image["detail"] else ""
        sentences.append(f"{file}: {FAULT_WORDS[image['fault']]}{detail}{nearest}")
    return whole + sentences


def _warnings(report: DatasetSummary) -> list[str]:
    """Returns one sentence for each oddity that does not prevent training."""
    warnings = []
    for split, found in report["splits"].items():
        official = found["official"] or {}
        if any(count not in _counts(found, what) for what, count in official.items()):
            has, should = (", ".join(f"{counts[key]:,} {key}" for key in official) for counts in (found, official))
            warnings.append(f"{split} has {has}; officially {should}")
    duplicates, tokens = report["duplicates"], report["tokens"]
    for what, count in (
        ("captions shared by several identities", len(duplicates["captions_under_several_ids"])),
        ("image files shared by several identities", len(duplicates["image_files_under_several_ids"] or ())),
        ("records merged because they name the same image", duplicates["merged_records"]),
        (f"captions cut to {tokens['max_length']} tokens" if tokens else "", tokens["cut"] if tokens else 0),
    ):
        if count:
            warnings.append(f"{what}: {count:,}")
    problems = (column["problem"] for column in report["further_captions"].values())
    warnings += [f"no further captions: {problem}" for problem in problems if problem]
    odd, respelled = report["images"]["odd"], report["respelled"]
    named = {
        **{f"images {words}": [i["path"] for i in odd if kind in i["oddities"]] for kind, words in ODDITIES.items()},
        "image paths spelled differently on disk": [f"{there} for {here}" for here, there in respelled.items()],
    }
    for what, examples in named.items():
        if examples:
            first = ", ".join(map(short, examples[:3])) + (", ..." if len(examples) > 3 else "")
            warnings.append(f"{what}: {len(examples):,} ({first})")
    return warnings


def _counts(found: DatasetSummary, what: str) -> tuple[int, ...]:
    """Returns the counts to compare with an official one; for images also the records, as authors count either."""
    return (found[what], found["records"]) if what == "images" else (found[what],)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report on the dataset given by the arguments and returns the exit status."""
    parser = argparse.ArgumentParser(prog="data.doctor", description="Examines a dataset folder.")
    with composer():
        parser.add_argument("name", help=", ".join(options_of("dataset")))
    parser.add_argument("options", nargs="*", metavar="dataset.KEY=VALUE", help="its files and columns, as in training")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that holds CUHK-PEDES/, VN3K/, ...")
    parser.add_argument("--config-dir", type=Path, help="folder that holds dataset/NAME.yaml of your own")
    parser.add_argument("--language", help="vi, en or mixed, for datasets that have several")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint folder: count the captions it would cut")
    parser.add_argument("--max-length", type=int, help="tokens that fit (default: the tokenizer's own limit)")
    parser.add_argument("--fast", action="store_true", help="look only whether images exist; decode none")
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    options = parser.parse_intermixed_args(arguments)
    if options.max_length is not None and options.tokenizer is None:
        parser.error("--max-length needs --tokenizer")
    try:
        with composer(options.config_dir):
            dataset = described("dataset", options.name, options.options)
            report = examine(
                options.name,
                options.root,
                language=options.language or dataset.language,
                given=given_options(dataset),
                tokenizer=options.tokenizer,
                max_length=options.max_length,
                decode=not options.fast,
            )
    except UserError as error:
        if not options.json:
            raise
        print(json.dumps({"dataset": options.name, "trainable": False, "errors": [str(error)]}))
        return EXIT_STATUS
    print(json.dumps(report, ensure_ascii=False, indent=2) if options.json else render(report))
    return 0 if report["trainable"] else 1
