"""The annotations that tiny backbones are pre-trained on: people whom the dataset does not show."""

from dataclasses import replace
from pathlib import Path

from data.annotations import Record
from data.annotations.layouts import layout_of
from data.annotations.records import load_annotations
from data.synthetic.generate import FOLDER, PRETRAIN


def read_strangers(root: Path, language: str) -> list[Record]:
    """Returns the records of pre-training below `root`, in one language."""
    layout = replace(layout_of("drawn", language), folder=f"{FOLDER}/{PRETRAIN}")
    annotations = load_annotations("drawn", layout, root)
    return [
        Record(one.pid, number, annotations.image_file(one), one.captions)
        for number, one in enumerate(annotations.images)
    ]
