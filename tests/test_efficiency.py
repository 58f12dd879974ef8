"""The cost of an encoder, against the sizes of its matrices."""

import pytest
from hydra import compose, initialize_config_dir

import trainer  # noqa: F401  registers the resolvers of the config
from lightning_plan import measure_efficiency
from tests.small_run import CONFIG_DIR


def tower(layers: int, length: int, width: int, inner: int) -> int:
    """Multiplications of a transformer: queries, keys, values and outputs; scores and their products; the MLP."""
    return layers * (4 * length * width**2 + 2 * length**2 * width + 2 * length * width * inner)


@pytest.mark.parametrize("lora", ["none", "default", "dora"])
def test_operations_are_those_of_the_matrices_of_clip(lora: str) -> None:
    overrides = [f"lora={lora}", "img_size_str=384x128", "dataset=cuhk_pedes"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("clip", overrides=overrides)
    found = measure_efficiency(cfg)
    patches = 24 * 8
    image = tower(12, patches + 1, 768, 3072) + patches * (3 * 16 * 16) * 768 + (patches + 1) * 768 * 512
    caption = tower(12, cfg.backbone.max_length, 512, 2048) + (cfg.backbone.max_length + 1) * 512 * 512
    tolerance = 1e-9 if lora == "none" else 0.08  # adapters add theirs
    assert found.image_gflops == pytest.approx(2 * image / 1e9, rel=tolerance)
    assert found.caption_gflops == pytest.approx(2 * caption / 1e9, rel=tolerance)
    assert found.width == 512
    assert found.parameters == pytest.approx(149e6, rel=0.04)
    assert (found.trained == found.parameters) == (lora == "none")
    shown = str(found)
    assert shown.endswith("embeddings of width 512")
    assert ("all trained" in shown) == (lora == "none")


@pytest.mark.parametrize("overrides", [["experiment=part_cmr"], ["backbone=tiny_clip", "head=part", "lora=default"]])
def test_a_part_head_has_a_cost_too(overrides: list[str]) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        plain, parts = (
            measure_efficiency(compose("demo", overrides=own))
            for own in ([part.replace("head=part", "head=part_baseline") for part in overrides], overrides)
        )
    assert parts.image_gflops > 0
    assert parts.caption_gflops > 0
    assert (parts.image_gflops > plain.image_gflops) == ("head=part" in overrides)
