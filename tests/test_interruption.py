"""A run that is stopped at any moment, by whatever, loses nothing; one whose loss is none says where."""

import json
import multiprocessing
import os
import random
import signal

import killed_run
import pytest
import torch
from helpers import only, run_cli
from pytorch_lightning.callbacks import Callback

from vlp_bench.engine import pretrain
from vlp_bench.engine.keeping import SIGNALS

COMMON = [
    "trainer=smoke",
    "trainer.max_steps=-1",
    "trainer.max_epochs=2",
    "vision=tiny",
    "data.studies=48",
    "data.batch_size=8",
    "checkpoint_steps=2",
]
#: what has state beside weights: prototypes and batch statistics, a queue and a network that follows, stages
METHODS = {
    "mgca": ["method.hidden_dim=32", "method.prototypes=10", "method.freeze_prototypes_epochs=0"],
    "moco": ["method.queue=40", "method.momentum=0.9"],
    "prior": [
        "method.prototypes=12",
        "method.embed_dim=32",
        "method.heads=2",
        "method.decoder.layers=1",
        "method.decoder.heads=2",
    ],
}


def end_of(folder):
    """What a run leaves: weights with the state of optimiser, schedule and sampler; its curve; its bundle."""
    run = only(folder, "runs/pretrain/*")
    state = torch.load(run / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    return state, (run / "metrics.csv").read_text(), json.loads((run / "run.json").read_text())["bundle_hash"]


def assert_same_end(a, b):
    (one, curve, bundle), (other, other_curve, other_bundle) = a, b
    assert one["global_step"] == other["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "MimicCxrDataModule"):
        assert_same(one[part], other[part], part)
    assert curve == other_curve
    assert bundle == other_bundle


def assert_same(a, b, where):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments_and_resumed_ends_as_if_it_had_not_been(method, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlp_bench.engine.pretrain", "killed_run"])
    arguments = [f"method={method}", *METHODS[method], *COMMON, f"paths.cache={tmp_path / 'cache'}"]
    whole = tmp_path / "whole"
    run = killed_run.start(context, whole, arguments)
    run.join(240)
    assert run.exitcode == 0, (whole / "out.txt").read_text()
    end = end_of(whole)
    steps = end[0]["global_step"]
    draw = random.Random(method)
    for trial in range(2):
        folder = tmp_path / f"killed{trial}"
        # each run is killed twice: once pulled off the machine, once asked to go
        for number in draw.sample([signal.SIGKILL, signal.SIGTERM], 2):
            run = killed_run.start(context, folder, [*arguments, f"data.num_workers={trial}"])
            code = killed_run.kill_at(run, folder, draw.randrange(steps), number, draw.uniform(0, 0.3))
            assert code in {signal.SIGKILL: (-9, 0), signal.SIGTERM: (143, 0, -15)}[number]
        run = killed_run.start(context, folder, arguments)
        run.join(240)
        assert run.exitcode == 0, (folder / "out.txt").read_text()
        assert_same_end(end, end_of(folder))


class At(Callback):
    """Does something to the method when a step is due."""

    def __init__(self, step, hook, act):
        self.step = step
        setattr(self, hook, lambda trainer, module, *_: trainer.global_step == step and act(module))


@pytest.fixture
def disturbed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = pretrain._callbacks

    def run(step, hook, act, *more):
        monkeypatch.setattr(pretrain, "_callbacks", lambda *a: [At(step, hook, act), *plain(*a)])
        code = run_cli("pretrain", "method=convirt", *COMMON, *more)
        return code, only(tmp_path, "runs/pretrain/*")

    return run


def spoil(module):
    next(module.vision.parameters()).data.fill_(torch.nan)


def magnify(module):
    module.loss_weights = {name: 1e4 for name in module.loss_weights}


def spoil_gradient(module):
    next(module.vision.parameters()).grad.fill_(torch.inf)


@pytest.mark.parametrize("act, value", [(spoil, "nan"), (magnify, "e+04")])
def test_a_loss_that_is_none_or_runs_away_stops_the_run_and_names_the_studies(act, value, disturbed, capsys):
    code, run = disturbed(3, "on_train_batch_start", act)
    said = capsys.readouterr().err
    assert code == 2
    assert value in said
    assert "at epoch 0, batch 3" in said
    stopped = json.loads((run / "checkpoints" / "stopped.json").read_text())
    assert (stopped["epoch"], stopped["batch"], stopped["step"]) == (0, 3, 3)
    assert len(stopped["studies"]) == 8
    assert stopped["studies"][0] in said
    to_look_at = torch.load(run / "checkpoints" / "stopped.ckpt", "cpu", weights_only=True)
    assert to_look_at["global_step"] == 3
    last = torch.load(run / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    assert all(v.isfinite().all() for v in last["state_dict"].values())
    assert not (run / "run.json").exists()


def test_any_finite_loss_goes_where_divergence_is_not_watched(disturbed):
    code, run = disturbed(3, "on_train_batch_start", magnify, "divergence=null")
    assert code == 0
    assert (run / "run.json").exists()


def test_weights_that_a_gradient_has_spoilt_are_never_the_checkpoint_to_go_on_from(disturbed, capsys):
    # step 4 is the last of its epoch, and is kept before any loss is computed with its weights
    code, run = disturbed(3, "on_before_optimizer_step", spoil_gradient)
    assert code == 2
    assert "the weights after it are not finite" in capsys.readouterr().err
    last = torch.load(run / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    assert last["global_step"] == 3
    assert all(v.isfinite().all() for v in last["state_dict"].values())


@pytest.mark.parametrize("hook, step", [("on_train_batch_start", 2), ("on_validation_batch_start", 4)])
def test_a_run_that_is_asked_to_go_says_where_the_same_command_goes_on(hook, step, disturbed, capsys):
    before = [signal.getsignal(number) for number in SIGNALS]
    code, run = disturbed(step, hook, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert code == 143
    assert f"the same command goes on from step {3}" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not (run / "run.json").exists()
    assert disturbed(99, hook, None)[0] == 0
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 8 + 2


def test_batches_of_another_size_are_not_gone_on_with(disturbed, tmp_path, capsys):
    _, run = disturbed(3, "on_train_batch_start", spoil)
    kept = run / "checkpoints" / "last.ckpt"
    other = ["data.batch_size=4", f"resume={kept}", f"paths.output_root={tmp_path / 'other'}"]
    capsys.readouterr()
    assert run_cli("pretrain", "method=convirt", *COMMON, *other) == 2
    assert "hold 8 samples; this one's hold 4" in capsys.readouterr().err
