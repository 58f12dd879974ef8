"""Blank batches have the keys, shapes and types of those that training makes."""

import torch

from data.batch import IMAGE, IMAGE_VIEWS, INDEX, MLM_LABELS, MLM_POSITIONS, PIDS, TEXT, TEXT_MASKED, Tokens
from data.loading.dummy_batch import blank_batch, published_identities


def test_a_blank_batch_has_what_is_needed_and_its_index() -> None:
    batch = blank_batch(frozenset({IMAGE, TEXT, PIDS, "image_labels"}), 5, (32, 16), 7)
    assert set(batch) == {IMAGE, TEXT, PIDS, INDEX}
    assert (batch[IMAGE].shape, batch[IMAGE].dtype) == ((5, 3, 32, 16), torch.uint8)
    assert isinstance(batch[TEXT], Tokens)
    assert (batch[TEXT].ids.shape, batch[TEXT].ids.dtype) == ((5, 7), torch.int64)
    assert batch[TEXT].mask.all()
    assert (batch[PIDS].shape, batch[PIDS].dtype) == ((5,), torch.int64)


def test_a_seventh_of_the_words_is_masked() -> None:
    batch = blank_batch(frozenset({TEXT_MASKED, MLM_LABELS, MLM_POSITIONS}), 10, (32, 16), 10)
    assert batch[MLM_LABELS].shape == (10, 10)
    assert batch[MLM_POSITIONS].shape == (15,)


def test_views_do_not_share_their_memory() -> None:
    batch = blank_batch(frozenset({*IMAGE_VIEWS, TEXT, TEXT_MASKED, MLM_LABELS}), 2, (16, 16), 3)
    tensors = [*(batch[view] for view in IMAGE_VIEWS), batch[TEXT].ids, batch[TEXT_MASKED].ids, batch[MLM_LABELS]]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


def test_identities_are_those_of_the_published_training_set() -> None:
    assert published_identities("cuhk_pedes", 1.0) == 11_003
    assert published_identities("cuhk_pedes", 0.1) == 1_101
    assert published_identities("drawn", 1.0) == 1_600
