"""Names of datasets with their language."""

import doctest

import pytest
from omegaconf import OmegaConf

from utils.config import dataset_name
from utils.config.resolvers import run_info


def test_the_examples() -> None:
    assert doctest.testmod(dataset_name) == (0, 2)


@pytest.mark.parametrize(
    ("dataset", "language", "name"),
    [
        ("vn3k_vi", "vi", "vn3k_vi"),
        ("vn3k_mixed", "mixed", "vn3k_mixed"),
        ("drawn", "vi", "drawn-vi"),
        ("vn3k_vi", "en", "vn3k_vi-en"),
    ],
)
def test_a_record_names_the_language_once(dataset: str, language: str, name: str) -> None:
    parts = {part: {"name": part} for part in ("loss", "backbone", "lora")}
    cfg = OmegaConf.create({**parts, "dataset": {"name": dataset}, "seed": 1})
    assert run_info(cfg, language=language, val_is_test=False)["dataset"] == name
    assert dataset_name.recorded_name(name) == name
