"""What the code that PRIOR's authors released does, and only that; `prior.py` has the table of differences."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.methods.prior import PRIOR


class PRIOROfficial(PRIOR):
    """PRIOR as released."""

    aligner_style: ClassVar[Mapping[str, bool]] = {
        "learned_temperature": True,
        "mlp": False,
        "raw_patches": True,
    }
    norm_last = False
    causal = True

    def sentence_count(self, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Sentences of this process."""
        return mask.sum().float()

    def as_map(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B D h w"]:
        """The memory of P rows of D, cut into D maps."""
        return x.reshape(x.shape[0], x.shape[2], *self.grid)

    def masked(self, patches: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Without a random part of the channels."""
        return F.dropout2d(patches, self.image_mask, self.training)

    def pairing(self, column: Int[Tensor, "B Q"]) -> Int[Tensor, "B Q"]:
        """The target that belongs to a generated vector, taken for the generated vector that belongs to a target."""
        return column
