from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import RandomErasing, RandomHorizontalFlip

from data.batch import IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, IMAGE_VIEWS, MASK_DRAWS, TEXT, TEXT_MASKED
from data.views.augmentation import Augmentation, RandomWordDeletion
from data.views.build import PROVIDED_BY, Views
from utils.config.resolvers import register_resolvers
from utils.errors import UserError

register_resolvers()
CONFIG = Path(__file__).parents[3] / "config"
CHOICES = sorted(path.stem for path in CONFIG.glob("aug/*.yaml"))
LENGTH = 8
FULL = Augmentation(
    name="full",
    image=[RandomHorizontalFlip(1.0)],
    image_aug=[RandomErasing(1.0)],
    image_ss=[RandomErasing(1.0)],
    text=[RandomWordDeletion(1.0)],
)
DROPPING = Augmentation("dropping", image=[RandomHorizontalFlip()], text=[RandomWordDeletion(0.5)])
CAPTION = " ".join(map(str, range(30)))


@pytest.fixture
def image() -> Tensor:
    return pictures(1)[0]


def pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 24, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def chosen(choice: str) -> tuple[Views, set[str]]:
    """Returns the image views of a file of config/aug, and their names."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        augmentation = instantiate(compose("demo", overrides=[f"aug={choice}", "img_size_str=24x12"]).aug)
    offered = {view for view in IMAGE_VIEWS if getattr(augmentation, PROVIDED_BY[view]) is not None}
    return Views(offered, LENGTH, augmentation), offered


def of_image(views: Views, image: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns the views of one image."""
    return {view: rows[0] for view, rows in views.of_images(image[None], [seed]).items()}


class TestViews:
    @pytest.mark.parametrize(
        "needs",
        [{IMAGE, TEXT}, {IMAGE_AUG}, {TEXT}, {IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, TEXT}, set()],
    )
    def test_exactly_what_is_asked_for(self, image: Tensor, needs: set[str]) -> None:
        views = Views(needs, LENGTH, FULL)
        assert of_image(views, image, 1).keys() | views.of_caption("a b", 1).keys() == needs
        assert views.need_image == bool(needs - {TEXT})

    def test_each_view_has_its_own_transforms(self, image: Tensor) -> None:
        views = Views({IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, TEXT}, LENGTH, FULL)
        made = of_image(views, image, 0)
        assert torch.equal(made[IMAGE], image.flip(-1))
        for view in (IMAGE_AUG, IMAGE_SS1, IMAGE_SS2):
            erased = (made[view] == 0).all(0)
            assert 0 < erased.sum() < erased.numel()
            assert torch.equal(made[view][:, ~erased], image[:, ~erased])
        assert not torch.equal(made[IMAGE_SS1], made[IMAGE_SS2])
        assert views.of_caption("red shirt", 0) == {TEXT: "red"}

    def test_a_view_that_the_augmentation_leaves_out(self) -> None:
        with pytest.raises(UserError, match=r"'image_ss1', which aug=plain does not offer.*set aug\.image_ss,"):
            Views({IMAGE, IMAGE_SS1}, LENGTH, Augmentation("plain"))

    def test_the_masked_caption_is_the_augmented_one_and_comes_with_its_draws(self) -> None:
        views = Views({TEXT, TEXT_MASKED}, LENGTH, FULL).of_caption("red shirt", 0)
        assert views[TEXT] == views[TEXT_MASKED] == "red"
        assert views[MASK_DRAWS].shape == (3, LENGTH)


class TestSeeds:
    def test_images_and_captions_draw_from_different_halves_of_a_seed(self, image: Tensor) -> None:
        views = Views({IMAGE, TEXT}, LENGTH, DROPPING)
        flipped = [torch.equal(of_image(views, image, seed)[IMAGE], image.flip(-1)) for seed in range(32)]
        assert 0 < sum(flipped) < 32
        assert len({str(views.of_caption(CAPTION, seed << 32)) for seed in range(32)}) == 32
        for seed in range(32):
            assert views.of_caption(CAPTION, seed) == views.of_caption(CAPTION, 0)
            assert torch.equal(of_image(views, image, seed << 32)[IMAGE], of_image(views, image, 0)[IMAGE])

    @pytest.mark.parametrize("choice", CHOICES)
    def test_views_of_a_batch_are_those_of_its_images_one_by_one(self, choice: str) -> None:
        views, offered = chosen(choice)
        images, seeds = pictures(8), [2**63 - 1 - 3 * i for i in range(8)]
        before, state = images.clone(), torch.get_rng_state()
        together = views.of_images(images, seeds)
        assert together.keys() == offered
        assert torch.equal(images, before)
        assert torch.equal(torch.get_rng_state(), state)
        for place, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            for view, alone in of_image(views, image, seed).items():
                assert alone.dtype == torch.uint8
                assert torch.equal(together[view][place], alone)

    @pytest.mark.parametrize("choice", CHOICES)
    def test_no_transform_of_ours_reads_from_the_device(self, choice: str) -> None:
        """A meta tensor has no values: to read one is an error."""
        views, offered = chosen(choice)
        made = views.of_images(torch.empty(16, 3, 24, 12, dtype=torch.uint8, device="meta"), range(16))
        assert {view: rows.shape for view, rows in made.items()} == dict.fromkeys(offered, (16, 3, 24, 12))

    def test_the_number_of_kernels_does_not_grow_with_the_batch(self) -> None:
        views, _ = chosen("tbps_clip")
        counted = {size: count_operators(views, pictures(size).to("meta")) for size in (64, 512)}
        assert counted[512] < 1.1 * counted[64]


def count_operators(views: Views, images: Tensor) -> int:
    """Returns the number of operators on the device of `images` that build their views."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            self.count += isinstance(made, Tensor) and made.device == images.device and not made._is_view()
            return made

    with Counting() as counting:
        views.of_images(images, range(len(images)))
    return counting.count
