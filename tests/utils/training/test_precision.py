import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.training.precision import autocast, encoding_precision


@pytest.mark.parametrize(
    ("asked", "training", "device", "expected"),
    [
        ("auto", "bf16-mixed", "cuda", "16-mixed"),
        ("auto", "16-mixed", "cuda", "16-mixed"),
        ("auto", "32-true", "cuda", "32-true"),
        ("auto", "bf16-mixed", "cpu", "32-true"),
        ("auto", "bf16-mixed", "mps", "32-true"),
        ("32-true", "bf16-mixed", "cuda", "32-true"),
        ("bf16-mixed", "32-true", "cpu", "bf16-mixed"),
        ("trainer", "bf16-mixed", "cuda", "bf16-mixed"),
        ("auto", "bf16-true", "cuda", "bf16-true"),
        ("32-true", "64-true", "cpu", "64-true"),
    ],
)
def test_splits_are_encoded_in_fp16_or_fp32_unless_asked_otherwise(
    asked: str, training: str, device: str, expected: str
) -> None:
    assert encoding_precision(asked, training, device) == expected


@pytest.mark.parametrize("asked", ["16-mixd", 32, None])
def test_another_precision_is_one_sentence(asked: object) -> None:
    with pytest.raises(
        UserError, match=r"^evaluation\.precision=.* is unknown; expected auto or trainer or 32-true or"
    ):
        encoding_precision(asked, "bf16-mixed", "cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)]
)
def test_a_precision_holds_within_that_of_training_and_after_weights_were_copied_for_it(
    precision: str, dtype: torch.dtype
) -> None:
    layer, rows = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(rows)  # keeps a copy of the weight in bf16
        with torch.no_grad(), autocast(precision, "cpu"):
            inner = layer(rows)
        after = layer(rows)
    assert (before.dtype, inner.dtype, after.dtype) == (torch.bfloat16, dtype, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert torch.equal(inner, layer(rows))
