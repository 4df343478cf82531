"""From tokens to one vector: of an image, of a sentence, of a report."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.errors import UserError
from vlp_bench.types import Tokens


class AttentionPool(nn.Module):
    """One multi-head attention step in which a summary looks at itself and at the tokens that it sums up.

    The pooling of CLIP's ResNets, which PRIOR uses for images (with positions) and for reports (without).

    Args:
        width: D of summary, tokens and output.
        heads: of the attention.
        positions: number of tokens that have a learned position (the summary has one too); 0 for none.

    Raises:
        UserError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, positions: int = 0) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"method.heads={heads} does not divide the width {width} of an attention pooling.")
        self.heads = heads
        scale = width**-0.5
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * scale) if positions else None
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, summary: Float[Tensor, "B D"], tokens: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B D"]:
        """What the summary finds; `mask` is True on real tokens."""
        x = torch.cat([summary[:, None], tokens], 1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p, y in self._projected(x))
        seen = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None]
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(1))

    def _projected(self, x: Float[Tensor, "B N D"]) -> tuple[tuple[nn.Linear, Tensor], ...]:
        return (self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x)


def sentence_slots(index: Tokens) -> Int[Tensor, "B T"]:
    """Place of the sentence that each piece is part of, in the order in which the text has them; -1 outside of any."""
    starts = (index.sentence >= 0) & (index.sentence != index.sentence.roll(1, dims=1))
    return (starts.cumsum(1) - 1).masked_fill(index.sentence < 0, -1)


class SentencePool(nn.Module):
    """Vectors of the sentences from those of their pieces.

    Args:
        kind: `attention` weighs pieces by the softmax, within a sentence, of the products of each one's query with the
            keys of all (PRIOR's self-attention pooling); `mean` weighs them alike.
        width: D.

    Raises:
        UserError: another kind.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        if kind not in ("attention", "mean"):
            raise UserError(f"method.sentence_pool={kind}: expected attention or mean.")
        self.kind = kind
        if kind == "attention":
            self.query, self.key = nn.Linear(width, max(width // 8, 1)), nn.Linear(width, max(width // 8, 1))

    def forward(
        self, x: Float[Tensor, "B T D"], slots: Int[Tensor, "B T"], limit: int
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Vectors of the first `limit` (N) sentences, zero where a text has fewer; and which there are."""
        inside = slots[:, None] == torch.arange(limit, device=slots.device)[:, None]
        share = inside / inside.sum(-1, keepdim=True).clamp(min=1)
        if self.kind == "attention":
            keys = inside.to(x.dtype) @ self.key(x)
            score = keys @ self.query(x).transpose(1, 2)
            # Not -inf: an empty sentence would be nan, which no zero takes away.
            share = score.masked_fill(~inside, torch.finfo(score.dtype).min).softmax(-1) * inside
        return share.to(x.dtype) @ x, inside.any(-1)
