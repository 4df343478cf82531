"""PRIOR's sentence prototype bank."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlp_bench.precision import full


def gumbel(like: Tensor, prototypes: int) -> Tensor:
    """Noise for a query of the bank: (..., D) gives Gumbel(0, 1) draws (..., prototypes), at least in float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return -torch.empty((*like.shape[:-1], prototypes), dtype=dtype, device=like.device).exponential_().log()


class SentenceBank(nn.Module):
    """K learned vectors of D entries, of which a sentence takes a softmax-weighted mixture (PRIOR's SPB).

    `temperature` and `in_use` say how a trained bank is to be read: with the temperature of its last step, and not at
    all before the stage of training that begins with it.

    Args:
        prototypes: K.
        width: D.
        normalised: divide the Gaussian vectors by their L1 norm at the start.
    """

    temperature: Tensor
    in_use: Tensor

    def __init__(self, prototypes: int, width: int, normalised: bool) -> None:
        super().__init__()
        drawn = torch.randn(prototypes, width)
        self.vectors = nn.Parameter(drawn / drawn.abs().sum(1, keepdim=True) if normalised else drawn)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("in_use", torch.tensor(False))

    def logits(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"]:
        """Products with the prototypes, at least in float32."""
        with full(x.device.type):
            return x.to(torch.promote_types(x.dtype, self.vectors.dtype)) @ self.vectors.T

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        temperature: float | Float[Tensor, ""],
        noise: Float[Tensor, "B N K"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The mixtures for the sentences: softmax((x E^T + g) / tau) E, soft and differentiable on every path."""
        logits = self.logits(x)
        with full(x.device.type):
            return ((logits if noise is None else logits + noise) / temperature).softmax(-1) @ self.vectors
