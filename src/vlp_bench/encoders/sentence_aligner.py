"""How PRIOR compares images with reports: a report is a set of sentences, each drawn from a bank of prototypes."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.cross_attention import LocalCrossAttention
from vlp_bench.encoders.pooling import AttentionPool, SentencePool, sentence_slots
from vlp_bench.encoders.prototypes import SentenceBank
from vlp_bench.types import ImageFeatures, TextFeatures


class Sentences(NamedTuple):
    """The sentences of B reports; `mask` is True on those that there are."""

    vectors: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]


def channel_major(tokens: Float[Tensor, "B P C"]) -> Float[Tensor, "B P C"]:
    """The memory of the map (C, H, W) that the tokens come from, cut into P rows of C: channels and space mixed."""
    return tokens.transpose(1, 2).reshape(tokens.shape)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights are drawn with the standard deviation inputs^-1/2."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


class SentenceAligner(Aligner):
    """Projections, poolings, prototypes and cross-attention of PRIOR.

    Args:
        image_dim: C, width of the image's summary and patches.
        text_dim: width of the word pieces.
        patches: P.
        embed_dim: D, width of the joint spaces.
        heads: of the attention that pools patches, and of the one that pools sentences.
        prototypes: K.
        sentence_pool: `attention` or `mean`.
        attention: `sigmoid` or `softmax`.
        temperature: of the contrast of images with reports.
        learned_temperature: whether it is trained.
        mlp: projections are two layers with a ReLU; otherwise one layer, and none for the whole report.
        normalised_prototypes: see SentenceBank.
        raw_patches: patches are those of `channel_major`; they have no place in the image then.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        patches: int,
        embed_dim: int,
        heads: int,
        prototypes: int,
        sentence_pool: str,
        attention: str,
        temperature: float,
        learned_temperature: bool,
        mlp: bool,
        normalised_prototypes: bool,
        raw_patches: bool,
    ) -> None:
        super().__init__()
        self.arguments = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "patches": patches,
            "embed_dim": embed_dim,
            "heads": heads,
            "prototypes": prototypes,
            "sentence_pool": sentence_pool,
            "attention": attention,
            "temperature": temperature,
            "learned_temperature": learned_temperature,
            "mlp": mlp,
            "normalised_prototypes": normalised_prototypes,
            "raw_patches": raw_patches,
        }

        def head(inputs: int) -> nn.Module:
            first = linear(inputs, embed_dim)
            return nn.Sequential(first, nn.ReLU(), linear(embed_dim, embed_dim)) if mlp else first

        self.image_pool = AttentionPool(image_dim, heads, patches)
        self.image, self.patch, self.word = head(image_dim), head(image_dim), head(text_dim)
        self.text = head(embed_dim) if mlp else nn.Identity()
        self.sentence_pool = SentencePool(sentence_pool, embed_dim)
        self.report_pool = AttentionPool(embed_dim, heads)
        self.bank = SentenceBank(prototypes, embed_dim, normalised_prototypes)
        self.attention = LocalCrossAttention(embed_dim, attention)
        log_scale = -torch.tensor(temperature).log()
        self.log_scale = nn.Parameter(log_scale, requires_grad=learned_temperature)
        self.raw_patches = raw_patches

    def embed_images(self, images: ImageFeatures) -> Float[Tensor, "B D"]:
        """Vectors of B images, of any length."""
        return self.image(self.image_pool(images.pooled, images.tokens))

    def embed_patches(self, images: ImageFeatures) -> Float[Tensor, "B P D"]:
        """Vectors of their patches."""
        return self.patch(channel_major(images.tokens) if self.raw_patches else images.tokens)

    def sentences(self, texts: TextFeatures, limit: int | None = None) -> Sentences:
        """The first `limit` sentences of B reports as they are, without prototypes; all of them without a limit."""
        count = limit or texts.index.most_sentences or texts.tokens.shape[1]
        return Sentences(*self.sentence_pool(self.word(texts.tokens), sentence_slots(texts.index), count))

    def embed_reports(self, sentences: Sentences) -> Float[Tensor, "B D"]:
        """Vectors of B reports, of any length, from their sentences."""
        real = sentences.mask[..., None]
        mean = (sentences.vectors * real).sum(1) / real.sum(1).clamp(min=1)
        return self.text(self.report_pool(mean, sentences.vectors, sentences.mask))

    def known(self, texts: TextFeatures) -> Sentences:
        """Sentences as prototypes, once the bank is in use."""
        vectors, mask = self.sentences(texts)
        return Sentences(torch.where(self.bank.in_use, self.bank(vectors, self.bank.temperature), vectors), mask)

    def embed_texts(self, texts: TextFeatures) -> Float[Tensor, "B D"]:
        """Vectors of B reports, of any length, from their sentences as prototypes."""
        return self.embed_reports(self.known(texts))

    @property
    def scale(self) -> float:
        """Of the contrast of images with reports."""
        return float(self.log_scale.exp())

    def local_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B P"] | None:
        """Mean of both attentions between a patch and the sentences of its own report."""
        if self.raw_patches:
            return None
        vectors, mask = self.known(texts)
        context = self.attention(self.embed_patches(images), vectors, mask)
        both = (context.sentence_to_patch.transpose(1, 2) + context.patch_to_sentence) / 2
        return (both * mask[:, None]).sum(2) / mask.sum(1, keepdim=True).clamp(min=1)

    def local_scores(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "Ni Nt"] | None:
        """Mean of both attentions over all patches and the sentences of a text: PRIOR's local zero-shot score."""
        return self.score_sentences(self.embed_patches(images), *self.known(texts))

    def score_sentences(
        self, patches: Float[Tensor, "Ni P D"], sentences: Float[Tensor, "Nt N D"], mask: Bool[Tensor, "Nt N"]
    ) -> Float[Tensor, "Ni Nt"]:
        """The same of vectors that are made already."""
        count, scores = len(patches), []
        for vectors, real in zip(sentences, mask, strict=True):
            context = self.attention(patches, vectors.expand(count, -1, -1), real.expand(count, -1))
            both = (context.sentence_to_patch.mean(2) + context.patch_to_sentence.mean(1)) / 2
            scores.append((both * real).sum(1) / real.sum().clamp(min=1))
        return torch.stack(scores, 1)
