"""MedViLL: joint pre-training of one BERT over image and report (Moon et al., JBHI 2022).

    [CLS] image features [SEP] | word pieces of the report [SEP]

    MLM  masked language modelling: hidden word pieces are guessed from the rest of both
    IRM  image-report matching: does the report belong to the image? Half of the images get the report of a study with
         other labels

What the tokens see of each other is the option that the paper compares: `attention` (see encoders/joint.py), of which
`bar` is MedViLL. The image features are a random subset of the cells of the CNN's last feature map in pre-training, and
all of them downstream.

`variant=paper` follows the paper; where it is silent (forced mask, pooler, width of the heads, normalisation after the
projection) it takes the authors' code. `variant=official` does what that code does. Every difference:

    |                           | paper                       | official                     | source of paper |
    |---------------------------|-----------------------------|------------------------------|-----------------|
    | CNN                       | trained                     | frozen; statistics move      | section IV      |
    | location and kind of an   | added before the projection,| added after it, from BERT's  | section III     |
    | image feature             | in the width of the image   | tables                       |                 |
    | positions of [CLS], [SEP] | their own; the text follows | 0 for both, and the text     | BERT            |
    |                           |                             | begins at 0 again            |                 |
    | subset of the features    | of each image               | one for the whole batch      | section III     |
    | choice of `mixed`         | for a mini-batch            | for a sample                 | section III     |
    | padding                   | unseen                      | to `max_tokens`; seen, but   | implied         |
    |                           |                             | for `bi`                     |                 |
    | MLM                       | of pairs that match         | of all pairs                 | implied         |

    Both: a study differs if its set of positive labels does; negatives come from the batch of all processes (the
    authors draw from the data set), and an image for which there is none keeps its report. IRM's binary cross-entropy
    is that of two logits. `noncross` has a second [CLS] before the report and matches by the product of the two (the
    authors' code stops with an error there).
    In the presets, not here: random or pretrained BERT, batch size, augmentation.

Options that the paper compares: `attention` (tables II to V), `visual_share` (tables VI to IX: 1 for all features),
`vision` (ResNet-50, ResNet-101, DenseNet-121).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.distributed import gather, gather_longest, mean_count, rank_and_world
from vlp_bench.encoders.joint import JointEncoder, sample_features
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.masked_language import IGNORE, mask_words, masked_language_loss
from vlp_bench.losses.matching import choose_reports, label_sets_differ, matching_loss
from vlp_bench.methods.base import VLPMethod
from vlp_bench.methods.draws import Draws
from vlp_bench.types import StudyBatch


class Reports(NamedTuple):
    """The report that each of B images is paired with: word pieces and [SEP], padded, without [CLS]."""

    words: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"]
    aligned: Bool[Tensor, "B"]


class MedViLL(VLPMethod):
    """Masked language modelling and image-report matching over one joint BERT.

    Args:
        vision: the image encoder; the cells of its last feature map (or its patches) are the image features.
        text: the BERT that reads both.
        optimizer: see VLPMethod.
        attention: `bi`, `s2s`, `bar`, `mixed` or `noncross`.
        s2s_share: how often `mixed` is s2s.
        visual_share: share of the image features that pre-training sees (180 of 256).
        mask_share: share of the word pieces that are hidden.
        max_tokens: longest report, [CLS] and [SEP] included.
        **common: see VLPMethod; loss_weights are of `mlm` and `irm`.

    Raises:
        UserError: an unknown attention, a share outside (0, 1], reports longer than the BERT can be.
    """

    official = "vlp_bench.methods.medvill_official:MedViLLOfficial"
    joint_class: type[JointEncoder] = JointEncoder
    text: TextBackbone

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        attention: str = "bar",
        s2s_share: float = 0.75,
        visual_share: float = 180 / 256,
        mask_share: float = 0.15,
        max_tokens: int = 255,
        **common: Any,
    ) -> None:
        super().__init__(vision, text, optimizer, **common)
        for name, share in (("visual_share", visual_share), ("mask_share", mask_share)):
            if not 0 < share <= 1:
                raise UserError(f"method.{name}={share}: expected a share above 0 and at most 1.")
        self.s2s_share, self.visual_share, self.mask_share = s2s_share, visual_share, mask_share
        self.max_tokens = max_tokens
        if not vision.is_vit:
            vision.set_token_stride(vision.spec.pyramid_strides[-1])
        self.joint = self.joint_class(
            vision.spec.token_dim, text.width, text.max_tokens, text.bert.config.vocab_size, attention
        )
        longest = int(self.joint.language_positions(max_tokens - self.joint.crosses).max()) + 1
        if longest > text.max_tokens:
            raise UserError(
                f"method.inputs.max_tokens={max_tokens} needs {longest} positions and text has {text.max_tokens}. "
                "Lower it, or raise text.architecture.max_position_embeddings."
            )

    def parts(self) -> dict[str, nn.Module]:
        """The CNN, the BERT, and what joins them."""
        return super().parts() | {"joint": self.joint}

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """MLM and IRM."""
        draws = Draws(batch.study, self.training)
        reports = self.pair(batch, draws)
        words, labels = self.hide(reports, draws)
        features, positions = self.look(batch, draws)
        hidden = self.joint(self.text, features, positions, words, reports.real, causal=self.causal(draws))
        matches = self.joint.match(hidden, features.shape[1])
        asked = labels != IGNORE
        # Scored where something is hidden, a twentieth of the sequence: the vocabulary is large.
        logits = self.joint.predict(self.text, hidden[:, -labels.shape[1] :][asked])
        self.note(len(batch), irm_accuracy=100 * (matches.argmax(1) == reports.aligned).float().mean())
        return {
            "mlm": masked_language_loss(logits, labels[asked], mean_count(asked.sum())),
            "irm": matching_loss(matches, reports.aligned),
        }

    def pair(self, batch: StudyBatch, draws: Draws) -> Reports:
        """The own report or, for half of the images, that of a study of any process with other labels.

        Raises:
            UserError: the data have no labels.
        """
        if batch.labels.shape[1] == 0:
            raise UserError("These data have no labels, by which negatives of image-report matching are drawn.")
        real = gather_longest(batch.text.mask)
        ids = gather_longest(batch.text.ids).masked_fill(~real, self.text.tokenizer.pad)
        own = torch.arange(len(batch), device=ids.device) + rank_and_world()[0] * len(batch)
        differs = label_sets_differ(batch.labels, gather(batch.labels))
        self.note(len(batch), negatives=differs.sum(1).float().mean())
        swap = draws("swap", own.new_zeros(1))[:, 0] < 0.5
        report, aligned = choose_reports(own, differs, draws("report", gather(batch.study)), swap)
        return Reports(ids[report, 1:], real[report, 1:], aligned)

    def hide(self, reports: Reports, draws: Draws) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Word pieces as BERT sees them, and labels of those that are hidden; of pairs that match."""
        place = torch.arange(reports.words.shape[1], device=reports.words.device)
        # The last real token is [SEP], which is never hidden.
        words = F.pad(reports.real[:, 1:], (0, 1))
        replacement = (draws("replacement", place) * self.text.bert.config.vocab_size).long()
        shown, labels = mask_words(
            reports.words, words, draws("hide", place), replacement, self.text.tokenizer.mask, self.mask_share
        )
        return shown, self.asked(labels, reports.aligned)

    def asked(self, labels: Int[Tensor, "B T"], aligned: Bool[Tensor, "B"]) -> Int[Tensor, "B T"]:
        """Labels that count: a report says nothing of the hidden words of another one's image."""
        return labels.masked_fill(~aligned[:, None], IGNORE)

    def look(self, batch: StudyBatch, draws: Draws) -> tuple[Float[Tensor, "B N C"], Int[Tensor, "B N"]]:
        """A random subset of each image's features, with their positions."""
        features = self.vision(batch.frontal).tokens
        count = features.shape[1]
        draw = self.visual_draw(draws, torch.arange(count, device=features.device))
        return sample_features(features, draw, max(1, round(self.visual_share * count)))

    def visual_draw(self, draws: Draws, places: Int[Tensor, "P"]) -> Float[Tensor, "_ P"]:
        """What the subset of the features follows from."""
        return draws("look", places)

    def causal(self, draws: Draws) -> Bool[Tensor, "B"] | None:
        """Samples that `mixed` gives the s2s mask: all or none."""
        if self.joint.attention != "mixed":
            return None
        return (draws.shared("causal", draws.study.new_zeros(1))[:, 0] < self.s2s_share).expand(len(draws.study))
