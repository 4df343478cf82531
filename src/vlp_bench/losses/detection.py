"""YOLOv3's loss, its boxes, and non-maximum suppression.

B images, N boxes at most, A anchors of a scale, K classes, H W cells. Truth is given as centre and size in shares of
the (square) image, so that one table serves every scale; what the network finds is in pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms

from vlp_bench.losses.precision import full_precision

#: exp(12) anchors are far wider than any image, and still far from what float32 can hold.
LARGEST_LOG_SIZE = 12.0


@dataclass(frozen=True, slots=True)
class YoloRule:
    """How boxes are given to anchors, and how the terms are weighed (MGCA's values).

    Attributes:
        ignore: anchors whose shape overlaps a box of their cell by more are no background there.
        margin: added to both sides of box and anchor (in cells) before their overlap is taken. MGCA's code adds 1, a
            convention of pixels, so that a small box fits every anchor; 0 compares the shapes as they are.
        responsible_is_background: whether the anchor that answers for a box also counts as background where its
            overlap is `ignore` or less, as it does in MGCA's code: the two terms then pull against each other.
        position: weight of the two terms of the centre.
        size: weight of the two terms of width and height.
        background: weight of the background's objectness.
    """

    ignore: float = 0.5
    margin: float = 0.0
    responsible_is_background: bool = False
    position: float = 2.5
    size: float = 2.5
    background: float = 0.5


#: What MGCA's code does.
PUBLISHED_RULE = YoloRule(margin=1.0, responsible_is_background=True)


class YoloTerms(NamedTuple):
    """The six terms of the loss at one scale, before their weights."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    objectness: Tensor
    classes: Tensor


def _cells(head: Float[Tensor, "B C H W"], anchors: int) -> Float[Tensor, "B A H W F"]:
    return head.unflatten(1, (anchors, -1)).permute(0, 1, 3, 4, 2)


@full_precision
def shape_overlap(
    sizes: Float[Tensor, "B N 2"], anchors: Float[Tensor, "A 2"], margin: float
) -> Float[Tensor, "B N A"]:
    """Intersection over union of boxes and anchors laid over the same corner."""
    sizes, anchors = sizes[:, :, None] + margin, anchors + margin
    shared = torch.minimum(sizes, anchors).prod(-1)
    return shared / (sizes.prod(-1) + anchors.prod(-1) - shared).clamp(min=1e-16)


@full_precision
def yolo_terms(
    head: Float[Tensor, "B C H W"],
    anchors: Float[Tensor, "A 2"],
    image_size: int,
    boxes: Float[Tensor, "B N 4"],
    labels: Int[Tensor, "B N"],
    rule: YoloRule = YoloRule(),
) -> YoloTerms:
    """Terms of YOLOv3's loss at one scale (golden: MGCA's code).

    The anchor that is nearest in shape answers for a box, in the cell of its centre. Where two boxes want the same
    anchor of the same cell, the later one has it (with the classes of both). All means are over every anchor of every
    cell, and 0 where nothing answers for a box.

    Args:
        head: for each anchor x, y, w, h, objectness and K classes, as logits.
        anchors: widths and heights in pixels.
        image_size: side of the image in pixels.
        boxes: centre x, centre y, width, height, in shares of the side.
        labels: class of each box, -1 where there is none.
        rule: how boxes are given to anchors.
    """
    cells = _cells(head, len(anchors))
    batch, count, rows, columns, fields = cells.shape
    grid = boxes.new_tensor([columns, rows])
    real = labels >= 0
    centres, sizes = boxes[..., :2] * grid, boxes[..., 2:] * grid
    anchors = anchors * grid / image_size
    overlap = shape_overlap(sizes, anchors, rule.margin)
    best = overlap.argmax(-1)
    # A centre on the far edge belongs to the last cell.
    corner = torch.minimum(centres.floor(), grid - 1).clamp(min=0).long()
    image = torch.arange(batch, device=head.device)[:, None]
    first = image * count * rows * columns + corner[..., 1] * columns + corner[..., 0]  # at anchor 0
    place = first + best * rows * columns

    together = (place[:, :, None] == place[:, None]) & real[:, None] & real[:, :, None]
    answers = real & ~together.triu(1).any(-1)
    found = cells.reshape(-1, fields)[place]
    classes = F.one_hot(labels.clamp(min=0), fields - 5).to(found.dtype)
    classes = (together.to(found.dtype) @ classes).clamp(max=1)

    spare = batch * count * rows * columns  # where what is not meant to be written goes
    background = found.new_ones(spare + 1)
    every = first[..., None] + torch.arange(count, device=head.device) * rows * columns
    near = real[..., None] & (overlap > rule.ignore)
    background[torch.where(near, every, spare)] = 0
    if not rule.responsible_is_background:
        background[torch.where(real, place, spare)] = 0

    def mean(terms: Tensor) -> Tensor:
        return torch.where(answers, terms, 0.0).sum() / spare

    inside = centres - corner
    log_sizes = (sizes / anchors[best]).clamp(min=1e-16).log()
    cross_entropy, objectness = F.binary_cross_entropy_with_logits, cells[..., 4].reshape(-1)
    return YoloTerms(
        x=mean(cross_entropy(found[..., 0], inside[..., 0], reduction="none")),
        y=mean(cross_entropy(found[..., 1], inside[..., 1], reduction="none")),
        width=mean((found[..., 2] - log_sizes[..., 0]).square()),
        height=mean((found[..., 3] - log_sizes[..., 1]).square()),
        objectness=mean(-F.logsigmoid(found[..., 4]))
        - rule.background * (background[:-1] * F.logsigmoid(-objectness)).mean(),
        classes=mean(cross_entropy(found[..., 5:], classes, reduction="none").mean(-1)),
    )


def yolo_loss(terms: YoloTerms, rule: YoloRule = YoloRule()) -> Float[Tensor, ""]:
    """The terms of one scale, weighed and added up."""
    place, size = rule.position * (terms.x + terms.y), rule.size * (terms.width + terms.height)
    return place + size + terms.objectness + terms.classes


@full_precision
def decode(head: Float[Tensor, "B C H W"], anchors: Float[Tensor, "A 2"], image_size: int) -> Float[Tensor, "B AHW F"]:
    """What one scale found, anchor by anchor, row by row.

    Args:
        head: as in `yolo_terms`.
        anchors: widths and heights in pixels.
        image_size: side of the image in pixels.

    Returns:
        Centre x, centre y, width and height in pixels, objectness and class probabilities.
    """
    cells = _cells(head, len(anchors))
    rows, columns = cells.shape[2:4]
    stride = image_size / cells.new_tensor([columns, rows])
    across, down = torch.arange(columns, device=head.device), torch.arange(rows, device=head.device)
    corner = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    centres = (cells[..., :2].sigmoid() + corner) * stride
    sizes = cells[..., 2:4].clamp(max=LARGEST_LOG_SIZE).exp() * anchors[:, None, None]
    return torch.cat([centres, sizes, cells[..., 4:].sigmoid()], -1).flatten(1, 3)


def corners(boxes: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S 4"]:
    """Centre and size to left, top, right, bottom."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def suppress(
    boxes: Float[Tensor, "M 4"],
    scores: Float[Tensor, " M"],
    groups: Int[Tensor, " M"],
    overlap: float = 0.5,
    margin: float = 0.0,
) -> Int[Tensor, " kept"]:
    """Non-maximum suppression within each group (an image, or a class of it): indices by descending score.

    Args:
        boxes: left, top, right, bottom in pixels.
        scores: of each box.
        groups: boxes of different groups do not suppress each other.
        overlap: intersection over union above which the lower score goes.
        margin: 1 takes the right and bottom edge for a pixel of the box, as MGCA's code does; 0 for a line.
    """
    grown = boxes + boxes.new_tensor([0.0, 0.0, margin, margin])
    return batched_nms(grown, scores, groups, overlap)
