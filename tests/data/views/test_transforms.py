from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data.views import transforms
from data.views.chain import Chain, ImageTransform
from data.views.transforms import RandomApply, RandomErasing, RandomResizedCrop, RandomSubset
from utils.errors import UserError

HEIGHT, WIDTH = 96, 48
VALUE = [123, 117, 104]


def pictures(count: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Returns smooth, colorful pictures ``(count, 3, height, width)`` with some noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (count, 3, height // 8 + 1, width // 8 + 1), generator=draw).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + torch.randint(-9, 9, smooth.shape, generator=draw)).clamp(0, 255).byte()


def ramp(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Returns a picture ``(1, 3, H, W)`` whose channels tell the row, the column and their mean."""
    rows, columns = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    return torch.stack([rows.expand(height, width), columns.expand(height, width), rows / 2 + columns / 2])[None].byte()


def drawn(count: int, transform: ImageTransform, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, transform.draws, dtype=torch.float64, generator=draw)


def factor(limits: tuple[float, float], draw: Tensor) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(draw)


Expected = Callable[[Tensor, Tensor], Tensor]


def case(name: str) -> tuple[ImageTransform, Expected, int]:
    """Returns a transform, torchvision's function of an image and its draws, and the allowed gap in levels."""
    own: dict[str, tuple[ImageTransform, Expected, int]] = {
        "flip": (transforms.RandomHorizontalFlip(1.0), lambda image, _: functional.horizontal_flip(image), 0),
        "grayscale": (transforms.RandomGrayscale(1.0), lambda image, _: functional.rgb_to_grayscale(image, 3), 0),
        "crop": (
            transforms.RandomCrop(10),
            lambda image, draw: functional.crop(
                functional.pad(image, [10]), int(21 * draw[0]), int(21 * draw[1]), *image.shape[-2:]
            ),
            0,
        ),
        "rotation": (
            transforms.RandomRotation(15),
            lambda image, draw: functional.rotate(image, factor((-15, 15), draw[0])),
            0,
        ),
        "brightness": (
            transforms.ColorJitter(brightness=0.4),
            lambda image, draw: functional.adjust_brightness(image, factor((0.6, 1.4), draw[1])),
            0,
        ),
        "contrast": (
            transforms.ColorJitter(contrast=0.4),
            lambda image, draw: functional.adjust_contrast(image, factor((0.6, 1.4), draw[1])),
            0,
        ),
        "saturation": (
            transforms.ColorJitter(saturation=0.4),
            lambda image, draw: functional.adjust_saturation(image, factor((0.6, 1.4), draw[1])),
            1,
        ),
        "hue": (
            transforms.ColorJitter(hue=0.5),
            lambda image, draw: functional.adjust_hue(image, factor((-0.5, 0.5), draw[1])),
            1,
        ),
        "blur": (
            transforms.GaussianBlur(9, (0.1, 2.0)),
            lambda image, draw: functional.gaussian_blur(image, [9, 9], [factor((0.1, 2.0), draw[0])]),
            1,
        ),
    }
    return own[name]


NAMES = ("flip", "grayscale", "crop", "rotation", "brightness", "contrast", "saturation", "hue", "blur")


class TestBesideTorchvision:
    @pytest.mark.parametrize("name", NAMES)
    def test_with_the_same_parameters_the_pixels_are_the_same(self, name: str) -> None:
        transform, expected, allowed = case(name)
        images, draws = pictures(6), drawn(6, transform)
        found = transform(images, draws)
        for image, draw, changed in zip(images, draws, found, strict=True):
            gap = (changed.int() - expected(image, draw).int()).abs()
            assert changed.dtype == torch.uint8
            assert gap.float().quantile(0.999) <= allowed, "a pixel on the edge of two may fall to the other"
        assert not torch.equal(found, images)

    def test_a_part_is_resized_as_by_torchvision(self) -> None:
        crop = RandomResizedCrop((0.3, 0.6))
        draws = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 1 - 1e-9, 1 - 1e-9]], dtype=torch.float64)
        images = pictures(2)
        height, width = round(HEIGHT * 0.45**0.5), round(WIDTH * 0.45**0.5)  # the aspect is the image's
        places = (0, 0), (HEIGHT - height, WIDTH - width)
        for image, changed, place in zip(images, crop(images, draws), places, strict=True):
            expected = functional.resized_crop(image, *place, height, width, [HEIGHT, WIDTH], antialias=True)
            assert (changed.int() - expected.int()).abs().max() <= 1

    def test_rectangles_are_distributed_as_torchvisions(self) -> None:
        own = RandomErasing((0.02, 0.4), VALUE, p=0.5)
        theirs = v2.RandomErasing(p=0.5, scale=(0.02, 0.4), value=VALUE)
        black = torch.zeros(1, 3, 48, 16, dtype=torch.uint8)  # narrow: many rectangles have to be drawn again
        torch.manual_seed(0)
        found = own(black.expand(3000, -1, -1, -1), drawn(3000, own))
        expected = torch.stack([theirs(black[0]) for _ in range(3000)])
        for count in (lambda covered: covered.sum((1, 2)), lambda covered: covered.any(2).sum(1)):
            mine, other = (count((images == torch.tensor(VALUE).view(3, 1, 1)).all(1)) for images in (found, expected))
            assert largest_gap(mine, other) < 0.045  # Kolmogorov-Smirnov at 0.5 %

    def test_the_order_of_color_changes_is_drawn(self) -> None:
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        draws = drawn(200, jitter)
        draws[:, 4:] = 0.9
        assert 12 < len({image.numpy().tobytes() for image in jitter(pictures(1).expand(200, -1, -1, -1), draws)}) <= 24


