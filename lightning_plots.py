"""Plots of a test that need the model and the data, named in `evaluation.plots`. None means: nothing to show."""

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from data.batch import IMAGE, INDEX, TEXT, Batch
from data.text.words import most_telling, words_of
from lightning_models import LitTBPS
from lightning_ranker import LitRanker
from model.consensus import Consensus
from model.heads import attention_maps
from model.labeling import Labeling
from model.prototypes import Labeler
from utils.report.plots.clusters import outliers_figure
from utils.report.plots.division import division_figure
from utils.report.plots.parts import PartAttention, attention_figure
from utils.report.plots.pictures import Picture
from utils.report.plots.similarity import word_maps_figure
from utils.report.tested import Tested


def word_maps(tested: Tested) -> Picture | None:
    """Returns the similarities of words and patches of a test pair, or None if EFA is not a loss term."""
    module, data, captions = tested.module, tested.data, tested.retrieval.captions
    if not (isinstance(module, LitTBPS) and tested.shown):
        return None
    says_most = max(tested.shown, key=lambda caption: len(set(captions[caption].lower().split())))
    pair = data.test_pair(says_most)
    maps = attention_maps.word_maps(module.objective, module.encoder, *_on_device(pair, module))
    if maps is None:
        return None
    pids = tested.retrieval.text_pids.tolist()
    words = most_telling(words_of(data.tokenize.tokenizer, pair[TEXT].ids[0].tolist()), captions, pids)
    photo, grid = to_pil_image(pair[IMAGE][0]), module.encoder.backbone.grid
    return Picture(word_maps_figure(photo, captions[says_most], words, *maps, grid), ".jpg")


def part_attention(tested: Tested) -> Picture | None:
    """Returns the attention of a part head in test captions and their images, or None without parts."""
    module, data, samples = tested.module, tested.data, []
    for caption in tested.shown:
        pair = data.test_pair(caption)
        attention = attention_maps.part_attention(module.encoder, *_on_device(pair, module))
        if attention is None:
            return None
        words = words_of(data.tokenize.tokenizer, pair[TEXT].ids[0].tolist())
        path, grid = tested.retrieval.paths[int(pair[INDEX])], module.encoder.backbone.grid
        samples.append(PartAttention(path=path, words=words, grid=grid, foreground=attention[0], of_words=attention[1]))
    return Picture(attention_figure(samples), ".jpg") if samples else None


def outliers(tested: Tested) -> Picture | None:
    """Returns the numbers of clusters and outliers over the epochs, or None without clusters."""
    labeler = _labeler(tested)
    return Picture(outliers_figure(labeler.history, labeler.every_n_epochs)) if isinstance(labeler, Labeler) else None


def pair_losses(tested: Tested) -> Picture | None:
    """Returns a histogram of the losses by which training pairs were divided last, or None without a division."""
    labeler = _labeler(tested)
    if not isinstance(labeler, Consensus):
        return None
    return Picture(division_figure(labeler.losses, labeler.pair_weights, tested.data.true_pairs))


def _labeler(tested: Tested) -> Labeling | None:
    return tested.module.labeler if isinstance(tested.module, LitTBPS) else None


def _on_device(pair: Batch, module: LitRanker) -> tuple[Tensor, Tensor, Tensor]:
    """Returns pixels, token ids and mask of a batch on the device of `module`."""
    return pair[IMAGE].to(module.device), *(part.to(module.device) for part in pair[TEXT])
