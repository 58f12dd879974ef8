from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.views.augmentation import Augmentation, RandomWordDeletion, RandomWordSwap
from data.views.chain import Chain
from data.views.transforms import RandomSubset

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
            chain = Chain(transforms)
            torch.manual_seed(0)
            results = chain(image.expand(8, -1, -1, -1), torch.rand(8, chain.draws, dtype=torch.float64))
            assert all(r.dtype == torch.uint8 and r.shape == image.shape for r in results)
            assert len({r.numpy().tobytes() for r in results}) > 1
        assert torch.equal(image, picture(*size)), "the original is shared by all views"

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
            assert (type(subset), subset._k, len(subset._pool)) == (RandomSubset, 2, 6)
        [deletion] = augmentation.text
        assert (type(deletion), deletion.p) == (RandomWordDeletion, 0.05)

    def test_irra_erases_to_the_mean_colour(self) -> None:
        erase = load("irra").image[-1]
        torch.manual_seed(0)
        white = torch.full((20, 3, 96, 48), 255, dtype=torch.uint8)
        erased = erase(white, torch.rand(20, erase.draws, dtype=torch.float64))
        colors = set(map(tuple, erased.transpose(0, 1).flatten(1).T.unique(dim=0).tolist()))
        assert colors == {(255, 255, 255), (123, 117, 104)}


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
