"""The projection head that contrastive methods put on their encoders."""

from jaxtyping import Bool, Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Linear, batch norm, ReLU, linear, batch norm without affine parameters (MGCA supplement A.3).

    Over tokens it is the 1-D convolution of kernel size 1 of the paper: statistics are taken over all tokens of the
    batch. With a mask only real tokens are computed and counted; the others come out as zero.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.arguments = {"inputs": inputs, "hidden": hidden, "outputs": outputs}
        self.head = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
            nn.BatchNorm1d(outputs, affine=False),
        )

    def forward(self, x: Float[Tensor, "... D"], mask: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "... E"]:
        """Project the last axis; `mask` is True on the rows that count."""
        if mask is None:
            return self.head(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        kept = self.head(x[mask])
        out = kept.new_zeros((*x.shape[:-1], kept.shape[-1]))
        out[mask] = kept
        return out
