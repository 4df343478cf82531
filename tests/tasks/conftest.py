"""A small synthetic target and small encoders, and cells made of both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlp_bench import vocabulary
from vlp_bench.config import compose_verb, plain
from vlp_bench.data.store import PreparedData
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.engine import build
from vlp_bench.engine.data import ensure
from vlp_bench.tasks.base import Cell, Outcome, Target

FINDINGS = ["Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Support Devices"]
VIT = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def every_measure_is_declared(monkeypatch):
    """Whatever a task finds in these tests, the vocabulary knows."""
    made = Outcome.__init__

    def checked(self, *args, **kwargs):
        made(self, *args, **kwargs)
        assert not [name for name in (*self.metrics, *self.trivial) if vocabulary.measure(name) is None]

    monkeypatch.setattr(Outcome, "__init__", checked)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def store(cache) -> PreparedData:
    """200 synthetic studies with boxes, masks, questions and reports, at 74 px for networks of 64."""
    section = plain(compose_verb("evaluate", ["target.studies=200"]).target)
    return ensure(section, cache, 74)


@pytest.fixture(scope="session")
def pretrained() -> Callable[..., Encoders]:
    """Encoders as a method leaves them, untrained, by name of the method."""

    def make(method: str = "mgca", vision: str = "tiny", *overrides: str) -> Encoders:
        torch.manual_seed(0)
        small = ["vision.image_size=64", "text=tiny"]
        if vision == "vit":
            vision = "vit_ti16"
            small += [f"+vision.architecture.{k}={v}" for k, v in VIT.items()] + ["vision.weights=none"]
        cfg = compose_verb("pretrain", [f"method={method}", f"vision={vision}", *small, *overrides])
        built = build.method(cfg, train=False)
        meta = {"name": f"{method} {vision}", "method": method, "inputs": plain(cfg.method.inputs)}
        return Encoders(built.parts(), meta)

    return make


@pytest.fixture
def cell_of(store, tmp_path, cache) -> Callable[..., Cell]:
    """A cell of encoders on the target; overrides are those of `vlp-bench evaluate`."""

    def make(encoders: Encoders, *overrides: str, labels: Any = FINDINGS, **more: Any) -> Cell:
        cfg = compose_verb("evaluate", ["trainer=cpu", "resamples=50", *overrides])

        def trainer(callbacks, **arguments):
            return build.trainer(cfg.trainer, tmp_path, callbacks, False, enable_progress_bar=False, **arguments)

        values = {
            "encoders": encoders,
            "target": Target(store, name="synthetic", labels=labels),
            "adaptation": plain(cfg.adaptation),
            "label_fraction": cfg.label_fraction,
            "draw": cfg.draw,
            "seed": cfg.seed,
            "split": cfg.split,
            "resamples": cfg.resamples,
            "out": tmp_path,
            "cache": cache,
            "trainer": trainer,
        }
        return Cell(**{**values, **more})

    return make
