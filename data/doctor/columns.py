"""The keys of an annotation file with captions that the dataset does not read: candidates for further captions."""

from collections import Counter

from data.annotations.entries import Problem
from data.annotations.fields import CAPTIONS, CELLS
from data.annotations.files import open_annotations
from data.annotations.records import Annotations
from data.annotations.values import WrongValueError
from data.doctor.summary import DatasetSummary


def column_summary(annotations: Annotations) -> DatasetSummary:
    """Returns, for each unread key with captions, the numbers of its records, train records and captions in train.

    A key has captions if a caption of several words is at it. ``problem`` is a clause on the first train record that
    has none, or None; such a key cannot be used for further captions.
    """
    layout = annotations.layout
    opened = open_annotations(annotations.file)
    field, unread = CELLS if opened.is_text else CAPTIONS, [key for key in opened.columns if key not in layout.keys]
    records, captions, trained = Counter[str](), Counter[str](), 0
    worded: set[str] = set()
    first: dict[str, Problem] = {}
    for number, entry in enumerate(opened.entries(), start=1):
        if not isinstance(entry, dict) or (layout.split_key and entry.get(layout.split_key) != "train"):
            continue
        trained += 1
        for key in unread:
            try:
                if key not in entry:
                    raise WrongValueError("missing")
                found = field.parse(entry[key])
            except WrongValueError as wrong:
                first.setdefault(key, Problem(number, key, str(wrong), CAPTIONS.expected))
                continue
            records[key] += 1
            captions[key] += len(found)
            if any(" " in caption for caption in found):
                worded.add(key)
    return {
        key: {
            "records": records[key],
            "train_records": trained,
            "captions": captions[key],
            "problem": annotations.sentence(first[key]) if key in first else None,
        }
        for key in sorted(worded)
    }
