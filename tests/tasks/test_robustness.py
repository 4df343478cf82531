"""Scores of worse images come from what was adapted to good ones."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import only, run_cli

from vlp_bench.data.corruptions import SEVERITIES
from vlp_bench.metrics.classification import macro_auroc
from vlp_bench.tasks.classification import Classification
from vlp_bench.tasks.robustness import robustness
from vlp_bench.tasks.zero_shot import ZeroShot

PROMPTS = {
    "observed": {"positive": ["{label} is observed"]},
    "pair": {"positive": ["{label}"], "negative": ["no {label}"]},
}


@pytest.mark.parametrize("how", ["probe_cached", "probe", "zero_shot"])
def test_images_as_they_are_score_as_in_the_result(how, pretrained, cell_of):
    zero = how == "zero_shot"
    task = ZeroShot("auroc", PROMPTS, list(PROMPTS)) if zero else Classification("auroc")
    quick = () if how == "probe_cached" else ("adaptation.max_steps=3", "adaptation.batch_size=16")
    asked = ("task=zero_shot", "adaptation=none") if zero else (f"adaptation={how}", *quick)
    cell = cell_of(pretrained("mgca"), *asked)
    outcome = task.run(cell)
    scores = outcome.predictions[[f"score_{label}" for label in outcome.labels]].to_numpy()
    np.testing.assert_allclose(task.rescored(cell), scores, rtol=1e-4, atol=1e-5)
    found = robustness(cell, task, ["noise"])
    assert found["clean"]["value"] == pytest.approx(outcome.metrics["auroc"]["value"], abs=1e-6)
    for severity in map(str, SEVERITIES):
        value, drop = (found["corruptions"]["noise"][severity][kind] for kind in ("value", "drop"))
        assert value["value"] + drop["value"] == pytest.approx(found["clean"]["value"])
        assert drop["low"] <= drop["value"] <= drop["high"]


def test_the_value_is_that_of_the_worse_images(pretrained, cell_of):
    from dataclasses import replace

    from vlp_bench.data.corruptions import Corrupted
    from vlp_bench.tasks.base import Target

    cell = cell_of(pretrained("convirt"), "adaptation=probe_cached")
    task = Classification("auroc")
    task.run(cell)
    found = robustness(cell, task, ["contrast"])["corruptions"]["contrast"]["3"]["value"]["value"]
    target = cell.target
    worse = Target(Corrupted(target.store, "contrast", 3), name=target.name, labels=target.labels)
    rows = worse.rows("test")
    pooled = np.concatenate([f.pooled.numpy() for f in replace(cell, target=worse).encode(rows)])
    scores = pooled @ task.probe.weight.numpy() + task.probe.bias.numpy()
    assert found == pytest.approx(macro_auroc(scores, worse.targets[rows]), abs=1e-6)


def test_the_command_line_keeps_it_and_refuses_what_has_no_such_pass(store, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    target = ["target.studies=200", f"paths.cache={cache}"]  # drawn already: it is `store`
    common = ["evaluate", "backbone=random", "trainer=smoke", "vision=tiny", "pictures=0", *target]
    assert run_cli(*common, "adaptation=probe_cached", "robustness=[blur,rotation]") == 0
    out = only(tmp_path, "runs/evaluate/*")
    facts = json.loads((out / "result.json").read_text())["facts"]
    assert set(facts["robustness"]["corruptions"]) == {"blur", "rotation"}
    table = pd.read_parquet(out / "predictions.parquet")
    assert set(table["view"]) <= {"PA", "AP"}
    assert set(table["sex"]) == {"F", "M"}
    assert table["age"].between(18, 95).all()
    for asked, said in (
        (["robustness=[fog]"], "robustness=fog"),
        (["task=retrieval", "robustness=all"], "task=retrieval"),
    ):
        assert run_cli(*common, "adaptation=none", *asked) != 0
        assert said in capsys.readouterr().err
    assert only(tmp_path, "runs/evaluate/*/result.json").parent == out
