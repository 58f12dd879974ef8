import random
from collections import Counter

import pytest

from data.synthetic.attributes import (
    FIELDS,
    USUAL,
    Appearance,
    Identity,
    is_valid,
    sample_appearance,
    sample_identities,
    sample_twin,
)

SIZES = {"train": 150, "validate": 31, "test": 60}


@pytest.fixture(scope="module")
def identities() -> list[Identity]:
    return sample_identities(SIZES, 0.2, random.Random(5))


def differences(first: Appearance, second: Appearance) -> list[str]:
    return [field for field in FIELDS if getattr(first, field) != getattr(second, field)]


def test_ids_count_from_one_split_by_split(identities: list[Identity]) -> None:
    assert [identity.pid for identity in identities] == list(range(1, 242))
    assert [identity.split for identity in identities] == ["train"] * 150 + ["validate"] * 31 + ["test"] * 60


def test_no_two_people_look_alike(identities: list[Identity]) -> None:
    assert len({identity.appearance for identity in identities}) == len(identities)


def test_twins_are_pairs_of_one_split_that_differ_in_one_attribute(identities: list[Identity]) -> None:
    people = {identity.pid: identity for identity in identities}
    twins = [identity for identity in identities if identity.twin is not None]
    for identity in twins:
        other = people[identity.twin or 0]
        assert other.twin == identity.pid
        assert other.split == identity.split
        assert len(differences(identity.appearance, other.appearance)) == 1
    assert Counter(identity.split for identity in twins) == {"train": 30, "validate": 6, "test": 12}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 20)])
def test_twin_share_reaches_none_and_all(share: float, expected: int) -> None:
    people = sample_identities({"train": 20}, share, random.Random(0))
    assert sum(identity.twin is not None for identity in people) == expected


def test_the_same_seed_gives_the_same_people(identities: list[Identity]) -> None:
    assert sample_identities(SIZES, 0.2, random.Random(5)) == identities
    assert sample_identities(SIZES, 0.2, random.Random(6)) != identities


def test_people_and_twins_obey_the_rules() -> None:
    rng = random.Random(1)
    for _ in range(300):
        person = sample_appearance(rng, USUAL)
        twin = sample_twin(person, rng)
        assert is_valid(person)
        assert is_valid(twin)
        for one in (person, twin):
            assert (one.pattern == "plain") == (one.pattern_color is None)
            assert (one.bag is None) == (one.bag_color is None)
            assert (one.upper == "dress") == (one.lower is None)
            assert (one.upper == "jacket") == (one.inner_color is not None)
            if one.bag in ("handbag", "suitcase"):
                assert one.held_side != one.bag_side


def test_habits_make_a_value_common_or_impossible() -> None:
    people = [sample_appearance(random.Random(seed), {"black": 20, "red": 0, "coat": 0}) for seed in range(200)]
    colors = Counter(person.upper_color for person in people)
    assert colors.most_common(1)[0][0] == "black"
    assert not {"red", "coat"} & {value for person in people for value in vars(person).values() if value != "red"}
    assert colors["red"] == 0


def test_twins_differ_in_many_kinds_of_attribute() -> None:
    rng = random.Random(2)
    people = [sample_appearance(rng, USUAL) for _ in range(300)]
    changed = {differences(person, sample_twin(person, rng))[0] for person in people}
    assert {"upper_color", "lower_color", "shoes_color", "bag_color", "bag_side", "hair_color"} <= changed
