"""From the views of a study to one feature, and how studies compare with reports.

B studies of V views; D is the width of a view's pooled feature, P and Dt number and width of its patches.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlp_bench.encoders.aligner import Aligner
from vlp_bench.types import ImageFeatures, TextFeatures


class ViewWeights(nn.Module):
    """How much each view of a study counts: the softmax over views of a small network that sees them all.

    One hidden layer, as wide as a view; the paper (REFERS, view fusion) leaves its size open.
    """

    def __init__(self, views: int, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(views * width, width), nn.ReLU(inplace=True), nn.Linear(width, views))

    def forward(self, pooled: Float[Tensor, "B V D"]) -> Float[Tensor, "B V"]:
        """Weights that sum to 1 over the views of a study."""
        return self.network(pooled.flatten(1)).softmax(-1)


class StudyAligner(Aligner):
    """Fuses the views of a study and compares it with a report by the cosine.

    Args:
        views: V.
        pooled: D.
        token: Dt.
        text: width of the text encoder.
        fusion: weigh the views before they are laid side by side.
        recurrent: lay the pooled feature of a view beside each of its patches.
    """

    def __init__(
        self, views: int, pooled: int, token: int, text: int, fusion: bool = True, recurrent: bool = True
    ) -> None:
        super().__init__()
        self.arguments = {
            "views": views,
            "pooled": pooled,
            "token": token,
            "text": text,
            "fusion": fusion,
            "recurrent": recurrent,
        }
        self.views, self.recurrent = views, recurrent
        self.build_fusion(views, pooled, token, fusion)
        self.text = nn.Sequential(nn.Linear(text, text), nn.Tanh(), nn.Linear(text, views * pooled))

    def build_fusion(self, views: int, pooled: int, token: int, fusion: bool) -> None:
        """What weighs the views, and `memory_dim`, the width Dm of the memory."""
        self.memory_dim = token + pooled * self.recurrent
        self.fusion: nn.Module | None = ViewWeights(views, pooled) if fusion else None

    def feature(self, pooled: Float[Tensor, "B V D"]) -> Float[Tensor, "B VD"]:
        """One feature of each study: those of its views, weighed, side by side."""
        return (self.weights(pooled)[..., None] * pooled).flatten(1)

    def memory(self, pooled: Float[Tensor, "B V D"], tokens: Float[Tensor, "B V P Dt"]) -> Float[Tensor, "B M Dm"]:
        """The M = V P patches of each study, weighed like their views, that a decoder looks at."""
        return (self.weights(pooled)[..., None, None] * self.recur(pooled, tokens)).flatten(1, 2)

    def weights(self, pooled: Float[Tensor, "B V D"]) -> Float[Tensor, "B V"]:
        """How much each view counts: 1 without fusion."""
        return pooled.new_ones(pooled.shape[:2]) if self.fusion is None else self.fusion(pooled)

    def recur(self, pooled: Float[Tensor, "B V D"], tokens: Float[Tensor, "B V P Dt"]) -> Float[Tensor, "B V P Dm"]:
        """Recurrent concatenation: the pooled feature of a view beside each of its patches."""
        if not self.recurrent:
            return tokens
        return torch.cat([tokens, pooled[:, :, None].expand(-1, -1, tokens.shape[2], -1)], -1)

    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of N studies of one image each, which is every view of its study."""
        return F.normalize(self.feature(images.pooled[:, None].expand(-1, self.views, -1)), dim=-1)

    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of N reports."""
        return F.normalize(self.text(texts.pooled), dim=-1)
