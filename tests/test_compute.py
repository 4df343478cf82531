"""The section `compute` changes how fast a run is, not what it is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import only, run_cli
from omegaconf import OmegaConf

from vlp_bench.config import compose_verb, run_name
from vlp_bench.encoders import bundle
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import compute
from vlp_bench.errors import UserError
from vlp_bench.tasks.training import to_cpu

RUN = ["trainer=smoke", "vision=tiny", "data.studies=48", "method.hidden_dim=32", "method.prototypes=10"]
SWITCHED = ["compute.tf32=true", "compute.channels_last=false", "compute.sdpa=false", "compute.fused=true"]
DEFAULT = compose_verb("pretrain").compute


def switches(**values):
    return OmegaConf.merge(DEFAULT, values)


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    compute.apply(DEFAULT, [])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_with_switches_is_the_same_run_within_rounding(here):
    for folder, more in (("plain", []), ("switched", SWITCHED)):
        assert run_cli("pretrain", *RUN, f"paths.output_root={folder}", "paths.cache=cache", *more) == 0
    plain, switched = (only(here, f"{folder}/pretrain/*") for folder in ("plain", "switched"))
    assert plain.name == switched.name
    curves = [pd.read_csv(run / "metrics.csv") for run in (plain, switched)]
    assert list(curves[0]) == list(curves[1])
    np.testing.assert_allclose(curves[1].filter(like="loss"), curves[0].filter(like="loss"), rtol=1e-3)
    a, b = bundle.load(plain), bundle.load(switched)
    assert a.vision.state_dict().keys() == b.vision.state_dict().keys()
    for key, value in a.vision.state_dict().items():
        assert torch.allclose(b.vision.state_dict()[key], value, rtol=1e-3, atol=2e-3), key


def test_an_evaluation_takes_the_switches_and_one_device_of_many(here):
    common = [
        "backbone=random",
        "trainer=smoke",
        "vision=tiny",
        "adaptation=finetune",
        "target.studies=120",
        "pictures=0",
    ]
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    for folder, more in (("plain", []), ("switched", [*SWITCHED, *two])):
        assert run_cli("evaluate", *common, f"paths.output_root={folder}", "paths.cache=cache", *more) == 0
    plain, switched = (only(here, f"{folder}/evaluate/*") for folder in ("plain", "switched"))
    assert plain.name == switched.name
    tables = [pd.read_parquet(run / "predictions.parquet").set_index("item_id") for run in (plain, switched)]
    assert tables[1].index.is_unique
    scores = [table.filter(like="score").sort_index() for table in tables]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-2)


def test_the_switches_are_no_part_of_what_a_run_is():
    names = {run_name(compose_verb("pretrain", overrides)) for overrides in ([], SWITCHED, ["compute.compile=true"])}
    assert len(names) == 1


def test_the_switches_reach_the_process_and_the_networks():
    vision = VisionBackbone("test_resnet", image_size=32)
    first = next(p for p in vision.parameters() if p.ndim == 4 and p.shape[2] > 1)
    for on in (True, False):
        compute.apply(switches(tf32=on, channels_last=on, sdpa=on), [vision])
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
        assert torch.backends.cudnn.allow_tf32 is on
        assert torch.backends.cuda.flash_sdp_enabled() is on
        assert first.is_contiguous(memory_format=torch.channels_last) is on
        seen = []
        hook = vision.trunk.conv1.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        vision(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
        hook.remove()
        assert seen[0].is_contiguous(memory_format=torch.channels_last) is on


def test_predictions_reach_the_metrics_in_float32_at_least():
    found = to_cpu({"a": [torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)], "b": torch.ones(1)})
    assert [x.dtype for x in (*found["a"], found["b"])] == [torch.float32] * 3


def trained(steps, fused_from):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    for step in range(steps):
        if step == fused_from:
            compute.FusedOptimizers().on_train_start(SimpleNamespace(optimizers=[optimizer]), None)
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    return optimizer.param_groups[0]["fused"], layer.weight


def test_a_run_goes_on_with_the_fused_step_where_it_began_without():
    (plain, expected), (fused, weight) = trained(6, None), trained(6, 3)
    assert not plain
    assert fused is True
    torch.testing.assert_close(weight, expected)


def test_an_optimiser_without_a_fused_step_is_named():
    optimizer = torch.optim.RMSprop(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(UserError, match="RMSprop has no fused kernel"):
        compute.FusedOptimizers().on_train_start(SimpleNamespace(optimizers=[optimizer]), None)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["compute.fused=3"], "compute.fused=3: expected true or false"),
        (["compute.compile=true"], r"compute.compile=true needs the C\+\+ compiler /nowhere/c"),
        (
            ["trainer=ddp_cpu", "trainer.sync_batchnorm=true"],
            "trainer.sync_batchnorm=true: .* no kernel on a processor",
        ),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_written(here, capsys, monkeypatch, overrides, said):
    monkeypatch.setenv("CXX", "/nowhere/c")
    assert run_cli("pretrain", "trainer=smoke", *overrides) == 2
    assert re.search(said, capsys.readouterr().err)
    assert {p.suffix for p in here.rglob("*") if p.is_file()} <= {".log", ".yaml"}  # Hydra's own


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is not here")
def test_compiled_encoders_give_what_they_gave_and_keep_their_keys(tmp_path):
    # in a process without the checks of shapes, which cannot be compiled
    script = Path(__file__).with_name("compiled_encoders.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "alike" in done.stdout
