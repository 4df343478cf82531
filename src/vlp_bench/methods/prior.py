"""PRIOR: prototype representation joint learning from images and reports (Cheng et al., ICCV 2023).

Three stages, each with the objectives of the one before it:

    1  alignment       image with report: contrast over the batch, both directions
                       local alignment module (LAM): patches and sentences attend to each other with a sigmoid; a patch
                       predicts what it gathered and the reverse (SimSiam), a sentence finds what it gathered among
                       those of its report
    2  prototypes      sentences become softmax mixtures of K prototypes (SPB), drawn with Gumbel noise; L1 between both
    3  reconstruction  conditional on the other modality (CCR): the image from its masked patches and what they gathered
                       from the report; Q vectors from the patches, matched with the report's prototypes (Hungarian, L1,
                       divergence over the prototypes), pooled to a report that is contrasted with the true one

Batches of validation always get the third objective, so that epochs of different stages compare.

`variant=paper` follows paper and supplement, and the authors' code where they are silent (order of projection and
pooling, weights, initial values, zero vectors for missing sentences). `variant=official` does what that code does.
Every difference:

    |                      | paper                          | official                             | source of paper |
    |----------------------|--------------------------------|--------------------------------------|-----------------|
    | patches              | cells of the last map          | rows of its raw memory, channels and | suppl. 2.2      |
    |                      |                                | space mixed                          |                 |
    | projections          | four heads of two layers       | three linear layers, none for the    | suppl. 2.2      |
    |                      |                                | whole report                         |                 |
    | temperatures         | constant                       | learned, without bounds              | main paper      |
    | image that is masked | half of the cells              | half of the channels                 | main paper      |
    | upsampling block     | convolution, ReLU, batch norm  | convolution, batch norm, ReLU        | suppl., CCR     |
    | sentence decoder     | every query sees every other   | a query sees those before it         | main paper      |
    | matched vectors      | the optimal pairs              | the inverse of that permutation      | suppl., CCR     |
    | mean over sentences  | of all processes               | of one process                       | implied         |

    Both: a report is pooled by attention whose query is the mean of its sentences (supplement 2.2); a sentence is told
    from those of its own report alone; no noise outside of training (the code draws it then, too).
    In the presets, not here: pooling of pieces by attention or mean, layers of the decoder, the schedule of the Gumbel
    temperature, the L1 norm of the first prototypes, optimiser, batch, lengths and learning rates of the stages, the
    four sentences of the shortest report, sentences glued together without a blank (`inputs.join`).
    Not here, of the code: images mirrored and turned, any frontal image of a study (here its first), sentences by a
    network, rules alone for the reports that MIMIC-CXR's own code reads by hand (a slip leaves them in).

The supplement ablates `attention` (table 3).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from vlp_bench.distributed import mean_count
from vlp_bench.encoders.cross_attention import CrossContext
from vlp_bench.encoders.decoders import ImageDecoder, SentenceDecoder
from vlp_bench.encoders.prototypes import gumbel
from vlp_bench.encoders.sentence_aligner import SentenceAligner, Sentences, linear
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.contrastive import info_nce_both, negatives, retrieval_accuracy
from vlp_bench.losses.local_alignment import shares, token_contrast
from vlp_bench.losses.precision import unit
from vlp_bench.losses.reconstruction import assign, divergence, l1, masked_mean, pick, quantisation_error
from vlp_bench.losses.siamese import negative_cosine
from vlp_bench.methods.base import VLPMethod
from vlp_bench.optim import warmup_cosine
from vlp_bench.types import StudyBatch

#: one a stage
Numbers = Sequence[int | float]


def anneal(decay: str, start: float, end: float, done: float) -> float:
    """Temperature of the Gumbel-softmax when `done` (0 to 1) of its stages is over.

    >>> [round(anneal(d, 0.9, 0.09, 0.5), 3) for d in ("fixed", "linear", "exponential")]
    [0.9, 0.495, 0.285]
    """
    return {
        "fixed": start,
        "linear": start + (end - start) * done,
        "exponential": start * (end / start) ** done,
    }[decay]


class Stages:
    """Where the stages lie on the way through training, and their learning rates.

    Args:
        lengths: of the stages, in any unit; only their proportion counts.
        warmup: of the learning rate, in the same unit.
        lr: peak of each stage, as a factor.
        start_lr: where each warm-up starts, as a share of the peak.

    Raises:
        UserError: not three of each.
    """

    def __init__(self, lengths: Numbers, warmup: Numbers, lr: Numbers, start_lr: Numbers) -> None:
        for key, values in {"lengths": lengths, "warmup": warmup, "lr": lr, "start_lr": start_lr}.items():
            if len(values) != 3:
                raise UserError(f"method.stages.{key}={list(values)}: give three numbers, one a stage.")
        self.lengths, self.warmup, self.lr, self.start_lr = lengths, warmup, lr, start_lr
        self.starts = [sum(lengths[:i]) / sum(lengths) for i in range(3)]

    def at(self, progress: float) -> int:
        """The stage, 1 to 3, when `progress` of the steps are done."""
        return max(1, sum(progress >= s - 1e-9 for s in self.starts))

    def after_first(self, progress: float) -> float:
        """Share of the stages with prototypes that is done."""
        return max(0.0, progress - self.starts[1]) / max(1 - self.starts[1], 1e-9)

    def lr_factor(self, step: int, total: int) -> float:
        """Each stage warms up and falls to nothing; `total` counts the steps of all."""
        i = self.at(step / total) - 1
        first, last = (math.ceil(s * total - 1e-6) for s in (*self.starts, 1.0)[i : i + 2])
        warmup = round((last - first) * self.warmup[i] / self.lengths[i])
        return self.lr[i] * warmup_cosine(step - first, last - first, warmup, self.start_lr[i])


class PRIOR(VLPMethod):
    """Alignment, sentence prototypes and conditional reconstruction, in three stages.

    Args:
        vision: the image encoder; its patches are the cells of the last map.
        text: the text encoder.
        optimizer: see VLPMethod; its state is forgotten where a stage begins.
        loss_weights: of the terms in `stage1`, `stage2` and `stage3`.
        stages: see Stages.
        stage: 1, 2 or 3 to stay in that stage; None goes through all of them.
        temperatures: of the contrasts of `reports` and `sentences` (at the start, where they are learned).
        gumbel: `decay` (fixed, linear or exponential), `start` and `end` of the temperature tau of the SPB.
        decoder: `layers`, `heads`, `hidden` and `dropout` of the sentence decoder.
        embed_dim: D, width of the joint spaces.
        heads: of the attention that pools patches and sentences.
        prototypes: K.
        normalised_prototypes: start from Gaussian vectors over their L1 norm (supplement), not from Gaussian ones
            (code). They are so short that their mixtures are alike, and synthetic sentences soon became so too.
        queries: Q, most sentences of a report that are generated.
        sentence_pool: `attention` or `mean` over the pieces of a sentence.
        attention: `sigmoid` or `softmax`, of the LAM.
        image_mask: share of the image that its reconstruction does not see.
        weight_decay: see VLPMethod.
        decay_all: see VLPMethod.
        variant: `paper` or `official`; the table above says what differs.
        across_processes: see VLPMethod.

    Raises:
        UserError: a vision encoder whose summary and patches are of different width; options out of their range.
    """

    official = "vlp_bench.methods.prior_official:PRIOROfficial"
    #: what the encoders take that is not the user's choice
    aligner_style: ClassVar[Mapping[str, bool]] = {
        "learned_temperature": False,
        "mlp": True,
        "raw_patches": False,
    }
    norm_last: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        loss_weights: Mapping[str, Mapping[str, float]],
        stages: Mapping[str, Numbers],
        stage: int | None = None,
        temperatures: Mapping[str, float],
        gumbel: Mapping[str, Any],
        decoder: Mapping[str, Any],
        embed_dim: int = 768,
        heads: int = 8,
        prototypes: int = 512,
        normalised_prototypes: bool = False,
        queries: int = 16,
        sentence_pool: str = "attention",
        attention: str = "sigmoid",
        image_mask: float = 0.5,
        weight_decay: float = 1e-6,
        decay_all: bool = True,
        variant: str = "paper",
        across_processes: bool = True,
    ) -> None:
        super().__init__(
            vision,
            text,
            optimizer,
            loss_weights=loss_weights["stage3"],
            weight_decay=weight_decay,
            decay_all=decay_all,
            variant=variant,
            across_processes=across_processes,
        )
        if not vision.is_vit:
            vision.set_token_stride(vision.spec.pyramid_strides[-1])
        _check(vision, stage, gumbel["decay"])
        self.stage_weights, self.stages, self.stage = dict(loss_weights), Stages(**stages), stage
        self.gumbel, self.queries, self.image_mask = dict(gumbel), queries, image_mask
        self.grid = vision.grid()
        self.heads = SentenceAligner(
            vision.spec.token_dim,
            text.width,
            self.grid[0] * self.grid[1],
            embed_dim,
            heads,
            prototypes,
            sentence_pool,
            attention,
            temperatures["reports"],
            normalised_prototypes=normalised_prototypes,
            **self.aligner_style,
        )
        learned = self.aligner_style["learned_temperature"]
        self.sentence_log_scale = nn.Parameter(-torch.tensor(temperatures["sentences"]).log(), requires_grad=learned)
        self.predictor = nn.Sequential(
            linear(embed_dim, embed_dim // 2), nn.ReLU(), nn.Linear(embed_dim // 2, embed_dim)
        )
        self.image_decoder = ImageDecoder(embed_dim, self.grid, vision.spec.image_size, self.norm_last)
        self.sentence_decoder = SentenceDecoder(embed_dim, queries, **decoder, causal=self.causal)

    def aligner(self) -> SentenceAligner:
        """Projections, poolings, prototypes and cross-attention."""
        return self.heads

    def parts(self) -> dict[str, nn.Module]:
        """The aligner and both decoders beside the encoders."""
        return super().parts() | {"image_decoder": self.image_decoder, "sentence_decoder": self.sentence_decoder}

    def current_stage(self) -> int:
        """The stage whose objective holds; outside of training the last one."""
        return self.stage or (self.stages.at(self.progress) if self.training else 3)

    def weights(self, progress: float) -> Mapping[str, float]:
        """Those of the stage."""
        return self.stage_weights[f"stage{self.current_stage()}"]

    def tau(self) -> float:
        """Temperature of the Gumbel-softmax."""
        done = self.progress if self.stage else self.stages.after_first(self.progress)
        return anneal(self.gumbel["decay"], self.gumbel["start"], self.gumbel["end"], done)

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """The terms of the stage: those that `loss_weights` names for it."""
        stage = self.current_stage()
        image, text = self.vision(batch.frontal), self.text(batch.text)
        v, patches = self.heads.embed_images(image), self.heads.embed_patches(image)
        raw = self.heads.sentences(text, self.queries if stage == 3 else None)
        sentences, terms = raw, {}
        if stage > 1:
            self.remember()
            sentences = self.quantise(raw)
            error = quantisation_error(raw.vectors, sentences.vectors)
            terms["prototype"] = masked_mean(error, raw.mask, self.sentence_count(raw.mask))
        t = self.heads.embed_reports(sentences)
        context = self.heads.attention(patches, *sentences)
        near = {f"top{k}": retrieval_accuracy(unit(v), unit(t), k) for k in (1, 5)}
        self.note(len(batch), **near, negatives=negatives(v))
        terms |= {
            "global": self.contrast(v, t),
            "local_image": self.patch_term(patches, context),
            "local_text": self.sentence_term(sentences, context),
        }
        if stage == 3:
            target = self.vision.normalise(batch.frontal)[:, :1]
            terms["image_reconstruction"] = l1(self.drawn(patches, context), target)
            terms |= self.generation_terms(self.sentence_decoder(patches), raw, sentences, t)
        return terms

    def remember(self) -> None:
        """Note in the bank how it is to be read later."""
        if self.training:
            self.heads.bank.in_use.fill_(True)
            self.heads.bank.temperature.fill_(self.tau())

    def noise(self, like: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"] | None:
        """Gumbel noise for a query of the bank, in training."""
        return gumbel(like, len(self.heads.bank.vectors)) if self.training else None

    def quantise(self, sentences: Sentences) -> Sentences:
        """Sentences as mixtures of the prototypes."""
        x = sentences.vectors
        return Sentences(self.heads.bank(x, self.tau(), self.noise(x)), sentences.mask)

    def sentence_count(self, mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Sentences of a process, on average over all: the mean of their gradients is then that of the joined batch."""
        return mean_count(mask.sum())

    def contrast(self, v: Float[Tensor, "B D"], t: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """Mean of both directions, over the batch of all processes."""
        return torch.stack(info_nce_both(unit(v) * self.heads.log_scale.exp(), unit(t), 1.0)).mean()

    def patch_term(self, patches: Float[Tensor, "B P D"], context: CrossContext) -> Float[Tensor, ""]:
        """LAM, images: a patch predicts what it gathered from the report, and that predicts the patch."""
        gathered = context.of_patches
        return (
            negative_cosine(self.predictor(patches), gathered) + negative_cosine(self.predictor(gathered), patches)
        ) / 2

    def sentence_term(self, sentences: Sentences, context: CrossContext) -> Float[Tensor, ""]:
        """LAM, reports: a sentence and what it gathered from the image find each other within the report."""
        s, gathered = unit(sentences.vectors) * self.sentence_log_scale.exp(), unit(context.of_sentences)
        weight = shares(sentences.mask.to(s.dtype))
        return torch.stack(token_contrast(s, gathered, weight, 1.0, sentences.mask)).sum() / 2

    def as_map(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B D h w"]:
        """Patches in their places."""
        return x.transpose(1, 2).unflatten(2, self.grid)

    def masked(self, patches: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Without a random part of the cells, the others enlarged to make up for it."""
        return patches * F.dropout(torch.ones_like(patches[:, :1]), self.image_mask, self.training)

    def drawn(self, patches: Float[Tensor, "B P D"], context: CrossContext) -> Float[Tensor, "B 1 H W"]:
        """The image, from masked patches and what they gathered from the report."""
        return self.image_decoder(self.masked(self.as_map(patches)), self.as_map(context.of_patches))

    def pairing(self, column: Int[Tensor, "B Q"]) -> Int[Tensor, "B Q"]:
        """Which generated vector belongs to each target, from the target that belongs to each of them."""
        return column.argsort(1)

    def generation_terms(
        self, generated: Float[Tensor, "B Q D"], raw: Sentences, sentences: Sentences, t: Float[Tensor, "B D"]
    ) -> dict[str, Tensor]:
        """CCR, reports: the generated set against the prototypes, sentence by sentence and as a whole."""
        real = sentences.mask
        targets = sentences.vectors * real[..., None]
        matched = pick(generated, self.pairing(assign(generated, targets)))
        bank = self.heads.bank
        divergences = divergence(bank.logits(raw.vectors), bank.logits(matched))
        report = self.heads.embed_reports(self.quantise(Sentences(matched, real)))
        return {
            "sentence_generation": l1(matched, targets),
            "prototype_divergence": masked_mean(divergences, real, self.sentence_count(real)),
            "report_alignment": self.contrast(report, t),
        }

    def lr_factor(self, step: int, total: int) -> float:
        """Each stage has its own warm-up and cosine; with one `stage` alone, its own over all steps."""
        if self.stage is None:
            return self.stages.lr_factor(step, total)
        i = self.stage - 1
        stages = self.stages
        warmup = round(total * stages.warmup[i] / stages.lengths[i])
        return stages.lr[i] * warmup_cosine(step, total, warmup, stages.start_lr[i])

    def setup(self, stage: str) -> None:
        """Let DDP expect parameters without gradient, as the first stages have them."""
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Lightning has no public way to say so after the Trainer is made.
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_train_batch_start(self, batch: StudyBatch, batch_idx: int) -> None:
        """Begin each stage with a fresh optimiser state."""
        total = self.trainer.estimated_stepping_batches
        before = max(self.global_step - 1, 0) / total
        if self.stage is None and self.stages.at(before) < self.stages.at(self.progress):
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()


def _check(vision: VisionBackbone, stage: int | None, decay: str) -> None:
    if stage not in (None, 1, 2, 3):
        raise UserError(f"method.stage={stage}: expected null (all in turn), 1, 2 or 3.")
    if decay not in ("fixed", "linear", "exponential"):
        raise UserError(f"method.gumbel.decay={decay}: expected fixed, linear or exponential.")
    if vision.spec.pooled_dim != vision.spec.token_dim:
        raise UserError(
            f"method=prior needs patches as wide as the pooled feature; those of vision.name={vision.spec.name} "
            f"have {vision.spec.token_dim} and {vision.spec.pooled_dim}. Use a ResNet, a DenseNet or a ViT."
        )
