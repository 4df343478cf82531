"""Nothing is logged that the vocabulary does not declare."""

from types import SimpleNamespace

import pytest
import torch
from method_on_two_ranks import build

from vlp_bench import vocabulary
from vlp_bench.config import groups
from vlp_bench.methods.base import VLPMethod


@pytest.mark.parametrize("name", groups()["method"])
def test_every_curve_of_a_method_is_declared(name, monkeypatch):
    logged = {}
    monkeypatch.setattr(VLPMethod, "log_dict", lambda self, values, **_: logged.update(values))
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.05, "lr_scale": 0.1}])
    monkeypatch.setattr(VLPMethod, "optimizers", lambda self: optimizer)
    method, batch = build(name, "test_resnet")
    method._trainer = SimpleNamespace(estimated_stepping_batches=1)
    for progress in (0.0, 0.9):  # the first and the last stage
        monkeypatch.setattr(VLPMethod, "progress", progress)
        with torch.no_grad():
            method.train().training_step(batch, 0)
            method.eval().validation_step(batch, 0)
    assert {"train/loss", "val/loss", "lr"} <= logged.keys()
    assert logged["lr"] == pytest.approx(0.5)
    undeclared = [curve for curve in logged if vocabulary.curve(curve) is None]
    assert not undeclared
    assert all(vocabulary.curve(curve).panel in vocabulary.PANELS for curve in logged)
