"""A sweep loses no job and runs none twice, whoever is killed; failures stop nobody; GPUs are shared out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sweeping
from helpers import run_cli
from omegaconf import OmegaConf
from sweeping import begun, job, run, states

from vlp_bench.config import compose_verb, plain
from vlp_bench.engine import sweep
from vlp_bench.engine.callbacks import Study
from vlp_bench.engine.sweep import Ledger, Machine
from vlp_bench.errors import Interrupted, UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sweep, "EVERY", 0.01)


def until(what):
    """Wait for it; a minute is longer than anything here can take."""
    for _ in range(6000):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come to pass")


def test_failures_stop_nobody_and_crashes_alone_are_tried_again(tmp_path):
    jobs = [
        job(tmp_path, "crash", "echo no room; exit 1"),
        job(tmp_path, "flaky", '[ "$(wc -l < "$0/begun")" -gt 1 ] || kill -9 $$'),
        job(tmp_path, "user", "echo 'vlp-bench: seed=x' >&2; echo after; exit 2"),
        job(tmp_path, "asked", "exit 143"),
        job(tmp_path, "empty", "exit 0"),
        job(tmp_path, "fine"),
    ]
    records = run(tmp_path, jobs, retries=1, value=lambda directory: 0.5)
    assert [r["state"] for r in records] == ["failed", "done", "refused", "interrupted", "failed", "done"]
    assert [r["attempts"] for r in records] == [2, 2, 1, 1, 2, 1]
    assert records[0]["reason"] == "exit code 1: no room"
    assert records[2]["reason"] == "seed=x"
    assert records[4]["reason"] == "ended without product: it printed nothing"
    assert [r["value"] for r in records] == [None, 0.5, None, None, None, 0.5]
    said = str(sweep.summary(tmp_path / "sweep", records))
    assert "4 of 6 jobs are not done" in said
    assert records[0]["log"] in said
    assert Path(records[0]["log"]).read_text().count("\nno room\n") == 2
    # what is not done is tried once more by the same command, and only that
    run(tmp_path, jobs, retries=0)
    assert [len(begun(tmp_path, j.name)) for j in jobs] == [3, 2, 2, 2, 3, 1]


def test_what_is_finished_already_is_not_run_and_one_directory_is_one_job(tmp_path):
    finished, twice = job(tmp_path, "finished"), job(tmp_path, "twice")
    finished.directory.mkdir(parents=True)
    (finished.directory / "product").write_text("1")
    records = run(tmp_path, [finished, twice, twice], value=lambda directory: 2.0)
    assert [(r["state"], r["value"]) for r in records] == [("done", 2.0)] * 3
    assert begun(tmp_path, "finished") == []
    assert len(begun(tmp_path, "twice")) == 1
    other = job(tmp_path / "elsewhere", "twice")
    with pytest.raises(UserError, match="calls two jobs twice"):
        run(tmp_path, [twice, other])


def test_overwriting_runs_what_is_finished_but_not_what_this_sweep_has_done(tmp_path):
    jobs = [job(tmp_path, "good"), job(tmp_path, "bad", "exit 1")]
    jobs[0].directory.mkdir(parents=True)
    (jobs[0].directory / "product").write_text("0")
    for expected in (1, 1):
        run(tmp_path, jobs, again=True, retries=0)
        assert len(begun(tmp_path, "good")) == expected
    for expected in (2, 3):
        run(tmp_path, jobs[:1], again=True)
        assert len(begun(tmp_path, "good")) == expected


def launcher(folder, then):
    return subprocess.Popen([sys.executable, sweeping.__file__, str(folder), then], stderr=subprocess.DEVNULL)


def test_a_killed_launcher_leaves_its_jobs_and_the_next_one_loses_none_and_runs_none_twice(tmp_path):
    wait = 'while [ ! -e "$0/../../go" ]; do sleep 0.02; done'
    first = launcher(tmp_path, wait)
    until(lambda: begun(tmp_path, "a") and begun(tmp_path, "b"))
    jobs = [job(tmp_path, name, wait) for name in "abcdef"]
    with pytest.raises(UserError, match="worked on by another process"):
        run(tmp_path, jobs)
    first.kill()
    first.wait()
    assert states(tmp_path) == {"a": "running", "b": "running"} | dict.fromkeys("cdef", "waiting")
    second = launcher(tmp_path, wait)
    # one of those that the second one finds is killed, too
    until(lambda: sweep.held(tmp_path / "sweep" / "launcher.lock"))
    os.killpg(Ledger(tmp_path / "sweep").get("a")["pid"], signal.SIGKILL)
    until(lambda: len(begun(tmp_path, "a")) == 2)
    (tmp_path / "go").touch()
    assert second.wait(60) == 0
    assert states(tmp_path) == dict.fromkeys("abcdef", "done")
    assert [len(begun(tmp_path, name)) for name in "abcdef"] == [2, 1, 1, 1, 1, 1]


def test_a_launcher_asked_to_end_asks_its_jobs_and_the_same_command_goes_on(tmp_path):
    polite = 'trap "echo kept > $0/kept; exit 143" TERM; while [ ! -e "$0/kept" ]; do sleep 0.02; done'
    first = launcher(tmp_path, polite)
    until(lambda: begun(tmp_path, "a") and begun(tmp_path, "b"))
    first.send_signal(signal.SIGINT)
    assert first.wait(60) != 0
    assert (tmp_path / "runs/a/kept").exists()
    assert states(tmp_path) == {"a": "interrupted", "b": "interrupted"} | dict.fromkeys("cdef", "waiting")
    run(tmp_path, [job(tmp_path, name) for name in "abcdef"])
    assert states(tmp_path) == dict.fromkeys("abcdef", "done")


def test_a_signal_in_this_process_is_an_interruption(tmp_path):
    with pytest.raises(Interrupted, match="goes on"):
        run(tmp_path, [job(tmp_path, "a", f"kill -TERM {os.getpid()}; sleep 60"), job(tmp_path, "b")])
    assert states(tmp_path) == {"a": "interrupted", "b": "waiting"}


def test_jobs_share_out_the_gpus(tmp_path):
    jobs = [job(tmp_path, name, gpus=2 if name == "d" else 1) for name in "abcd"]
    machine = Machine(["4", "5"])
    taken = []
    room = machine.room

    def watched(wanted, running):
        found = room(wanted, running)
        if found is not None:
            taken.append((running, machine.used.total()))
        return found

    machine.room = watched
    run(tmp_path, jobs, machine)
    assert {begun(tmp_path, "a")[0], begun(tmp_path, "b")[0]} == {"4", "5"}
    assert begun(tmp_path, "d") == ["4,5"]
    assert taken[:2] == [(0, 0), (1, 1)]  # two at once
    assert taken[-1] == (0, 0)  # the one that needs both waited
    assert machine.used.total() == 0


def test_what_a_machine_has_room_for(tmp_path):
    one, two, cpu = (job(tmp_path, name, gpus=g) for name, g in (("one", 1), ("two", 2), ("cpu", 0)))
    assert Machine().room(cpu, 0) == []
    assert Machine().room(cpu, 1) is None
    assert Machine(jobs=3).room(cpu, 2) == []
    shared = Machine(["0", "1"], per_gpu=2)
    shared.used.update("0")
    assert shared.room(one, 1) == ["1"]
    assert shared.room(two, 1) == ["1", "0"]
    shared.used.update("0")
    assert shared.room(two, 2) is None


def test_gpus_are_counted_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1f")
    assert sweep.visible_gpus() == ["3", "GPU-1f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho '  MIG 1g'\necho 'GPU 1: H100'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sweep.visible_gpus() == ["0", "1"]
    tool.unlink()
    assert sweep.visible_gpus() == []


@pytest.mark.parametrize(
    "overrides, visible, needed",
    [([], 0, 0), ([], 4, 1), (["trainer=cpu"], 4, 0), (["trainer=ddp"], 4, 4), (["trainer.devices=2"], 4, 2)],
)
def test_how_many_gpus_a_job_takes(overrides, visible, needed):
    trainer = plain(compose_verb("pretrain", overrides).trainer)
    assert sweep.gpus_needed(trainer, visible) == needed


def test_a_job_that_this_machine_cannot_run_is_refused():
    trainer = plain(compose_verb("pretrain", ["trainer.devices=8"]).trainer)
    with pytest.raises(UserError, match=r"trainer\.devices=8"):
        sweep.gpus_needed(trainer, 2)
    with pytest.raises(UserError, match="cluster=slurm"):
        sweep.gpus_needed(trainer | {"num_nodes": 2}, 8)


def test_a_job_is_told_its_sweep_and_no_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    run(tmp_path, [job(tmp_path, "a", 'echo "$VLP_BENCH_SWEEP:$LOCAL_RANK:$MASTER_ADDR" > "$0/env"')])
    assert (tmp_path / "runs/a/env").read_text() == "sweep::\n"


def test_the_verb_shows_what_has_become_of_each_job(tmp_path, capsys):
    run(
        tmp_path,
        [job(tmp_path, "good", number=1), job(tmp_path, "bad", "echo oh; exit 3", number=2)],
        retries=0,
        value=lambda directory: 0.25,
    )
    assert run_cli("sweep", f"dir={tmp_path / 'sweep'}") == 2
    capsys.readouterr()
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"command": "vlp-bench pretrain -m seed=1,2"}))
    assert run_cli("sweep", f"dir={tmp_path / 'sweep'}") == 0
    out = capsys.readouterr().out
    rows = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith("│")}
    assert "done" in rows["good"]
    assert "0.25" in rows["good"]
    assert "failed" in rows["bad"]
    assert "bad: exit code 3: oh" in out
    assert "2 jobs: 1 done, 1 failed; nobody works on it" in out
    assert run_cli("sweep", f"dir={tmp_path}") == 0
    assert "vlp-bench pretrain -m seed=1,2" in capsys.readouterr().out


def test_the_objective_is_what_the_run_measured(tmp_path):
    assert sweep.objective(tmp_path, "val/loss", "minimize") is None
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,3.0,\n0,1,,2.5\n1,2,,2.75\n")
    assert sweep.objective(tmp_path, "val/loss", "minimize") == 2.5
    assert sweep.objective(tmp_path, "val/loss", "maximize") == 2.75
    assert sweep.objective(tmp_path, "val/r1", "maximize") is None
    result = {"primary": "auroc", "metrics": {"auroc": {"value": 0.75}, "f1": {"value": None}}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert sweep.objective(tmp_path, None, "maximize") == 0.75
    assert sweep.objective(tmp_path, "f1", "maximize") is None


def test_a_search_whose_launcher_was_killed_runs_the_lost_trial_first_and_counts_what_is_finished(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    about = {"storage": storage, "study_name": "rates", "n_trials": 5}
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": about}})
    study = optuna.create_study(storage=storage, study_name="rates")
    values = []
    for lr in (0.1, 0.2):
        trial = study.ask()
        values.append(trial.suggest_float("lr", 0.0, 1.0))
        if lr == 0.1:
            study.tell(trial, lr)
    Study().on_multirun_start(cfg)
    assert cfg.hydra.sweeper.n_trials == 4  # one of five is finished
    assert study.ask().suggest_float("lr", 0.0, 1.0) == values[1]
    cfg.hydra.sweeper.n_trials = 1
    Study().on_multirun_start(cfg)
    assert cfg.hydra.sweeper.n_trials == 0
