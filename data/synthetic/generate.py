"""Writes the embedded dataset to disk, in the format of VN3K, once per specification."""

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from filelock import FileLock

from data.synthetic.attributes import Identity, sample_identities
from data.synthetic.captions.annotators import annotate
from data.synthetic.drawing.picture import draw_picture
from data.synthetic.population import PEDESTRIANS, STRANGERS, Population
from data.synthetic.shot import sample_shot
from utils.checkpoints.disk import scratch_folder
from utils.errors import UserError
from utils.training.progress import Bar

FOLDER: Final = "DRAWN-PEDES"
OLD_FOLDER: Final = "SYNTH-PEDES"  # its first name, which is that of another, published dataset
IMAGES: Final = "imgs"
ANNOTATIONS: Final = "data_captions.json"
STAMP: Final = "synthetic.json"
GENERATOR: Final = "data.synthetic"
VERSION: Final = 4  # raise it whenever the same specification would give another dataset
PRETRAIN: Final = "pretrain"  # folder in FOLDER of the strangers whom tiny backbones are pre-trained on
TIMED: Final = 20  # persons who are drawn to estimate how long drawing takes
CAPTION_KEYS: Final = {"captions": "vi", "en_captions": "en"}

Record = dict[str, Any]


@dataclass(frozen=True)
class SyntheticSpec:
    """What dataset to draw. Equal specifications give equal datasets.

    Raises:
        UserError: a number is out of its range.
    """

    train: int = field(default=1600, metadata={"help": "training identities"})
    val: int = field(default=200, metadata={"help": "validation identities"})
    test: int = field(default=200, metadata={"help": "test identities"})
    pretrain: int = field(default=600, metadata={"help": "identities of others, for pre-training"})
    images_per_identity: int = field(default=3, metadata={"help": "pictures of each identity"})
    captions_per_image: int = field(default=2, metadata={"help": "captions of each picture, per language"})
    height: int = field(default=128, metadata={"help": "picture height in pixels"})
    width: int = field(default=64, metadata={"help": "picture width in pixels"})
    twin_share: float = field(default=0.2, metadata={"help": "share of identities in pairs that differ in one detail"})
    seed: int = field(default=0, metadata={"help": "seed of everything drawn and written"})

    def __post_init__(self) -> None:
        least = {"height": 32, "width": 16, "twin_share": 0, "seed": 0}
        for name, value in asdict(self).items():
            if value < least.get(name, 1):
                raise UserError(f"{name}={value} of the drawn dataset must be at least {least.get(name, 1)}.")
        if self.twin_share > 1:
            raise UserError(f"twin_share={self.twin_share} of the drawn dataset must be at most 1.")

    @property
    def splits(self) -> dict[str, int]:
        """Number of identities per split, under the split names of VN3K."""
        return {"train": self.train, "validate": self.val, "test": self.test}

    def identities(self) -> list[Identity]:
        """Returns the people of the dataset, ids from 1, split by split."""
        rng = random.Random(f"{self.seed}/identities")
        return sample_identities(self.splits, self.twin_share, rng, PEDESTRIANS.habits)

    def strangers(self) -> list[Identity]:
        """Returns the people of pre-training, ids from 1."""
        rng = random.Random(f"{self.seed}/strangers")
        return sample_identities({"train": self.pretrain}, self.twin_share, rng, STRANGERS.habits)


DEFAULT_SPEC: Final = SyntheticSpec()


