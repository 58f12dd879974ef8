import pytest
import torch

from utils.ranking import ranks
from utils.ranking.ranks import one_by_one, together


@pytest.mark.parametrize("compared", [1, 200, 10_000], ids=["a positive", "some positives", "all positives"])
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_both_ways_to_count_give_the_same_numbers(compared: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "COMPARED", compared)
    torch.manual_seed(0)
    scores = torch.randint(50, (9, 13)).float()  # many equal scores
    scores[0, :4] = -torch.inf
    scores = scores.T if turned else scores
    positives = torch.randint(50, (5, len(scores))).float()
    positives[3:, 2] = -torch.inf  # an item with fewer positives
    expected = [
        [sum(score >= own for score in row) for own, row in zip(rank, scores, strict=True)] for rank in positives
    ]
    assert one_by_one(scores, positives, torch.empty_like(scores)).tolist() == expected
    assert together(scores, positives).tolist() == expected
