"""The keys of an annotation file with captions that the dataset does not read: candidates for further captions."""

from collections import defaultdict

from data.annotations.fields import CAPTIONS
from data.annotations.records import Annotations, Problem, read_entries
from data.annotations.values import WrongValueError
from data.doctor.summary import DatasetSummary


def column_summary(annotations: Annotations) -> DatasetSummary:
    """Returns, for each unread key with captions, the numbers of its records, train records and captions in train.

    A key has captions if a caption of several words is at it. ``problem`` is a clause on the first train record that
    has none, or None; such a key cannot be used for further captions.
    """
    layout = annotations.layout
    read = {"id", "split", layout.path_key, *layout.caption_keys[layout.language]}
    entries = {
        number: entry
        for number, entry in enumerate(read_entries(annotations.file), start=1)
        if isinstance(entry, dict) and entry.get("split") == "train"
    }
    found: dict[str, dict[int, tuple[str, ...]]] = defaultdict(dict)
    wrong: dict[str, dict[int, str]] = defaultdict(dict)
    for number, entry in entries.items():
        for key in entry.keys() - read:
            try:
                found[key][number] = CAPTIONS.parse(entry[key])
            except WrongValueError as error:
                wrong[key][number] = str(error)
    summary: DatasetSummary = {}
    for key, captions in sorted(found.items()):
        if not any(" " in caption for own in captions.values() for caption in own):
            continue
        first = next((number for number in entries if number not in captions), None)
        problem = None
        if first is not None:
            problem = annotations.sentence(Problem(first, key, wrong[key].get(first, "missing"), CAPTIONS.expected))
        summary[key] = {
            "records": len(captions),
            "train_records": len(entries),
            "captions": sum(map(len, captions.values())),
            "problem": problem,
        }
    return summary