def largest_gap(mine: Tensor, other: Tensor) -> float:
    """Returns the largest distance of two empirical distribution functions."""
    levels = torch.cat([mine, other]).unique()
    shares = ((side[:, None] <= levels).double().mean(0) for side in (mine, other))
    return float((next(shares) - next(shares)).abs().max())


class TestRandomSubset:
    def test_k_different_transforms_are_applied_and_each_as_often(self) -> None:
        pool = [lambda image, i=i: image.index_fill(0, torch.tensor([i % 3]), 1 + i // 3) for i in range(6)]
        subset = RandomSubset(pool, k=2)
        torch.manual_seed(0)
        found = subset(torch.zeros(900, 3, 1, 1, dtype=torch.uint8), drawn(900, subset)).flatten(1).tolist()
        applied = Counter(3 * (value - 1) + channel for row in found for channel, value in enumerate(row) if value)
        # the first of two that fill the same channel is overwritten by the second: 1 of 15 pairs, for each channel
        assert all(applied[i] == pytest.approx(900 * (2 / 6 - 1 / 30), rel=0.15) for i in range(6))

    @pytest.mark.parametrize("k", [0, 3])
    def test_k_beyond_the_pool_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=r"k must lie in 1\.\.2"):
            RandomSubset([str, str], k=k)


class TestRandomApply:
    def test_all_or_none(self) -> None:
        both = RandomApply([transforms.RandomHorizontalFlip(1.0), transforms.RandomGrayscale(1.0)], p=0.3)
        images = pictures(1).expand(500, -1, -1, -1)
        found = both(images, drawn(500, both))
        changed = functional.rgb_to_grayscale(images.flip(-1), 3)
        is_changed = (found == changed).flatten(1).all(1)
        assert ((found == images).flatten(1).all(1) | is_changed).all()
        assert float(is_changed.float().mean()) == pytest.approx(0.3, abs=0.07)


class TestRandomResizedCrop:
    def test_the_whole_image_in_its_own_aspect_is_the_image(self) -> None:
        crop, images = RandomResizedCrop((1.0, 1.0), (1.0, 1.0)), pictures(2)
        assert torch.equal(crop(images, drawn(2, crop)), images)

    @pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 64), (384, 128)])
    def test_the_part_keeps_area_and_aspect_within_their_ranges(self, size: tuple[int, int]) -> None:
        crop = RandomResizedCrop((0.5, 0.8), (0.9, 1.1))
        for rows, columns, _ in crop(ramp(*size).expand(50, -1, -1, -1), drawn(50, crop)):
            part_height = (int(rows.max()) - int(rows.min())) / 255
            part_width = (int(columns.max()) - int(columns.min())) / 255
            assert 0.45 < part_height * part_width < 0.85
            assert 0.85 < part_width / part_height < 1.18

    def test_every_place_of_an_upright_person_is_reached(self) -> None:
        crop = RandomResizedCrop((0.9, 1.0), (0.95, 1.05))
        parts = crop(ramp().expand(200, -1, -1, -1), drawn(200, crop))[:, 0].flatten(1).int()
        assert (int(parts.min()), int(parts.max())) == (0, 255)
        assert (parts.amax(1) - parts.amin(1) > 230).all(), "head and feet stay"

    def test_a_tiny_image_survives_a_tiny_part(self) -> None:
        crop = RandomResizedCrop((0.01, 0.02))
        assert crop(ramp(4, 2).expand(20, -1, -1, -1), drawn(20, crop)).shape == (20, 3, 4, 2)


