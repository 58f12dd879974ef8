"""The name of a dataset with its language, in records and tables."""

from typing import Final

UNKNOWN: Final = "unknown"  # the language of captions if nobody has said it


def dataset_name(name: str, language: str) -> str:
    """Returns `name` with `language`, unless it ends in it or the language is unknown.

    >>> dataset_name("drawn", "vi"), dataset_name("vn3k_vi", "vi"), dataset_name("vn3k_vi", "en")
    ('drawn-vi', 'vn3k_vi', 'vn3k_vi-en')
    """
    return name if language == UNKNOWN or name.endswith(f"_{language}") else f"{name}-{language}"


def recorded_name(recorded: str) -> str:
    """Returns the dataset's name in a record, in which older ones repeat the language.

    >>> recorded_name("vn3k_vi-vi"), recorded_name("vn3k_vi"), recorded_name("drawn-vi")
    ('vn3k_vi', 'vn3k_vi', 'drawn-vi')
    """
    name, _, language = recorded.rpartition("-")
    return dataset_name(name, language) if name else recorded
