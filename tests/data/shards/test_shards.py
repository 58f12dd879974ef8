"""Shards: written, read, shuffled, continued, shared out and mixed; damaged and hostile ones."""

import json
import os
import re
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision.transforms.v2 import RandomErasing

from data.annotations import Record
from data.batch import IMAGE, IMAGE_AUG, INDEX, PIDS, TEXT
from data.images.read import Resize, read_image
from data.loading.datasets import PairDataset
from data.loading.loader import ResumableLoader
from data.loading.samplers import Draw
from data.shards.layout import INDEX as INDEX_FILE
from data.shards.layout import ShardIndex
from data.shards.mixture import ShardDataset, ShardMixture, open_shards
from data.shards.order import WINDOW, PairStream, ShardSampler
from data.shards.writer import JOURNAL, ShardWriter
from data.views.augmentation import Augmentation, RandomWordDeletion
from data.views.build import Views
from tests.forked import end_of, start_fork
from utils.errors import UserError

RESIZE = Resize((16, 8), "bicubic")
ERASING = Augmentation("erasing", image_aug=[RandomErasing(1.0)], text=[RandomWordDeletion(0.5)])
VIEWS = Views({IMAGE, IMAGE_AUG, TEXT}, 8, ERASING)
MADE_OF = {"dataset": "toy"}


