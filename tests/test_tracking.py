"""What wandb is told of a run, and how the run ends there; with a stand-in for wandb, whose service takes seconds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from helpers import only, run_cli
from pytorch_lightning.callbacks import Callback
from wandb.errors import UsageError

from vlp_bench import vocabulary
from vlp_bench.engine import pretrain
from vlp_bench.errors import Interrupted, UserError

SMALL = ["trainer=smoke", "vision=tiny", "data.studies=48", "target.studies=90"]
COMMON = [*SMALL, "paths.cache=../cache", "logger=wandb"]
SECRET = "patient p1001, study s2002 of /data/ward"


class Run(SimpleNamespace):
    """A run that keeps what it is told."""

    def __init__(self, dir, id, name, offline=True, **about):
        folder = Path(dir) / "wandb" / f"offline-run-{len(list(Path(dir).glob('wandb/*')))}-{id}"
        folder.mkdir(parents=True)
        super().__init__(id=id, name=name, offline=offline, about=about, summary={}, rows=[], defined={}, alerts=[])
        self.settings, self.preempting, self.code = SimpleNamespace(sync_dir=str(folder)), False, None
        self.config = SimpleNamespace(update=lambda *_, **__: None)

    def define_metric(self, name, **how):
        self.defined[name] = how

    def log(self, row):
        self.rows.append(row)

    def alert(self, title, text, level):
        self.alerts.append(f"{level} {title} {text}")

    def mark_preempting(self):
        self.preempting = True

    def finish(self, exit_code=0):
        self.code = exit_code


@pytest.fixture
def runs(monkeypatch, tmp_path_factory):
    """The runs at wandb, in a directory of their own that shares its data with the others."""
    root = tmp_path_factory.getbasetemp() / "tracking"
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path_factory.mktemp("run"))
    Path("../cache").is_symlink() or Path("../cache").symlink_to(root)
    begun = []
    monkeypatch.setattr(wandb, "init", lambda **about: begun.append(Run(**about)) or begun[-1])
    return begun


def ended_by(monkeypatch, error):
    """Let the next pre-training end so after its second step."""
    made = pretrain._callbacks

    class End(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                raise error

    monkeypatch.setattr(pretrain, "_callbacks", lambda *a: [*made(*a), End()])
    return lambda: monkeypatch.setattr(pretrain, "_callbacks", made)


def test_runs_are_grouped_tagged_and_find_each_other(runs, monkeypatch, capsys):
    assert run_cli("pretrain", *COMMON) == 0
    monkeypatch.setenv("VLP_BENCH_SWEEP", "rates")
    bundle = only(Path("runs/pretrain"), "*")
    evaluate = [
        "evaluate",
        f"backbone={bundle}",
        "adaptation=probe_cached",
        "label_fraction=0.5",
        "pictures=0",
        *COMMON,
    ]
    assert run_cli(*evaluate, "logger.wandb.tags=[mine]") == 0
    trained, measured = runs
    assert [run.about["job_type"] for run in runs] == ["pretrain", "evaluate"]
    assert trained.about["group"] == "mgca-test_resnet"
    assert measured.about["group"] == "rates"
    assert trained.about["tags"] == ["mgca", "paper", "test_resnet", "synthetic", "seed:0"]
    expected = ["mine", "mgca", "paper", "classification", "synthetic", "probe_cached", "fraction:0.5"]
    assert measured.about["tags"] == [*expected, "protocol:honest", "seed:0"]
    told = [run.about["config"] for run in runs]
    assert [t["encoders"] for t in told] == ["mgca test_resnet"] * 2
    assert [t["cell"] for t in told] == ["pretrain", "classification-synthetic-probe_cached"]
    assert measured.name.startswith("mgca test_resnet classification-synthetic-probe_cached 0.5 ")
    assert not any("paths" in t for t in told)
    assert all(run.code == 0 and not run.alerts for run in runs)
    # the machine's load is kept unless that is turned off
    assert not {"x_disable_stats", "x_disable_machine_info"} & trained.about["settings"].keys()
    said = capsys.readouterr().err
    assert all(f"wandb sync {run.settings.sync_dir}" in said for run in runs)


def test_curves_and_measures_are_those_of_the_vocabulary(runs):
    assert run_cli("pretrain", *COMMON) == 0
    evaluate = ["evaluate", "backbone=random", "adaptation=probe_cached", "label_fraction=0.5", "pictures=0"]
    assert run_cli(*evaluate, *COMMON) == 0
    trained, measured = runs
    curve = pd.read_csv(only(Path("runs/pretrain"), "*") / "metrics.csv")
    assert curve["lr"].between(0, 0.0005001).all()
    assert curve["lr"].nunique() == 3
    logged = {name for row in trained.rows for name in row}
    assert {"lr", "train/loss/token"} <= logged
    assert all(vocabulary.curve(name) for name in logged)
    assert set(curve) - {"step"} <= logged
    assert trained.defined["val/loss"] == {"step_metric": vocabulary.STEP, "step_sync": True, "summary": "min,last"}
    result = json.loads((only(Path("runs/evaluate"), "*") / "result.json").read_text())
    (row,) = measured.rows
    of = "classification-synthetic-probe_cached"
    assert row["label_fraction"] == 0.5
    for kind, part in (("test", "value"), ("low", "low"), ("high", "high")):
        assert row[f"{of}/{kind}/auroc"] == result["metrics"]["auroc"][part]
    assert row[f"{of}/trivial/auroc"] == 0.5
    assert measured.defined[f"{of}/test/auroc"] == {"step_metric": "label_fraction"}
    assert all(vocabulary.measure(name.split("/", 2)[2]) for name in row if name != "label_fraction")


def test_a_failure_is_told_without_what_was_private(runs, monkeypatch, capsys):
    ended_by(monkeypatch, UserError(SECRET))
    assert run_cli("pretrain", *COMMON) == 2
    assert SECRET in capsys.readouterr().err
    (run,) = runs
    assert run.code == 1
    (alert,) = run.alerts
    assert alert == f"ERROR failed: {run.name} UserError"
    assert not run.preempting


def test_an_interrupted_run_goes_on_as_the_same_run_and_one_begun_anew_is_another(runs, monkeypatch, capsys):
    again = ended_by(monkeypatch, Interrupted("stopped"))
    assert run_cli("pretrain", *COMMON) == Interrupted.exit_code
    again()
    capsys.readouterr()
    assert run_cli("pretrain", *COMMON) == 0
    first, second = runs
    assert (first.preempting, first.code, first.alerts) == (True, Interrupted.exit_code, [])
    assert (second.preempting, second.code) == (False, 0)
    assert first.id == second.id
    # one command sends both parts
    assert f"wandb sync {first.settings.sync_dir} {second.settings.sync_dir}\n" in capsys.readouterr().err
    assert run_cli("pretrain", *COMMON, "overwrite=true") == 0
    assert runs[2].id != first.id


def test_what_a_backbone_cannot_do_is_no_failure(runs):
    retrieval = ["evaluate", "backbone=random", "task=retrieval", "adaptation=none"]
    assert run_cli(*retrieval, *COMMON) == 2
    (run,) = runs
    assert (run.code, run.alerts, run.summary) == (0, [], {"not_applicable": True})


def test_without_a_login_nothing_is_trained(runs, monkeypatch, capsys):
    def unknown(**_):
        raise UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", unknown)
    assert run_cli("pretrain", *COMMON) == 2
    assert "WANDB_MODE=offline" in capsys.readouterr().err
    assert not list(Path("runs").glob("pretrain/*/metrics.csv"))
