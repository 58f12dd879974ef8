"""Speed of data loading: images per second and core that a loading process turns into training views.

    uv run benchmarks/data.py [--images 512] [--size 384x128] [--aug tbps_clip] [--batch 64] [--repeats 5]

The benchmark draws JPEG files with the image sizes of CUHK-PEDES into a temporary folder. One process with one thread
loads training samples with all image views of an augmentation, as a worker does, but without captions:

- files: every image is decoded, resized and augmented each time (the plain path);
- cache: decoded images come from the image cache and are augmented (dataset.augment_on=worker);
- cache, device: the worker only reads the cache. The GPU would build the views (dataset.augment_on=device); this part
  is not timed here.

More lines time the parts: only reading, only augmenting, and augmenting images of 8x8, which measures the calls alone
and is about the time to start the work on a GPU. The last lines compare tokenising the captions of a batch with reading
tokens that were kept. All forms run in turns. Figures are medians over the turns, in seconds of one core.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageFilter
from prettytable import PrettyTable
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.annotations import Record
from data.batch import IMAGE_VIEWS
from data.images.cache import ImageCache
from data.images.read import ImageReader, Resize, read_image
from data.loading.datasets import Collate, PairDataset
from data.loading.samplers import Draw
from data.text.tokens import Tokenize
from data.views.build import PROVIDED_BY, Views
from utils.config.resolvers import parse_size, register_resolvers

CONFIG = Path(__file__).parents[1] / "config"
WORDS = "a man woman wears carries red blue black white shirt coat bag and with"
CAPTION_WORDS, TOKENS = 24, 77


def draw_records(root: Path, count: int) -> list[Record]:
    """Writes `count` JPEG files and returns their records: blurred upright noise, 60 to 200 pixels wide, quality 90."""
    rng = random.Random(0)
    records = []
    for number in range(count):
        width = rng.randint(60, 200)
        size = width, round(width * rng.uniform(2.2, 3.0))
        noise = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
        path = root / f"{number}.jpg"
        noise.filter(ImageFilter.GaussianBlur(2)).save(path, quality=90)
        caption = " ".join(rng.choices(WORDS.split(), k=CAPTION_WORDS)) + f" {number}"
        records.append(Record(number, number, path, (caption,)))
    return records


def draw_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-pair tokenizer like CLIP's, trained on the captions."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(captions, trainers.BpeTrainer(special_tokens=["[UNK]", "[PAD]"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def medians(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of a call of each form. The forms run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def loading(dataset: PairDataset, batch: int) -> Callable[[], None]:
    """Returns a function that loads all pairs of `dataset` once, in batches."""
    collate = Collate(Tokenize(draw_tokenizer(WORDS.split()), TOKENS))

    def load() -> None:
        for first in range(0, len(dataset), batch):
            collate([dataset[Draw(pair, seed=pair)] for pair in range(first, min(first + batch, len(dataset)))])

    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=parse_size, default=[384, 128], metavar="HxW")
    parser.add_argument("--aug", default="tbps_clip", help="a file of config/aug")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    height, width = options.size
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        aug = instantiate(compose("demo", overrides=[f"aug={options.aug}", f"img_size_str={height}x{width}"]).aug)
    offered = {view for view in IMAGE_VIEWS if getattr(aug, PROVIDED_BY[view]) is not None}
    views, resize = Views(offered, TOKENS, aug), Resize((height, width), "bicubic")

    with TemporaryDirectory() as temporary:
        root = Path(temporary) / "DRAWN-PEDES"
        root.mkdir()
        records = draw_records(root, options.images)
        start = time.perf_counter()
        cached = ImageCache(Path(temporary), root, resize).reader(records)
        built = time.perf_counter() - start
        from_file = partial(read_image, resize=resize)
        decoded = torch.stack([cached(record) for record in records]).split(options.batch)
        small = [images[..., :8, :8] for images in decoded]
        seeds = list(range(options.batch))
        captions = [caption for record in records for caption in record.captions]
        plain, remembering = (Tokenize(draw_tokenizer(captions), TOKENS) for _ in range(2))
        remembering.count(captions)
        batches = [captions[first : first + options.batch] for first in range(0, len(captions), options.batch)]
        forms: dict[str, tuple[ImageReader, bool]] = {
            "files": (from_file, False),
            "cache": (cached, False),
            "cache, device": (cached, True),
        }
        loaders = {
            name: loading(PairDataset(records, read, views, with_pids=False, later=later), options.batch)
            for name, (read, later) in forms.items()
        }
        found = medians(
            {
                **loaders,
                "reading files": lambda: [from_file(record) for record in records],
                "reading the cache": lambda: [cached(record) for record in records],
                "augmenting": lambda: [views.of_images(images, seeds[: len(images)]) for images in decoded],
                "augmenting 8x8": lambda: [views.of_images(images, seeds[: len(images)]) for images in small],
                "tokenising": lambda: [plain(batch) for batch in batches],
                "remembered tokens": lambda: [remembering(batch) for batch in batches],
            },
            options.repeats,
        )

    print(
        f"{options.images} images, {len(offered)} image views at {height}x{width}, aug={options.aug}, batches of "
        f"{options.batch}; the cache was built in {built:.1f} s ({options.images / built:.0f} images/s on all cores)"
    )
    table = PrettyTable(["form", "times the plain path", "images/s and core", "ms a batch"], align="r")
    for name, seconds in found.items():
        base = found["tokenising" if "token" in name else "files"]
        milliseconds = 1000 * seconds / len(batches)
        table.add_row([name, f"{base / seconds:.1f}", f"{options.images / seconds:.0f}", f"{milliseconds:.1f}"])
    print(table)
    shares = (f"{found['tokenising'] / found[name]:.3g} of {name!r}" for name in loaders)
    print(f"tokenising the captions of a batch takes, of the time to load its images: {', '.join(shares)}")


if __name__ == "__main__":
    main()
