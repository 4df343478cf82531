"""How images and texts compare, for retrieval, zero-shot and pictures."""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlp_bench.encoders.projection import ProjectionHead
from vlp_bench.types import ImageFeatures, TextFeatures


class Aligner(nn.Module, ABC):
    """Scores images against texts by the cosine of one vector each."""

    @abstractmethod
    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "N E"]:
        """Vectors of N images, of any length."""

    @abstractmethod
    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "N E"]:
        """Vectors of N texts, of any length."""

    def similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "Ni Nt"]:
        """Cosine of every image with every text; larger is more alike."""
        return F.normalize(self.embed_images(images), dim=-1) @ F.normalize(self.embed_texts(texts), dim=-1).T

    @property
    def scale(self) -> float:
        """The factor on cosines, 1 / temperature, with which they were trained to be a softmax's logits."""
        return 1.0

    def local_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B P"] | None:
        """Score of every patch of image b with text b, where the method aligns patches; else None."""
        return None

    def token_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B T P"] | None:
        """Score of every patch of image b with each token of text b, where the method aligns words; else None."""
        return None

    def local_scores(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "Ni Nt"] | None:
        """Score of every image with every text by their parts, where the method was trained so; else None."""
        return None


class DualEncoderAligner(Aligner):
    """Cosine similarity of projected image and text features.

    Args:
        image: arguments of the image's projection head (inputs, hidden, outputs).
        text: the same for the text.
        patch: the same for the patches, where the method aligns them.
        word: the same for the words.
    """

    def __init__(
        self,
        image: dict[str, int],
        text: dict[str, int],
        patch: dict[str, int] | None = None,
        word: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.arguments = {"image": image, "text": text, "patch": patch, "word": word}
        self.image, self.text = ProjectionHead(**image), ProjectionHead(**text)
        self.patch = ProjectionHead(**patch) if patch else None
        self.word = ProjectionHead(**word) if word else None

    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of N images."""
        return F.normalize(self.image(images.pooled), dim=-1)

    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of N texts."""
        return F.normalize(self.text(texts.pooled), dim=-1)

    def local_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B P"] | None:
        """Mean cosine similarity of a patch with the tokens of its own text."""
        each = self.token_similarity(images, texts)
        if each is None:
            return None
        return each.sum(1) / (texts.index.word >= 0).sum(1, keepdim=True).clamp(min=1)

    def token_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B T P"] | None:
        """Cosine similarity of a patch with each token of its own text, 0 for what is no word."""
        if self.patch is None or self.word is None:
            return None
        words = F.normalize(self.word(texts.tokens, texts.index.word >= 0), dim=-1)
        return words @ F.normalize(self.patch(images.tokens), dim=-1).transpose(1, 2)
