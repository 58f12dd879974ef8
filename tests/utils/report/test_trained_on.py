"""What a test records of the dataset that its checkpoint was trained on."""

from typing import Any

import pytest

from utils.report.run_record import trained_on


def checkpoint(dataset: Any, data: Any = None) -> dict[str, Any]:
    return {"config": {"dataset": dataset}, "provenance": {"data": data}}


def test_the_name_has_the_language_that_was_read() -> None:
    dataset = {"name": "icfg_pedes", "language": None, "description": {"images_from": ["msmt17"]}}
    found = trained_on(checkpoint(dataset, {"language": "en"}), ["msmt17", "x"])
    assert found == {"trained_on": "icfg_pedes-en", "shares_images": True}
    assert trained_on(checkpoint(dataset), ["market1501"]) == {"trained_on": "icfg_pedes", "shares_images": False}


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"config": None, "provenance": 3},
        checkpoint(None),
        checkpoint("drawn"),
        checkpoint(["drawn"]),
        checkpoint({}),
        checkpoint({"name": ["drawn"]}),
        checkpoint({"name": "\x1b[2J"}),
        checkpoint({"name": "x" * 1000}),
    ],
    ids=str,
)
def test_a_strange_checkpoint_says_nothing(found: dict[str, Any]) -> None:
    assert trained_on(found, ["drawn"]) == {}


def test_a_strange_language_is_left_out() -> None:
    dataset = {"name": "drawn", "language": ["en"], "description": "x"}
    assert trained_on(checkpoint(dataset, {"language": "\x1b"}), []) == {"trained_on": "drawn", "shares_images": False}
