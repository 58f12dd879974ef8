from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.views.augmentation import (
    Augmentation,
    RandomResizedCrop,
    RandomSubset,
    RandomWordDeletion,
    RandomWordSwap,
)

CONFIGS = Path(__file__).parents[3] / "config" / "aug"
IMAGE_KEYS = ("image", "image_aug", "image_ss")
CAPTION = "The young woman wears a red shirt and blue trousers with a black bag on her back"


def load(name: str, height: int = 96, width: int = 48) -> Augmentation:
    """Returns a choice of config/aug/, composed as Hydra would."""
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    for parent in config.pop("defaults", []):
        if parent != "_self_":
            config = OmegaConf.merge(OmegaConf.load(CONFIGS / f"{parent}.yaml"), config)
    root = OmegaConf.create({"img_size": [height, width], "aug": config})
    augmentation = instantiate(root.aug)
    assert isinstance(augmentation, Augmentation)
    return augmentation


def picture(height: int = 96, width: int = 48) -> Tensor:
    """Returns a smooth uint8 picture ``(3, H, W)`` that tells left from right and top from bottom."""
    rows, columns = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    return torch.stack([rows.expand(height, width), columns.expand(height, width), rows / 2 + columns / 2]).byte()


def apply(transforms: list, value: object) -> object:
    for transform in transforms:
        value = transform(value)
    return value


def every_choice() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


class TestConfigs:
    def test_there_are_the_choices_of_the_papers(self) -> None:
        assert every_choice() == ["cir", "flip", "irra", "light", "none", "rde", "siglip", "tbps_clip"]

    @pytest.mark.parametrize("size", [(96, 48), (384, 128), (256, 256)])
    @pytest.mark.parametrize("name", every_choice())
    def test_each_keeps_size_and_type_and_changes_most_pictures(self, name: str, size: tuple[int, int]) -> None:
        augmentation, image = load(name, *size), picture(*size)
        assert augmentation.name == name
        for key in IMAGE_KEYS:
            transforms = getattr(augmentation, key)
            if not transforms:
                continue
            torch.manual_seed(0)
            results = [apply(transforms, image) for _ in range(8)]
            assert all(r.dtype == torch.uint8 and r.shape == image.shape for r in results)
            assert len({r.numpy().tobytes() for r in results}) > 1
        assert torch.equal(image, picture(*size)), "the original is shared by all views"

    @pytest.mark.parametrize("name", every_choice())
    def test_a_seed_fixes_every_view(self, name: str) -> None:
        augmentation, image = load(name), picture()
        for key in (*IMAGE_KEYS, "text"):
            transforms = getattr(augmentation, key) or []
            value = CAPTION if key == "text" else image
            torch.manual_seed(7)
            first = apply(transforms, value)
            torch.manual_seed(7)
            second = apply(transforms, value)
            assert first == second if key == "text" else torch.equal(first, second)

    def test_which_views_each_offers(self) -> None:
        offered = {
            name: {key for key in (*IMAGE_KEYS, "text") if getattr(load(name), key) is not None}
            for name in every_choice()
        }
        assert offered == {
            "light": {"image", "image_aug", "image_ss", "text"},
            "none": {"image", "text"},
            "flip": {"image", "text"},
            "irra": {"image", "text"},
            "rde": {"image", "text"},
            "cir": {"image", "image_aug", "image_ss", "text"},
            "tbps_clip": {"image", "image_aug", "image_ss", "text"},
            "siglip": {"image", "image_aug", "image_ss", "text"},
        }

    def test_none_changes_nothing(self) -> None:
        augmentation = load("none")
        assert list(augmentation.image) == list(augmentation.text) == []

    def test_cir_draws_two_of_the_pool_for_the_plain_view_and_drops_words_only(self) -> None:
        augmentation = load("cir")
        for view in (augmentation.image, augmentation.image_aug):
            [subset] = view
            assert (type(subset), subset.k, len(subset.transforms)) == (RandomSubset, 2, 6)
        [deletion] = augmentation.text
        assert (type(deletion), deletion.p) == (RandomWordDeletion, 0.05)

    def test_irra_erases_to_the_mean_colour(self) -> None:
        erase = load("irra").image[-1]
        torch.manual_seed(0)
        white = torch.full((3, 96, 48), 255, dtype=torch.uint8)
        colors = {tuple(c) for _ in range(20) for c in erase(white).flatten(1).T.unique(dim=0).tolist()}
        assert colors == {(255, 255, 255), (123, 117, 104)}


