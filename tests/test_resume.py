"""A run that is interrupted anywhere ends as if it had not been."""

import json

import pytest
import torch
from helpers import only, run_cli
from pytorch_lightning.callbacks import Callback

from vlp_bench.engine import pretrain
from vlp_bench.errors import UserError

COMMON = [
    "pretrain",
    "trainer=smoke",
    "trainer.max_steps=-1",
    "trainer.max_epochs=2",
    "data.studies=48",
    "data.batch_size=8",
    "method.hidden_dim=32",
    "method.prototypes=10",
    "checkpoint_steps=2",
    "paths.cache=../cache",
]


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise UserError("pulled the plug")


@pytest.fixture
def at(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "resume"

    def move(name):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        return folder

    return move


def weights(folder):
    path = only(folder, "runs/pretrain/*/checkpoints/last.ckpt")
    return torch.load(path, "cpu", weights_only=True)


@pytest.mark.parametrize("stop, workers", [(3, 0), (5, 0), (7, 1)])
def test_interrupted_in_an_epoch_and_resumed_equals_uninterrupted(at, stop, workers, monkeypatch):
    whole = at("whole")
    assert run_cli(*COMMON) == 0
    folder = at(f"stopped{stop}")
    plain = pretrain._callbacks
    monkeypatch.setattr(pretrain, "_callbacks", lambda *a: [*plain(*a), StopAt(stop)])
    assert run_cli(*COMMON) == 2
    monkeypatch.setattr(pretrain, "_callbacks", plain)
    assert run_cli(*COMMON, f"data.num_workers={workers}") == 0
    a, b = weights(whole), weights(folder)
    assert a["global_step"] == b["global_step"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    one, other = (only(f, "runs/pretrain/*/metrics.csv").read_text() for f in (whole, folder))
    assert one == other


def test_every_checkpoint_loads_without_pickled_code_and_rebuilds_the_encoders(at):
    folder = at("whole")
    assert run_cli(*COMMON) == 0
    found = sorted(folder.glob("runs/pretrain/*/checkpoints/*.ckpt"))
    assert len(found) == 2
    for path in found:
        state = torch.load(path, "cpu", weights_only=True)
        assert state["vlp_bench"]["meta"]["method"] == "mgca"
    shared = ["trainer=smoke", "paths.cache=../cache", "adaptation=probe_cached"]
    assert run_cli("evaluate", f"backbone={found[0]}", *shared) == 0
    result = json.loads(only(folder, "runs/evaluate/*/result.json").read_text())
    assert result["backbone"] == "mgca resnet18"


def test_overwrite_starts_from_scratch(at):
    folder = at("whole")
    assert run_cli(*COMMON) == 0
    run = only(folder, "runs/pretrain/*")
    before = json.loads((run / "run.json").read_text())
    assert run_cli(*COMMON, "overwrite=true") == 0
    after = json.loads((run / "run.json").read_text())
    assert after["bundle_hash"] == before["bundle_hash"]
    assert after["provenance"]["started"] >= before["provenance"]["started"]
