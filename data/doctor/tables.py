"""The dataset doctor's report as tables for people."""

from collections.abc import Sequence
from typing import Any, Final

from prettytable import PrettyTable

from data.doctor.summary import DatasetSummary
from utils.errors import one_line
from utils.images import FAULTS

NAMED_AT_MOST: Final = 10
VALIDATION: Final = {
    "own": "its own split of {ids:,} identities",
    "held_out": "{ids:,} identities held out of train (the file has no validation split)",
}


def render(report: DatasetSummary) -> str:
    """Returns the tables, the first errors and warnings, and the verdict."""
    title = f"{report['dataset']} ({report['language']}): {report['annotation_file']}, images in {report['folder']}"
    parts = [
        title,
        *report["read_as"],
        _split_table(report["splits"]),
        _folder_table(report["images"]),
        _summary_table(report),
    ]
    for kind in ("errors", "warnings"):
        if report[kind]:
            parts.append(_named(kind, report[kind]))
    odd = len(report["images"]["odd"])
    if report["trainable"] and odd:
        verdict = f"Training would work, but look at the {odd:,} odd images first (see the warnings)."
    elif report["trainable"]:
        verdict = "This dataset can be trained on."
    else:
        verdict = f"This dataset cannot be trained on: {len(report['errors']):,} error(s) to correct."
    return "\n".join([*parts, verdict])


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    table = PrettyTable(list(header))
    table.align = "r"
    table.align[header[0]] = "l"
    table.add_rows([[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows])
    return str(table)


def _split_table(splits: DatasetSummary) -> str:
    keys = ("images", "captions", "ids")

    def row(split: str, found: DatasetSummary) -> list[Any]:
        official = found["official"] or {}
        counts = [cell for key in keys for cell in (found[key], official.get(key, "-"))]
        return [split, found["records"], *counts]

    header = ("split", "records", *(f"{official}{key}" for key in keys for official in ("", "official ")))
    return _table(header, [row(split, found) for split, found in splits.items()])


def _folder_table(images: DatasetSummary) -> str:
    rows = [
        [folder, counts["images"], *(counts[fault] for fault in FAULTS)] for folder, counts in images["folders"].items()
    ]
    return _table(("folder", "images", *FAULTS), rows)


def _summary_table(report: DatasetSummary) -> str:
    captions, images, duplicates = report["captions"], report["images"], report["duplicates"]
    tokens, ids, validation = report["tokens"], report["ids"], report["validation"]
    per_image = ", ".join(f"{size}: {count:,}" for size, count in captions["per_image"].items())
    files = duplicates["image_files_under_several_ids"]
    sizes = "not decoded"
    if images["width"]:
        sizes = "{min:,} to {max:,} px wide, ".format(**images["width"])
        sizes += "{min:,} to {max:,} px high".format(**images["height"])
    rows = [
        ["image sizes", sizes],
        ["raw ids", _id_sentence(ids) if ids["distinct"] else "none"],
        ["images by captions", per_image],
        ["longest caption", "{words} words ({image})".format(**captions["longest"])],
        ["captions cut", _token_sentence(tokens) if tokens else "not counted (see --tokenizer)"],
        ["shared captions", f"{len(duplicates['captions_under_several_ids']):,}"],
        ["shared image files", "not decoded" if files is None else f"{len(files):,}"],
        ["further captions", _column_sentence(report["further_captions"])],
        ["merged records", f"{duplicates['merged_records']:,}"],
        ["validation", VALIDATION[validation["from"]].format(**validation) if validation else "-"],
    ]
    table = PrettyTable(["what", "found"], align="l", header=False)
    table.add_rows(rows)
    return str(table)


def _id_sentence(ids: DatasetSummary) -> str:
    if ids["names"]:
        return "{distinct:,} names, {with_one_image:,} with one image".format(**ids)
    return (
        "{first:,} to {last:,}, {distinct:,} identities, {unused:,} numbers unused, {with_one_image:,} with one image"
    ).format(**ids) + (", each split counts from 0" if ids["restart_in_each_split"] else "")


def _column_sentence(columns: DatasetSummary) -> str:
    told = "{key}: {captions:,} in {records:,} of {train_records:,} train records"
    return ", ".join(told.format(key=one_line(key), **column) for key, column in columns.items()) or "none"


def _token_sentence(tokens: DatasetSummary) -> str:
    return "{cut:,} ({share:.1%}) at {max_length} tokens; the longest has {longest}".format(**tokens)


def _named(kind: str, sentences: Sequence[str]) -> str:
    lines = [f"{kind}:", *(f"  {sentence}" for sentence in sentences[:NAMED_AT_MOST])]
    if len(sentences) > NAMED_AT_MOST:
        lines.append(f"  and {len(sentences) - NAMED_AT_MOST:,} more (--json names all)")
    return "\n".join(lines)
