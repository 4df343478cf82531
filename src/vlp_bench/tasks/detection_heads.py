"""What finds boxes in the feature maps of a backbone: YOLOv3, or the two stages of Faster R-CNN.

A head has `loss(maps, boxes)` and `detect(maps)`. Boxes of the truth are (B, N, 5): left, top, right, bottom in pixels
and a class, -1 on padding; what is found is (B, 100, 6): the box, its score and its class, -1 on padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vlp_bench.losses.detection import PUBLISHED_RULE, YoloRule, corners, decode, suppress, yolo_loss, yolo_terms

#: Boxes of an image: before suppression, and in the end (as COCO counts).
CANDIDATES, MOST = 1000, 100
OVERLAP = 0.5
#: YOLOv3's anchors in pixels of a 416 px image, from the finest map to the coarsest.
YOLO_SIZE = 416
YOLO_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
#: Sides of Faster R-CNN's anchors in pixels of an 800 px image, one for each map, and their shapes.
RCNN_SIZE = 800
RCNN_SIDES = (32, 64, 128, 256, 512)
RCNN_SHAPES = (0.5, 1.0, 2.0)
#: Regions of an image that Faster R-CNN's box head is trained on.
REGIONS = 512


class DetectionHead(nn.Module, ABC):
    """Finds boxes in the maps of a backbone's pyramid, from fine to coarse."""

    @abstractmethod
    def loss(self, maps: Sequence[Tensor], boxes: Float[Tensor, "B N 5"]) -> Float[Tensor, ""]:
        """What is minimised."""

    @abstractmethod
    def detect(self, maps: Sequence[Tensor]) -> Float[Tensor, "B M 6"]:
        """What was found, by descending score."""


def packed(
    boxes: Float[Tensor, "M 4"], scores: Float[Tensor, " M"], labels: Tensor, image: Tensor, images: int
) -> Float[Tensor, "B M 6"]:
    """Boxes in descending order of score to one row an image, filled up with class -1."""
    mine = F.one_hot(image, images)
    place = (mine.cumsum(0) * mine).sum(1) - 1
    kept = place < MOST
    out = boxes.new_zeros(images, MOST, 6)
    out[..., 5] = -1
    found = torch.cat([boxes, scores[:, None], labels[:, None].to(boxes.dtype)], 1)
    out[image[kept], place[kept]] = found[kept]
    return out


