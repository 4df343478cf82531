"""Sweeps as a user runs them: real processes, several devices a job, searches, clusters, machines."""

import json
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import only, run_cli

pytestmark = pytest.mark.slow

SMALL = [
    "trainer=smoke",
    "vision=tiny",
    "data.studies=48",
    "method=convirt",
    "text.architecture.num_hidden_layers=1",
]
#: an epoch of four steps with its validation
EPOCH = [*SMALL, "trainer.max_steps=-1"]
TWO_DEVICES = ["trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def records(folder):
    return [json.loads(path.read_text()) for path in folder.glob("runs/pretrain/*/run.json")]


def test_jobs_of_several_devices_share_a_directory_each_and_a_failure_stops_none(here, capsys):
    assert run_cli("pretrain", "-m", *SMALL, "trainer.max_steps=1", *TWO_DEVICES, "seed=-1,0") == 2
    said = capsys.readouterr()
    assert "1 of 2 jobs are not done" in said.err
    (record,) = records(here)
    assert record["training"]["steps"] == 1
    folder = only(here, "runs/sweeps/*")
    assert run_cli("sweep", f"dir={folder}") == 0
    assert "1 done" in capsys.readouterr().out


def test_a_search_goes_on_from_its_stored_study(here, capfd):
    if find_spec("optuna") is None:
        pytest.skip("the extra optuna is not installed")
    asked = ["pretrain", "-m", *EPOCH, "sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    assert run_cli(*asked, "hydra.sweeper.n_trials=1") == 0
    assert len(records(here)) == 1
    assert run_cli(*asked, "hydra.sweeper.n_trials=2") == 0
    assert len(records(here)) == 2
    folder = only(here, "runs/sweeps/*")
    values = [json.loads(path.read_text())["value"] for path in folder.glob("jobs/*.json")]
    best = (folder / "optimization_results.yaml").read_text()
    assert f"best_value: {min(values)}" in best


def test_a_job_of_a_cluster_is_a_task_for_each_device(here):
    if find_spec("submitit") is None:
        pytest.skip("the extra slurm is not installed")
    assert run_cli("pretrain", "-m", *EPOCH, *TWO_DEVICES, "cluster=local") == 0
    (record,) = records(here)
    # 48 studies, two processes of 4
    assert record["training"]["steps"] == 4
    logs = [p.read_text() for p in here.glob("runs/sweeps/*/.submitit/*/*_log.err")]
    assert any("MEMBER: 2/2" in log for log in [*logs, *(p.read_text() for p in here.rglob("*_log.out"))])


def test_a_launcher_of_somebody_else_runs_its_jobs(here):
    if find_spec("joblib") is None:
        pytest.skip("joblib is not installed")
    asked = ["pretrain", "-m", *SMALL, "trainer.max_steps=1", "seed=0,1", "hydra/launcher=joblib"]
    assert run_cli(*asked, "hydra.launcher.n_jobs=1") == 0
    assert {r["pretrain_seed"] for r in records(here)} == {0, 1}


def test_two_machines_of_one_process_each_are_one_run(here):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    asked = ["-m", "vlp_bench", "pretrain", *EPOCH, "trainer.accelerator=cpu", "trainer.strategy=ddp"]
    asked += ["trainer.num_nodes=2", "data.batch_size=4"]
    nodes = []
    for number in range(2):
        with (here / f"node{number}.txt").open("w") as said:
            nodes.append(subprocess.Popen([*torchrun, *asked], stdout=said, stderr=said))
    codes = [node.wait(240) for node in nodes]
    assert codes == [0, 0], "".join((here / f"node{n}.txt").read_text()[-2000:] for n in range(2))
    (record,) = records(here)
    assert record["training"]["steps"] == 4


PLAN = """
name: two
common: [trainer=smoke, vision=tiny, data.studies=48, data.batch_size=4, target.studies=60]
pretrain: {{convirt: [method=convirt, {devices}]}}
pretrain_seeds: [0, 1]
evaluate: {{probe: {{backbones: [convirt], overrides: [task=classification, adaptation=probe_cached]}}}}
"""


def test_a_plan_pre_trains_on_several_devices_one_run_after_another(here):
    devices = "trainer.strategy=ddp, trainer.devices=2, trainer.accelerator=cpu, trainer.max_steps=1"
    (here / "mine" / "plan").mkdir(parents=True)
    (here / "mine" / "plan" / "two.yaml").write_text(PLAN.format(devices=devices))
    assert run_cli("benchmark", "--config-dir", "mine", "plan=two", "estimate=false") == 0
    assert len(list(here.glob("runs/benchmark/two/pretrain/*/run.json"))) == 2
    assert len(list(here.glob("runs/benchmark/two/evaluate/*/result.json"))) == 2
