"""What a training step owes to DDP and to the accumulation of gradients."""

import json

import pytest
import torch
from helpers import only, run_cli
from method_on_two_ranks import SMALL, build
from pytorch_lightning.callbacks import Callback

from vlp_bench.config import groups
from vlp_bench.engine import pretrain
from vlp_bench.methods.base import VLPMethod

#: everything that leaves a part of a method out, or puts one in
OPTIONS = {
    "medvill": ("method.attention=noncross", "method.attention=mixed", "method.variant=official"),
    "mgca": ("method.heads=2", "method.variant=official"),
    "refers": ("method.fusion=false", "method.bidirectional=true", "method.variant=official"),
}
#: `prior` tells DDP of parameters that wait for their stage (tests/methods/test_prior.py)
CASES = [(name, option) for name in groups()["method"] if name != "prior" for option in (None, *OPTIONS.get(name, ()))]


@pytest.mark.parametrize("vision", ["test_resnet", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("name, option", CASES)
def test_every_step_uses_every_trainable_parameter(name, option, vision, monkeypatch):
    method, batch = build(name, vision, [*SMALL.get(name, ()), *([option] if option else [])])
    monkeypatch.setattr(VLPMethod, "progress", 0.0)
    torch.stack(list(method.train().terms(batch).values())).sum().backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


class Rates(Callback):
    """The learning rate of every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_accumulated_gradients_make_one_step_of_rate_queue_and_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates, plain = Rates(), pretrain._callbacks
    monkeypatch.setattr(pretrain, "_callbacks", lambda *a: [*plain(*a), rates])
    # five batches of 8 an epoch: two, two, and the one that is left
    steps = ["trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2"]
    data = ["data.studies=64", "data.limit=40", "data.batch_size=8", "method.queue=48", "select=last"]
    assert run_cli("pretrain", "method=moco", "trainer=smoke", "vision=tiny", *steps, *data) == 0
    folder = only(tmp_path, "runs/pretrain/*")
    assert json.loads((folder / "run.json").read_text())["training"]["steps"] == 6
    half = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 6)).item()) for step in range(6)]
    assert rates.seen == pytest.approx([5e-4 * factor for factor in half])
    state = torch.load(folder / "checkpoints" / "last.ckpt", "cpu", weights_only=True)["state_dict"]
    assert int(state["place"]) == 2 * 40 % 48
