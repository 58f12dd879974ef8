"""Names of weights in the published layouts of CLIP, and their names in this project."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import Tensor

from model.published.file import State
from utils.errors import UserError

Layout = Literal["openai", "transformers"]

BLOCK: Final = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
IMAGE_POSITIONS: Final = "vision_model.embeddings.position_embedding.weight"
TOWERS: Final = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": IMAGE_POSITIONS,
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "logit_scale": "logit_scale",
}
TRANSPOSED: Final = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
OF_TRANSFORMERS: Final = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
OF_OPENAI: Final = ("visual.", "transformer.", "cls_emb")  # open_clip's text tower may have cls_emb
MLM: Final = {
    "cross_attn.": "mlm.interaction.cross_attention.",
    "ln_pre_t.": "mlm.interaction.text_norm.",
    "ln_pre_i.": "mlm.interaction.image_norm.",
    "ln_post.": "mlm.interaction.blocks.norm.",
    "mlm_head.dense.": "mlm.head.dense.",
    "mlm_head.ln.": "mlm.head.norm.",
    "mlm_head.fc.": "mlm.head.scores.",
    "classifier.": "id.classifier.",
}
MLM_BLOCK: Final = {
    "attn.": "self_attn.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "linear1.",
    "mlp.c_proj.": "linear2.",
}
# Names in RDE's two heads. RDE's code does not use `linear` of the image head, nor the second norm of either head.
SELECTION: Final = {
    "visul_emb_layer.fc.": "token_selection.image.linear.",
    "visul_emb_layer.linear.": "token_selection.image.unused_linear.",
    "visul_emb_layer.mlp.layers.0.": "token_selection.image.mlp.hidden.",
    "visul_emb_layer.mlp.bns.0.": "token_selection.image.mlp.norm.",
    "visul_emb_layer.mlp.layers.1.": "token_selection.image.mlp.output.",
    "visul_emb_layer.mlp.bns.1.": "token_selection.image.mlp.unused_norm.",
    "texual_emb_layer.linear.": "token_selection.text.linear.",
    "texual_emb_layer.mlp.layers.0.": "token_selection.text.mlp.hidden.",
    "texual_emb_layer.mlp.bns.0.": "token_selection.text.mlp.norm.",
    "texual_emb_layer.mlp.layers.1.": "token_selection.text.mlp.output.",
    "texual_emb_layer.mlp.bns.1.": "token_selection.text.mlp.unused_norm.",
}
SIZES: Final = ("input_resolution", "context_length", "vocab_size")  # tensors in OpenAI's archives


class Needed(NamedTuple):
    """A tensor whose shape gives sizes of the model: its name in both layouts, and its number of dimensions."""

    openai: str
    transformers: str
    ndim: int


NEEDED: Final = (
    Needed("visual.conv1.weight", TOWERS["visual.conv1.weight"], 4),
    Needed("visual.positional_embedding", IMAGE_POSITIONS, 2),
    Needed("visual.proj", TRANSPOSED["visual.proj"], 2),
    Needed("visual.transformer.resblocks.0.mlp.c_fc.weight", "vision_model.encoder.layers.0.mlp.fc1.weight", 2),
    Needed("token_embedding.weight", TOWERS["token_embedding.weight"], 2),
    Needed("positional_embedding", TOWERS["positional_embedding"], 2),
    Needed("transformer.resblocks.0.mlp.c_fc.weight", "text_model.encoder.layers.0.mlp.fc1.weight", 2),
    Needed("text_projection", TRANSPOSED["text_projection"], 2),
)


def one_layout(state: State, source: Path) -> tuple[State, Layout]:
    """Returns the tensors in the layout of OpenAI or of transformers, and the name of this layout.

    Both layouts of open_clip are read: the plain one, which is OpenAI's, and `CustomTextCLIP`, whose text tower has the
    prefix ``text.``.

    Args:
        source: file that error messages name.

    Raises:
        UserError: the tensors are not those of a CLIP ViT.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise UserError(f"{source} is a CLIP with a ResNet; expected one with a ViT-B/16")
    if any(name.startswith("visual.trunk.") for name in state):
        raise UserError(f"{source} has an image tower of timm ('visual.trunk.'); expected the ViT of CLIP")
    if "text.token_embedding.weight" in state:
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    layout: Layout = "transformers" if any(name.startswith("vision_model.") for name in state) else "openai"
    for needed in NEEDED:
        name: str = getattr(needed, layout)
        if name not in state:
            whose = "OpenAI's layout" if layout == "openai" else "the layout of transformers"
            raise UserError(
                f"{source} is not a CLIP in {whose}: it has no {name!r} (its first tensor is {next(iter(state))!r}); "
                "expected the checkpoint of IRRA, FMFA, RDE, HAM, NAM, of open_clip or of CLIP itself"
            )
        if state[name].ndim != needed.ndim or not state[name].numel():
            shape = tuple(state[name].shape)
            raise UserError(
                f"{source}: {name!r} is of shape {shape}, expected {needed.ndim} dimensions as CLIP has them"
            )
    return state, layout


def of_towers(name: str, tensor: Tensor, layout: Layout) -> State | None:
    """Returns name -> tensor as in transformers' `CLIPModel`, or None if the tensor is not part of the towers.

    OpenAI's layout has one tensor for the projections of queries, keys and values. It becomes three tensors here.
    """
    if layout == "transformers":
        return {name: tensor} if name.startswith(OF_TRANSFORMERS) else None
    if name in TRANSPOSED:
        return {TRANSPOSED[name]: tensor.T.contiguous()}
    found = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if found:
        tower = "vision_model" if found[1] else "text_model"
        layer = f"{tower}.encoder.layers.{found[2]}."
        if found[3] in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = found[3].removeprefix("attn.in_proj_")
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{layer}self_attn.{part}_proj.{kind}": rows.clone() for part, rows in parts}
        inner = _renamed(found[3], BLOCK)
        return None if inner is None else {layer + inner: tensor}
    outer = _renamed(name, TOWERS)
    return None if outer is None else {outer: tensor}


def of_heads(name: str) -> str | None:
    """Returns the name in this project of a tensor of IRRA's or RDE's heads, or None if it is not part of them."""
    found = re.match(r"cross_modal_transformer\.resblocks\.(\d+)\.(.+)", name)
    if found is None:
        return _renamed(name, MLM | SELECTION)
    inner = _renamed(found[2], MLM_BLOCK)
    return None if inner is None else f"mlm.interaction.blocks.layers.{found[1]}.{inner}"


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Returns `name` with its prefix replaced as `names` says, or None. A key without a final dot is a whole name."""
    for old, new in names.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return None
