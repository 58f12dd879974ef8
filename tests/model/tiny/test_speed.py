"""The estimate of how long training takes."""

import torch

from model.tiny.speed import seconds_per_pair


def test_the_speed_of_training_is_measured_without_a_trace() -> None:
    before = torch.random.get_rng_state()
    assert 0 < seconds_per_pair() < 1
    assert torch.equal(before, torch.random.get_rng_state())