def generate(root: Path, spec: SyntheticSpec = DEFAULT_SPEC, workers: int | None = None) -> Path:
    """Returns the dataset's folder under `root`, after writing the dataset unless it is there already.

    The dataset depends on `spec` alone, not on `workers` (processes; None for one per core). It is built in a
    hidden folder beside its place and moved there when complete. Builds under one `root` wait for each other.

    Raises:
        UserError: no workers, a folder in its place that this generator did not write, or a disk that refuses.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} cannot draw the dataset: at least 1 is needed.")
    folder = root / FOLDER
    stamp = {"generator": GENERATOR, "version": VERSION, "spec": asdict(spec)}
    if _read_stamp(folder) == stamp:
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{FOLDER}.lock"):
            old = root / OLD_FOLDER
            if not os.path.lexists(folder) and _read_stamp(old) is not None:
                old.rename(folder)
                print(f"{old} is renamed to {folder}, because another, published dataset is called {OLD_FOLDER}")
            if os.path.lexists(folder) and _read_stamp(folder) is None:
                raise UserError(
                    f"{folder} exists but has no {STAMP} of the generator of drawn pedestrians, which will not "
                    "overwrite it: move that folder away or choose another dataset root."
                )
            if _read_stamp(folder) != stamp:
                _build(folder, spec, stamp, workers or _cores())
    except OSError as error:
        raise UserError(
            f"cannot write the drawn dataset to {folder} ({error.strerror or error}): make it writable, or set "
            "dataset_root_dir to a folder that is"
        ) from error
    return folder


def is_to_draw(root: Path) -> bool:
    """Returns whether there is no dataset under `root`, or one of an earlier version of the generator."""
    stamp = _read_stamp(root / FOLDER)
    return not (root / FOLDER).exists() or (stamp is not None and stamp.get("version") != VERSION)


def generate_once(root: Path) -> None:
    """Draws the dataset if `is_to_draw`."""
    if is_to_draw(root):
        print(f"draws   {root / FOLDER}, once", flush=True)
        generate(root)


def drawing_seconds(spec: SyntheticSpec = DEFAULT_SPEC) -> float:
    """Returns about how long drawing takes with all cores: a few persons are drawn, timed and thrown away."""
    people = spec.identities()[:TIMED]
    with TemporaryDirectory() as folder:
        (Path(folder) / IMAGES).mkdir()
        start = time.monotonic()
        for identity in people:
            _draw_identity(spec, PEDESTRIANS, Path(folder) / IMAGES, identity)
        seconds = time.monotonic() - start
    return seconds / len(people) * (sum(spec.splits.values()) + spec.pretrain) / _cores()


def _read_stamp(folder: Path) -> Any:
    """Returns the stamp of `folder`, or None if this generator did not write it."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("generator") == GENERATOR else None


def _build(folder: Path, spec: SyntheticSpec, stamp: Record, workers: int) -> None:
    with scratch_folder(folder) as temporary:
        building = temporary / FOLDER
        for place, population, people in (
            (building, PEDESTRIANS, spec.identities()),
            (building / PRETRAIN, STRANGERS, spec.strangers()),
        ):
            (place / IMAGES).mkdir(parents=True)
            drawn = _draw_all(partial(_draw_identity, spec, population, place / IMAGES), people, place.name, workers)
            _write(place / ANNOTATIONS, [record for records in drawn for record in records])
        _write(building / STAMP, stamp)
        if folder.exists():
            folder.rename(temporary / "old")
        building.rename(folder)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _draw_all(draw: Any, identities: list[Identity], title: str, workers: int) -> Iterable[list[Record]]:
    """Yields the records of each identity in turn, its pictures written; shows a progress bar on a terminal."""
    drawn = map(draw, identities) if workers == 1 else _in_processes(draw, identities, workers)
    yield from Bar(drawn, desc=title, total=len(identities), unit="person")


def _in_processes(draw: Any, identities: list[Identity], workers: int) -> Iterator[list[Record]]:
    # Forked, because spawned workers would each import the caller's main module, and torch with it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield from pool.map(draw, identities, chunksize=8)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that drew the dataset died, perhaps for lack of memory: use fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes this worker leave interrupts to its parent, and end when the parent is gone, killed included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw_identity(spec: SyntheticSpec, population: Population, images: Path, identity: Identity) -> list[Record]:
    """Writes the pictures of `identity`, each from another camera while there are any, and returns their records."""
    person, pid = identity.appearance, identity.pid
    seed = f"{spec.seed}/{images.parent.name}/{pid}"
    cameras = random.Random(f"{seed}/cameras").sample(population.cameras, len(population.cameras))
    records: list[Record] = []
    for index in range(spec.images_per_identity):
        rng = random.Random(f"{seed}/{index}")
        shot = sample_shot(person, cameras[index % len(cameras)], rng)
        looks = random.Random(f"{seed}/looks")
        picture = draw_picture(person, shot, (spec.width, spec.height), looks, rng)
        name = f"{pid:05d}_{index}.jpg"
        picture.save(images / name, quality=rng.randint(60, 95))
        record: Record = {"id": pid, "file_path": name, "split": identity.split}
        for key, language in CAPTION_KEYS.items():
            words = random.Random(f"{seed}/{index}/{language}")
            captions = annotate(person, shot, language, spec.captions_per_image, words, population.styles)
            record[key] = [caption.text for caption in captions]
        records.append(record)
    return records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
