"""Relatives of CLIP with another text tower or vocabulary: MetaCLIP 2, Chinese CLIP and AltCLIP."""

from typing import Any

from torch import Tensor
from transformers import AltCLIPModel, ChineseCLIPModel, MetaClip2Model, PreTrainedModel

from model.backbones.base import BackboneOutput
from model.backbones.vision_language import ClipBackbone


class MetaClip2Backbone(ClipBackbone):
    """MetaCLIP 2: a CLIP with the multilingual vocabulary of XLM-V. Texts keep the padding of their tokenizer."""

    model_class = MetaClip2Model

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        return ids


class ChineseClipBackbone(ClipBackbone):
    """Chinese CLIP: the text tower is a BERT, pooled at its first token. Words do not attend to padding."""

    model_class: type[PreTrainedModel] = ChineseCLIPModel
    token_embedding = "word_embeddings"

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        # (B, 1, 1, L): with a mask (B, L), transformers would wait for the device to know if anything is masked.
        with self.recording("text"):
            hidden = self.hub_model.text_model(ids, attention_mask=mask[:, None, None]).last_hidden_state
        tokens = self.hub_model.text_projection(hidden)
        return BackboneOutput(tokens[:, 0], tokens, mask, self.text_attention(mask, 0, mask, starts=True))


class AltClipBackbone(ChineseClipBackbone):
    """AltCLIP: the text tower is an XLM-RoBERTa with a linear layer."""

    model_class = AltCLIPModel

    @property
    def text_embeddings(self) -> Any:
        return self.hub_model.text_model.roberta.embeddings
