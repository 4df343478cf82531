"""Outlines of lungs and boxes around pneumonia on real radiographs, where there are any."""

import os
from pathlib import Path

import pytest
import torch

from vlp_bench.config import compose_verb, plain
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine.data import ensure
from vlp_bench.tasks.base import Target
from vlp_bench.tasks.detection import Detection
from vlp_bench.tasks.segmentation import Segmentation

pytestmark = pytest.mark.slow
TRAINED = (
    "adaptation=finetune",
    "adaptation.batch_size=16",
    "adaptation.lr=1e-3",
    "adaptation.head_lr_scale=1",
    "adaptation.min_steps=0",
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample, prepared at 74 px."""
    if not os.environ.get("VLP_BENCH_REAL_DIR"):
        pytest.skip("VLP_BENCH_REAL_DIR is not set: it names the folder with data/cxr_sample")
    raw = Path(os.environ["VLP_BENCH_REAL_DIR"]) / "data" / "cxr_sample"
    section = plain(compose_verb("evaluate", ["target=folder", f"target.raw_dir={raw}"]).target)
    return ensure(section, tmp_path_factory.mktemp("cache"), 74)


@pytest.fixture
def encoders():
    torch.manual_seed(0)
    return Encoders({"vision": VisionBackbone("test_resnet", 64)}, {"name": "resnet"})


def test_lungs_are_outlined(sample, encoders, cell_of):
    target = Target(sample, name="sample", views="all")
    cell = cell_of(encoders, "task=segmentation", *TRAINED, "adaptation.epochs=8", target=target)
    task = Segmentation("dice", labels=["lung"])
    outcome = task.run(cell)
    assert outcome.trivial["dice"]["value"] == 0
    assert outcome.metrics["dice"]["value"] > 0.5
    assert len(list(task.pictures(cell, outcome, 2))) == 2


def test_boxes_of_pneumonia_are_read(sample, encoders, cell_of):
    target = Target(sample, name="sample", labels=["Pneumonia"], views="all")
    cell = cell_of(encoders, "task=detection", *TRAINED, "adaptation.epochs=2", target=target)
    outcome = Detection("map", width=0.125).run(cell)
    assert outcome.metrics["map"]["n"] > 10
    assert outcome.facts["train_positives"]["Pneumonia"] > 3
