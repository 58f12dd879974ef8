"""Tiny SigLIP, CLIP and ResNet-BERT from scratch: real classes and tokenizers, small enough to train on a CPU."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BaseImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)
from transformers.utils import logging

from model.backbones.bert import join_towers
from utils.checkpoints.disk import scratch_folder

WIDTH: Final = 128
PATCH_SIZE: Final = 16
IMAGE_SIZE: Final = 128
TEXT_LENGTH: Final = 40
TEXT_POSITIONS: Final = {"siglip": 64, "clip": 77, "bert": 64}
VOCAB_SIZE: Final = 2000
_TOWER: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_VISION: Final = {**_TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
_SQUARE: Final = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_Parts = tuple[PreTrainedModel, PreTrainedTokenizerFast, BaseImageProcessor]


def make_tiny(name: str, captions: Iterable[str], folder: Path, seed: int = 0) -> Path:
    """Returns `folder`, newly written with a tiny model, its tokenizer and its image normalisation.

    The same captions, seed and library versions give the same bytes. The folder appears whole or not at
    all; of several processes that make it at once, the first one wins.

    Args:
        name: ``tiny_siglip``, ``tiny_clip`` or ``tiny_resnet_bert``.
        captions: what the tokenizer learns from, in every language that the model will see.
        folder: where to write; must not exist.
    """
    with (
        scratch_folder(folder) as temporary,
        torch.random.fork_rng(devices=[]),
        _silent_transformers(),
    ):
        torch.manual_seed(seed)
        parts = MAKERS[name](captions)
        for part in parts:
            part.save_pretrained(temporary / "made")
        try:
            (temporary / "made").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


@torch.no_grad()
def _ease_reading(bert: BertModel) -> None:
    """Does for a BERT what `_ease_learning` does for the text tower of a SigLIP or CLIP."""
    embeddings = bert.embeddings
    embeddings.word_embeddings.weight.normal_(std=0.3)
    positions = embeddings.position_embeddings.weight
    positions.copy_(0.3 * _sinusoids(len(positions), WIDTH))
    for layer in bert.encoder.layer[:2]:
        for projection in (layer.attention.self.query, layer.attention.self.key):
            projection.weight.mul_(0.5).add_(0.7 * torch.eye(WIDTH))


@torch.no_grad()
def _ease_learning(model: Any) -> None:
    """Replaces initial values by such that a few hundred steps are enough to learn which word goes with which.

    Positions are sinusoidal (Vaswani et al., NeurIPS 2017), so that neighbours are easy to find, and queries
    and keys start similar (mimetic initialisation, Trockman and Kolter, ICML 2023).
    """
    text, vision = model.text_model, model.vision_model
    text.embeddings.token_embedding.weight.normal_(std=0.3)
    positions = text.embeddings.position_embedding.weight
    positions.copy_(0.3 * _sinusoids(len(positions), WIDTH))
    side = IMAGE_SIZE // PATCH_SIZE
    axis = _sinusoids(side, WIDTH // 2)
    grid = torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], dim=1)
    vision.embeddings.position_embedding.weight[-len(grid) :] = 0.3 * grid
    for layer in (*text.encoder.layers[:2], *vision.encoder.layers[:2]):
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.mul_(0.5).add_(0.7 * torch.eye(WIDTH))


def _sinusoids(positions: int, width: int) -> torch.Tensor:
    """Returns sines and cosines of the positions ``(positions, width)``, wave lengths from 2 pi to 200 pi."""
    rates = 100.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _siglip(captions: Iterable[str]) -> _Parts:
    """Sigmoid family: texts are padded to the full length; scale 10 and bias -10 as SigLIP starts from."""
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = _tokenizer(captions, specials, template="$A </s>", max_length=TEXT_POSITIONS["siglip"])
    text = {
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION))
    _ease_learning(model)
    with torch.no_grad():
        model.logit_scale.fill_(log(10))
        model.logit_bias.fill_(-10)
    return model, tokenizer, SiglipImageProcessor(size=_SQUARE)


def _clip(captions: Iterable[str]) -> _Parts:
    """Softmax family: pooled at the first end-of-text token, which also pads; scale 1/0.07."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    specials = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": "<unk>"}
    tokenizer = _tokenizer(captions, specials, template=f"{start} $A {end}", max_length=TEXT_POSITIONS["clip"])
    text = {
        **_TOWER,
        "projection_dim": WIDTH,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**_VISION, "projection_dim": WIDTH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    _ease_learning(model)
    return model, tokenizer, CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=_SQUARE)


def _resnet_bert(captions: Iterable[str]) -> _Parts:
    """A ResNet and a BERT, joined: texts begin with [CLS] and end with [SEP]."""
    specials = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tokenizer = _tokenizer(captions, specials, template="[CLS] $A [SEP]", max_length=TEXT_POSITIONS["bert"])
    text = BertConfig(
        **_TOWER,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    bert = BertModel(text)
    _ease_reading(bert)
    vision = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, WIDTH], depths=[1, 1, 1, 1], layer_type="basic")
    model = join_towers(ResNetModel(vision), bert, WIDTH)
    return model, tokenizer, ConvNextImageProcessor(size={"shortest_edge": IMAGE_SIZE}, do_resize=False)


def _tokenizer(
    captions: Iterable[str], specials: dict[str, str], *, template: str, max_length: int
) -> PreTrainedTokenizerFast:
    """Returns a BPE tokenizer of at most `VOCAB_SIZE` tokens, special ones first.

    It reads lower-cased NFC text without punctuation, which SigLIP drops as well.

    Words are told from word parts by a leading mark, as in SentencePiece: the suffix of CLIP's vocabulary
    makes the `tokenizers` trainer number its alphabet differently in every process.

    Args:
        specials: role -> token, in the order of their ids.
        template: where special tokens go around a text ``$A``.
    """
    core = Tokenizer(models.BPE(unk_token=specials["unk_token"]))
    no_punctuation = normalizers.Replace(Regex(r"\p{P}+"), " ")
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), no_punctuation])
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(dict.fromkeys(specials.values())),
        initial_alphabet=list(ascii_lowercase + digits),
        show_progress=False,
    )
    core.train_from_iterator(captions, trainer)
    around = [(token, core.token_to_id(token)) for token in specials.values() if token in template]
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=max_length, **specials)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keeps transformers from reporting every file it writes and every default it would have doubted."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


MAKERS: Final = {"tiny_siglip": _siglip, "tiny_clip": _clip, "tiny_resnet_bert": _resnet_bert}
