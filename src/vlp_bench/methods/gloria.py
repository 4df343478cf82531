"""GLoRIA: global and local contrast of images and reports (Huang et al., ICCV 2021).

    global   image with report, both directions, cosine / tau_3
    local    every word attends to the regions of every image; a report's score with an image is the soft maximum over
             its words of how alike the word and what it attended to are; both directions, score / tau_3

A word is the sum of its pieces, a report the mean of its words. Where the authors' encoder sums BERT's last four
layers, this one reads the last. Their temperatures: temp1 = 4 and temp2 = 5 multiply, temp3 = 10.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlp_bench.distributed import gather, gather_longest, rank_and_world
from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.contrastive import info_nce_both, negatives, retrieval_accuracy
from vlp_bench.losses.precision import unit
from vlp_bench.losses.word_region import partner_loss, word_region_similarity
from vlp_bench.losses.words import sum_pieces, word_slots
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import ImageFeatures, StudyBatch, TextFeatures


class Words(NamedTuple):
    """The words of B reports, without [CLS] and [SEP]; zero where `mask` is False."""

    vectors: Float[Tensor, "B W D"]
    mask: Bool[Tensor, "B W"]


def words_of(text: TextFeatures) -> Words:
    """Sum the vectors over the pieces of each word."""
    slots = word_slots(text.index)
    count = text.index.word.amax(1, keepdim=True) + 1
    mask = torch.arange(slots.shape[1] - 1, device=slots.device) < count
    return Words(sum_pieces(text.tokens, slots)[:, 1:] * mask[..., None], mask)


class GloriaAligner(Aligner):
    """Linear projections of images, regions, reports and words into one space.

    Args:
        image: width of pooled image features.
        region: width of the image's tokens.
        text: width of the text's tokens.
        embed_dim: width of the joint space.
        sharpness: see word_region_similarity.
        emphasis: the same.
    """

    def __init__(
        self, image: int, region: int, text: int, embed_dim: int, sharpness: float = 4.0, emphasis: float = 5.0
    ) -> None:
        super().__init__()
        widths = {"image": image, "region": region, "text": text, "embed_dim": embed_dim}
        self.arguments = {**widths, "sharpness": sharpness, "emphasis": emphasis}
        self.sharpness, self.emphasis = sharpness, emphasis
        self.image, self.report = nn.Linear(image, embed_dim), nn.Linear(text, embed_dim)
        self.region, self.word = nn.Linear(region, embed_dim, bias=False), nn.Linear(text, embed_dim, bias=False)

    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of images."""
        return unit(self.image(images.pooled))

    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "N E"]:
        """Unit vectors of reports: of the mean of their words."""
        words = words_of(texts)
        return unit(self.report(words.vectors.sum(1) / words.mask.sum(1, keepdim=True).clamp(min=1)))

    def local_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B P"]:
        """Cosine similarity of a region with the mean of the words of its own report."""
        words = words_of(texts)
        mean = unit(unit(self.word(words.vectors)).sum(1))
        return (unit(self.region(images.tokens)) @ mean[..., None]).squeeze(-1)

    def token_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B T P"]:
        """Cosine similarity of a region with the word that each token of its own report is part of."""
        of_words = unit(self.word(words_of(texts).vectors)) @ unit(self.region(images.tokens)).transpose(1, 2)
        number = texts.index.word
        each = of_words.gather(1, number.clamp(min=0)[..., None].expand(-1, -1, of_words.shape[2]))
        return each * (number >= 0)[..., None]

    def local_scores(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "Ni Nt"]:
        """Z of every image with every report."""
        words = words_of(texts)
        return self.compare(self.region(images.tokens), self.word(words.vectors), words.mask)

    def compare(
        self, regions: Float[Tensor, "Ni P E"], words: Float[Tensor, "Nt W E"], mask: Bool[Tensor, "Nt W"]
    ) -> Float[Tensor, "Ni Nt"]:
        """Z of regions and words that are projected already."""
        return word_region_similarity(regions, words, mask, self.sharpness, self.emphasis)


class GLoRIA(VLPMethod):
    """Global and local alignment of images and reports.

    Args:
        vision: the image encoder; its tokens are the regions.
        text: the text encoder.
        optimizer: see VLPMethod.
        sharpness: temp1 of the authors' code, 1 / tau_1.
        emphasis: temp2, 1 / tau_2.
        temperature: tau_3, 1 / temp3.
        embed_dim: width of the joint space (768).
        **common: see VLPMethod; loss_weights are of `global` and `local` (both 1).
    """

    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        sharpness: float = 4.0,
        emphasis: float = 5.0,
        temperature: float = 0.1,
        embed_dim: int = 768,
        **common: Any,
    ) -> None:
        super().__init__(vision, text, optimizer, **common)
        self.temperature = temperature
        widths = (vision.spec.pooled_dim, vision.spec.token_dim, text.width, embed_dim)
        self.heads = GloriaAligner(*widths, sharpness, emphasis)

    def aligner(self) -> GloriaAligner:
        """The four projections."""
        return self.heads

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """Both contrasts, each the sum of its directions, over the studies of all processes."""
        image, text = self.vision(batch.frontal), self.text(batch.text)
        v, t = self.heads.embed_images(image), self.heads.embed_texts(text)
        near = {f"top{k}": retrieval_accuracy(v, t, k) for k in (1, 5)}
        self.note(len(batch), **near, negatives=negatives(v))
        return {
            "global": torch.stack(info_nce_both(v, t, self.temperature)).sum(),
            "local": self.local_term(image, text),
        }

    def local_term(self, image: ImageFeatures, text: TextFeatures) -> Float[Tensor, ""]:
        """The contrast of words with regions, both directions."""
        words = words_of(text)
        regions, vectors = self.heads.region(image.tokens), self.heads.word(words.vectors)

        scores = self.heads.compare
        rank, world = rank_and_world()
        first = rank * len(regions)
        if world == 1:
            both = scores(regions, vectors, words.mask)
            by_image, by_text = both, both.T
        else:
            by_image = scores(regions, gather_longest(vectors), gather_longest(words.mask))
            by_text = scores(gather(regions), vectors, words.mask).T
        return partner_loss(by_image, self.temperature, first) + partner_loss(by_text, self.temperature, first)