class YoloHead(DetectionHead):
    """YOLOv3's neck and heads on the maps of strides 8, 16 and 32 (MGCA; a ViT's maps are resized patches).

    Args:
        channels: of all maps of the pyramid, from fine to coarse.
        classes: number of labels.
        image_size: side of the image in pixels; the anchors scale with it.
        width: factor on the channels of the neck.
        min_score: boxes below it are not given out.
        published: as MGCA's code: its assignment of anchors and suppression, the objectness alone as the score, one
            class a box. Otherwise each class of a box is a box of its own, scored by objectness times probability.
    """

    anchors: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        image_size: int,
        width: float = 1.0,
        min_score: float = 0.05,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.min_score, self.published = image_size, min_score, published
        self.rule = PUBLISHED_RULE if published else YoloRule()
        anchors = torch.tensor(YOLO_ANCHORS, dtype=torch.float32).flip(0) * image_size / YOLO_SIZE
        self.register_buffer("anchors", anchors, persistent=False)
        coarse, middle, fine = reversed(channels[-3:])
        widths = [max(round(w * width), 8) for w in (512, 256, 128)]
        self.necks = nn.ModuleList(
            _neck(inputs, w) for inputs, w in zip((coarse, middle + widths[1], fine + widths[2]), widths, strict=True)
        )
        self.laterals = nn.ModuleList(_convolution(a, b, 1) for a, b in pairwise(widths))
        self.heads = nn.ModuleList(
            nn.Sequential(_convolution(w, 2 * w, 3), nn.Conv2d(2 * w, anchors.shape[1] * (5 + classes), 1))
            for w in widths
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What `yolo_terms` and `decode` read, from coarse to fine."""
        branch = self.necks[0](maps[-1])
        out = [self.heads[0](branch)]
        finer = zip(self.laterals, self.necks[1:], self.heads[1:], reversed(maps[-3:-1]), strict=True)
        for lateral, neck, head, below in finer:
            above = F.interpolate(lateral(branch), size=below.shape[2:], mode="nearest")
            branch = neck(torch.cat([above, below], 1))
            out.append(head(branch))
        return out

    def loss(self, maps: Sequence[Tensor], boxes: Float[Tensor, "B N 5"]) -> Float[Tensor, ""]:
        """Sum over the scales."""
        share = boxes[..., :4] / self.image_size
        truth = torch.cat([(share[..., :2] + share[..., 2:]) / 2, share[..., 2:] - share[..., :2]], -1)
        labels = boxes[..., 4].long()
        terms = (
            yolo_terms(head.float(), anchors, self.image_size, truth, labels, self.rule)
            for head, anchors in zip(self(maps), self.anchors, strict=True)
        )
        return torch.stack([yolo_loss(t, self.rule) for t in terms]).sum()

    def detect(self, maps: Sequence[Tensor]) -> Float[Tensor, "B M 6"]:
        """Boxes within the image, after suppression within each class."""
        scales = zip(self(maps), self.anchors, strict=True)
        found = torch.cat([decode(head.float(), anchors, self.image_size) for head, anchors in scales], 1)
        boxes = corners(found[..., :4]).clamp(0, self.image_size)
        classes = found.shape[-1] - 5
        if self.published:
            scores, label = found[..., 4], found[..., 5:].argmax(-1)
        else:
            scores = (found[..., 4:5] * found[..., 5:]).flatten(1)
            label = torch.arange(classes, device=scores.device).repeat(found.shape[1]).expand_as(scores)
        best, at = scores.topk(min(CANDIDATES, scores.shape[1]))
        box = boxes.gather(1, (at // (1 if self.published else classes))[..., None].expand(-1, -1, 4))
        real = (best >= self.min_score) & (box[..., 2:] > box[..., :2]).all(-1)
        image = torch.arange(len(box), device=box.device)[:, None].expand_as(best)[real]
        box, best, label = box[real], best[real], label.gather(1, at)[real]
        kept = suppress(box, best, image * classes + label, OVERLAP, margin=1.0 if self.published else 0.0)
        return packed(box[kept], best[kept], label[kept], image[kept], len(found))


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))


def _neck(inputs: int, width: int) -> nn.Module:
    """Five convolutions, 1 x 1 and 3 x 3 in turn."""
    sizes = [inputs, width, 2 * width, width, 2 * width, width]
    return nn.Sequential(*(_convolution(a, b, 3 if n % 2 else 1) for n, (a, b) in enumerate(pairwise(sizes))))


class FasterRCNNHead(DetectionHead):
    """A feature pyramid network, region proposals and box heads of torchvision, on maps that exist already (PRIOR).

    torchvision's own resizing and normalisation of images is not used: the backbone does both.

    Args:
        channels: of all maps of the pyramid, from fine to coarse.
        classes: number of labels.
        image_size: side of the image in pixels; the anchors scale with it.
        width: factor on the 256 channels of the pyramid and the 1024 of the box head.
        min_score: boxes below it are not given out.
    """

    def __init__(
        self, channels: Sequence[int], classes: int, image_size: int, width: float = 1.0, min_score: float = 0.05
    ) -> None:
        super().__init__()
        self.image_size = image_size
        inner = max(round(256 * width), 16)
        self.pyramid = FeaturePyramidNetwork(list(channels), inner, extra_blocks=LastLevelMaxPool())
        sides = [(max(round(side * image_size / RCNN_SIZE), 1),) for side in RCNN_SIDES]
        wide = max(round(1024 * width), 32)
        stages = FasterRCNN(
            _Maps(inner),
            box_head=TwoMLPHead(inner * 7**2, wide),
            box_predictor=FastRCNNPredictor(wide, classes + 1),
            rpn_anchor_generator=AnchorGenerator(tuple(sides), (RCNN_SHAPES,) * len(sides)),
            box_score_thresh=min_score,
            box_nms_thresh=OVERLAP,
            box_batch_size_per_image=REGIONS,
            box_detections_per_img=MOST,
        )
        self.proposals, self.boxes = stages.rpn, stages.roi_heads

    def _stages(
        self, maps: Sequence[Tensor], boxes: Tensor | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        features = self.pyramid({str(n): x for n, x in enumerate(maps)})
        sizes = [(self.image_size, self.image_size)] * len(maps[0])
        # of the images only the size is read
        images = ImageList(maps[0].new_empty(len(sizes), 1, self.image_size, self.image_size), sizes)
        targets = None
        if boxes is not None:
            real = boxes[..., 4] >= 0
            targets = [
                {"boxes": b[r, :4], "labels": b[r, 4].long() + 1} for b, r in zip(boxes, real, strict=True)
            ]  # torchvision's class 0 is the background
        regions, losses = self.proposals(images, features, targets)
        found, more = self.boxes(features, regions, sizes, targets)
        return found, {**losses, **more}

    def loss(self, maps: Sequence[Tensor], boxes: Float[Tensor, "B N 5"]) -> Float[Tensor, ""]:
        """Sum of the four losses; also in eval mode, in which torchvision's stages give none."""
        before = self.training
        for stage in (self.proposals, self.boxes):
            stage.train()
        _, losses = self._stages(maps, boxes)
        for stage in (self.proposals, self.boxes):
            stage.train(before)
        return torch.stack(list(losses.values())).sum()

    def detect(self, maps: Sequence[Tensor]) -> Float[Tensor, "B M 6"]:
        """Boxes within the image, after suppression within each class."""
        found, _ = self._stages(maps, None)
        boxes, scores, labels = (torch.cat([f[key] for f in found]) for key in ("boxes", "scores", "labels"))
        counts = torch.tensor([len(f["scores"]) for f in found], device=boxes.device)
        image = torch.arange(len(found), device=boxes.device).repeat_interleave(counts)
        order = scores.argsort(descending=True, stable=True)
        return packed(boxes[order], scores[order], labels[order] - 1, image[order], len(found))


class _Maps(nn.Module):
    """Tells torchvision how wide the maps are that its backbone would make."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
