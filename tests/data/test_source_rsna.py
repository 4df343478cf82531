"""RSNA pneumonia: tables with several rows an image, DICOM, and the divisions of published code."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold, train_test_split

from vlp_bench.data.decode import read_gray
from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import rsna
from vlp_bench.data.sources.rsna import CLASSES, read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts.rsna import OPACITIES, image_name
from vlp_bench.data.synthetic.writing import Job, draw, save_png
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 100, 1, 64


@pytest.fixture(scope="module")
def world():
    """Frontal images by their names in the challenge, with their studies."""
    first = {s.study_id: s.frontal for s in sample_studies(STUDIES, SEED)}
    return {image_name(i): (s, i) for s in sample_studies(STUDIES, SEED) if (i := first[s.study_id])}


@pytest.fixture(scope="module")
def source(raw):
    return read(raw)


def edit(path: Path, change) -> None:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


LABELS_CSV, CLASSES_CSV = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"


def test_labels_boxes_and_patients_are_those_of_the_world(source, world):
    assert not source.problems
    assert {s.study_id for s in source.studies} == set(world)
    assert source.labels == ("Pneumonia", *CLASSES)
    for study in source.studies:
        true, image = world[study.study_id]
        drawn = [b["xywh"] for b in draw(Job(Path(), SIZE, False, 95), image).boxes if b["label"] in OPACITIES]
        (ref,) = study.images
        assert [b["xywh"] for b in ref.boxes] == drawn
        assert {b["label"] for b in ref.boxes} <= {"Pneumonia"}
        assert ref.view == "FRONTAL"
        assert study.labels["Pneumonia"] == bool(drawn) == study.labels["Lung Opacity"]
        assert sum(study.labels[c] for c in CLASSES) == 1
        assert study.labels["Normal"] == (not any(true.truth.values()))
        assert study.patient_id == str(int(true.patient_id) % 10**7)
    owners = Counter(s.patient_id for s in source.studies)
    assert max(owners.values()) > 1
    where = {s.patient_id: s.split for s in source.studies}
    assert all(where[s.patient_id] == s.split for s in source.studies)


def test_prepared(source, world, tmp_path):
    prepare(source, tmp_path / "out", Plan(SIZE, "squash"), private=True, workers=1)
    store = PreparedData(tmp_path / "out")
    assert not json.loads((store.path / "prepare_report.json").read_text())["problems"]
    assert len(store.images) == len(world)
    worst = []
    for row, (name, width, height) in enumerate(store.images[["image_id", "width", "height"]].itertuples(index=False)):
        drawn = draw(Job(Path(), SIZE, False, 95), world[name][1])
        assert drawn.picture.shape == (height, width)
        scale = np.tile([SIZE / width, SIZE / height], 2)
        wanted = [b["xywh"] for b in drawn.boxes if b["label"] in OPACITIES]
        for (x, y, w, h), box in zip(wanted, store.boxes(row), strict=True):
            worst.append(np.abs(np.array([x, y, x + w, y + h]) * scale - box["xyxy"]).max())
        assert np.abs(store.pixels(np.array([row]))[0].astype(int).mean() - drawn.picture.mean()) < 6
    assert len(worst) > 5
    assert max(worst) < 0.02
    assert store.image_labels[:, 0].sum() == sum(bool(store.boxes(r)) for r in range(len(store.images)))


def test_views_from_the_headers(raw, source, world, copy):
    found = {s.study_id: s.images[0].view for s in read(raw, views=True).studies}
    assert Counter(found.values()).keys() == {"AP", "PA", "FRONTAL"}
    assert all(view in ("FRONTAL", world[name][1].view) for name, view in found.items())
    first = source.studies[0]
    (copy / first.images[0].path).write_bytes(b"no DICOM")
    assert read(copy, views=True).studies[0].images[0].view == "FRONTAL"


def test_the_dicom_is_as_the_challenge_has_it(raw, source):
    import pydicom

    file = pydicom.dcmread(raw / source.studies[0].images[0].path)
    assert file.PatientID == source.studies[0].study_id
    assert file.file_meta.TransferSyntaxUID == pydicom.uid.JPEGBaseline8Bit
    assert (file.BitsStored, file.Modality, file.PhotometricInterpretation) == (8, "CR", "MONOCHROME2")
    assert not file.get("WindowCenter")
    assert read_gray(raw / source.studies[0].images[0].path, 64)[0].std() > 10


# What people have -----------------------------------------------------------------------------------------------------


def test_in_a_folder_below_and_with_zipped_tables(copy, source):
    inner = copy / "rsna-pneumonia-detection-challenge"
    inner.mkdir()
    for name in ("stage_2_train_images", CLASSES_CSV):
        (copy / name).rename(inner / name)
    pd.read_csv(copy / LABELS_CSV, dtype=str).to_csv(inner / f"{LABELS_CSV}.zip", index=False)
    (copy / LABELS_CSV).unlink()
    found = read(copy)
    assert [s.labels for s in found.studies] == [s.labels for s in source.studies]
    assert all((copy / s.images[0].path).is_file() for s in found.studies)


def test_smaller_png_have_smaller_boxes(copy, source, monkeypatch):
    monkeypatch.setattr(rsna, "SIDE", 100)
    for study in source.studies:
        path = copy / study.images[0].path
        path.unlink()
        save_png(path.with_suffix(".PNG"), np.zeros((25, 50), np.uint8))
    for small, study in zip(read(copy).studies, source.studies, strict=True):
        assert small.images[0].path.endswith(".PNG")
        for box, whole in zip(small.images[0].boxes, study.images[0].boxes, strict=True):
            assert np.allclose(box["xywh"], np.array(whole["xywh"]) * [0.5, 0.25, 0.5, 0.25])


def test_without_classes_and_without_mapping(copy, source):
    (copy / CLASSES_CSV).unlink()
    (copy / rsna.MAPPING).unlink()
    found = read(copy)
    assert [(p.kind, p.lost) for p in found.problems] == [("no classes", False), ("patients", False)]
    assert all(set(s.labels) == {"Pneumonia"} and s.patient_id == s.study_id for s in found.studies)


@pytest.mark.parametrize("name, column", [(LABELS_CSV, "Target"), (LABELS_CSV, "width"), (CLASSES_CSV, "class")])
def test_missing_columns(copy, name, column):
    edit(copy / name, lambda t: t.drop(columns=column))
    with pytest.raises(UserError, match=rf"{name} lacks the column {column} .*kaggle\.com/c/rsna"):
        read(copy)


def test_missing_files(copy):
    shutil.rmtree(copy / "stage_2_train_images")
    with pytest.raises(UserError, match=r"No image under .*stage_2_train_images/\*\.dcm.*kaggle"):
        read(copy)
    (copy / LABELS_CSV).unlink()
    with pytest.raises(UserError, match=r"No .*stage_2_train_labels\.csv.*kaggle"):
        read(copy)


@pytest.mark.parametrize("content", ["{", "{}x", '[{"img_id": "1"}]', "[3]"])
def test_a_mapping_that_is_none(copy, content):
    (copy / rsna.MAPPING).write_text(content)
    with pytest.raises(UserError, match="is not RSNA's mapping"):
        read(copy)


def test_odd_rows_are_listed_and_the_rest_stays(copy, source):
    boxed = [s.study_id for s in source.studies if s.images[0].boxes]
    plain = [s.study_id for s in source.studies if not s.images[0].boxes]

    def damage(t):
        first = t[t["patientId"] == boxed[0]].iloc[[0]]
        extra = [first, first.assign(x="wide"), first.assign(patientId=""), first.assign(Target="2", x="1")]
        both = t[t["patientId"] == boxed[1]].iloc[[0]].assign(x="", y="", width="", height="", Target="0")
        return pd.concat([t, *extra, both])

    edit(copy / LABELS_CSV, damage)
    more = [{"patientId": plain[0], "class": "Lung Opacity"}, {"patientId": plain[1], "class": "Odd"}]
    edit(copy / CLASSES_CSV, lambda t: pd.concat([t, pd.DataFrame(more)]))
    (copy / source.studies[3].images[0].path).unlink()
    found = read(copy)
    rows = len(pd.read_csv(copy / LABELS_CSV))
    said = [(p.kind, p.where, p.lost) for p in found.problems]
    assert said == [
        ("label", f"{LABELS_CSV} row {rows - 1}", True),
        ("label", f"{LABELS_CSV} row {rows}", True),
        ("duplicate", f"{LABELS_CSV} row {rows - 3}", False),
        ("label", f"patientId {boxed[1]}", False),
        ("class", f"{CLASSES_CSV} row {len(pd.read_csv(copy / CLASSES_CSV)) + 1}", False),
        ("class", f"patientId {plain[0]}", False),
        ("box", f"{LABELS_CSV} row {rows - 2}", False),
    ]
    now = {s.study_id: s for s in found.studies}
    assert {k: s.images[0].boxes for k, s in now.items()} == {s.study_id: s.images[0].boxes for s in source.studies}
    assert now[boxed[1]].labels["Pneumonia"] == 1
    assert set(now[plain[0]].labels) == {"Pneumonia"}
    assert now[plain[1]].labels == {s.study_id: s for s in source.studies}[plain[1]].labels
    assert len(now) == len(source.studies), "the image that is not there is left to preparation"


# Divisions ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    """Rows of as many images as the challenge has, in no order, some of them twice."""
    order = np.random.default_rng(0).permutation(26684)
    names = [f"{n:08x}" for n in order]
    target = (order % 26684 < 6012).astype(int)
    t = pd.DataFrame({"patientId": names, "Target": target.astype(str)})
    return pd.concat([t, t[target == 1].iloc[:3543]], ignore_index=True)


@pytest.fixture(scope="module")
def divisions(published):
    return {d.name: d.parts for d in rsna._divisions(published)}


def of(parts, part: str) -> set[str]:
    return {i for i, where in parts.items() if part in where.split()}


@pytest.mark.parametrize(
    "name, held, count", [("mgca", 5337 * 2, 5337), ("mgca_cls", 0.15 * 2, 4003), ("gloria", 0.3, 4003)]
)
def test_divisions_of_mgca_and_gloria(divisions, published, name, held, count):
    frame = published.groupby("patientId").agg(list).reset_index()
    train, rest = train_test_split(frame, test_size=held, random_state=0)
    test, val = train_test_split(rest, test_size=0.5, random_state=0)
    for part, wanted in (("train", train), ("val", val), ("test", test)):
        assert of(divisions[name], part) == set(wanted["patientId"])
    assert Counter(divisions[name].values()) == {"train": 26684 - 2 * count, "val": count, "test": count}


def test_division_of_benchx(divisions, published):
    """Against the last lines of the list that BenchX publishes, as far as they can tell without the csv.

    Of each class the list is a known selection of ranks in the order of the ids, whatever the ids are; so where its
    ids are of one class, they must rise as the ranks do.
    """
    assert Counter(divisions["benchx"].values()) == {"train": 18678, "val": 4003, "test": 4003}
    tail = [
        "4a441416",
        "aff2fd53",
        "195639de",
        "d7aaead6",
        "af68dfdd",
        "5ac42837",
        "a886d1b3",
        "d561ede1",
        "be4dcfc9",
        "88483dd4",
        "15cc8c22",
    ]
    y = np.r_[np.zeros(26684 - 6012, int), np.ones(6012, int)].tolist()
    ids = [f"{n:05d}" for n in range(26684)]
    _, rest = rsna.stratified(ids, y, 42, 0.3)
    _, test = rsna.stratified(rest, [y[int(i)] for i in rest], 42, 0.5)
    for positive in (0, 1):
        ranked = [name for rank, name in sorted(zip(test[-len(tail) :], tail, strict=True)) if y[int(rank)] == positive]
        assert len(ranked) > 1
        assert ranked == sorted(ranked)
    first = published.groupby("patientId")["Target"].first()
    train, rest = train_test_split(first.index.tolist(), test_size=0.3, stratify=first.tolist(), random_state=42)
    val, test = train_test_split(rest, test_size=0.5, stratify=first[rest].tolist(), random_state=42)
    for part, wanted in (("train", train), ("val", val), ("test", test)):
        assert of(divisions["benchx"], part) == set(wanted)
    positives = set(published["patientId"][published["Target"] == "1"])
    for part, count in (("train", 4208), ("val", 902), ("test", 902)):
        assert len(of(divisions["benchx"], part) & positives) == count


def test_folds_of_prior(divisions, published):
    positives = sorted(set(published["patientId"][published["Target"] == "1"]))
    names = [f"prior_fold{k}" for k in range(1, 6)]
    tests = [of(divisions[n], "test") for n in names]
    assert set.union(*tests) == set(positives)
    assert sum(map(len, tests)) == 6012
    independent = [{positives[i] for i in test} for _, test in KFold(5, shuffle=True, random_state=0).split(positives)]
    assert tests == independent
    for n in names:
        assert set(divisions[n]) == set(positives)
        assert not of(divisions[n], "train") & (of(divisions[n], "val") | of(divisions[n], "test"))


def test_divisions_hold_the_images_that_are_here(source, tmp_path):
    ids = {s.study_id for s in source.studies}
    names = [d.name for d in source.divisions]
    assert names == ["mgca_cls", "gloria", "benchx", *(f"prior_fold{k}" for k in range(1, 6))]
    assert all(set(d.parts) <= ids and d.origin for d in source.divisions)
    assert leaks(source, source.divisions[0])["patients"] > 0, "divided by image, as published"
    prepare(source, tmp_path / "out", Plan(32), private=True, split="prior_fold1")
    assert len(PreparedData(tmp_path / "out").images) == len(source.divisions[3].parts)


@pytest.mark.parametrize(
    "line, file", [("{}\n", "{}.txt"), ("stage_2_train_images/{}.dcm 0 \n", "{}_list.txt"), ("{}.png 1\n", "{}.txt")]
)
def test_published_lists(raw, source, tmp_path, line, file):
    ids = [s.study_id for s in source.studies]
    for part, some in (("train", ids[:20]), ("val", ids[20:25]), ("test", [*ids[25:40], "unknown"])):
        (tmp_path / file.format(part)).write_text("".join(line.format(i) for i in some))
    (tmp_path / "train_1.txt").write_text(f"{ids[50]}\n")
    division = read(raw, lists=str(tmp_path)).divisions[-1]
    assert division.name == "lists"
    assert Counter(division.parts.values()) == {"train": 20, "val": 5, "test": 15}
