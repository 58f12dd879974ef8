from itertools import chain, pairwise, permutations

import numpy as np
import pytest

from data.loading.samplers import Draw, EpochSampler, IdentitySampler, RandomSampler, StagedSampler
from data.loading.sampling import Sampling
from utils.errors import UserError


def pairs_of(captions_per_image: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (pids, images) of the pairs of persons whose images have these numbers of captions."""
    pids, images, image = [], [], 0
    for pid, person in enumerate(captions_per_image):
        for captions in person:
            pids += [pid] * captions
            images += [image] * captions
            image += 1
    return np.array(pids), np.array(images)


def irregular_persons(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.choice([1, 2, 2, 2, 4, 10], size=rng.integers(1, 7)).tolist() for _ in range(count)]


def epochs(sampler: EpochSampler, count: int) -> list[list[list[Draw]]]:
    result = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        result.append(list(sampler))
    return result


def indices(batches: list[list[Draw]]) -> list[int]:
    return [draw.pair for batch in batches for draw in batch]


def make(kind: str, *, seed: int = 5, **share: int) -> EpochSampler:
    if kind == "random":
        return RandomSampler(203, 12, seed=seed, **share)
    if kind == "staged":
        return StagedSampler(np.array([1, 1, 2, 1, 1, 2, 1] * 29), 12, seed=seed, **share)
    pids, images = pairs_of(irregular_persons(40))
    return IdentitySampler(pids, images, 12, 3, seed=seed, **share)


@pytest.mark.parametrize("kind", ["random", "identity", "staged"])
class TestEverySampler:
    def test_an_epoch_is_as_long_as_len_says_and_every_batch_full(self, kind: str) -> None:
        sampler = make(kind)
        for batches in epochs(sampler, 3):
            assert len(batches) == len(sampler) > 1
            assert {len(batch) for batch in batches} == {12}

    def test_order_and_seeds_are_a_function_of_seed_and_epoch(self, kind: str) -> None:
        first, second = epochs(make(kind), 3), epochs(make(kind), 3)
        assert first == second
        assert all(indices(a) != indices(b) for a, b in pairwise(first))
        seeds = [draw.seed for batches in first for batch in batches for draw in batch]
        assert len(set(seeds)) == len(seeds)

    def test_every_pair_comes_directly_after_every_other_in_some_epoch(self, kind: str) -> None:
        samplers: dict[str, EpochSampler] = {
            "random": RandomSampler(6, 6, seed=0),
            "staged": StagedSampler(np.ones(6, dtype=np.int64), 6, seed=0),
            "identity": IdentitySampler(np.arange(6) // 3, np.arange(6), 6, 3, seed=0),
        }
        neighbors = {pair for batches in epochs(samplers[kind], 150) for pair in pairwise(indices(batches))}
        assert neighbors == set(permutations(range(6), 2))

    def test_the_next_epoch_is_not_that_of_the_next_seed(self, kind: str) -> None:
        assert indices(epochs(make(kind, seed=5), 2)[1]) != indices(epochs(make(kind, seed=6), 1)[0])

    @pytest.mark.parametrize("world_size", [2, 3, 4])
    def test_the_shares_of_all_processes_are_the_batches_of_one(self, kind: str, world_size: int) -> None:
        whole = epochs(make(kind), 2)
        shares = [epochs(make(kind, rank=rank, world_size=world_size), 2) for rank in range(world_size)]
        for epoch in range(2):
            together = [list(chain(*batch)) for batch in zip(*(share[epoch] for share in shares), strict=True)]
            assert together == whole[epoch]

    def test_start_passes_over_batches_and_leaves_len_alone(self, kind: str) -> None:
        sampler = make(kind)
        sampler.set_epoch(1)
        whole = list(sampler)
        for start in (1, len(sampler) - 1, len(sampler)):
            sampler.start = start
            assert list(sampler) == whole[start:]
            assert len(sampler) == len(whole)

    def test_a_batch_that_cannot_be_shared_out_is_refused(self, kind: str) -> None:
        with pytest.raises(UserError, match="choose a multiple of 5"):
            make(kind, rank=0, world_size=5)


class TestRandomSampler:
    def test_no_pair_comes_twice_and_only_an_incomplete_batch_is_dropped(self) -> None:
        for batches in epochs(RandomSampler(203, 12, seed=0), 3):
            seen = indices(batches)
            assert len(seen) == len(set(seen)) == 203 // 12 * 12
            assert set(seen) <= set(range(203))

    def test_the_dropped_pairs_differ_between_epochs(self) -> None:
        left_out = [set(range(23)) - set(indices(batches)) for batches in epochs(RandomSampler(23, 10, seed=0), 8)]
        assert len(set().union(*left_out)) > 3

    def test_a_set_smaller_than_a_batch_is_one_batch(self) -> None:
        (batch,) = RandomSampler(7, 64, seed=0)
        assert sorted(draw.pair for draw in batch) == list(range(7))

    def test_a_small_set_is_rounded_down_to_equal_shares(self) -> None:
        shares = [list(RandomSampler(7, 64, seed=0, rank=rank, world_size=2)) for rank in range(2)]
        assert [[len(batch) for batch in share] for share in shares] == [[3], [3]]
        assert len(set(indices(shares[0] + shares[1]))) == 6

    def test_fewer_pairs_than_processes_are_refused(self) -> None:
        with pytest.raises(UserError, match="1 image-caption pairs for 2 processes"):
            RandomSampler(1, 64, seed=0, world_size=2)


def staged(first: int, second: int, left_out: int = 0) -> StagedSampler:
    """Batches of 8 of so many pairs of stage 1, 2 and 0, whose numbers begin at 0, 100 and 200."""
    stages = np.zeros(300, dtype=np.int64)
    stages[:first], stages[100 : 100 + second] = 1, 2
    kept = np.r_[:first, 100 : 100 + second, 200 : 200 + left_out]
    sampler = StagedSampler(stages[kept], 8, seed=0)
    sampler.numbers = kept  # type: ignore[attr-defined]
    return sampler


def numbers(sampler: StagedSampler) -> list[list[int]]:
    return [[sampler.numbers[draw.pair] for draw in batch] for batch in sampler]  # type: ignore[attr-defined]


class TestStagedSampler:
    @pytest.mark.parametrize(("first", "second"), [(40, 24), (43, 29), (61, 3), (64, 0), (13, 50), (9, 8)])
    def test_stage_2_follows_stage_1_in_batches_of_its_own(self, first: int, second: int) -> None:
        batches = numbers(staged(first, second))
        assert len(batches) == (first + second) // 8
        stages = [{number // 100 for number in batch} for batch in batches]
        assert stages == [{0}] * (len(batches) - second // 8) + [{1}] * (second // 8)
        assert all(len(set(batch)) == 8 for batch in batches)
        drawn = [number for batch in batches for number in batch]
        later = [number for number in drawn if number >= 100]
        assert len(set(later)) == len(later)
        counts = np.bincount([number for number in drawn if number < 100], minlength=first)
        assert counts.max() - counts.min() <= 1

    def test_left_out_pairs_never_come_and_the_others_take_turns(self) -> None:
        batches = numbers(staged(20, 0, left_out=44))
        assert len(batches) == 8
        counts = np.bincount([number for batch in batches for number in batch])
        assert len(counts) == 20
        assert set(counts) == {3, 4}

    def test_stage_2_alone_is_a_random_epoch(self) -> None:
        batches = numbers(staged(0, 64))
        assert sorted(number for batch in batches for number in batch) == list(range(100, 164))

    def test_fewer_clustered_pairs_than_a_batch_repeat_or_wait(self) -> None:
        assert [{number // 100 for number in batch} for batch in numbers(staged(5, 19))] == [{0}, {1}, {1}]
        assert [{number // 100 for number in batch} for batch in numbers(staged(5, 16))] == [{1}, {1}]

    def test_stages_are_read_when_an_epoch_begins(self) -> None:
        stages = np.ones(32, dtype=np.int64)
        sampler = StagedSampler(stages, 8, seed=0)
        before = list(sampler)
        stages[:8] = 2
        assert len(before) == len(list(sampler)) == 4
        assert sorted(draw.pair for draw in list(sampler)[-1]) == list(range(8))

    def test_a_set_smaller_than_a_batch_is_one_batch(self) -> None:
        (batch,) = StagedSampler(np.array([1, 2, 1]), 8, seed=0)
        assert {draw.pair for draw in batch} == {0, 2}
        assert len(batch) == 3


class TestIdentitySampler:
    @pytest.mark.parametrize(("batch_size", "num_instance"), [(24, 4), (24, 1), (24, 24), (6, 3), (40, 1)])
    def test_every_batch_has_p_persons_with_k_pairs_side_by_side(self, batch_size: int, num_instance: int) -> None:
        pids, images = pairs_of(irregular_persons(40))
        sampler = IdentitySampler(pids, images, batch_size, num_instance, seed=1)
        for batches in epochs(sampler, 3):
            assert len(batches) == len(sampler)
            for batch in batches:
                persons = pids[[draw.pair for draw in batch]].reshape(-1, num_instance)
                assert (persons == persons[:, :1]).all()
                assert len(set(persons[:, 0])) == batch_size // num_instance

    def test_pairs_and_images_repeat_only_where_a_person_has_too_few(self) -> None:
        persons = [[2] * int(n) for n in np.random.default_rng(1).integers(1, 8, size=40)]
        pids, images = pairs_of(persons)
        for batches in epochs(IdentitySampler(pids, images, 24, 4, seed=1), 3):
            for group in np.array(indices(batches)).reshape(-1, 4):
                own_images = len(persons[pids[group[0]]])
                assert len(set(group)) == min(4, 2 * own_images)
                assert len(set(images[group])) == min(4, own_images)

    def test_one_instance_shows_every_pair_once_but_for_the_last_batch(self) -> None:
        persons = [[2, 2]] * 30 + [[1]] * 13
        pids, images = pairs_of(persons)
        sampler = IdentitySampler(pids, images, 10, 1, seed=1)
        for batches in epochs(sampler, 3):
            seen = indices(batches)
            assert len(seen) == len(set(seen)) == len(pids) // 10 * 10

    @pytest.mark.parametrize("images_per_person", [range(3, 4), range(2, 8), range(1, 6)])
    def test_an_epoch_is_as_long_as_the_set_and_persons_come_by_their_pairs(self, images_per_person: range) -> None:
        numbers = np.random.default_rng(0).choice(images_per_person, size=500)
        pids, images = pairs_of([[2] * int(n) for n in numbers])
        sampler = IdentitySampler(pids, images, 24, 4, seed=1)
        sizes = np.bincount(pids)
        due = np.maximum(sizes, 4)
        assert len(sampler) == due.sum() // 24
        total = np.zeros(500)
        for batches in epochs(sampler, 6):
            turns = np.bincount(pids[indices(batches)], minlength=500) / 4
            total += turns
            assert (turns <= np.ceil(due / 4)).all()
            assert (np.floor(due / 4) - turns).clip(0).sum() <= 6
        assert total.mean() == pytest.approx(6 * due.mean() / 4, rel=0.01)

    def test_an_epoch_is_the_longest_that_distinct_persons_allow(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(30):
            persons = [[1] * int(n) for n in rng.integers(1, 12, size=rng.integers(3, 9))]
            pids, images = pairs_of(persons)
            p = int(rng.integers(1, len(persons) + 1))
            assert len(IdentitySampler(pids, images, p, 1, seed=0)) == greedy_batches([len(x) for x in persons], p)

    def test_a_person_with_most_of_the_pairs_is_in_every_batch_but_not_twice(self) -> None:
        pids, images = pairs_of([[100], [2], [2], [2]])
        sampler = IdentitySampler(pids, images, 2, 1, seed=0)
        batches = list(sampler)
        assert len(batches) == 6
        assert all(sorted(pids[[d.pair for d in batch]] == 0) == [False, True] for batch in batches)

    def test_batches_of_a_person_are_spread_over_the_epoch(self) -> None:
        pids, images = pairs_of([[1] * 5 for _ in range(60)])
        batches = list(IdentitySampler(pids, images, 6, 1, seed=0))
        of_person_0 = [n for n, batch in enumerate(batches) if 0 in pids[[d.pair for d in batch]]]
        assert len(of_person_0) == 5
        assert max(of_person_0) - min(of_person_0) > 5

    def test_what_cannot_be_is_refused(self) -> None:
        pids, images = pairs_of([[2, 2]] * 4)
        with pytest.raises(UserError, match=r"num_instance=5 does not divide dataset\.batch_size=24"):
            IdentitySampler(pids, images, 24, 5, seed=0)
        with pytest.raises(UserError, match="num_instance=0 does not divide"):
            IdentitySampler(pids, images, 24, 0, seed=0)
        with pytest.raises(UserError, match="needs 6 persons in a batch, but the training set has 4"):
            IdentitySampler(pids, images, 24, 4, seed=0)


@pytest.mark.parametrize(("num_instance", "batch_size", "key"), [(1, 0, "batch_size"), (-1, 4, "num_instance")])
def test_batches_of_nothing_are_refused(num_instance: int, batch_size: int, key: str) -> None:
    with pytest.raises(UserError, match=rf"dataset\.{key}: .+ given, expected at least 1"):
        Sampling("random", num_instance, batch_size, seed=0, with_pids=True)


def greedy_batches(left: list[int], persons: int) -> int:
    """Returns how many batches come out when each takes the persons with the most turns left (optimal)."""
    batches = 0
    while True:
        left.sort(reverse=True)
        if left[persons - 1] == 0:
            return batches
        for place in range(persons):
            left[place] -= 1
        batches += 1
