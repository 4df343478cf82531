"""MGCA: multi-granularity cross-modal alignment (Wang et al., NeurIPS 2022).

An image and its report are aligned at three levels, L = L_ITA + L_CTA + L_CPA:

    ITA  instance   image with report: contrast over the batch, both directions
    CTA  token      patch with word: each word attends to the patches and each patch to the words, and finds what it
                    attended to among the other tokens' of its sample; tokens count by the attention of [CLS] on them
    CPA  prototype  image and report predict each other's soft assignment (Sinkhorn-Knopp) to K shared prototypes

`variant=paper` follows the paper and its supplement; where they are silent or leave a size open (temperatures, ITA and
CTA as sums over two directions but CPA as their mean, widths of the heads, sum of word pieces, [SEP] a word, [CLS] not)
it takes the value of the authors' code. `variant=official` does what that code does. Every difference:

    |                           | paper                       | official                    | source of paper  |
    |---------------------------|-----------------------------|-----------------------------|------------------|
    | position of a token       | its own                     | 0 for all                   | BERT, suppl. A.2 |
    | token types               | BERT's                      | none                        | BERT, suppl. A.2 |
    | cross-attention           | learned Q, K, V, O; h heads | no parameters, cosine / tau | suppl. table 5   |
    | weight of a token         | attention of [CLS] on it    | ... on the token after it   | suppl. D         |
    |                           | unclipped                   | clipped to their 10-90 %    | suppl. D         |
    | report of 112 tokens      | whole                       | loses last word and [SEP]   | implied          |
    | padding in batch norm     | no                          | yes, up to 111 words        | implied          |
    | padding as negatives      | no                          | yes                         | implied          |
    | what a ViT patch attended | unit vector                 | as it is                    | implied: cosine  |
    | ITA contrast, Sinkhorn    | over all processes          | over one process            | batch of 144     |

    Both: patches of a CNN weigh alike, weights carry no gradient, prototypes are set to unit length before
    each use and are not updated in the first epoch, identical reports of two samples count as negatives.
    Over which processes: `across_processes`, where it is given.
    In the presets, not here: pixels in [0, 1] or [-1, 1], 16 or 32 bit, weight decay of biases and norms, the few
    reports that MIMIC-CXR's own code reads by hand (`inputs.special_cases`).

Options that the supplement ablates: `loss_weights` (table 4), `heads` (table 5), `prototypes` (table 6).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlp_bench.distributed import all_reduce
from vlp_bench.encoders.aligner import DualEncoderAligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.contrastive import info_nce_both, negatives, retrieval_accuracy, similarity
from vlp_bench.losses.local_alignment import shares, token_contrast
from vlp_bench.losses.precision import unit
from vlp_bench.losses.prototypes import sinkhorn, swapped_prediction
from vlp_bench.losses.words import sum_pieces, word_slots
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import ImageFeatures, StudyBatch, TextFeatures


class Words(NamedTuple):
    """The words of B reports and the [SEP] of each, without [CLS]; `weight` is zero where `mask` is False."""

    vectors: Float[Tensor, "B W D"]
    weight: Float[Tensor, "B W"]
    mask: Bool[Tensor, "B W"]


def gather_words(text: TextFeatures) -> Words:
    """Sum the vectors, and the attention of [CLS], over the pieces of each word."""
    assert text.saliency is not None
    slots = word_slots(text.index)
    weight = sum_pieces(text.saliency[..., None], slots)[..., 0]
    mask = torch.arange(slots.shape[1], device=slots.device) <= slots.amax(1, keepdim=True)
    return Words(sum_pieces(text.tokens, slots)[:, 1:], weight[:, 1:], mask[:, 1:])


class MGCA(VLPMethod):
    """Instance, token and prototype alignment of images and reports.

    Args:
        vision: the image encoder; its tokens are the patches.
        text: the text encoder.
        optimizer: see VLPMethod.
        temperatures: of the three losses; the token one divides the contrast of CTA (in variant=official also its
            attention).
        embed_dim: width of the joint spaces.
        hidden_dim: width inside the projection heads.
        heads: of CTA's cross-attention (supplement table 5).
        prototypes: how many (supplement table 6).
        epsilon: of Sinkhorn-Knopp.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        freeze_prototypes_epochs: epochs at the start in which the prototypes stay as they were drawn.
        max_tokens: length to which variant=official pads every report; the paper's variant does not look at it.
        **common: see VLPMethod; loss_weights are lambda of `instance`, `token` and `prototype` (supplement table 4).
    """

    official = "vlp_bench.methods.mgca_official:MGCAOfficial"
    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        temperatures: Mapping[str, float],
        embed_dim: int = 128,
        hidden_dim: int = 2048,
        heads: int = 1,
        prototypes: int = 500,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        freeze_prototypes_epochs: int = 1,
        max_tokens: int = 112,
        **common: Any,
    ) -> None:
        super().__init__(vision, text, optimizer, **common)
        self.temperatures = dict(temperatures)
        self.epsilon, self.sinkhorn_iterations = epsilon, sinkhorn_iterations
        self.freeze_prototypes_epochs, self.max_tokens = freeze_prototypes_epochs, max_tokens
        inputs = {
            "image": vision.spec.pooled_dim,
            "text": text.width,
            "patch": vision.spec.token_dim,
            "word": text.width,
        }
        self.heads = DualEncoderAligner(
            **{name: {"inputs": n, "hidden": hidden_dim, "outputs": embed_dim} for name, n in inputs.items()}
        )
        self.prototypes = nn.Linear(embed_dim, prototypes, bias=False)
        self.build_attention(embed_dim, heads)

    def build_attention(self, embed_dim: int, heads: int) -> None:
        """CTA's two cross-attentions."""
        self.word_attention = nn.MultiheadAttention(embed_dim, heads, batch_first=True)
        self.patch_attention = nn.MultiheadAttention(embed_dim, heads, batch_first=True)

    def aligner(self) -> DualEncoderAligner:
        """The four projection heads."""
        return self.heads

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """L_ITA, L_CTA and L_CPA."""
        image = self.vision(batch.frontal, saliency=True)
        text = self.text(batch.text, saliency=True)
        v, t = unit(self.heads.image(image.pooled)), unit(self.heads.text(text.pooled))
        near = {f"top{k}": retrieval_accuracy(v, t, k) for k in (1, 5)}
        self.note(len(batch), **near, negatives=negatives(v))
        return {
            "instance": torch.stack(self.instance_terms(v, t)).sum(),
            "token": torch.stack(self.token_terms(image, text)).sum() / 2,
            "prototype": torch.stack(self.prototype_terms(v, t)).sum() / 2,
        }

    def instance_terms(self, v: Float[Tensor, "B E"], t: Float[Tensor, "B E"]) -> tuple[Tensor, Tensor]:
        """ITA: image to report and report to image."""
        return info_nce_both(v, t, self.temperatures["instance"])

    def token_terms(self, image: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """CTA: both directions of the words, then of the patches."""
        words = gather_words(text)
        p, w = unit(self.heads.patch(image.tokens)), unit(self.heads.word(words.vectors, words.mask))  # type: ignore[misc]
        of_words = unit(self.word_attention(w, p, p, need_weights=False)[0])
        of_patches = unit(self.patch_attention(p, w, w, key_padding_mask=~words.mask, need_weights=False)[0])
        patch_weight = torch.ones_like(p[..., 0]) if image.saliency is None else image.saliency
        tau = self.temperatures["token"]
        return (
            *token_contrast(w, of_words, shares(words.weight), tau, words.mask),
            *token_contrast(p, of_patches, shares(patch_weight), tau),
        )

    def prototype_terms(self, v: Float[Tensor, "B E"], t: Float[Tensor, "B E"]) -> tuple[Tensor, Tensor]:
        """CPA: the report predicts the image's codes, and the image the report's."""
        with torch.no_grad():
            self.prototypes.weight.copy_(unit(self.prototypes.weight))
        of_image, of_text = (similarity(x, self.prototypes.weight) for x in (v, t))
        image_codes, text_codes = self.codes(of_image), self.codes(of_text)
        tau = self.temperatures["prototype"]
        return swapped_prediction(of_text, image_codes, tau), swapped_prediction(of_image, text_codes, tau)

    def codes(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Soft assignment to the prototypes, without gradient."""
        return sinkhorn(logits, self.epsilon, self.sinkhorn_iterations, all_reduce)

    def on_after_backward(self) -> None:
        """Forget the prototypes' gradient in the first epoch: without one, the optimiser neither moves nor decays."""
        if self.current_epoch < self.freeze_prototypes_epochs:
            self.prototypes.weight.grad = None
