"""A few epochs on synthetic chests beat the answer that looks at no image, for every decoder and head."""

import pytest
import torch

from vlp_bench.encoders.bundle import Encoders
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.tasks import detection_heads
from vlp_bench.tasks.detection import Detection
from vlp_bench.tasks.segmentation import Segmentation

pytestmark = pytest.mark.slow
LABELS = ["Cardiomegaly", "Pleural Effusion"]
TRAINED = (
    "adaptation=finetune",
    "adaptation.batch_size=16",
    "adaptation.lr=1e-3",
    "adaptation.head_lr_scale=1",
    "adaptation.min_steps=0",
)


def encoders(kind):
    torch.manual_seed(0)
    if kind == "resnet":
        vision = VisionBackbone("test_resnet", 64)
    else:
        small = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}
        vision = VisionBackbone("vit_tiny_patch16_224", 64, architecture=small)
    return Encoders({"vision": vision}, {"name": kind})


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_outlines_beat_an_empty_prediction(cell_of, kind):
    cell = cell_of(encoders(kind), "task=segmentation", *TRAINED, "adaptation.epochs=10", labels=LABELS)
    outcome = Segmentation("dice").run(cell)
    for name in ("dice", "dice_positive", "iou"):
        assert outcome.metrics[name]["value"] > outcome.trivial[name]["value"]


@pytest.mark.parametrize(
    ("kind", "head", "epochs"), [("resnet", "yolo", 20), ("vit", "yolo", 20), ("resnet", "faster_rcnn", 8)]
)
def test_boxes_beat_the_mean_box(cell_of, kind, head, epochs, monkeypatch):
    monkeypatch.setattr(detection_heads, "REGIONS", 32)  # CPUs are slow at regions
    options = (*TRAINED, f"adaptation.epochs={epochs}", "adaptation.select=score")
    cell = cell_of(encoders(kind), "task=detection", *options, labels=LABELS)
    outcome = Detection("map", head=head, width=0.125).run(cell)
    for name in ("map", "ap50"):
        assert outcome.metrics[name]["value"] > outcome.trivial[name]["value"]
