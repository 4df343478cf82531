"""Two processes on a CPU, through the console script as a user starts them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import only

SCRIPT = Path(sys.executable).with_name("vlp-bench")
COMMON = [
    "trainer=smoke",
    "data.studies=48",
    "method.hidden_dim=32",
    "method.prototypes=10",
    "checkpoint_steps=1",
    "text.architecture.num_hidden_layers=1",
]


def run(folder, *arguments):
    done = subprocess.run(
        [str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="the console script vlp-bench is not installed beside this Python")
def test_two_processes_share_one_run_and_end_with_equal_weights(tmp_path):
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "trainer.accelerator=cpu"]
    run(tmp_path, "pretrain", *COMMON, *two, "logger=wandb", "logger.wandb.offline=true")
    folder = only(tmp_path, "runs/pretrain/*")
    assert only(folder, "wandb/offline-run-*").is_dir()
    record = json.loads((folder / "run.json").read_text())
    assert record["training"]["steps"] == 3
    assert set(pd.read_csv(folder / "metrics.csv")["train/negatives"]) == {7}  # of the joined batch of 8
    state = torch.load(folder / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    assert state["global_step"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="the console script vlp-bench is not installed beside this Python")
def test_one_process_that_is_asked_to_go_takes_the_other_along_at_the_same_step(tmp_path):
    endless = ["method=convirt", "vision=tiny", "trainer=smoke", "trainer.max_steps=-1", "trainer.max_epochs=1000"]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "data.studies=48"]
    with (tmp_path / "out.txt").open("w") as said:
        first = subprocess.Popen([str(SCRIPT), "pretrain", *endless, *two], cwd=tmp_path, stdout=said, stderr=said)
    curve, patience = "runs/pretrain/*/metrics.csv", time.monotonic() + 120
    while not any(len(p.read_text().splitlines()) > 5 for p in tmp_path.glob(curve)):
        assert first.poll() is None, (tmp_path / "out.txt").read_text()
        assert time.monotonic() < patience
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    step = torch.load(only(tmp_path, "runs/pretrain/*/checkpoints/last.ckpt"), "cpu", weights_only=True)["global_step"]
    assert f"goes on from step {step}" in (tmp_path / "out.txt").read_text()
