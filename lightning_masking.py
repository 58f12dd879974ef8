"""Noise-aware masking in the training step: words are masked on the device, by what the last epoch has found."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from data.batch import IMAGE, INDEX, MASK_DRAWS, MLM_LABELS, TEXT_MASKED, Batch, Tokens
from data.text.masking import Masker
from model.features import Features
from model.noise_aware_masking import MatchedCaptions, NoiseAwareMasking, PlainCaptions
from model.tbps import TBPS
from utils.errors import UserError

if TYPE_CHECKING:
    from lightning_models import LitTBPS


def build_masking(cfg: DictConfig, needs: Collection[str], encoder: TBPS) -> NoiseAwareMasking | None:
    """Returns the masking that `cfg.masking` describes, or None if the loader masks all words alike.

    Args:
        needs: what the losses need.

    Raises:
        UserError: the losses, the augmentation or the backbone do not go with noise-aware masking.
    """
    if cfg.masking.name == "uniform":
        return None
    asked = f"masking={cfg.masking.name}"
    if MLM_LABELS in needs:
        raise UserError(
            f"{asked} makes no labels of masked words, which loss.terms.mlm needs: leave the term out with "
            "~loss.terms.mlm, or set masking=uniform"
        )
    if TEXT_MASKED not in needs:
        raise UserError(
            f"{asked} changes masked captions, but no loss reads them: set loss.terms.sdm.text_view=text_masked, "
            "choose loss=sdm_masked or loss=nitc_masked, or set masking=uniform"
        )
    moving = {"aug.text": cfg.aug.get("text"), "aug.tokens": cfg.aug.get("tokens")}
    moving["dataset.further_captions"] = cfg.dataset.further_captions
    for option, value in moving.items():
        if value:
            empty = "[]" if option == "aug.text" else "null"
            raise UserError(
                f"{asked} remembers each word by its place in the caption, which {option} changes from epoch to "
                f"epoch: set {option}={empty}, or masking=uniform"
            )
    if not all(encoder.backbone.grid):
        raise UserError(
            f"{asked} compares words with the patches of an image, but the image tower of {cfg.backbone.name} has "
            "none: choose a backbone with a vision transformer, or set masking=uniform"
        )
    masking: NoiseAwareMasking = instantiate(cfg.masking, max_length=cfg.backbone.max_length)
    return masking


def masked_features(
    module: "LitTBPS",
    batch: Batch,
    epoch: float,
    gather: Callable[[Tensor], Tensor],
    masking: NoiseAwareMasking,
    masker: Masker,
) -> Features:
    """Returns `module.features` of a batch whose words are masked here, and keeps its probabilities of the next epoch.

    The unmasked captions are encoded once more, without gradient. The images are those that the losses compare.

    Args:
        batch: on the device, with `TEXT_MASKED` as it was tokenised, and `MASK_DRAWS`.
        epoch, gather: as in `Features`.
    """
    plain: Tokens = batch[TEXT_MASKED]
    draws, probabilities = masking.columns(batch[MASK_DRAWS], plain.ids), masking.of(batch[INDEX], plain.ids)
    masked, _ = masker.mask(plain, draws, probabilities)
    captions = PlainCaptions(*plain, masker.vocabulary.is_word(plain))
    backbone = module.encoder.backbone
    matched = MatchedCaptions(captions, lambda ids, mask: backbone.text(ids, mask).tokens, masking.share)
    features = module.features({**batch, TEXT_MASKED: masked}, epoch, gather, matched)
    features.expect(module.objective.needs)
    matched(features.image(IMAGE))  # GradCache has shown it the images already, and it does not look again
    masking.keep(batch[INDEX], matched.probabilities, gather)
    return features
