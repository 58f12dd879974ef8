import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomErasing

from data.annotations import Record
from data.batch import COPIES, IMAGE, IMAGE_AUG, INDEX, PIDS, SEEDS, SOURCE, TEXT
from data.images.read import Resize, read_image
from data.loading.datasets import CaptionDataset, Collate, ImageDataset, PairDataset
from data.loading.samplers import Draw
from data.views.augmentation import Augmentation, RandomWordDeletion
from data.views.build import Views

READ = partial(read_image, resize=Resize((16, 8), "bicubic"))
ERASING = Augmentation("erasing", image_aug=[RandomErasing(1.0)], text=[RandomWordDeletion(0.5)])


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Images whose grey level is ten times their position; persons 70, 5, 70, 9 with 2, 1, 1, 3 captions."""
    made = []
    for image, (pid, captions) in enumerate([(70, 2), (5, 1), (70, 1), (9, 3)]):
        path = tmp_path / f"{image}.png"
        Image.new("RGB", (8, 16), (10 * image,) * 3).save(path)
        texts = tuple(" ".join(f"i{image}c{caption}w{word}" for word in range(9)) for caption in range(captions))
        made.append(Record(pid, 100 + image, path, texts))
    return made


def pairs(records: list[Record], *, with_pids: bool = True, later: bool = False) -> PairDataset:
    return PairDataset(records, READ, Views({IMAGE, IMAGE_AUG, TEXT}, 8, ERASING), with_pids=with_pids, later=later)


class TestPairDataset:
    def test_every_caption_comes_with_its_image_and_person(self, records: list[Record]) -> None:
        dataset = pairs(records)
        assert len(dataset) == 7
        assert dataset.images.tolist() == [0, 0, 1, 2, 3, 3, 3]
        assert dataset.pids.tolist() == [2, 2, 0, 2, 1, 1, 1]
        for index in range(7):
            sample = dataset[Draw(index, seed=1)]
            image = dataset.images[index]
            assert set(sample) == {IMAGE, IMAGE_AUG, TEXT, PIDS, INDEX}
            assert (sample[IMAGE] == 10 * image).all()
            assert sample[TEXT].startswith(f"i{image}c")
            assert (sample[PIDS], sample[INDEX]) == (dataset.pids[index], index)

    def test_without_pids_a_sample_cannot_depend_on_them(self, records: list[Record]) -> None:
        scrambled = [record._replace(pid=int(pid)) for record, pid in zip(records, (3, 1, 4, 1), strict=True)]
        for draw in (Draw(index, seed=index) for index in range(7)):
            first, second = (pairs(each, with_pids=False)[draw] for each in (records, scrambled))
            assert PIDS not in first
            assert np.array_equal(first.pop(IMAGE_AUG), second.pop(IMAGE_AUG))
            assert str(first) == str(second)

    def test_a_sample_is_a_function_of_its_draw(self, records: list[Record]) -> None:
        dataset = pairs(records)
        torch.manual_seed(0)
        first = dataset[Draw(3, seed=11)]
        torch.manual_seed(1)
        again, other = dataset[Draw(3, seed=11)], dataset[Draw(3, seed=2**40)]
        assert first[TEXT] == again[TEXT] != other[TEXT]
        assert torch.equal(first[IMAGE_AUG], again[IMAGE_AUG])

    def test_image_views_can_be_left_to_others(self, records: list[Record]) -> None:
        now, later = (pairs(records, later=later)[Draw(3, seed=2**40 + 11)] for later in (False, True))
        assert later.keys() == {SOURCE, SEEDS, TEXT, PIDS, INDEX}
        assert later[TEXT] == now[TEXT]
        assert torch.equal(later[SOURCE], READ(records[2]))
        views = Views({IMAGE, IMAGE_AUG}, 8, ERASING).of_images(later[SOURCE][None], [later[SEEDS]])
        assert all(torch.equal(now[view], views[view][0]) for view in (IMAGE, IMAGE_AUG))

    @pytest.mark.parametrize("later", [False, True])
    def test_an_image_is_read_once_and_only_if_needed(self, records: list[Record], later: bool) -> None:
        for needs, reads in (({TEXT}, 0), ({IMAGE, IMAGE_AUG}, 1)):
            read: list[Record] = []

            def counted(record: Record, read: list[Record] = read) -> Tensor:
                read.append(record)
                return READ(record)

            PairDataset(records, counted, Views(needs, 8, ERASING), with_pids=True, later=later)[Draw(0, seed=1)]
            assert read == records[:reads]

    def test_the_random_state_of_the_training_is_left_alone(self, records: list[Record]) -> None:
        before = torch.get_rng_state()
        pairs(records)[Draw(0, seed=5)]
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_largest_seed_is_taken(self, records: list[Record]) -> None:
        assert pairs(records)[Draw(0, seed=2**63 - 1)][INDEX] == 0

    def test_a_copy_that_was_sent_to_another_process_builds_the_same(self, records: list[Record]) -> None:
        dataset = pairs(records)
        copy = pickle.loads(pickle.dumps(dataset))
        first, second = dataset[Draw(1, seed=4)], copy[Draw(1, seed=4)]
        assert torch.equal(first[IMAGE_AUG], second[IMAGE_AUG])
        assert first[TEXT] == second[TEXT]


class TestEvaluationDatasets:
    def test_every_image_once_with_its_raw_identity(self, records: list[Record]) -> None:
        samples = list(map(ImageDataset(records, READ).__getitem__, range(4)))
        assert [sample[PIDS] for sample in samples] == [70, 5, 70, 9]
        assert [sample[INDEX] for sample in samples] == [0, 1, 2, 3]
        assert all((sample[IMAGE] == 10 * image).all() for image, sample in enumerate(samples))

    def test_every_caption_once_as_it_is_with_its_raw_identity(self, records: list[Record]) -> None:
        dataset = CaptionDataset(records)
        samples = [dataset[index] for index in range(len(dataset))]
        assert [sample[TEXT] for sample in samples] == [text for record in records for text in record.captions]
        assert [sample[PIDS] for sample in samples] == [[70], [70], [5], [70], [9], [9], [9]]
        assert [sample[INDEX] for sample in samples] == [[index] for index in range(7)]

    def test_equal_captions_are_one_row_and_short_ones_come_first(self, records: list[Record]) -> None:
        captions = [("a long caption", "a man"), ("a man",), ("red",), ("red", "a man", "x")]
        records = [record._replace(captions=texts) for record, texts in zip(records, captions, strict=True)]
        dataset = CaptionDataset(records)
        samples = [dataset[place] for place in range(len(dataset))]
        assert [sample[TEXT] for sample in samples] == ["x", "red", "a man", "a long caption"]
        batch = Collate(lambda texts: texts)(samples)
        assert batch[COPIES].tolist() == [1, 2, 3, 1]
        assert batch[INDEX].tolist() == [6, 3, 4, 1, 2, 5, 0]
        assert batch[PIDS].tolist() == [9, 70, 9, 70, 5, 9, 70]
