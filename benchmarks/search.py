"""Time from a sentence to its ten best images, and what killed indexers leave.

    uv run benchmarks/search.py [--claims time kills] [--rows 100000] [--model FOLDER] [--images 2000] [--kills 10]

`time`: an index of random embeddings of width 768, with a thumbnail of 6 kB each. The text tower is that of mSigLIP's
size with random weights (12 layers of width 768), on two threads, or that of --model. A question is tokenised (only
with --model), encoded and compared with all rows. Times are those of 20 questions, after the first one; "CPU"
is the time of all threads, which other programs on the machine change little.

`kills`: 2,000 pictures of noise are indexed by a process that is killed at random instants and started again each time,
until the kills are used up and it ends. Its index has to equal that of an undisturbed process, to the last bit.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the commands of the project

import numpy as np
import torch
from PIL import Image
from prettytable import PrettyTable
from transformers import SiglipTextConfig, SiglipTextModel

from encoder_loading import load_encoder
from prepare_checkpoints import prepare
from search.tables import ImageRow, Model, Tables, id_of

LIMIT = 0.5  # seconds from text to ten results
WIDTH = 768
QUESTIONS = 20
SENTENCE = "một người đàn ông mặc áo đỏ, quần đen và đeo ba lô"
ROOT = Path(__file__).parents[1]


def fill(tables: Tables, rows: int) -> None:
    """Writes random embeddings with unit norm, 5,000 in a commit."""
    generator = np.random.default_rng(0)
    tables.bind(Model("random", "random", WIDTH))
    thumbnail = generator.bytes(6_000)
    for start in range(0, rows, 5_000):
        vectors = generator.standard_normal((min(5_000, rows - start), WIDTH), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        paths = [f"/photos/camera{number % 10}/{number:07}.jpg" for number in range(start, start + len(vectors))]
        tables.write(
            [
                ImageRow(id_of(path), path, "/photos", 1, 1, path, thumbnail, vector)
                for path, vector in zip(paths, vectors, strict=True)
            ],
            [],
        )
    tables.settle()


def text_tower(model: Path | None) -> Callable[[str], np.ndarray[Any, Any]]:
    """Returns a function from a sentence to an embedding of width 768."""
    if model is not None:
        encoder = load_encoder(model)
        if encoder.width != WIDTH:
            raise SystemExit(f"{model} gives embeddings of width {encoder.width}, this benchmark needs {WIDTH}")
        return lambda sentence: encoder.texts([sentence])[0].numpy()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    tower = SiglipTextModel(SiglipTextConfig(**sizes, vocab_size=250_000, max_position_embeddings=64)).eval()
    ids = torch.randint(0, 250_000, (1, 64))

    @torch.inference_mode()
    def encode(_: str) -> np.ndarray[Any, Any]:
        return torch.nn.functional.normalize(tower(ids).pooler_output, dim=1)[0].numpy()

    return encode


def measure(rows: int, model: Path | None) -> bool:
    """Prints the times of the parts of a question; returns whether the whole stays below `LIMIT`."""
    torch.set_num_threads(2)
    encode = text_tower(model)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tables = Tables(Path(folder, "index"))
        fill(tables, rows)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
        print(f"filled in {time.perf_counter() - start:.0f} s, {size:,.0f} MiB on disk")
        vector = encode(SENTENCE)
        parts: dict[str, Callable[[], Any]] = {
            "text tower": lambda: encode(SENTENCE),
            "search": lambda: tables.nearest(vector, 10),
            "search in one folder of ten": lambda: tables.nearest(vector, 10, "/photos/camera3"),
            "text to ten": lambda: tables.nearest(encode(SENTENCE), 10),
        }
        spent = {name: [_timed(part) for _ in range(QUESTIONS)] for name, part in parts.items()}
    table = PrettyTable(["part", "median, ms", "slowest, ms", "CPU, ms"], align="r")
    table.align["part"] = "l"
    for name, pairs in spent.items():
        wall, cpu = zip(*pairs, strict=True)
        table.add_row(
            [name, *(f"{value:.0f}" for value in (statistics.median(wall), max(wall), statistics.median(cpu)))]
        )
    whole = statistics.median(wall for wall, _ in spent["text to ten"]) / 1000
    print(f"{whole / LIMIT:.2f} of the limit of {1000 * LIMIT:.0f} ms, {rows:,} embeddings of width {WIDTH}")
    print(f"{table}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    return whole < LIMIT


def _timed(part: Callable[[], Any]) -> tuple[float, float]:
    """Returns the milliseconds that a call took, and those of all its threads on the CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    part()
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)


def content(place: Path) -> dict[str, tuple[Any, ...]]:
    """Returns all that an index has of each image."""
    rows = Tables(place)._images.search().to_arrow().to_pylist()
    if len({row["path"] for row in rows}) != len(rows):
        raise SystemExit(f"{place}: an image is there twice")
    return {row["path"]: (*(row[key] for key in sorted(row) if key != "vector"), *row["vector"]) for row in rows}


def draw(folder: Path, images: int) -> None:
    """Writes pictures of different noise, which take a moment to decode."""
    generator = np.random.default_rng(1)
    folder.mkdir()
    for number in range(images):
        small = Image.fromarray(generator.integers(0, 255, (16, 8, 3), dtype=np.uint8))
        small.resize((128, 256), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg")


def kill(images: int, kills: int) -> bool:
    """Prints what killed indexers leave; returns whether the index is that of an undisturbed one."""
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        draw(folder / "photos", images)
        model = prepare("tiny_siglip", ROOT)  # as the first run of the demo makes it
        line = [sys.executable, "-m", "search", "index", str(folder / "photos"), "--model", str(model), "--index"]
        start = time.perf_counter()
        subprocess.run([*line, str(folder / "whole")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        alone = time.perf_counter() - start
        print(f"undisturbed {alone:.0f} s")
        rows = [0]
        while len(rows) <= kills:
            process = subprocess.Popen([*line, str(folder / "killed")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            while not process.stdout.readline().startswith("index"):  # it begins to index
                pass
            limit = time.monotonic() + 120
            wanted = rows[-1] + generator.randint(1, max(1, 2 * (images - rows[-1]) // (kills + 2 - len(rows))))
            killed_at = Tables(folder / "killed")
            while len(killed_at) < min(wanted, images - 1) and time.monotonic() < limit and process.poll() is None:
                time.sleep(0.05)
                killed_at = Tables(folder / "killed")
            time.sleep(generator.random() * 0.3)
            process.kill()
            process.wait()
            rows.append(len(Tables(folder / "killed")))
        subprocess.run([*line, str(folder / "killed")], cwd=ROOT, check=True)
        same = content(folder / "killed") == content(folder / "whole")
        print(f"images in the index after each kill: {', '.join(map(str, rows[1:]))}")
        result = "equals" if same else "DIFFERS FROM"
        print(f"after {kills} kills the index of {images:,} images {result} the undisturbed one")
    return same


def main() -> None:
    """Runs the claims that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=("time", "kills"), default=["time", "kills"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", type=Path, help="run, checkpoint or folder with embeddings of width 768")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    held = [measure(options.rows, options.model)] if "time" in options.claims else []
    held += [kill(options.images, options.kills)] if "kills" in options.claims else []
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