def images(folder: Path, count: int, captions: Sequence[int] = (2, 1, 3)) -> list[Record]:
    """Returns records of `count` images with captions in turn, two images of each person."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for image in range(count):
        Image.new("RGB", (8, 16), (image % 256, 7 * image % 256, 40)).save(folder / f"{image}.png")
        texts = tuple(f"image {image} caption {caption}" for caption in range(captions[image % len(captions)]))
        made.append(Record(50 - image // 2, image, folder / f"{image}.png", texts))
    return made


def write(out: Path, records: list[Record], *, shard_bytes: int = 400, **options: Any) -> ShardIndex:
    return ShardWriter(out, MADE_OF, shard_bytes=shard_bytes, **options).write(records)


def opened(shards: Any, cache: Path, **options: Any) -> ShardMixture:
    given = {"shards": str(shards) if isinstance(shards, Path) else shards, "cache_dir": str(cache)}
    return open_shards(OmegaConf.create({"epoch_pairs": None, "shard_cache_gb": 1.0, **given, **options}))


def dataset(mixture: ShardMixture) -> ShardDataset:
    return ShardDataset(mixture, RESIZE, VIEWS, str)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


class TestReading:
    def test_every_pair_is_that_of_the_loose_files(self, tmp_path: Path) -> None:
        records = images(tmp_path / "loose", 30)
        index = write(tmp_path / "shards", records)
        assert len(index.shards) > 3
        assert (index.images, index.pairs, index.identities) == (30, 60, 15)
        loose = PairDataset(records, partial(read_image, resize=RESIZE), VIEWS, with_pids=True)
        sharded = dataset(opened(tmp_path / "shards", tmp_path))
        assert len(sharded) == len(loose) == 60
        for pair in range(60):
            assert same(sharded[Draw(pair, seed=pair)], loose[Draw(pair, seed=pair)])

    def test_without_identities_each_image_counts_as_a_person(self, tmp_path: Path) -> None:
        write(tmp_path / "a", images(tmp_path / "loose", 6), with_pids=False)
        write(tmp_path / "b", images(tmp_path / "more", 4))
        mixture = opened({"a": str(tmp_path / "a"), "b": {"folder": str(tmp_path / "b")}}, tmp_path)
        assert [mixture[pair].pid for pair in range(12)] == [0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5]
        assert [mixture[pair].pid for pair in range(12, 20)] == [7, 7, 7, 6, 6, 6, 6, 6]
        assert mixture.identities == 8

    def test_a_size_encodes_images_again(self, tmp_path: Path) -> None:
        write(tmp_path / "shards", images(tmp_path / "loose", 3), size=(32, 16))
        found = opened(tmp_path / "shards", tmp_path)[0].content
        (tmp_path / "found.jpg").write_bytes(found)
        with Image.open(tmp_path / "found.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (16, 32))

    def test_object_storage_is_copied_and_old_copies_go(self, tmp_path: Path) -> None:
        index = write(tmp_path / "shards", images(tmp_path / "loose", 30))
        largest = max(shard.bytes for shard in index.shards)
        mixture = opened(f"file://{tmp_path}/shards", tmp_path / "cache", shard_cache_gb=2.5 * largest / 1e9)
        assert [mixture[pair].caption for pair in (0, 59)] == ["image 0 caption 0", "image 29 caption 2"]
        for pair in range(60):
            mixture[pair]
        copies = list((tmp_path / "cache" / "shards").glob("*/*.arrow"))
        assert 1 <= len(copies) <= 2
        assert not list((tmp_path / "cache").glob("shards/*/*.partial"))


def test_processes_share_a_cache_that_is_full(tmp_path: Path) -> None:
    write(tmp_path / "shards", images(tmp_path / "loose", 40))
    address, cache = f"file://{tmp_path}/shards", tmp_path / "cache"

    def read(seed: int) -> None:
        mixture = opened(address, cache, shard_cache_gb=2e-6)  # about one shard
        mixture.sources[0].read._most_open = 1
        for pair in np.random.default_rng(seed).integers(len(mixture), size=150).tolist():
            assert mixture[pair].caption

    assert [end_of(child) for child in [start_fork(partial(read, seed)) for seed in range(3)]] == [0, 0, 0]


class TestOrder:
    sizes = ([7, 5, 9, 4] * 10, [6, 6, 6])

    def sampler(self, *, epoch: int = 0, rank: int = 0, world_size: int = 1, shares: Sequence[int] = (96, 48)) -> Any:
        sampler = ShardSampler(self.sizes, shares, 8, seed=3, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        return sampler

    def test_a_pass_has_every_pair_once_and_is_shuffled_across_shards(self) -> None:
        sampler = ShardSampler(self.sizes[:1], [250], 10, seed=0)
        first = [draw.pair for batch in sampler for draw in batch]
        sampler.set_epoch(1)
        second = [draw.pair for batch in sampler for draw in batch]
        assert sorted(first) == sorted(second) == list(range(250))
        assert first != second
        of_shard = np.repeat(np.arange(40), self.sizes[0])
        assert np.mean([len(set(of_shard[first[b : b + 10]])) for b in range(0, 250, 10)]) > 5
        window = of_shard[first[: sum(self.sizes[0][:WINDOW])]]
        assert len(set(window)) <= WINDOW + 1  # few shards are open at a time

    def test_a_stream_starts_anywhere(self) -> None:
        stream = PairStream(self.sizes[0], 0, (1, 2))
        whole = stream.start_at(0).take(800)
        for position in (0, 1, 99, 249, 250, 251, 600):
            assert np.array_equal(stream.start_at(position).take(150), whole[:, position : position + 150])

    def test_weights_are_shares_of_an_epoch_and_epochs_go_on(self) -> None:
        epochs = [[draw.pair for batch in self.sampler(epoch=epoch) for draw in batch] for epoch in range(5)]
        for drawn in epochs:
            assert (sum(pair < 250 for pair in drawn), sum(pair >= 250 for pair in drawn)) == (96, 48)
        counts = Counter(pair for drawn in epochs for pair in drawn)
        assert all(1 <= counts[pair] <= 2 for pair in range(250))  # 480 draws

    def test_two_processes_are_one(self) -> None:
        for epoch in (0, 3):
            shares = [list(self.sampler(epoch=epoch, rank=rank, world_size=2)) for rank in (0, 1)]
            assert [a + b for a, b in zip(*shares, strict=True)] == list(self.sampler(epoch=epoch))

    def test_an_epoch_continues_at_every_batch(self) -> None:
        whole = list(self.sampler(epoch=2))
        for start in range(len(whole) + 1):
            sampler = self.sampler(epoch=2)
            sampler.start = start
            assert list(sampler) == whole[start:]

    def test_an_epoch_smaller_than_a_batch_is_one_batch(self) -> None:
        assert [len(batch) for batch in ShardSampler([[3]], [3], 8, seed=0)] == [3]
        with pytest.raises(UserError, match="1 draws for 2 processes"):
            ShardSampler([[1]], [1], 8, seed=0, world_size=2)


def collate(samples: list[Any]) -> Any:
    return {key: [sample[key] for sample in samples] for key in (INDEX, PIDS, TEXT, IMAGE_AUG)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_within_an_epoch_bit_by_bit(tmp_path: Path, workers: int) -> None:
    write(tmp_path / "shards", images(tmp_path / "loose", 40))

    def loader() -> ResumableLoader:
        mixture = opened(tmp_path / "shards", tmp_path)
        sampler = ShardSampler(mixture.sizes, mixture.shares, 8, seed=1)
        sampler.set_epoch(1)
        return ResumableLoader(dataset(mixture), sampler, collate, num_workers=workers)

    whole = list(loader())
    stopped = loader()
    batches = iter(stopped)
    for _ in range(4):
        next(batches)
    continued = loader()
    continued.load_state_dict(stopped.state_dict())
    rest = list(continued)
    assert len(rest) == len(whole) - 4 > 3
    for found, expected in zip(rest, whole[4:], strict=True):
        assert torch.equal(torch.stack(found.pop(IMAGE_AUG)), torch.stack(expected.pop(IMAGE_AUG)))
        assert found == expected


class TestWriting:
    def test_a_killed_writing_goes_on_with_the_same_result(self, tmp_path: Path) -> None:
        records = images(tmp_path / "loose", 40)
        whole = write(tmp_path / "whole", records)

        def killed() -> None:
            written = ShardWriter._write_shard

            def few(self: ShardWriter, part: Any, number: int) -> Any:
                if number == 3:
                    (self._out / "00003.arrow.partial").write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
                return written(self, part, number)

            ShardWriter._write_shard = few  # type: ignore[method-assign]
            write(tmp_path / "out", records)

        _, status = os.waitpid(start_fork(killed), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        with pytest.raises(UserError, match="is not finished"):
            opened(tmp_path / "out", tmp_path)
        writer = ShardWriter(tmp_path / "out", MADE_OF, shard_bytes=400)
        assert writer.write(records) == whole
        assert writer.resumed == sum(shard.images for shard in whole.shards[:3])
        names = sorted(file.name for file in (tmp_path / "out").iterdir() if file.name != ".lock")
        assert names == [*(shard.file for shard in whole.shards), INDEX_FILE]

    def test_other_records_begin_anew_and_finished_shards_are_kept(self, tmp_path: Path) -> None:
        records = images(tmp_path / "loose", 10)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / JOURNAL).write_bytes(b'{"of": "something else"}\n')
        (tmp_path / "out" / "00000.arrow").write_bytes(b"old")
        write(tmp_path / "out", records)
        assert len(opened(tmp_path / "out", tmp_path)) == 20
        with pytest.raises(UserError, match="holds shards already"):
            write(tmp_path / "out", records)

    def test_broken_images_are_an_error_or_are_counted(self, tmp_path: Path) -> None:
        records = images(tmp_path / "loose", 6)
        records[1].image_path.write_bytes(b"no image")
        with pytest.raises(UserError, match=r"1\.png cannot be read .*dataset\.on_broken=skip"):
            write(tmp_path / "error", records)
        writer = ShardWriter(tmp_path / "skip", MADE_OF, skip=True)
        assert writer.write(records).images == 5
        assert writer.skipped == 1
        assert opened(tmp_path / "skip", tmp_path)[2].caption == "image 2 caption 0"


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / INDEX_FILE).read_text())
    change(content)
    (folder / INDEX_FILE).write_text(json.dumps(content))


def replace_shard(folder: Path, content: bytes) -> None:
    """Replaces the first shard, with the size and checksum that its index expects."""
    (folder / "00000.arrow").write_bytes(content)
    change_index(folder, lambda index: index["shards"][0].update(bytes=len(content), crc=zlib.crc32(content)))


def with_bad_offsets(folder: Path) -> bytes:
    content = bytearray((folder / "00000.arrow").read_bytes())
    rows = pa.ipc.open_file(bytes(content)).get_batch(0)
    offsets = rows.column("image").buffers()[1].to_pybytes()
    place = content.find(offsets)
    content[place + 4 : place + 8] = (2**30).to_bytes(4, "little")
    return bytes(content)


def encoded(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema) as file:
        for batch in batches:
            file.write_batch(batch)
    return sink.getvalue().to_pybytes()


def with_other_columns() -> bytes:
    return encoded(pa.record_batch({"image": [b"x"] * 3, "text": ["a"] * 3}))


def first_shard(folder: Path) -> pa.RecordBatch:
    return pa.ipc.open_file((folder / "00000.arrow").read_bytes()).get_batch(0)


def with_a_null_caption(folder: Path) -> bytes:
    batch = first_shard(folder)
    captions = [[None, *texts[1:]] for texts in batch.column("captions").to_pylist()]
    changed = pa.array(captions, batch.schema.field("captions").type)
    return encoded(pa.record_batch([batch.column("image"), changed, batch.column("pid")], schema=batch.schema))


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write(tmp_path / "shards", images(tmp_path / "loose", 12))
        return tmp_path / "shards"

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda index: index.update(version=2), "has version 2 of the format, expected 1"),
            (lambda index: index.update(format="webdataset"), "is not an index of shards"),
            (lambda index: index.update(shards=[]), "lists no shards"),
            (lambda index: index["shards"][0].update(file="../loose/0.png"), r"the file '../loose/0.png' is refused"),
            (lambda index: index["shards"][0].update(file="/etc/passwd"), "is refused"),
            (lambda index: index["shards"][0].update(pairs=-1), "its counts are damaged"),
            (lambda index: index["shards"][0].update(pairs=10**30), "its counts are damaged"),
            (lambda index: index["shards"][0].pop("crc"), "expected the keys file, images, pairs, bytes, crc"),
            (lambda index: index["shards"].append(index["shards"][0]), "totals are not those of its shards"),
            (lambda index: index["shards"].pop(), "totals are not those of its shards"),
            (lambda index: index.update(identities=10**30), "totals are not those of its shards"),
            (lambda index: index["shards"][1].update(file="00000.arrow"), "lists a file twice"),
            (lambda index: index["made_of"].update(of=float("nan")), "is damaged or cut off"),
        ],
    )
    def test_an_index_is_refused(self, folder: Path, tmp_path: Path, change: Any, told: str) -> None:
        change_index(folder, change)
        with pytest.raises(UserError, match=told):
            opened(folder, tmp_path)

    def test_a_cut_index_and_foreign_folders_are_refused(self, folder: Path, tmp_path: Path) -> None:
        content = (folder / INDEX_FILE).read_bytes()
        (folder / INDEX_FILE).write_bytes(content[: len(content) // 2])
        shutil.copytree(folder, tmp_path / "deep")
        (tmp_path / "deep" / INDEX_FILE).write_bytes(b"[" * 100_000)
        for address, told in (
            (folder, "is damaged or cut off"),
            (tmp_path / "deep", "is damaged or cut off"),
            (tmp_path / "loose", "holds no shards"),
            (tmp_path / "nowhere", "does not exist"),
            (f"file://{tmp_path}/nowhere", "cannot be read"),
            ("ftp://nowhere/shards", "cannot be read"),
            ("s3://key:hunter2@bucket/shards", "has a password"),
            ("s3://key:hun/ter2@bucket/shards", "has a password"),
            ("abfss://account.net/c?sv=2020&sig=hunter2", "has sig, sv, "),
            ("", "is not given"),
            ("~nobody-of-this-name/shards", "names no folder"),
            ("x" * 5000, "cannot be read"),
            ({"a": {"weight": 2}}, r"dataset\.shards\.a: .* given, expected \{folder"),
            ({"a": {"folder": str(tmp_path), "weight": 0}}, r"dataset\.shards\.a\.weight: 0 given"),
        ):
            with pytest.raises(UserError, match=told) as caught:
                opened(address, tmp_path)
            assert "hunter2" not in str(caught.value)

    def test_a_missing_file_and_pairs_that_come_twice_are_told_at_once(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"dataset\.shards\.b has the same pairs as dataset\.shards\.a"):
            opened({"a": str(folder), "b": str(folder)}, tmp_path)
        os.truncate(folder / "00001.arrow", 500)
        with pytest.raises(UserError, match=r"00001\.arrow has 500 bytes, expected"):
            opened(folder, tmp_path)
        (folder / "00001.arrow").unlink()
        with pytest.raises(UserError, match=r"00001\.arrow is missing"):
            opened(folder, tmp_path)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda folder: replace_shard(folder, b"x" * 500), "is damaged"),
            (lambda folder: replace_shard(folder, with_a_null_caption(folder)), "a caption that is null"),
            (lambda folder: replace_shard(folder, encoded(*[first_shard(folder)] * 2)), "2 record batches"),
            (lambda folder: replace_shard(folder, with_other_columns()), "other columns"),
            (lambda folder: replace_shard(folder, with_bad_offsets(folder)), "is damaged"),
            (lambda folder: change_index(folder, lambda index: index.update(identities=2)), "other identities"),
        ],
    )
    def test_a_damaged_shard_is_one_sentence(self, folder: Path, tmp_path: Path, damage: Any, told: str) -> None:
        damage(folder)
        with pytest.raises(UserError, match=told) as caught:
            dataset(opened(folder, tmp_path))[Draw(0, 0)]
        assert "00000.arrow" in str(caught.value)

    def test_what_vanishes_later_is_one_sentence(self, folder: Path, tmp_path: Path) -> None:
        for address in (folder, f"file://{folder}"):
            mixture = opened(address, tmp_path)
            (folder / "00000.arrow").rename(tmp_path / "away")
            with pytest.raises(UserError, match=r"00000\.arrow .*No such file"):
                dataset(mixture)[Draw(0, 0)]
            (tmp_path / "away").replace(folder / "00000.arrow")
        mixture = opened(folder, tmp_path)
        (folder / "00000.arrow").unlink()
        (folder / "00000.arrow").symlink_to("/dev/zero")
        with pytest.raises(UserError, match="it is not a file"):
            dataset(mixture)[Draw(0, 0)]

    def test_a_changed_byte_is_found_and_a_worker_tells_it(self, folder: Path, tmp_path: Path) -> None:
        content = bytearray((folder / "00000.arrow").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "00000.arrow").write_bytes(content)
        mixture = opened(folder, tmp_path)
        sampler = ShardSampler(mixture.sizes, mixture.shares, 8, seed=1)
        with pytest.raises(UserError, match=r"^the shard \S+/00000.arrow is damaged \(its checksum") as caught:
            list(ResumableLoader(dataset(mixture), sampler, collate, num_workers=1))
        assert not re.search("Traceback|\n", str(caught.value))
