"""Two processes on a CPU, through the console script as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

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
    run(tmp_path, "pretrain", *COMMON, *two)
    folder = only(tmp_path, "runs/pretrain/*")
    record = json.loads((folder / "run.json").read_text())
    assert record["training"]["steps"] == 3
    state = torch.load(folder / "checkpoints" / "last.ckpt", "cpu", weights_only=True)
    assert state["global_step"] == 3
