"""One BERT for every text: hub weights, a local folder, or a small random one."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import BertConfig, BertModel

from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.chunks import InChunks
from vlp_bench.encoders.weights import HEADS, load_exactly, read_state_dict
from vlp_bench.errors import UserError
from vlp_bench.types import TextFeatures, Tokens


def attention_rows(
    attention: Any, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], rows: slice
) -> Float[Tensor, "B heads rows T"]:
    """Softmaxed attention, before dropout, of the query tokens `rows` in a BERT self-attention layer."""
    heads = (attention.num_attention_heads, attention.attention_head_size)
    q = attention.query(x[:, rows]).unflatten(-1, heads).transpose(1, 2)
    k = attention.key(x).unflatten(-1, heads).transpose(1, 2)
    logits = q @ k.transpose(-2, -1) / heads[1] ** 0.5
    return logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)


class TextBackbone(InChunks):
    """BERT with its tokenizer; the first token is [CLS] and its last hidden state is the pooled feature.

    Args:
        name: hub name of the model; only used where `weights` or `vocab` say `pretrained`.
        weights: `none`, `pretrained`, or a folder in the layout of transformers, or a file of BertModel's keys.
        vocab: `synthetic` (the small vocabulary that ships), `pretrained`, or the path of a vocab.txt.
        lowercase: whether the vocabulary is an uncased one.
        architecture: BertConfig fields; needed without a pretrained configuration, and overriding one (for example
            `num_hidden_layers: 6` keeps the first six layers).
        positions: False gives every token position 0.
        token_types: False removes the token-type embedding.

    Raises:
        UserError: the hub cannot be reached, a path is wrong, or weights do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str = "none",
        vocab: str = "synthetic",
        lowercase: bool = True,
        architecture: dict[str, Any] | None = None,
        positions: bool = True,
        token_types: bool = True,
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer.load(vocab, name, lowercase)
        self.bert = _bert(name, weights, len(self.tokenizer), dict(architecture or {}))
        self.positions = positions
        if not token_types:
            self.remove_token_types()
        config = self.bert.config
        kept = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "vocab_size",
        )
        self.arguments = {
            "name": name,
            "weights": "none",
            "vocab": "synthetic",
            "lowercase": lowercase,
            "architecture": {k: getattr(config, k) for k in kept},
            "positions": positions,
            "token_types": token_types,
        }
        self.width: int = config.hidden_size
        self.max_tokens: int = config.max_position_embeddings

    def remove_token_types(self) -> None:
        """Make the token-type embedding a constant zero."""
        table = self.bert.embeddings.token_type_embeddings.weight
        with torch.no_grad():
            table.zero_()
        table.requires_grad_(False)

    def forward(self, text: Tokens, *, saliency: bool = False) -> TextFeatures:
        """Encode B texts of T tokens; `saliency` also returns the attention of [CLS] in the last layer."""
        position = None if self.positions else torch.zeros_like(text.ids[:1])
        out = self.bert(text.ids, text.mask.long(), position_ids=position, output_hidden_states=saliency)
        weights = None
        if saliency:
            with torch.no_grad():
                layer: Any = self.bert.encoder.layer[-1]
                weights = (
                    attention_rows(layer.attention.self, out.hidden_states[-2], text.mask, slice(0, 1))[:, :, 0]
                    .float()
                    .mean(1)
                )
        hidden = out.last_hidden_state
        return TextFeatures(hidden[:, 0], hidden, text, weights)


def _bert(name: str, weights: str, vocab_size: int, architecture: dict[str, Any]) -> BertModel:
    if weights == "none":
        return BertModel(BertConfig(**({"vocab_size": vocab_size} | architecture)), add_pooling_layer=False)
    if weights != "pretrained" and Path(weights).is_file():
        model = _bert(name, "none", vocab_size, architecture)
        state = {k.removeprefix("bert."): v for k, v in read_state_dict(weights).items()}
        load_exactly(model, state, weights, drop=(*HEADS, "embeddings.position_ids"))
        return model
    source = name if weights == "pretrained" else weights
    if weights != "pretrained" and not Path(weights).is_dir():
        raise UserError(f"text.weights={weights}: no such file or folder. Use none, pretrained or a path.")
    try:
        model = BertModel.from_pretrained(source, add_pooling_layer=False, **architecture)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The weights of {source} are neither in the local cache nor readable, and the model hub cannot be "
            f"reached ({type(error).__name__}). Download the model elsewhere and give text.weights=FOLDER "
            "text.vocab=FOLDER/vocab.txt, or use text=tiny."
        ) from error
    if model.config.vocab_size != vocab_size:
        raise UserError(
            f"text.vocab has {vocab_size} entries and the weights of {source} have {model.config.vocab_size}. "
            "Give the vocab.txt that belongs to the weights."
        )
    return model
