"""The Montgomery set: lungs joined from two files, and each for itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import montgomery
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import shenzhen as layout
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 16, 1, 64
TRUTH = {layout.name(s, "MCUCXR"): s for s in sample_studies(STUDIES, SEED)}


def build(raw: Path, out: Path) -> PreparedData:
    prepare(montgomery.read(raw), out, Plan(64), private=False)
    return PreparedData(out)


def masks_of(store, row) -> dict[str, np.ndarray]:
    return {m["label"]: m["mask"] for m in store.masks(row)}


def test_what_the_files_say(raw):
    source = montgomery.read(raw)
    assert not source.problems
    assert {s.study_id for s in source.studies} == TRUTH.keys()
    for study in source.studies:
        truth, (image,) = TRUTH[study.study_id], study.images
        assert image.labels == {"Tuberculosis": float(layout.infected(truth))}
        assert json.loads(image.extra) == {"sex": truth.sex, "age": str(truth.age)}
        assert study.text == layout.finding(truth)


def test_lungs_are_both_files_joined(raw, tmp_path):
    store = build(raw, tmp_path / "out")
    for row, image in enumerate(store.images.itertuples()):
        masks = masks_of(store, row)
        assert masks.keys() == {"Lungs", "Left Lung", "Right Lung"}
        np.testing.assert_array_equal(masks["Lungs"], masks["Left Lung"] | masks["Right Lung"])
        assert not (masks["Left Lung"] & masks["Right Lung"]).any()
        truth = draw(Job(raw, SIZE, False, 95), TRUTH[image.image_id].frontal)
        assert abs(masks["Lungs"].mean() - truth.masks["Lungs"].sum() / max(truth.picture.shape) ** 2) < 0.02


def test_one_side_is_missing(copy, tmp_path):
    lost = sorted(TRUTH)[0]
    (copy / "ManualMask" / "leftMask" / f"{lost}.png").unlink()
    store = build(copy, tmp_path / "out")
    row = store.images["image_id"].tolist().index(lost)
    assert masks_of(store, row).keys() == {"Right Lung"}


def test_a_mask_of_another_size_is_said(copy, tmp_path):
    odd = sorted((copy / "ManualMask" / "leftMask").iterdir())[0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(odd)
    store = build(copy, tmp_path / "out")
    problems = json.loads((store.path / "prepare_report.json").read_text())["problems"]
    assert {(p["kind"], p["lost"]) for p in problems} == {("broken mask", False)}


def test_masks_that_are_joined_already(copy):
    (copy / "masks").mkdir()
    for path in (copy / "ManualMask" / "leftMask").iterdir():
        shutil.copy(path, copy / "masks" / path.name)
    shutil.rmtree(copy / "ManualMask")
    for study in montgomery.read(copy).studies:
        (mask,) = study.images[0].masks
        assert mask == {"label": "Lungs", "path": f"masks/{study.study_id}.png"}


def test_without_masks_and_without_images(copy, tmp_path):
    shutil.rmtree(copy / "ManualMask")
    assert not any(i.masks for s in montgomery.read(copy).studies for i in s.images)
    with pytest.raises(UserError, match=r"NLM-MontgomeryCXRSet\.zip"):
        montgomery.read(tmp_path / "elsewhere")
