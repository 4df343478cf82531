"""ConVIRT: contrastive learning from paired images and text (Zhang et al., MLHC 2022).

An image and a sentence of its report are brought together, in both directions, lambda l(v->u) + (1 - lambda) l(u->v).
In training one sentence of the report is drawn at random; otherwise the report is read whole. Texts are pooled by the
maximum over their tokens. The hidden width of the two projections is open in the paper; here it is that of what comes
in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.contrastive import info_nce_both, negatives, retrieval_accuracy
from vlp_bench.losses.precision import unit
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import ImageFeatures, StudyBatch, TextFeatures, Tokens


class ConvirtAligner(Aligner):
    """Cosine similarity after one hidden layer on each side.

    Args:
        image: width of pooled image features.
        text: width of tokens.
        embed_dim: width of the joint space.
    """

    def __init__(self, image: int, text: int, embed_dim: int) -> None:
        super().__init__()
        self.arguments = {"image": image, "text": text, "embed_dim": embed_dim}
        self.image, self.text = (
            nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, embed_dim)) for n in (image, text)
        )

    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors v."""
        return unit(self.image(images.pooled))

    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors u."""
        return unit(self.text(texts.tokens.masked_fill(~texts.mask[..., None], float("-inf")).amax(1)))


def one_sentence(text: Tokens, draw: Float[Tensor, "B"]) -> Tokens:
    """Hide all but one sentence of each text; `draw` in [0, 1) says which. [CLS] and [SEP] stay."""
    chosen = (draw * (text.sentence.amax(1) + 1)).floor().long()
    kept = text.mask & ((text.sentence == chosen[:, None]) | (text.sentence < 0))
    return dataclasses.replace(text, mask=kept)


class ConVIRT(VLPMethod):
    """Contrast of images with sentences of their reports.

    Args:
        vision: the image encoder.
        text: the text encoder.
        optimizer: see VLPMethod.
        temperature: tau (0.1).
        embed_dim: width of the joint space (512).
        **common: see VLPMethod; loss_weights are lambda of `image_to_text` and 1 - lambda of
            `text_to_image` (0.75 and 0.25).
    """

    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        temperature: float = 0.1,
        embed_dim: int = 512,
        **common: Any,
    ) -> None:
        super().__init__(vision, text, optimizer, **common)
        self.temperature = temperature
        self.heads = ConvirtAligner(vision.spec.pooled_dim, text.width, embed_dim)

    def aligner(self) -> ConvirtAligner:
        """The two projections."""
        return self.heads

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """Both directions of the contrast, over the images and sentences of all processes."""
        text = batch.text
        if self.training:
            text = one_sentence(text, torch.rand(len(text), device=text.ids.device))
        v, u = self.heads.embed_images(self.vision(batch.frontal)), self.heads.embed_texts(self.text(text))
        near = {f"top{k}": retrieval_accuracy(v, u, k) for k in (1, 5)}
        self.note(len(batch), **near, negatives=negatives(v))
        of_images, of_texts = info_nce_both(v, u, self.temperature)
        return {"image_to_text": of_images, "text_to_image": of_texts}
