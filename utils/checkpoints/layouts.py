"""Names of the files in a checkpoint's folder, in the format of transformers and of open_clip."""

from dataclasses import dataclass
from typing import Final

WEIGHTS: Final = "model.safetensors"
PICKLED: Final = "pytorch_model.bin"
CONFIGS: Final = ("config.json", "preprocessor_config.json")
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
VOCABULARIES: Final = (("tokenizer.json",), ("spiece.model",), ("vocab.json", "merges.txt"))
TOKENIZER_FILES: Final = (
    *(file for files in VOCABULARIES for file in files),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SMALL_FILES: Final = (*CONFIGS, *TOKENIZER_FILES)


@dataclass(frozen=True)
class Layout:
    """The names of the files of a checkpoint: of the weights, of weights that are pickled, and of all others."""

    weights: str
    pickled: str
    small_files: tuple[str, ...]


TRANSFORMERS: Final = Layout(WEIGHTS, PICKLED, SMALL_FILES)
OPEN_CLIP: Final = Layout(
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", (OPEN_CLIP_CONFIG, *TOKENIZER_FILES)
)