class TestRandomSubset:
    def test_k_different_transforms_are_applied_and_each_as_often(self) -> None:
        pool = [lambda seen, i=i: [*seen, i] for i in range(5)]
        torch.manual_seed(0)
        subset = RandomSubset(pool, k=2)
        draws = [subset([]) for _ in range(1000)]
        assert all(len(set(draw)) == 2 for draw in draws)
        counts = Counter(i for draw in draws for i in draw)
        assert all(counts[i] == pytest.approx(400, rel=0.15) for i in range(5))

    @pytest.mark.parametrize("k", [0, 3])
    def test_k_beyond_the_pool_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=r"k must lie in 1\.\.2"):
            RandomSubset([str, str], k=k)


class TestRandomResizedCrop:
    def test_the_whole_image_in_its_own_aspect_is_the_image(self) -> None:
        image = picture()
        assert torch.equal(RandomResizedCrop((1.0, 1.0), (1.0, 1.0))(image), image)

    @pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 64), (384, 128)])
    def test_the_part_keeps_area_and_aspect_within_their_ranges(self, size: tuple[int, int]) -> None:
        height, width = size
        crop = RandomResizedCrop((0.5, 0.8), (0.9, 1.1))
        torch.manual_seed(0)
        for _ in range(50):
            rows, columns, _ = crop(picture(height, width))
            part_height = (int(rows.max()) - int(rows.min())) / 255
            part_width = (int(columns.max()) - int(columns.min())) / 255
            assert 0.45 < part_height * part_width < 0.85
            assert 0.85 < part_width / part_height < 1.18

    def test_every_place_of_an_upright_person_is_reached(self) -> None:
        crop = RandomResizedCrop((0.9, 1.0), (0.95, 1.05))
        torch.manual_seed(0)
        parts = [crop(picture())[0] for _ in range(200)]
        assert min(int(part.min()) for part in parts) == 0
        assert max(int(part.max()) for part in parts) == 255
        assert all(int(part.max()) - int(part.min()) > 230 for part in parts), "head and feet stay"

    def test_a_tiny_image_survives_a_tiny_part(self) -> None:
        torch.manual_seed(0)
        crop = RandomResizedCrop((0.01, 0.02))
        assert all(crop(picture(4, 2)).shape == (3, 4, 2) for _ in range(20))


class TestRandomWordDeletion:
    def test_the_share_of_words_is_deleted_and_order_kept(self) -> None:
        torch.manual_seed(0)
        delete, words = RandomWordDeletion(0.1), CAPTION.split()
        kept = [delete(CAPTION).split() for _ in range(400)]
        assert sum(map(len, kept)) / (400 * len(words)) == pytest.approx(0.9, abs=0.02)
        for caption in kept:
            remaining = iter(words)
            assert all(word in remaining for word in caption)

    def test_a_word_always_stays(self) -> None:
        assert RandomWordDeletion(1.0)(CAPTION) == "The"
        assert RandomWordDeletion(1.0)("áo") == "áo"

    def test_nothing_to_delete(self) -> None:
        assert RandomWordDeletion(0.0)("áo  đỏ") == "áo đỏ"
        assert RandomWordDeletion(0.5)("") == ""


class TestRandomWordSwap:
    def test_words_are_kept_and_move_little(self) -> None:
        torch.manual_seed(0)
        swap, words = RandomWordSwap(0.05), [f"w{i}" for i in range(30)]
        swapped = [swap(" ".join(words)).split() for _ in range(300)]
        assert all(sorted(caption) == sorted(words) for caption in swapped)
        moves = [abs(place - int(word[1:])) for caption in swapped for place, word in enumerate(caption)]
        assert sum(move > 3 for move in moves) / len(moves) < 0.001
        assert sum(move > 0 for move in moves) / len(moves) == pytest.approx(0.1, abs=0.03)

    @pytest.mark.parametrize("caption", ["", "áo", "một chiếc áo"])
    def test_short_captions(self, caption: str) -> None:
        assert RandomWordSwap(0.0)(caption) == caption
        assert sorted(RandomWordSwap(1.0)(caption).split()) == sorted(caption.split())

    def test_a_certain_swap_carries_the_first_word_to_the_end(self) -> None:
        assert RandomWordSwap(1.0)("a b c d") == "b c d a"
