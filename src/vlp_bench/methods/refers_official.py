"""What the code that REFERS' authors released does, and only that; `refers.py` has the table of differences.

The code as of August 2022; before, a slip weighed all views by the first one's gate.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from vlp_bench.encoders.study import StudyAligner
from vlp_bench.losses.contrastive import info_nce_both
from vlp_bench.losses.precision import unit
from vlp_bench.methods.refers import REFERS
from vlp_bench.optim import look_ahead
from vlp_bench.types import Tokens


class PatchGates(nn.Module):
    """A gate for each patch of each view, from the patches at the same place in all views."""

    def __init__(self, views: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(views * width, views)

    def forward(self, tokens: Float[Tensor, "B V P D"]) -> Float[Tensor, "B V P"]:
        """Sigmoids, which do not sum to 1."""
        return self.linear(tokens.transpose(1, 2).flatten(2)).sigmoid().transpose(1, 2)


class GatedStudyAligner(StudyAligner):
    """Gates the patches that the decoder looks at; what is compared with reports is not fused."""

    def build_fusion(self, views: int, pooled: int, token: int, fusion: bool) -> None:
        """The gates; adding leaves the width of a token."""
        self.memory_dim = token
        self.fusion = PatchGates(views, token) if fusion else None

    def feature(self, pooled: Float[Tensor, "B V D"]) -> Float[Tensor, "B VD"]:
        """Those of the views side by side."""
        return pooled.flatten(1)

    def memory(self, pooled: Float[Tensor, "B V D"], tokens: Float[Tensor, "B V P Dt"]) -> Float[Tensor, "B M Dt"]:
        """Gated patches of all views."""
        tokens = self.recur(pooled, tokens)
        return (tokens if self.fusion is None else self.fusion(tokens)[..., None] * tokens).flatten(1, 2)

    def recur(self, pooled: Float[Tensor, "B V D"], tokens: Float[Tensor, "B V P Dt"]) -> Float[Tensor, "B V P Dt"]:
        """The pooled feature of a view added to each of its patches."""
        return tokens + pooled[:, :, None] if self.recurrent else tokens


class REFERSOfficial(REFERS):
    """REFERS as released."""

    across_processes = False
    decoder_with_text = False
    study_aligner = GatedStudyAligner
    #: shares of the two directions in the value of the consistency loss
    shares = (0.75, 0.25)

    def draw_places(self, count: Int[Tensor, "B 1"]) -> Int[Tensor, "B V"]:
        """Every view is any of the images."""
        return self.any_places(count) if self.training else super().draw_places(count)

    def words(self, caption: Tokens) -> Int[Tensor, "B T"]:
        """Unknown words are padding: the code's vocabulary has one number for both."""
        return caption.ids.masked_fill(caption.ids == self.decoder_unknown, self.decoder.pad)

    def consistency(self, v: Float[Tensor, "B E"], t: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
        """Both directions; that of the report is only counted, as the code makes a Python number of it."""
        there, back = info_nce_both(unit(v), unit(t), self.temperature)
        return self.shares[0] * there + self.shares[1] * back.detach()

    def parameter_groups(self) -> list[dict]:
        """BERT's norms decay: the code looks for `norm` in names, and these say `LayerNorm`."""
        norms = [p for name, p in self.text.named_parameters() if name.endswith("LayerNorm.weight")]
        known = {id(p) for p in norms}
        others = [{**g, "params": [p for p in g["params"] if id(p) not in known]} for g in super().parameter_groups()]
        return [*others, {"params": norms, "weight_decay": self.weight_decay, "lr_scale": self.text_lr_scale}]

    def configure_optimizers(self) -> Any:
        """With Lookahead, whose slow weights are those at the start."""
        made = super().configure_optimizers()
        look_ahead(made["optimizer"])
        return made
