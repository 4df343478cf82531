"""A run that is stopped at any moment, by whatever, loses nothing; one whose loss is none says where."""

import json
import multiprocessing
import random
import signal

import killed_run
import pytest
import torch
from helpers import only

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
