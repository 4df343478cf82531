"""`evaluate task=vqa target=vqa_rad`, on a synthetic download."""

import json

import pandas as pd
import pytest

from vlp_bench.config import compose_verb, plain
from vlp_bench.data.synthetic import write_raw
from vlp_bench.encoders import bundle
from vlp_bench.engine import evaluate
from vlp_bench.engine.data import ensure
from vlp_bench.tasks.base import Target
from vlp_bench.tasks.vqa import questions

TINY = ["task=vqa", "adaptation=frozen", "adaptation.epochs=1", "adaptation.min_steps=0", "adaptation.batch_size=64"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("vqa") / "raw"
    write_raw("vqa_rad", path, studies=60, seed=1, size=80)
    return path


@pytest.fixture(scope="module")
def published(raw):
    rows = json.loads((raw / "VQA_RAD Dataset Public.json").read_text())
    return [r for r in rows if r["phrase_type"].startswith("test")]


def test_the_published_test_questions_are_measured(raw, published, pretrained, tmp_path):
    encoders = pretrained("convirt")
    bundle.save(tmp_path / "bundle", encoders.parts, encoders.meta)
    overrides = [f"target.raw_dir={raw}", f"backbone={tmp_path / 'bundle'}", f"paths.cache={tmp_path}", "trainer=cpu"]
    cfg = compose_verb("evaluate", [*TINY, *overrides, "target=vqa_rad", "resamples=20", "pictures=2"])
    out = evaluate.run(cfg, tmp_path / "out")
    result = json.loads((out / "result.json").read_text())
    table = pd.read_parquet(out / "predictions.parquet")
    assert sorted(table["question"]) == sorted(r["question"] for r in published)
    assert result["metrics"]["accuracy"]["n"] == len(published) == len(table)
    assert set(result["metrics"]) == {"accuracy", "accuracy/closed", "accuracy/open"}
    assert result["split"] == "test"


@pytest.mark.parametrize("split", ["official", None])
def test_where_a_question_lies(raw, published, split, tmp_path):
    section = plain(compose_verb("evaluate", ["target=vqa_rad", f"target.raw_dir={raw}"]).target)
    store = ensure(section | {"split": split}, tmp_path, 74)
    asked = questions(Target(store, name="vqa_rad", views="all"))
    assert set(asked["split"]) == {"train", "val", "test"}
    if split:
        assert sorted(asked["question"][asked["split"] == "test"]) == sorted(r["question"] for r in published)
    else:
        assert (asked.groupby("patient_id")["split"].nunique() == 1).all()
    chest = questions(Target(store, name="vqa_rad", views="all"), organ="chest")
    assert 0 < len(chest) < len(asked)
