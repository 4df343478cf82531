"""The Shenzhen set: labels of the file names, readings in free text, masks, published ranges."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.sources import shenzhen
from vlp_bench.data.sources._nlm import Reading, parse_reading
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import shenzhen as layout
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 24, 1, 64
TRUTH = {layout.name(s, "CHNCXR"): s for s in sample_studies(STUDIES, SEED)}


@pytest.fixture(scope="module")
def store(raw, tmp_path_factory) -> PreparedData:
    path = tmp_path_factory.mktemp("prepared") / "shenzhen"
    prepare(shenzhen.read(raw), path, Plan(64), private=False)
    return PreparedData(path)


def by_id(source):
    return {s.study_id: s for s in source.studies}


def test_labels_texts_and_persons_are_those_of_the_world(raw):
    source = shenzhen.read(raw)
    assert by_id(source).keys() == TRUTH.keys()
    assert source.labels == ("Tuberculosis",)
    assert not source.problems
    for key, study in by_id(source).items():
        truth, (image,) = TRUTH[key], study.images
        assert image.labels == {"Tuberculosis": float(layout.infected(truth))}
        assert study.text == layout.finding(truth)
        assert json.loads(image.extra)["sex"] == truth.sex
        assert json.loads(image.extra)["age"] in (str(truth.age), f"{truth.age} month")
    assert {i.labels["Tuberculosis"] for s in source.studies for i in s.images} == {0.0, 1.0}


def test_prepared_pixels_and_masks(store, raw):
    assert json.loads((store.path / "prepare_report.json").read_text())["problems"] == []
    without = 0
    for row, image in enumerate(store.images.itertuples()):
        truth = draw(Job(raw, SIZE, False, 95), TRUTH[image.image_id].frontal)
        assert (image.height, image.width) == truth.picture.shape
        if not (masks := store.masks(row)):
            without += 1
            continue
        (mask,) = masks
        assert mask["label"] == "Lungs"
        assert abs(mask["mask"].mean() - truth.masks["Lungs"].sum() / max(truth.picture.shape) ** 2) < 0.02
    assert 0 < without < STUDIES / 2
    assert store.images["frontal"].all()
    assert store.images.groupby("patient_id")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("male 45yrs\nnormal\n", Reading("M", "45", "normal")),
        ("Female, 28yrs\n1.bilateral PTB\n2.pleuritis", Reading("F", "28", "1.bilateral PTB\n2.pleuritis")),
        ("femal 32yrs normal", Reading("F", "32", "normal")),
        ("male 16month\r\nSTB", Reading("M", "16 month", "STB")),
        ("female 64days", Reading("F", "64 days", "")),
        ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", Reading("F", "27", "normal")),
        ("Patient's Sex: O\nPatient's Age:\n", Reading("", "", "")),
        ("malformed note", Reading("", "", "malformed note")),
        ("", Reading()),
    ],
)
def test_readings(text, wanted):
    assert parse_reading(text) == wanted


@settings(max_examples=50)
@given(st.text())
def test_no_reading_fails(text):
    assert parse_reading(text).sex in ("", "F", "M")


def test_published_ranges():
    """Counts of the published lists: TB/normal 235/228, 34/33, 67/65."""
    ids = [f"CHNCXR_{n:04d}_{int(n > 326)}" for n in range(1, 663)]
    (division,) = shenzhen._divisions([*ids, "CHNCXR_0663_1"])
    found = pd.Series(division.parts)
    counts = pd.crosstab(found, found.index.str[-1])
    assert counts.loc[["train", "val", "test"]].to_numpy().tolist() == [[228, 235], [33, 34], [65, 67]]


def test_lists(copy, tmp_path):
    ids = sorted(TRUTH)
    for name, some in (("train", ids[:4]), ("valid", ids[4:6]), ("test", [*ids[6:8], "CHNCXR_9999_0"])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{i}.png 1 0\n" for i in some))
    division = {d.name: d for d in shenzhen.read(copy, lists=str(tmp_path)).divisions}["lists"]
    assert [division.parts.get(i, "") for i in ids[:9]] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2 + [""]


def test_a_folder_deeper_and_upper_case_extensions(copy, tmp_path):
    for path in sorted((copy / "CXR_png").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    (tmp_path / "deep" / "unpacked").mkdir(parents=True)
    copy.rename(tmp_path / "deep" / "unpacked" / "ChinaSet_AllFiles")
    found = by_id(shenzhen.read(tmp_path / "deep"))
    assert found.keys() == TRUTH.keys()
    assert all((tmp_path / "deep" / i.path).is_file() for s in found.values() for i in s.images)
    assert any(i.masks for s in found.values() for i in s.images)
    assert all(s.text for s in found.values())


def test_the_release_on_kaggle(copy):
    (copy / "images").mkdir()
    (copy / "CXR_png").rename(copy / "images" / "images")
    shutil.rmtree(copy / "ClinicalReadings")
    rows = [{"study_id": f"{i}.png", "sex": "Male ", "age": "45", "findings": "normal"} for i in TRUTH]
    pd.DataFrame(rows).to_csv(copy / "shenzhen_metadata.csv", index=False)
    source = shenzhen.read(copy)
    assert {s.text for s in source.studies} == {"normal"}
    assert json.loads(source.studies[0].images[0].extra) == {"sex": "M", "age": "45"}
    pd.DataFrame(rows).drop(columns="findings").to_csv(copy / "shenzhen_metadata.csv", index=False)
    with pytest.raises(UserError, match=r"shenzhen_metadata\.csv lacks the column findings"):
        shenzhen.read(copy)


def test_files_of_the_other_set_and_strangers(copy):
    shutil.copy(next((copy / "CXR_png").iterdir()), copy / "CXR_png" / "MCUCXR_0001_0.png")
    (copy / "CXR_png" / "CHNCXR_12.png").write_bytes(b"")
    source = shenzhen.read(copy)
    assert by_id(source).keys() == TRUTH.keys()
    assert [(p.where, p.lost) for p in source.problems] == [("CXR_png/CHNCXR_12.png", True)]


def test_without_readings(copy):
    some = sorted((copy / "ClinicalReadings").iterdir())[0]
    some.unlink()
    source = shenzhen.read(copy)
    assert [(p.where, p.lost) for p in source.problems] == [(f"ClinicalReadings/{some.name}", False)]
    shutil.rmtree(copy / "ClinicalReadings")
    source = shenzhen.read(copy)
    assert [(p.kind, p.lost) for p in source.problems] == [("no readings", False)]
    assert len(source.studies) == len(TRUTH)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"No folder CXR_png .*ChinaSet_AllFiles\.zip"):
        shenzhen.read(tmp_path)
    (tmp_path / "CXR_png").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "CXR_png" / "MCUCXR_0001_0.png")
    with pytest.raises(UserError, match=r"holds no CHNCXR_0001_0\.png"):
        shenzhen.read(tmp_path)


def test_the_default_split_depends_on_nobody_else(raw):
    source = shenzhen.read(raw)
    alone = replace(source, studies=source.studies[:1])
    assert index_hash(alone) != index_hash(source)
    assert {s.split for s in source.studies} == {"train", "val", "test"}
