"""Outlines of findings: a U-Net decoder on a CNN's own pyramid, or SETR's on a ViT's patches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from vlp_bench.data.datamodule import BatchKey
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.segmentation import dice_loss, mixed_loss
from vlp_bench.metrics.segmentation import (
    CHOOSING,
    Counts,
    choose_thresholds,
    per_image,
    segmentation_metrics,
    trivial_segmentation,
)
from vlp_bench.tasks.annotations import UNKNOWN, Annotations, shown
from vlp_bench.tasks.base import Cell, Outcome, Picture, Task
from vlp_bench.tasks.pictures import KEY, outlined, show_first
from vlp_bench.tasks.training import Adapted, TargetImages, fit, predict
from vlp_bench.types import ImageFeatures, LabelledBatch

LOSSES: dict[str, Callable[..., Tensor]] = {"mixed": mixed_loss, "dice": dice_loss}
#: What validation chooses a threshold from.
THRESHOLDS = np.linspace(0.05, 0.95, 19)


class Segmentation(Task):
    """Dice, IoU and false alarms at the resolution that the network reads.

    Args:
        primary: the metric that a table shows, and that validation chooses by: dice, dice_positive or iou.
        masks: `masks` of the target, or its `boxes` as masks.
        labels: names of masks; None takes the labels of the target that have any in training.
        loss: mixed (MGCA) or dice (PRIOR).
        decoder: `unet` on a CNN and SETR-PUP on a ViT where None; `linear`, one layer on the tokens; `upernet`.
        thresholds: `validation` (where `primary` is best, for each label), or a number for all labels, as published.

    Raises:
        UserError: an option that there is not.
    """

    def __init__(
        self,
        primary: str,
        masks: str = "masks",
        labels: Sequence[str] | None = None,
        loss: str = "mixed",
        thresholds: str | float = "validation",
        decoder: str | None = None,
    ) -> None:
        super().__init__(primary)
        if decoder not in (None, *DECODERS):
            raise UserError(f"task.decoder={decoder}: expected null, {', '.join(DECODERS)}.")
        if primary not in CHOOSING:
            raise UserError(f"task.primary={primary}: expected one of {', '.join(CHOOSING)}.")
        if loss not in LOSSES:
            raise UserError(f"task.loss={loss}: expected {' or '.join(LOSSES)}.")
        if thresholds != "validation" and not isinstance(thresholds, int | float):
            raise UserError(f"task.thresholds={thresholds}: expected validation, or a number.")
        self.masks, self.labels, self.loss, self.decoder = masks, labels, loss, decoder
        self.levels = THRESHOLDS if isinstance(thresholds, str) else np.array([float(thresholds)])

    def run(self, cell: Cell) -> Outcome:
        """Train, choose, measure.

        Raises:
            UserError: labels without masks, a split without images, nothing measurable.
        """
        truth = Annotations(cell.target, self.masks, self.labels)
        train, val, test = cell.train_rows(truth.rows("train")), truth.rows("val"), truth.rows(cell.split)
        truth.require_positives(test, cell.split)
        criterion, vision = LOSSES[self.loss], cell.encoders.vision
        model = Segmenter(vision, truth.labels, criterion, self.levels, self.primary, cell.adaptation, self.decoder)

        def data(rows: np.ndarray, augment: str | None = None) -> TargetImages:
            return TargetImages(cell.target, rows, cell.image_size, cell.seed, shown(augment), masks=truth.mask)

        facts = fit(cell, model, data(train, cell.adaptation["augment"]), data(val))
        found = _counts(predict(cell, model, data(test)))
        chosen = choose_thresholds(_counts(predict(cell, model, data(val))), self.primary)
        counts, patients = found.at(chosen), cell.target.patients(test)
        self._made = (model, truth, data(test), self.levels[chosen])
        common: dict[str, Any] = {"labels": truth.labels, "resamples": cell.resamples}
        return Outcome(
            segmentation_metrics(counts, patients, **common),
            trivial_segmentation(counts, patients, **common),
            cell.items(test).assign(**per_image(counts, truth.labels)),
            truth.labels,
            facts
            | truth.facts(train)
            | {
                "thresholds": dict(zip(truth.labels, self.levels[chosen].round(2).tolist(), strict=True)),
                "trivial": "nothing",
            },
        )

    @torch.inference_mode()
    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> Iterable[Picture]:
        """Contours of what was found and of the truth, images with a finding first."""
        model, truth, data, thresholds = self._made
        chosen = show_first(truth.positive[data.rows].any(1), count)
        if not len(chosen):
            return
        batch = data[BatchKey(0, 0, chosen)]
        assert batch.mask is not None
        found = model.eval()(batch).sigmoid().numpy() > thresholds[:, None, None]
        shown_and_true = (batch.image[:, 0].numpy(), batch.mask.numpy() == 1, found)
        for place, image, true, called in zip(chosen, *shown_and_true, strict=True):
            present = ", ".join(np.array(truth.labels)[truth.positive[data.rows[place]]]) or "nothing"
            dice = outcome.predictions["mean_dice"].iloc[place]
            group = f"{cell.encoders.name}: {KEY}"
            yield Picture(outlined(image, true, called), f"truth: {present}; Dice {dice:.2f}", group)


class Segmenter(Adapted):
    """A backbone with a decoder of masks.

    Args:
        backbone: the image encoder; reads the image at its own size, not enlarged.
        labels: names of the masks.
        criterion: the loss, of logits, masks and which of them are known.
        thresholds: (T,) above which a pixel may be called.
        primary: the metric that chooses the epoch, where the score does.
        adaptation: see Adapted.
        decoder: see Segmentation.

    Raises:
        UserError: a decoder that does not fit the backbone.
    """

    thresholds: Tensor

    def __init__(
        self,
        backbone: VisionBackbone,
        labels: Sequence[str],
        criterion: Callable[..., Tensor],
        thresholds: np.ndarray,
        primary: str,
        adaptation: Mapping[str, Any],
        decoder: str | None = None,
    ) -> None:
        backbone.upsample_to = None
        head = DECODERS[decoder or ("setr" if backbone.is_vit else "unet")](backbone, len(labels))
        super().__init__({"vision": backbone}, head, adaptation)
        self.labels, self.criterion, self.chosen_by = labels, criterion, primary
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.float32), persistent=False)

    def forward(self, batch: LabelledBatch) -> Float[Tensor, "B L H W"]:
        """Logits."""
        features = self.parts["vision"](batch.image, pyramid=True)
        return self.head(features, batch.image)

    def loss(self, batch: LabelledBatch) -> Float[Tensor, ""]:
        """The loss over the masks that are known."""
        masks, known = _split(batch)
        return self.criterion(self(batch), masks.float(), known)

    def predict(self, batch: LabelledBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels found and true, pixels found, (B, T, L), and true pixels (B, L), nan where a mask is not known."""
        masks, known = _split(batch)
        probabilities = self(batch).float().sigmoid()
        called = [probabilities > t for t in self.thresholds]
        sums = [torch.stack([x.sum((2, 3)) for x in kind], 1) for kind in ([c & masks for c in called], called)]
        known = known[:, :, 0, 0]
        overlap, found = (torch.where(known[:, None], s, torch.nan) for s in sums)
        return overlap, found, torch.where(known, masks.sum((2, 3)), torch.nan)

    def score(self, predictions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """The primary metric at the best threshold of each label; 0 where it is not defined."""
        counts = _counts(predictions)
        best = counts.at(choose_thresholds(counts, self.chosen_by))
        metrics = segmentation_metrics(best, np.arange(len(best.true)), labels=self.labels, resamples=0)
        return metrics[self.chosen_by]["value"] or 0.0


def _split(batch: LabelledBatch) -> tuple[Tensor, Tensor]:
    """Masks (B, L, H, W), and which of them are known (B, L, 1, 1): augmentation fills corners, also of the unknown."""
    assert batch.mask is not None
    return batch.mask == 1, ~(batch.mask == UNKNOWN).flatten(2).any(2)[..., None, None]


def _counts(predictions: list[tuple[Tensor, Tensor, Tensor]]) -> Counts:
    overlap, found, true = (torch.cat(part).double().numpy() for part in zip(*predictions, strict=True))
    return Counts(overlap.swapaxes(0, 1), found.swapaxes(0, 1), true)


class PyramidDecoder(nn.Module):
    """U-Net's decoder (segmentation-models-pytorch) on the maps that a CNN makes anyway.

    Args:
        backbone: a CNN.
        labels: number of masks.
        widths: channels of the decoder, from coarse to fine.
    """

    def __init__(self, backbone: VisionBackbone, labels: int, widths: Sequence[int] = (256, 128, 64, 32, 16)) -> None:
        super().__init__()
        if backbone.stem_channels is None:
            raise UserError("task.decoder=unet is for CNNs. Use setr, linear or upernet for a ViT.")
        channels = [backbone.spec.in_channels, backbone.stem_channels, *backbone.spec.pyramid_channels]
        self.decoder = UnetDecoder(channels, widths, n_blocks=len(widths))
        self.last = SegmentationHead(widths[-1], labels, kernel_size=3)

    def forward(self, features: ImageFeatures, image: UInt8[Tensor, "B 1 H W"]) -> Float[Tensor, "B L H W"]:
        """Logits of every pixel; of the image only the size matters."""
        assert features.stem is not None
        return self.last(self.decoder([image, features.stem, *features.pyramid]))


class PatchDecoder(nn.Module):
    """Progressive upsampling of a ViT's patches (SETR-PUP, as MGCA has it): four times convolution and doubling.

    Args:
        backbone: a ViT; the decoder is narrower for one narrower than ViT-B.
        labels: number of masks.
        widths: channels of the convolutions on a ViT-B.
    """

    def __init__(self, backbone: VisionBackbone, labels: int, widths: Sequence[int] = (512, 256, 128, 64)) -> None:
        super().__init__()
        width = backbone.spec.token_dim
        scaled = [max(round(w * width / 768), 8) for w in widths]
        self.project = nn.Linear(width, width)
        self.blocks = nn.Sequential(*map(self._block, [width, *scaled[:-1]], scaled))
        self.last = nn.Conv2d(scaled[-1], labels, 3, padding=1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), double)

    def forward(self, features: ImageFeatures, image: UInt8[Tensor, "B 1 H W"]) -> Float[Tensor, "B L H W"]:
        """Logits of every pixel; of the image only the size matters."""
        cells = self.project(features.tokens).transpose(1, 2).unflatten(2, features.grid)
        logits = self.last(self.blocks(cells))
        size = image.shape[2:]
        same = logits.shape[2:] == size  # patches of other than 16 pixels need one step more
        return logits if same else F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class LinearDecoder(nn.Module):
    """One linear layer on each token, enlarged to the image (LoVT's linear segmentation).

    Args:
        backbone: any.
        labels: number of masks.
    """

    def __init__(self, backbone: VisionBackbone, labels: int) -> None:
        super().__init__()
        self.last = nn.Linear(backbone.spec.token_dim, labels)

    def forward(self, features: ImageFeatures, image: UInt8[Tensor, "B 1 H W"]) -> Float[Tensor, "B L H W"]:
        """Logits of every pixel; of the image only the size matters."""
        cells = self.last(features.tokens).transpose(1, 2).unflatten(2, features.grid)
        return F.interpolate(cells, size=image.shape[2:], mode="bilinear", align_corners=False)


class UPerDecoder(nn.Module):
    """UPerNet's decoder (segmentation-models-pytorch) on the pyramid of any backbone.

    Args:
        backbone: any.
        labels: number of masks.
        width: channels of the decoder.
    """

    def __init__(self, backbone: VisionBackbone, labels: int, width: int = 256) -> None:
        super().__init__()
        channels = [backbone.spec.in_channels, 0, *backbone.spec.pyramid_channels]
        self.decoder = UPerNetDecoder(channels, encoder_depth=len(channels) - 1, decoder_channels=width)
        self.last = nn.Conv2d(width, labels, 3, padding=1)

    def forward(self, features: ImageFeatures, image: UInt8[Tensor, "B 1 H W"]) -> Float[Tensor, "B L H W"]:
        """Logits of every pixel; of the image only the size matters."""
        logits = self.last(self.decoder([image, image, *features.pyramid]))
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)


DECODERS: dict[str, Callable[[VisionBackbone, int], nn.Module]] = {
    "unet": PyramidDecoder,
    "setr": PatchDecoder,
    "linear": LinearDecoder,
    "upernet": UPerDecoder,
}
