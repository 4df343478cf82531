"""Attention of an image's patches on the sentences of its report, and the reverse."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlp_bench.errors import UserError


class CrossContext(NamedTuple):
    """What each side gathered from the other, and with which weights."""

    of_sentences: Float[Tensor, "B N D"]
    of_patches: Float[Tensor, "B P D"]
    sentence_to_patch: Float[Tensor, "B N P"]
    patch_to_sentence: Float[Tensor, "B P N"]


class LocalCrossAttention(nn.Module):
    """The attention of PRIOR's local alignment module: one head, queries, keys and values of both sides.

    With `sigmoid` each pair is judged alone, so that a patch may belong to no sentence at all; `softmax` makes the
    weights of one query compete (supplement table 3 compares the two).

    Args:
        width: D.
        activation: `sigmoid` or `softmax`.

    Raises:
        UserError: another activation.
    """

    def __init__(self, width: int, activation: str = "sigmoid") -> None:
        super().__init__()
        if activation not in ("sigmoid", "softmax"):
            raise UserError(f"method.attention={activation}: expected sigmoid or softmax.")
        self.activation = activation
        self.image_query, self.image_key, self.image_value = (nn.Linear(width, width) for _ in range(3))
        self.text_query, self.text_key, self.text_value = (nn.Linear(width, width) for _ in range(3))

    def forward(
        self, patches: Float[Tensor, "B P D"], sentences: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> CrossContext:
        """Both directions; `mask` is True on real sentences, to which alone patches attend."""
        to_patch = self._weights(self.text_query(sentences), self.image_key(patches), None)
        to_sentence = self._weights(self.image_query(patches), self.text_key(sentences), mask[:, None])
        return CrossContext(
            to_patch @ self.image_value(patches), to_sentence @ self.text_value(sentences), to_patch, to_sentence
        )

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        if mask is not None:
            # Not -inf: the softmax of a report without sentences would be nan.
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)
