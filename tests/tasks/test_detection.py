"""Detection as a task: the two heads, what is measured, drawn and refused."""

import numpy as np
import pytest
import torch

from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.metrics.detection import detection_metrics, matches_from_table
from vlp_bench.tasks.detection import Detection
from vlp_bench.tasks.detection_heads import MOST, FasterRCNNHead, YoloHead, packed

QUICK = (
    "adaptation=frozen",
    "adaptation.epochs=1",
    "adaptation.min_steps=0",
    "adaptation.batch_size=8",
    "label_fraction=0.1",
)
SMALL = {"yolo": {"width": 0.0625}, "faster_rcnn": {"width": 0.0625}}
CHANNELS = (8, 12, 16, 20)


def maps(size=64, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, c, size // s, size // s, generator=generator)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def head(kind, classes=2, size=64, **more):
    torch.manual_seed(0)
    made = YoloHead if kind == "yolo" else FasterRCNNHead
    return made(CHANNELS, classes, size, 0.0625, **more)


#: two boxes on the first image, none on the second
TRUTH = torch.tensor([[[10.0, 10, 40, 50, 1], [30, 5, 60, 20, 0]], [[0, 0, 0, 0, -1], [0, 0, 0, 0, -1]]])


def test_boxes_are_packed_one_row_an_image():
    boxes = torch.arange(12.0).reshape(3, 4)
    out = packed(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]), torch.tensor([2, 0, 2]), 3)
    assert out.shape == (3, MOST, 6)
    assert out[0, 0].tolist() == [4, 5, 6, 7, pytest.approx(0.8), 0]
    assert out[2, :2, 4].tolist() == pytest.approx([0.9, 0.7])
    assert (out[..., 5] >= 0).sum(1).tolist() == [1, 0, 2]
    many = torch.zeros(150, dtype=torch.long)
    assert (packed(torch.rand(150, 4), torch.ones(150), many, many, 2)[..., 5] >= 0).sum(1).tolist() == [MOST, 0]


