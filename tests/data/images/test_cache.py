import multiprocessing
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import data.images.cache
import utils.training.threads
from data.annotations import Record
from data.images.cache import ImageCache
from data.images.read import DecodedImage, Resize, decode_image, read_image
from utils.errors import UserError

RESIZE = Resize((12, 6), "bicubic")
ROW = 3 * 12 * 6
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "PEDES" / "imgs" / "a").mkdir(parents=True)
    return tmp_path / "PEDES"


@pytest.fixture
def cache(root: Path, tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "caches", root, RESIZE)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The files that were decoded so far, by their bytes."""
    contents: list[bytes] = []

    def counting(content: bytes, resize: Resize) -> DecodedImage:
        contents.append(content)
        return decode_image(content, resize)

    monkeypatch.setattr(data.images.cache, "decode_image", counting)
    return contents


@pytest.fixture
def in_fours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.images.cache, "AT_ONCE", 4)
    monkeypatch.setattr(utils.training.threads, "AHEAD", 4)


def drawn(root: Path, count: int, first: int = 0) -> list[Record]:
    """Returns records of `count` new images, each of its own noise."""
    return [draw(root / "imgs" / "a" / f"{i}.png", seed=i) for i in range(first, first + count)]


def draw(path: Path, seed: int) -> Record:
    noise = np.random.default_rng(seed).integers(0, 256, (20, 10, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    return Record(seed, seed, path, ("a",))


def check(reader: Callable[[Record], Tensor], records: list[Record]) -> None:
    for record in records:
        assert torch.equal(reader(record), read_image(record, RESIZE))


def pixels_file(cache: ImageCache) -> Path:
    (file,) = cache.folder.glob("pixels-*")
    return file


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << at % 8
    file.write_bytes(content)


def rows_on_disk(cache: ImageCache) -> int:
    return pixels_file(cache).stat().st_size // ROW


class TestReading:
    def test_the_pixels_are_those_of_the_file(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 9)
        reader = cache.reader(records)
        check(reader, records)
        image = reader(records[3])
        assert (image.shape, image.dtype) == ((3, *RESIZE.size), torch.uint8)
        image.zero_()  # a copy, which transforms may change
        check(reader, records)
        assert cache.folder.relative_to(cache.folder.parents[1]) == Path("PEDES/12x6")

    def test_what_was_decoded_once_is_read_without_the_files(
        self, cache: ImageCache, root: Path, tmp_path: Path, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 5)
        reader = cache.reader(records)
        expected = [read_image(record, RESIZE) for record in records]
        assert len(decoded) == 5
        second_run = ImageCache(tmp_path / "caches", root, RESIZE).reader(records)
        assert len(decoded) == 5
        for record in records:
            record.image_path.unlink()
        for each in (reader, second_run):
            assert all(torch.equal(each(record), image) for record, image in zip(records, expected, strict=True))

    def test_a_full_cache_needs_no_right_to_write(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        (cache.folder / "lock").unlink(missing_ok=True)
        before = {path: path.stat().st_mtime_ns for path in (cache.folder, *cache.folder.iterdir())}
        check(cache.reader(records), records)
        assert before == {path: path.stat().st_mtime_ns for path in (cache.folder, *cache.folder.iterdir())}

    def test_a_reader_travels_to_another_process_without_its_pixels(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 40)
        sent = pickle.dumps(cache.reader(records))
        assert len(sent) < rows_on_disk(cache) * ROW
        check(pickle.loads(sent), records)

    @pytest.mark.parametrize("other", [Resize((6, 12), "bicubic"), Resize((12, 6), "bilinear")])
    def test_each_size_and_filter_has_its_own(
        self, other: Resize, cache: ImageCache, root: Path, tmp_path: Path
    ) -> None:
        records = drawn(root, 2)
        before = cache.reader(records)
        found = ImageCache(tmp_path / "caches", root, other).reader(records)(records[1])
        assert torch.equal(found, read_image(records[1], other))
        assert torch.equal(before(records[1]), read_image(records[1], RESIZE))
        assert not torch.equal(found, before(records[1]))

    def test_a_bicubic_cache_of_an_earlier_version_is_read_on(self, cache: ImageCache) -> None:
        assert cache.folder.name == "12x6"

    def test_a_broken_image_is_named_and_the_others_are_kept(
        self, cache: ImageCache, root: Path, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 6)
        content = records[4].image_path.read_bytes()
        for damage, reason in ((b"", "the file is empty"), (b"<html>", "not an image")):
            records[4].image_path.write_bytes(damage)
            assert cache.reader(records).broken == [(records[4], reason)]
        records[4].image_path.unlink()
        reader = cache.reader(records)
        assert reader.broken == [(records[4], "there is no such file")]
        check(reader, [*records[:4], records[5]])
        records[4].image_path.write_bytes(content)
        decoded.clear()
        check(cache.reader(records), records)
        assert decoded == [content]


class TestChanges:
    def test_only_new_images_are_decoded(self, cache: ImageCache, root: Path, decoded: list[bytes]) -> None:
        few = drawn(root, 4)
        cache.reader(few)
        more = [*drawn(root, 3, first=4), *few]
        check(cache.reader(more), more)
        assert len(decoded) == 7

    def test_a_changed_image_is_decoded_again_and_no_other(
        self, cache: ImageCache, root: Path, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 5)
        old = cache.reader(records)
        before = old(records[2])
        length = records[2].image_path.stat().st_size
        draw(records[2].image_path, seed=99)
        assert records[2].image_path.stat().st_size == length
        check(cache.reader(records), records)
        assert len(decoded) == 6
        assert torch.equal(old(records[2]), before)  # a training that goes on is not disturbed

    def test_a_change_is_noticed_though_its_time_was_set_back(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        times = records[1].image_path.stat()
        draw(records[1].image_path, seed=99)
        os.utime(records[1].image_path, ns=(times.st_atime_ns, times.st_mtime_ns))
        check(cache.reader(records), records)

    def test_the_same_content_is_not_decoded_again(self, cache: ImageCache, root: Path, decoded: list[bytes]) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        os.utime(records[0].image_path, ns=(1, 1))
        moved = records[1]._replace(image_path=records[1].image_path.rename(root / "imgs" / "moved.png"))
        again = [records[0], moved, records[2]]
        for _ in range(2):
            check(cache.reader(again), again)
            lines = (cache.folder / "index").read_bytes().count(b"\n")
            assert (len(decoded), rows_on_disk(cache), lines) == (3, 3, 1 + 3 + 2)

    def test_what_looks_odd_is_remembered(self, cache: ImageCache, root: Path, decoded: list[bytes]) -> None:
        records = drawn(root, 2)
        for name in "ab":
            Image.new("L", (30, 60)).save(root / "imgs" / f"{name}.png")
            records.append(Record(9, 9, root / "imgs" / f"{name}.png", ("a",)))
        assert cache.reader(records).oddities == {"constant": 2}
        assert cache.reader(records).oddities == {"constant": 2}
        assert cache.reader(records[:3]).oddities == {"constant": 1}
        assert len(decoded) <= 4

    def test_a_cache_of_the_old_way_of_reading_is_not_reused(
        self, cache: ImageCache, root: Path, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        index = cache.folder / "index"
        header, *lines = index.read_bytes().splitlines(keepends=True)
        assert b'{"version": 3, ' in header
        index.write_bytes(b"".join([header.replace(b'"version": 3', b'"version": 1'), *lines]))
        decoded.clear()
        check(cache.reader(records), records)
        assert len(decoded) == 3

    def test_equal_images_share_a_row(self, cache: ImageCache, root: Path) -> None:
        records = [draw(root / "imgs" / f"{name}.png", seed=1) for name in "abc"]
        check(cache.reader(records), records)
        assert rows_on_disk(cache) == 1

    def test_another_decoder_begins_anew(
        self, cache: ImageCache, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 3)
        old = cache.reader(records)
        monkeypatch.setattr("PIL.__version__", "0.0")
        check(ImageCache(tmp_path / "caches", root, RESIZE).reader(records[:2]), records[:2])
        assert (len(decoded), rows_on_disk(cache)) == (5, 2)
        check(old, records)


@pytest.mark.usefixtures("in_fours")
class TestDamage:
    def test_a_killed_build_continues(
        self, cache: ImageCache, root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 40)
        last = records[30].image_path.read_bytes()

        def killing(content: bytes, resize: Resize) -> DecodedImage:
            if content == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return decode_image(content, resize)

        with monkeypatch.context() as patch:
            patch.setattr(data.images.cache, "decode_image", killing)
            child = FORK.Process(target=cache.reader, args=(records,))
            child.start()
            child.join()
        assert child.exitcode == -signal.SIGKILL
        done = (cache.folder / "index").read_bytes().count(b"\n") - 1
        assert 24 <= done <= 30  # all but those that were ahead of the index
        check(cache.reader(records), records)
        kept = {record.image_path.read_bytes() for record in records[:done]}
        assert len(decoded) == 40 - done
        assert not kept & set(decoded)

    def test_wherever_a_file_ends_the_pixels_are_right(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 6)
        cache.reader(records)
        sound = {path: path.read_bytes() for path in (cache.folder / "index", pixels_file(cache))}
        for path, content in sound.items():
            for end in range(0, len(content), 23):
                pixels_file(cache).unlink()
                for other, whole in sound.items():
                    other.write_bytes(whole)
                os.truncate(path, end)
                check(cache.reader(records), records)
                check(cache.reader(records[3:]), records[3:])

    @pytest.mark.filterwarnings("ignore:the image cache .* is damaged")
    @pytest.mark.parametrize("name", ["index", "pixels-*"])
    def test_a_flipped_bit_is_never_trained_on(self, cache: ImageCache, root: Path, name: str) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        for at in range(0, next(cache.folder.glob(name)).stat().st_size, 17):
            (file,) = cache.folder.glob(name)
            flip(file, at)
            check(cache.reader(records), records)
            if name != "index":
                flip(file, at)

    def test_a_damaged_row_is_decoded_again_with_a_word(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 3)
        reader = cache.reader(records)
        flip(pixels_file(cache), ROW + 5)
        with pytest.warns(UserWarning, match=r"the image cache .* is damaged; .* delete .*/PEDES/12x6"):
            check(reader, records)

    @pytest.mark.parametrize("name", ["index", "pixels-*"])
    def test_a_lost_file_is_made_again(self, cache: ImageCache, root: Path, name: str) -> None:
        records = drawn(root, 3)
        cache.reader(records)
        (lost,) = cache.folder.glob(name)
        lost.unlink()
        check(cache.reader(records), records)

    @pytest.mark.parametrize(
        "garbage", [b"\0\xff\n", b"[]\n", b'["a", 1, "b", 2]\n', b'["a", [1, 2, 3], "b", "0"]\n', b"{}\n"]
    )
    def test_a_damaged_line_and_all_behind_it_are_not_believed(
        self, cache: ImageCache, root: Path, garbage: bytes, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 6)
        cache.reader(records)
        index = cache.folder / "index"
        lines = index.read_bytes().splitlines(keepends=True)
        index.write_bytes(b"".join([*lines[:4], garbage, *lines[4:]]))
        decoded.clear()
        check(cache.reader(records), records)
        assert len(decoded) == 3
        assert garbage not in index.read_bytes()

    def test_rows_that_were_given_away_do_not_come_back(self, cache: ImageCache, root: Path) -> None:
        """The lines of rows that were lost must not name the rows that take their place."""
        records = drawn(root, 6)
        cache.reader(records)
        os.truncate(pixels_file(cache), 2 * ROW)
        new = drawn(root, 6, first=10)
        check(cache.reader(new), new)
        check(cache.reader(records), records)

    def test_builds_at_the_same_time_share_the_work(self, cache: ImageCache, root: Path) -> None:
        records = drawn(root, 30)
        start, right = FORK.Barrier(3), FORK.Queue()

        def build(mine: list[Record]) -> None:
            start.wait()
            reader = cache.reader(mine)
            right.put(all(torch.equal(reader(record), read_image(record, RESIZE)) for record in mine))

        shares = (records, records[::-1], records[10:20])
        children = [FORK.Process(target=build, args=(share,)) for share in shares]
        for child in children:
            child.start()
        assert [right.get(timeout=60) for _ in children] == [True] * 3
        for child in children:
            child.join()
        assert rows_on_disk(cache) == 30


class TestFoldersThatRefuse:
    def test_no_folder_can_be_made(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "caches").write_text("a file")
        with pytest.raises(UserError) as error:
            ImageCache(tmp_path / "caches", root, RESIZE).reader(drawn(root, 2))
        sentence = str(error.value)
        assert sentence.startswith(f"the image cache {tmp_path / 'caches' / 'PEDES' / '12x6'} cannot be used (Not a")
        assert "dataset.cache_dir" in sentence
        assert "dataset.cache=false" in sentence

    @pytest.mark.usefixtures("in_fours")
    def test_a_full_disk_ends_in_one_sentence_and_the_build_continues(
        self, cache: ImageCache, root: Path, decoded: list[bytes]
    ) -> None:
        records = drawn(root, 40)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30 * ROW + 7, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot be used \(File too large; 40 images take 0\.0 GB\)"):
                cache.reader(records)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        decoded.clear()
        check(cache.reader(records), records)
        assert 10 <= len(decoded) <= 14
