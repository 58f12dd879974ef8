"""The name of a dataset with its language, in records and tables."""


def dataset_name(name: str, language: str) -> str:
    """Returns `name` with `language`, unless it ends in it.

    >>> dataset_name("drawn", "vi"), dataset_name("vn3k_vi", "vi"), dataset_name("vn3k_vi", "en")
    ('drawn-vi', 'vn3k_vi', 'vn3k_vi-en')
    """
    return name if name.endswith(f"_{language}") else f"{name}-{language}"


def recorded_name(recorded: str) -> str:
    """Returns the dataset's name in a record, in which older ones repeat the language.

    >>> recorded_name("vn3k_vi-vi"), recorded_name("vn3k_vi"), recorded_name("drawn-vi")
    ('vn3k_vi', 'vn3k_vi', 'drawn-vi')
    """
    name, _, language = recorded.rpartition("-")
    return dataset_name(name, language) if name else recorded