@pytest.mark.parametrize("kind", ["yolo", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_a_head_learns_two_boxes_by_heart(kind):
    made, given = head(kind), maps()
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(given, TRUTH).backward()
        optimizer.step()
    with torch.no_grad():
        found = made.detect(given) if kind == "yolo" else made.eval().detect(given)
    for box in TRUTH[0]:
        best = found[0][found[0, :, 5] == box[4]][0]
        assert best[4] > 0.3
        assert (best[:4] - box[:4]).abs().max() < 4
    assert (found[1, :, 4] < 0.5).all()


@pytest.mark.parametrize("kind", ["yolo", "faster_rcnn"])
def test_images_without_boxes_are_background(kind):
    made = head(kind)
    for nothing in (TRUTH[1:].expand(2, -1, -1), torch.zeros(2, 0, 5)):
        loss = made.loss(maps(), nothing)
        loss.backward()
        assert torch.isfinite(loss)
    # the loss of validation, in eval mode, leaves the head in eval mode
    assert torch.isfinite(made.eval().loss(maps(), TRUTH))
    assert not any(m.training for m in made.modules())


@pytest.mark.parametrize("kind", ["yolo", "faster_rcnn"])
def test_what_is_found_lies_in_the_image_by_descending_score(kind):
    made = head(kind, min_score=0.0).eval()
    with torch.no_grad():
        found = made.detect([m * 50 for m in maps()])
    real = found[..., 5] >= 0
    assert real.any()
    boxes = found[real]
    assert boxes[:, :4].min() >= 0
    assert boxes[:, :4].max() <= 64
    assert (boxes[:, 2:4] > boxes[:, :2]).all()
    for image in found:
        scores = image[image[:, 5] >= 0, 4]
        assert (scores[:-1] >= scores[1:]).all()
    assert set(boxes[:, 5].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["yolo", "faster_rcnn"])
@pytest.mark.parametrize("size", [64, 96])
def test_anchors_grow_with_the_image(kind, size):
    made = head(kind, size=size)
    if kind == "yolo":
        assert made.anchors[0, 2].tolist() == pytest.approx([373 * size / 416, 326 * size / 416])
        assert made.anchors[2, 0].tolist() == pytest.approx([10 * size / 416, 13 * size / 416])
    else:
        assert made.proposals.anchor_generator.sizes[4] == (round(512 * size / 800),)


def test_pixels_of_images_are_not_touched_by_torchvision():
    # with maps of zeros nothing of an image is left: the same boxes whatever the pixels were
    made = head("faster_rcnn", min_score=0.0).eval()
    with torch.no_grad():
        one, two = made.detect([0 * m for m in maps()])
    torch.testing.assert_close(one, two)


def test_the_published_way_scores_by_objectness_and_gives_one_class_a_box():
    plain_, published = head("yolo", min_score=0.0).eval(), head("yolo", min_score=0.0, published=True).eval()
    published.load_state_dict(plain_.state_dict())
    with torch.no_grad():
        one, other = plain_.detect(maps()), published.detect(maps())
    assert other[..., 4].max() > one[..., 4].max()
    boxes = other[0, :, :4][other[0, :, 5] >= 0]
    assert len(boxes.unique(dim=0)) == len(boxes)


@pytest.mark.parametrize(("vision", "kind"), [("tiny", "yolo"), ("vit", "yolo"), ("tiny", "faster_rcnn")])
def test_at_test_size(pretrained, cell_of, vision, kind):
    labels = ["Cardiomegaly", "Pleural Effusion"]
    cell = cell_of(pretrained("mgca", vision), "task=detection", *QUICK, labels=labels)
    task = Detection("map", head=kind, min_score=0.0, **SMALL[kind])
    outcome = task.run(cell)
    assert outcome.labels == labels
    assert outcome.metrics.keys() == outcome.trivial.keys()
    assert outcome.facts["trivial"] in ("nothing", "mean box")
    table = outcome.predictions
    limits = {k: np.inf if v is None else v for k, v in outcome.facts["thresholds"].items()}
    again = detection_metrics(matches_from_table(table), table["patient_id"], limits, resamples=50)
    assert again == outcome.metrics
    images = cell.target.store.images.set_index("image_id")
    boxes = [cell.target.store.boxes(images.index.get_loc(name)) for name in table["item_id"]]
    expected = [sum(b["label"] == "Cardiomegaly" for b in found) for found in boxes]
    known = table["truths_Cardiomegaly"] >= 0
    assert table["truths_Cardiomegaly"][known].tolist() == np.array(expected)[known].tolist()
    pictures = list(task.pictures(cell, outcome, 2))
    assert [p.image.shape for p in pictures] == [(224, 224, 3)] * 2
    assert "nothing" not in pictures[0].caption


def test_a_vit_has_two_stages_too(pretrained, cell_of):
    cell = cell_of(pretrained("mgca", "vit"), "task=detection", *QUICK, labels=["Cardiomegaly"])
    outcome = Detection("map", head="faster_rcnn", **SMALL["faster_rcnn"]).run(cell)
    assert outcome.metrics["map"]["value"] is not None


def test_the_published_way_gives_the_mean_without_empty_images(pretrained, cell_of):
    cell = cell_of(pretrained("mgca"), "task=detection", "adaptation.select=score", *QUICK, labels=["Pleural Effusion"])
    outcome = Detection("map_40_75", published=True, **SMALL["yolo"]).run(cell)
    assert "map_40_75_skipping" in outcome.metrics.keys() & outcome.trivial.keys()
    assert outcome.facts["best_val_score"] >= 0


def test_the_backbone_reads_the_image_at_its_own_size(pretrained, cell_of):
    encoders = pretrained("mgca", "tiny", "vision.upsample_to=96")
    Detection("map", **SMALL["yolo"]).run(cell_of(encoders, "task=detection", *QUICK, labels=["Cardiomegaly"]))
    assert isinstance(encoders.vision, VisionBackbone)
    assert encoders.vision.upsample_to is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "ssd"}, r"task\.head=ssd"),
        ({"head": "faster_rcnn", "published": True}, r"task\.published=true"),
        ({"width": 0.0}, r"task\.width=0\.0"),
        ({"primary": "dice"}, r"task\.primary=dice"),
        ({"primary": "map_40_75_skipping"}, r"with task\.published=true"),
        ({"min_score": 1.0}, r"task\.min_score=1\.0"),
    ],
)
def test_options_that_there_are_not_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Detection(**{"primary": "map", **options})


def test_an_adaptation_that_trains_nothing_is_refused(pretrained, cell_of):
    cell = cell_of(pretrained("mgca"), "task=detection", "adaptation=probe_cached", labels=["Cardiomegaly"])
    with pytest.raises(UserError, match="adaptation=probe_cached trains no layers"):
        Detection("map", **SMALL["yolo"]).run(cell)
