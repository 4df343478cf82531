"""Retrieval among 5x200 on prepared data of CheXpert and of MIMIC-CXR: what is asked for, and of how many."""

import numpy as np
import pandas as pd
import pytest

from vlp_bench.config import compose_verb, plain
from vlp_bench.data.sources._five import FIVE
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import write_raw
from vlp_bench.engine.data import prepare
from vlp_bench.tasks.base import Target
from vlp_bench.tasks.retrieval import Retrieval

TABLES = {"chexpert": "train.csv", "mimic": "mimic-cxr-2.0.0-chexpert.csv.gz"}


@pytest.fixture(scope="module", params=["chexpert", "mimic"])
def store(request, tmp_path_factory) -> PreparedData:
    """`vlp-bench prepare data=..._5x200` of a synthetic download whose studies have one of the five findings."""
    folder, name = tmp_path_factory.mktemp("five"), request.param
    write_raw({"mimic": "mimic_cxr"}.get(name, name), folder / "raw", studies=60, seed=1, size=80)
    table = pd.read_csv(folder / "raw" / TABLES[name], dtype=str, keep_default_na=False)
    study = table["study_id"] if name == "mimic" else table["Path"].str.extract(r"(study\d+)")[0]
    labels = [c for c in table if c in {*FIVE, "No Finding", "Fracture", "Pneumonia", "Pneumothorax", "Lung Lesion",
              "Lung Opacity", "Pleural Other", "Enlarged Cardiomediastinum", "Support Devices"}]  # fmt: skip
    table[labels] = ""
    number = study.astype("category").cat.codes.to_numpy()
    for k, label in enumerate(FIVE):
        table.loc[number % 5 == k, label] = "1.0"
    table.to_csv(folder / "raw" / TABLES[name], index=False)
    overrides = [
        f"data={name}_5x200",
        f"data.raw_dir={folder / 'raw'}",
        f"data.dir={folder / 'out'}",
        "data.store_size=74",
    ]
    prepare(compose_verb("prepare", [*overrides, "workers=1"]))
    return PreparedData(folder / "out")


def test_every_query_has_as_many_right_candidates(store, pretrained, cell_of, tmp_path):
    name = store.manifest["source"].split("_")[0]
    section = plain(compose_verb("evaluate", [f"target={name}_5x200"]).target)
    options = {key: section[key] for key in ("kind", "labels", "uncertain", "views")}
    assert section["split"] == store.split == store.manifest["split"] == "5x200"
    target = Target(store, name=section["name"], **options)
    cell = cell_of(pretrained("mgca"), "task=retrieval", "adaptation=none", target=target, cache=tmp_path)
    outcome = Retrieval("i2t/precision@5", relevant="class").run(cell)
    rows = store.images.set_index("image_id").index.get_indexer(outcome.predictions["item_id"])
    assert (store.images["split"].iloc[rows] == "test").all()
    classes = target.targets[rows]
    assert (classes.sum(1) == 1).all()
    assert len(set(classes.sum(0))) == 1
    assert outcome.facts["queries"] == outcome.facts["candidates"] == len(rows) == 5 * classes.sum(0)[0]
    # a fifth of the candidates is right, whatever the query
    assert outcome.trivial["i2t/precision@5"]["value"] == pytest.approx(0.2)
    assert len(rows) <= (store.images["split"] == "test").sum()
    assert not np.isnan(target.targets).any()
