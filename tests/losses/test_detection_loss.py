import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from vlp_bench.losses.detection import (
    PUBLISHED_RULE,
    YoloRule,
    corners,
    decode,
    shape_overlap,
    suppress,
    yolo_loss,
    yolo_terms,
)

SIZE = 64
ANCHORS = torch.tensor([[12.0, 10.0], [30.0, 34.0], [20.0, 50.0]])


def sample(seed=0, classes=2, boxes=5):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(3, 3 * (5 + classes), 4, 4, generator=generator, dtype=torch.float64)
    size = torch.rand(3, boxes, 2, generator=generator, dtype=torch.float64) * 0.6 + 0.05
    centre = torch.rand(3, boxes, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (3, boxes), generator=generator)
    labels[2] = -1
    return head, torch.cat([centre, size], -1), labels


def one_at_a_time(head, boxes, labels, rule):
    """The same loss, box by box and cell by cell."""
    b, _, rows, columns = head.shape
    cells = head.view(b, len(ANCHORS), -1, rows, columns)
    x, y, w, h, c = (torch.zeros(b, 3, rows, columns, dtype=head.dtype) for _ in range(5))
    k = torch.zeros_like(cells[:, :, 5:])
    answers, background = torch.zeros_like(x), torch.ones_like(x)
    stride = SIZE / rows
    for i in range(b):
        for box, label in zip(boxes[i], labels[i], strict=True):
            if label < 0:
                continue
            gx, gy, gw, gh = (v.item() * rows for v in box)
            col, row = int(gx), int(gy)
            overlaps = []
            for aw, ah in (ANCHORS / stride).tolist():
                m = rule.margin
                shared = (min(gw, aw) + m) * (min(gh, ah) + m)
                overlaps.append(shared / ((gw + m) * (gh + m) + (aw + m) * (ah + m) - shared))
            best = max(range(3), key=lambda a: overlaps[a])
            for a in range(3):
                if overlaps[a] > rule.ignore or (a == best and not rule.responsible_is_background):
                    background[i, a, row, col] = 0
            at = (i, best, row, col)
            answers[at] = 1
            x[at], y[at] = gx - col, gy - row
            w[at] = math.log(gw * stride / ANCHORS[best, 0].item())
            h[at] = math.log(gh * stride / ANCHORS[best, 1].item())
            k[i, best, label, row, col] = 1
    del c
    p = cells.sigmoid()
    bce, total = F.binary_cross_entropy, x.numel()
    of = [
        (answers * bce(p[:, :, 0], x, reduction="none")).sum() / total,
        (answers * bce(p[:, :, 1], y, reduction="none")).sum() / total,
        (answers * (cells[:, :, 2] - w) ** 2).sum() / total,
        (answers * (cells[:, :, 3] - h) ** 2).sum() / total,
        -(answers * p[:, :, 4].log()).sum() / total - rule.background * (background * (1 - p[:, :, 4]).log()).mean(),
        (answers[:, :, None] * bce(p[:, :, 5:], k, reduction="none")).mean(),
    ]
    return torch.stack(of)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", [YoloRule(), PUBLISHED_RULE], ids=["standard", "published"])
def test_agrees_with_one_box_at_a_time(seed, rule):
    head, boxes, labels = sample(seed)
    terms = yolo_terms(head, ANCHORS.double(), SIZE, boxes, labels, rule)
    torch.testing.assert_close(torch.stack(terms), one_at_a_time(head, boxes, labels, rule))


def test_the_later_of_two_boxes_in_one_place_has_it():
    head, _, _ = sample()
    twice = torch.tensor([[0.3, 0.3, 0.4, 0.5], [0.35, 0.4, 0.5, 0.5]], dtype=torch.float64).expand(3, 2, 4)
    labels = torch.tensor([0, 1]).expand(3, 2)
    terms = yolo_terms(head, ANCHORS.double(), SIZE, twice, labels)
    torch.testing.assert_close(torch.stack(terms), one_at_a_time(head, twice, labels, YoloRule()))
    later = yolo_terms(head, ANCHORS.double(), SIZE, twice[:, 1:], labels[:, 1:])
    torch.testing.assert_close(terms[:4], later[:4])
    assert terms.classes != later.classes