class TestTransformsOfTorchvision:
    def test_each_image_has_a_seed_of_its_own_and_the_random_state_stays(self) -> None:
        chain = Chain([v2.RandomResizedCrop((HEIGHT, WIDTH), (0.2, 0.5))])
        images, draws, state = pictures(1).expand(4, -1, -1, -1), drawn(4, chain), torch.get_rng_state()
        found = chain(images, draws)
        assert len({image.numpy().tobytes() for image in found}) == 4
        assert torch.equal(chain(images[:1], draws[2:3])[0], found[2])
        assert torch.equal(torch.get_rng_state(), state)


class TestSettings:
    @pytest.mark.parametrize(
        ("transform", "settings", "told"),
        [
            (transforms.RandomHorizontalFlip, {"p": 50}, "p: 50 given, expected a number from 0 to 1"),
            (transforms.RandomCrop, {"padding": -40}, "padding: -40 given"),
            (RandomResizedCrop, {"scale": [20, 80]}, "scale: 20 given, expected a number from 1e-06 to 1"),
            (RandomResizedCrop, {"scale": [0.2, 1], "ratio": [0, 1]}, "ratio: 0 given"),
            (RandomErasing, {"scale": 0.02, "value": VALUE}, "scale: 0.02 given, expected a range"),
            (RandomErasing, {"scale": [0.02, 0.4], "value": [1, 2]}, r"value: \[1, 2\] given"),
            (RandomErasing, {"scale": [0.02, 0.4], "value": [300, 2, 1]}, "value: 300 given"),
            (transforms.ColorJitter, {"brightness": -0.4}, "brightness: -0.4 given"),
            (transforms.ColorJitter, {"hue": 0.6}, "hue: 0.6 given, expected a number from 0 to 0.5"),
            (transforms.GaussianBlur, {"kernel_size": 8, "sigma": [0.1, 2]}, "kernel_size: 8 given, expected an odd"),
            (transforms.GaussianBlur, {"kernel_size": 9, "sigma": [0, 0]}, "sigma: 0 given"),
            (transforms.GaussianBlur, {"kernel_size": 9, "sigma": [2, 0.1]}, "sigma: .* expected a range"),
        ],
    )
    def test_what_would_spoil_images_is_refused(
        self, transform: Callable[..., ImageTransform], settings: dict[str, object], told: str
    ) -> None:
        with pytest.raises(ValueError, match=told):
            transform(**settings)

    def test_a_color_jitter_without_ranges_changes_nothing(self) -> None:
        jitter, images = transforms.ColorJitter(), pictures(2)
        assert torch.equal(jitter(images, drawn(2, jitter)), images)

    def test_a_kernel_larger_than_the_image_is_refused(self) -> None:
        blur = transforms.GaussianBlur(33, (0.1, 2))
        with pytest.raises(UserError, match="kernel_size=33, too large for 16x8"):
            blur(pictures(1, 16, 8), drawn(1, blur))

    @pytest.mark.parametrize("changed", [v2.ToDtype(torch.float32, scale=True), v2.Resize([32, 32])])
    def test_a_transform_that_changes_type_or_size_is_refused(self, changed: v2.Transform) -> None:
        chain = Chain([changed])
        with pytest.raises(UserError, match=rf"{type(changed).__name__}.* made torch\.\S+ \(3, .* use a transform"):
            chain(pictures(1), drawn(1, chain))
