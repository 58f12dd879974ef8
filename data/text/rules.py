"""Text rules that come with a backbone: how a caption is changed before the tokenizer reads it."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Final

import ftfy
from tokenizers import normalizers
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from utils.checkpoints.backbone_facts import open_clip_config, open_clip_library
from utils.checkpoints.folder import read_json
from utils.checkpoints.layouts import CONFIGS
from utils.errors import UserError

Rule = Callable[[str], str]
RULE: Final = "caption_rule"  # attribute of a tokenizer that has a rule of its own
GEMMA_TOKENS: Final = 256_000  # rows of the token table of SigLIP 2; no other SigLIP has as many
GEMMA_CLASSES: Final = ("Gemma", "Siglip2")  # first words of classes of its tokenizer


def clean_caption(caption: str) -> str:
    """Returns a caption cleaned as in OpenAI's CLIP: mojibake, quotes, ligatures, wide letters and HTML escapes.

    Source: `basic_clean` and `whitespace_clean` of CLIP (Radford et al., ICML 2021); transformers' tokenizer does not
    do this since version 5.

    >>> clean_caption("a man\u2019s \ufb01tted T-shirt &amp; cap")
    "a man's fitted T-shirt & cap"
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return caption  # nearly all captions; ftfy would take half a millisecond for each
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split())


def rule_of(tokenizer: PreTrainedTokenizerBase) -> Rule | None:
    """Returns the rule for captions: that of the folder, or `clean_caption` for CLIP's tokenizer, or None."""
    return getattr(tokenizer, RULE, clean_caption if isinstance(tokenizer, CLIPTokenizer) else None)


def transformers_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder of transformers. That of SigLIP 2 lower-cases texts, as in its pre-training.

    transformers reads a folder of SigLIP 2 with the tokenizer of Gemma, which keeps case. Its `Siglip2Tokenizer` puts
    the same `Lowercase` before Gemma's rules.

    Raises:
        UserError: the folder is one of SigLIP 2, and its tokenizer keeps case.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if not _is_siglip2(folder, tokenizer):
        return tokenizer
    if (core := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        core.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [core.normalizer])])
    if tokenizer("A MAN in Red")["input_ids"] != tokenizer("a man in red")["input_ids"]:
        raise UserError(
            f"The tokenizer in {folder} keeps the case of texts, but SigLIP 2 was trained on lower-cased texts; save a "
            "tokenizer of the class Siglip2Tokenizer there, or fill the folder again with 'uv run "
            "prepare_checkpoints.py siglip2'."
        )
    return tokenizer


def open_clip_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder of open_clip, with the library's rule for captions.

    Its ids are those of `open_clip.get_tokenizer("local-dir:FOLDER")`, but padding of a `SimpleTokenizer` is left to
    the backbone.

    Raises:
        UserError: the library reads texts for this model by a rule that this project does not have.
    """
    open_clip_library()
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    text = open_clip_config(folder, None)["model_cfg"]["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    others = [*(options.keys() - {"clean"}), *(["tokenizer_mode"] if text.get("tokenizer_mode") else [])]
    if others:
        raise UserError(f"The texts of {folder} need open_clip's rule {others[0]!r}, which this project does not have.")
    if text.get("hf_tokenizer_name"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    else:
        library = SimpleTokenizer()
        start, end = (library.decoder[i] for i in (library.sot_token_id, library.eot_token_id))
        tokenizer = CLIPTokenizer(
            vocab=library.encoder,
            merges=[*library.bpe_ranks],
            bos_token=start,
            eos_token=end,
            pad_token=end,
            unk_token=end,
        )
    default = "whitespace" if text.get("hf_tokenizer_name") else "lower"
    setattr(tokenizer, RULE, get_clean_fn(options.get("clean", default)))
    return tokenizer


def _is_siglip2(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    if not (folder / CONFIGS[0]).is_file():
        return False
    config = read_json(folder / CONFIGS[0])
    text = config.get("text_config")
    rows = text.get("vocab_size") if isinstance(text, dict) else None
    is_gemma = rows == GEMMA_TOKENS or type(tokenizer).__name__.startswith(GEMMA_CLASSES)
    return config.get("model_type") == "siglip" and is_gemma