def test_images_without_boxes_have_background_alone():
    head, boxes, labels = sample()
    for nothing in (
        yolo_terms(head, ANCHORS.double(), SIZE, boxes, torch.full_like(labels, -1)),
        yolo_terms(head, ANCHORS.double(), SIZE, boxes[:, :0], labels[:, :0]),
    ):
        expected = -0.5 * F.logsigmoid(-head.view(3, 3, -1, 4, 4)[:, :, 4]).mean()
        torch.testing.assert_close(nothing.objectness, expected)
        assert sum(nothing) == nothing.objectness


def test_the_order_of_images_and_padding_do_not_matter():
    head, boxes, labels = sample()
    order = torch.tensor([2, 0, 1])
    padded = F.pad(boxes, (0, 0, 0, 3)), F.pad(labels, (0, 3), value=-1)
    one = yolo_terms(head, ANCHORS.double(), SIZE, boxes, labels)
    torch.testing.assert_close(yolo_terms(head[order], ANCHORS.double(), SIZE, boxes[order], labels[order]), one)
    torch.testing.assert_close(yolo_terms(head, ANCHORS.double(), SIZE, *padded), one)


def test_a_centre_on_the_far_edge_belongs_to_the_last_cell():
    head, _, _ = sample()
    box = torch.tensor([[[1.0, 1.0, 0.2, 0.2]]], dtype=torch.float64).expand(3, 1, 4)
    terms = yolo_terms(head, ANCHORS.double(), SIZE, box, torch.zeros(3, 1, dtype=torch.long))
    assert all(torch.isfinite(t) for t in terms)
    head.requires_grad_()
    (gradient,) = torch.autograd.grad(
        yolo_terms(head, ANCHORS.double(), SIZE, box, torch.zeros(3, 1, dtype=torch.long)).width, head
    )
    assert {tuple(at) for at in gradient.nonzero()[:, 2:].tolist()} == {(3, 3)}


def test_the_weights_of_the_terms():
    head, boxes, labels = sample()
    t = yolo_terms(head, ANCHORS.double(), SIZE, boxes, labels)
    rule = dataclasses.replace(YoloRule(), position=2.0, size=3.0)
    expected = 2 * (t.x + t.y) + 3 * (t.width + t.height) + t.objectness + t.classes
    torch.testing.assert_close(yolo_loss(t, rule), expected)


def test_what_the_loss_asks_for_is_decoded_as_the_box():
    # The logits that the loss wants at the cell of a box give that box back.
    box = torch.tensor([0.55, 0.3, 0.4, 0.5])
    head = torch.zeros(1, 3, 7, 4, 4)
    best = shape_overlap(box[None, None, 2:] * SIZE, ANCHORS, 0.0).argmax().item()
    inside = torch.tensor([0.55 * 4 - 2, 0.3 * 4 - 1])
    head[0, best, :2, 1, 2] = (inside / (1 - inside)).log()
    head[0, best, 2:4, 1, 2] = (box[2:] * SIZE / ANCHORS[best]).log()
    found = decode(head.flatten(1, 2), ANCHORS, SIZE)[0, best * 16 + 1 * 4 + 2]
    torch.testing.assert_close(found[:4], box * SIZE)
    torch.testing.assert_close(found[4:], torch.full((3,), 0.5))


def test_decoding_wild_numbers_stays_finite():
    assert torch.isfinite(decode(torch.full((1, 18, 2, 2), 1e4), ANCHORS, SIZE)).all()


def test_suppression_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8])
    one = torch.zeros(4, dtype=torch.long)
    assert suppress(boxes, scores, one).tolist() == [1, 2]
    assert suppress(boxes, scores, torch.tensor([0, 0, 0, 1])).tolist() == [1, 3, 2]
    assert suppress(boxes, scores, one, overlap=0.95).tolist() == [1, 3, 2]
    assert suppress(boxes[:0], scores[:0], one[:0]).tolist() == []


def test_the_margin_takes_the_edges_for_pixels():
    # 4 of 8 columns shared: an overlap of one half; as pixels 5 of 9, more than that
    boxes, scores = torch.tensor([[0.0, 0, 6, 9], [2, 0, 8, 9]]), torch.tensor([0.9, 0.8])
    groups = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(box_iou(boxes, boxes)[0, 1], torch.tensor(0.5))
    assert len(suppress(boxes, scores, groups, 0.52)) == 2
    assert len(suppress(boxes, scores, groups, 0.52, margin=1.0)) == 1


def test_corners():
    assert corners(torch.tensor([10.0, 20, 4, 6])).tolist() == [8, 17, 12, 23]
