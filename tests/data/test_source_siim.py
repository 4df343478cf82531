"""SIIM-ACR pneumothorax: runs and masks, both releases, and the divisions of published code."""

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.model_selection import KFold, train_test_split

from vlp_bench.data.decode import read_mask, run_lengths
from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import siim
from vlp_bench.data.sources.siim import read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import ImageRef
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts.siim import PNG, image_uid, runs
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 120, 1, 64


@pytest.fixture(scope="module")
def world():
    """Frontal images by their ids, with their studies."""
    found = [(s, s.frontal) for s in sample_studies(STUDIES, SEED)]
    return {image_uid(image): (study, image) for study, image in found if image}


@pytest.fixture(scope="module")
def sources(raw):
    return {release: read(raw, release) for release in ("png", "dicom")}


def edit(path: Path, change) -> None:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def truth(image) -> np.ndarray:
    drawn = draw(Job(Path(), SIZE, False, 95), image)
    return drawn.masks.get("Pneumothorax", np.zeros(drawn.picture.shape, bool))


@pytest.mark.parametrize("release", ["png", "dicom"])
def test_labels_and_masks_are_those_of_the_world(raw, sources, world, release):
    source = sources[release]
    assert source.labels == ("Pneumothorax",)
    positives = 0
    for study in source.studies:
        (ref,) = study.images
        true, image = world[study.study_id]
        wanted = truth(image)
        assert study.labels == {"Pneumothorax": wanted.any()} == ref.labels
        assert ref.view == "FRONTAL"
        assert (raw / ref.path).is_file()
        assert bool(ref.masks) == wanted.any()
        if ref.masks:
            size = wanted.shape[::-1]
            drawn = np.max([read_mask(raw, m, size) for m in ref.masks], axis=0)
            assert ((drawn > 0) == wanted).all()
            positives += 1
        if release == "png":
            assert (study.split == "test") == (true.split == "test")
    assert positives > 5
    assert {s.split for s in source.studies} == {"train", "val", "test"}


def test_both_releases_have_the_same_images(sources, world):
    png, dicom = ({s.study_id: s for s in sources[r].studies} for r in ("png", "dicom"))
    assert set(dicom) == {i for i, s in png.items() if s.split != "test"}
    unlabelled = set(world) - set(png)
    assert unlabelled
    (said,) = [p for p in sources["dicom"].problems if p.kind == "no label"]
    assert f"no row for {sum(world[i][0].split != 'test' for i in unlabelled)} images" in said.reason
    assert not said.lost
    assert not sources["png"].problems
    assert any(len(s.images[0].masks) > 1 for s in dicom.values())
    assert {p.kind for p in sources["dicom"].problems} == {"no label", "duplicate"}


@pytest.mark.parametrize("release", ["png", "dicom"])
def test_prepared(sources, world, tmp_path, release):
    prepare(sources[release], tmp_path / "out", Plan(SIZE, "squash"), private=True)
    store = PreparedData(tmp_path / "out")
    assert not [p for p in json.loads((store.path / "prepare_report.json").read_text())["problems"] if p["lost"]]
    shared = []
    for row, name in enumerate(store.images["image_id"]):
        wanted = truth(world[name][1])
        found = np.any([m["mask"] for m in store.masks(row)] or [np.zeros((SIZE, SIZE), bool)], axis=0)
        assert store.image_labels[row, 0] == wanted.any()
        square = cv2.resize(wanted.astype(np.uint8) * 255, (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 127
        if wanted.any():
            shared.append((found & square).sum() / max((found | square).sum(), 1))
    assert len(shared) > 5
    assert min(shared) > 0.9
    assert store.pixels(np.arange(len(store.images))).any((1, 2)).all()


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_runs_there_and_back(mask):
    assert ((run_lengths(runs(mask), mask.shape[::-1]) > 0) == mask).all()


# What people have -----------------------------------------------------------------------------------------------------


def test_the_release_that_is_there(copy, sources):
    assert {Path(s.images[0].path).suffix for s in read(copy).studies} == {".png"}
    shutil.rmtree(copy / PNG)
    assert [s.study_id for s in read(copy).studies] == [s.study_id for s in sources["dicom"].studies]
    for name in ("train-rle.csv", "dicom-images-train"):
        (copy / "siim").mkdir(exist_ok=True)
        (copy / name).rename(copy / "siim" / name)
    assert [s.labels for s in read(copy).studies] == [s.labels for s in sources["dicom"].studies]
    with pytest.raises(UserError, match=r"No .*stage_1_train_images\.csv.*vbookshelf"):
        read(copy, "png")
    with pytest.raises(UserError, match="release=jpg: expected one of png, dicom"):
        read(copy, "jpg")


def test_png_alone(copy, sources):
    inner = copy / PNG
    found = read(inner)
    assert [s.study_id for s in found.studies] == [s.study_id for s in sources["png"].studies]
    assert "mgca_rows" not in [d.name for d in found.divisions]
    with pytest.raises(UserError, match=r"No train-rle\.csv or stage_2_train\.csv in"):
        read(inner, "dicom")


def test_stage_2(copy, sources):
    shutil.rmtree(copy / PNG)
    (copy / "stage_2_images").mkdir()
    for path in copy.glob("dicom-images-train/*/*/*.dcm"):
        path.rename(copy / "stage_2_images" / path.name)
    rows = pd.read_csv(copy / "train-rle.csv", dtype=str).rename(columns=str.strip)
    rows.assign(EncodedPixels=rows["EncodedPixels"].str.strip()).to_csv(copy / "stage_2_train.csv", index=False)
    (copy / "train-rle.csv").unlink()
    found = read(copy)
    assert [(s.study_id, s.labels) for s in found.studies] == [(s.study_id, s.labels) for s in sources["dicom"].studies]
    assert all((copy / s.images[0].path).is_file() for s in found.studies)
    assert "mgca_rows" not in [d.name for d in found.divisions]


def test_labelled_images_of_the_official_test_are_test(copy, sources):
    tests = [s for s in sources["png"].studies if s.split == "test"]
    more = [{"ImageId": s.study_id, " EncodedPixels": " -1"} for s in tests]
    edit(copy / "train-rle.csv", lambda t: pd.concat([t, pd.DataFrame(more)]))
    found = read(copy, "dicom")
    assert {s.study_id for s in found.studies if s.split == "test"} == {s.study_id for s in tests}
    assert {s.split for s in found.studies} == {"train", "val", "test"}


@pytest.mark.parametrize(
    "file, column", [("stage_1_train_images.csv", "has_pneumo"), ("stage_1_test_images.csv", "ImageId")]
)
def test_missing_columns_of_the_png(copy, file, column):
    edit(copy / PNG / file, lambda t: t.drop(columns=column))
    with pytest.raises(UserError, match=rf"{file} lacks the column {column}.*kaggle"):
        read(copy)
    (copy / PNG / file).unlink()
    with pytest.raises(UserError, match=rf"No .*{file}.*kaggle"):
        read(copy, "png")


def test_missing_column_of_the_runs_and_no_images(copy):
    edit(copy / "train-rle.csv", lambda t: t.rename(columns={" EncodedPixels": "Pixels"}))
    with pytest.raises(UserError, match=r"train-rle\.csv lacks the column EncodedPixels .*seesee"):
        read(copy, "dicom")
    shutil.rmtree(copy / PNG / "png_images")
    edit(copy / "train-rle.csv", lambda t: t.rename(columns={"Pixels": " EncodedPixels"}))
    with pytest.raises(UserError, match=r"No image in .*png_images"):
        read(copy)
    for part in ("train", "test"):
        shutil.rmtree(copy / f"dicom-images-{part}")
    with pytest.raises(UserError, match="No DICOM under"):
        read(copy, "dicom")


def test_odd_rows_of_the_png(copy, sources):
    names = [s.study_id for s in sources["png"].studies if s.labels["Pneumothorax"]][:2]
    csv = copy / PNG / "stage_1_train_images.csv"
    before = pd.read_csv(csv, dtype=str)
    unsure, masked = before["ImageId"][3], before[before["has_pneumo"] == "1"].iloc[0]
    assert unsure not in names

    def damage(t):
        t.loc[3, "has_pneumo"] = "?"
        return pd.concat([t, t.iloc[[5]], t.iloc[[6]].assign(ImageId="")])

    edit(csv, damage)
    (copy / PNG / "png_masks" / masked["new_filename"]).unlink()
    found = read(copy)
    said = {(p.kind, p.where, p.lost) for p in found.problems}
    rows = len(before) + 1
    assert said == {
        ("ImageId", f"{csv.name} row {rows + 1}", True),
        ("ImageId", f"{csv.name} row {rows + 2}", True),
        ("label", f"{csv.name} row 5", False),
        ("no mask", f"{csv.name} row {masked.name + 2}", False),
    }
    now = {s.study_id: s for s in found.studies}
    assert len(now) == len(sources["png"].studies)
    assert now[unsure].labels == {}
    assert now[masked["ImageId"]].labels == {"Pneumothorax": 1}
    assert now[masked["ImageId"]].images[0].masks == ()


def test_odd_rows_of_the_runs(copy, sources, tmp_path):
    ill = [s.study_id for s in sources["dicom"].studies if s.labels["Pneumothorax"]]
    well = [s.study_id for s in sources["dicom"].studies if not s.labels["Pneumothorax"]]
    more = [(ill[0], " -1"), ("", " -1"), (well[0], " 5 5 5"), (well[1], ""), ("unseen", " -1")]
    extra = pd.DataFrame(more, columns=["ImageId", " EncodedPixels"])
    edit(copy / "train-rle.csv", lambda t: pd.concat([t, extra]))
    found = read(copy, "dicom")
    last = len(pd.read_csv(copy / "train-rle.csv")) + 1
    said = [(p.kind, p.where, p.lost) for p in found.problems if p.kind not in ("duplicate", "no label")]
    assert said == [
        ("ImageId", f"train-rle.csv row {last - 3}", True),
        ("label", f"train-rle.csv row {last - 1}", False),
        *sorted([("label", f"ImageId {i}", False) for i in (ill[0], well[0])]),
    ]
    now = {s.study_id: s for s in found.studies}
    assert now[ill[0]].labels == now[well[0]].labels == {"Pneumothorax": 1}
    assert now[well[1]].labels == {"Pneumothorax": 0}
    prepare(found, tmp_path / "out", Plan(32), private=True)
    problems = json.loads((tmp_path / "out" / "prepare_report.json").read_text())["problems"]
    assert [p["kind"] for p in problems if p["where"] == now[well[0]].images[0].path] == ["broken mask"]
    assert [p["reason"] for p in problems if p["where"].endswith("unseen.dcm")] == ["no such file"]


# Divisions ------------------------------------------------------------------------------------------------------------


def of(parts, part: str) -> set[str]:
    return {i for i, where in parts.items() if part in where.split()}


def test_rows_as_mgca_divides_them(raw, sources):
    frame = pd.read_csv(raw / "train-rle.csv")
    train, rest = train_test_split(frame, test_size=0.15 * 2, random_state=0)
    test, val = train_test_split(rest, test_size=0.5, random_state=0)
    for source in sources.values():
        (division,) = [d for d in source.divisions if d.name == "mgca_rows"]
        for part, wanted in (("train", train), ("val", val), ("test", test)):
            assert of(division.parts, part) == set(wanted["ImageId"])
        assert max(len(where.split()) for where in division.parts.values()) > 1
        assert leaks(source, division)["images"] > 0


def test_rows_of_the_published_number():
    """11,582 rows: 8,296 images without, 2,379 with pneumothorax."""
    ids = np.r_[np.arange(10675), np.random.default_rng(0).integers(8296, 10675, 11582 - 10675)]
    rows = pd.DataFrame({"ImageId": np.random.default_rng(1).permutation(ids).astype(str)})
    rows.attrs["name"] = "train-rle.csv"
    (division,) = siim._by_row(rows, set(rows["ImageId"]))
    train, rest = train_test_split(rows, test_size=0.15 * 2, random_state=0)
    test, val = train_test_split(rest, test_size=0.5, random_state=0)
    assert (len(train), len(val), len(test)) == (8107, 1738, 1737)
    for part, wanted in (("train", train), ("val", val), ("test", test)):
        assert of(division.parts, part) == set(wanted["ImageId"])


#: The last lines of the val list that BenchX publishes; names tell the class.
TAIL = [
    "2035_train_1_", "8535_train_0_", "5533_train_0_", "473_train_1_", "8482_train_1_", "4419_train_0_",
    "4578_train_0_", "6630_train_0_", "5602_train_0_", "993_train_0_", "5828_train_0_", "7301_train_0_",
    "941_train_0_", "7460_train_0_", "256_train_0_", "5031_train_0_", "2064_train_0_",
]  # fmt: skip


def test_names_as_benchx_divides_them():
    """Against the published tail, as far as it can tell without the csv: which ranks of each class it has.

    The names of a class are ranked by letter; where the tail has two of a class, they must rise as their ranks do.
    """
    order = np.random.default_rng(0).permutation(10675)
    classes = (order < 2379).astype(int)
    refs = [ImageRef(f"id{n}", f"png_images/{n}_train_{c}_.png") for n, c in enumerate(classes)]
    refs += [ImageRef(f"test{n}", f"png_images/{n}_test_{int(n < 290)}_.png") for n in range(1372)]
    (division,) = siim._by_name(refs)
    assert Counter(division.parts.values()) == {"train": 9303, "val": 1372, "test": 1372}
    positives = {r.image_id for r in refs if "_1_" in r.path}
    assert [len(of(division.parts, p) & positives) for p in ("train", "val", "test")] == [2073, 306, 290]
    names = {Path(r.path).name: r.image_id for r in refs}
    x = sorted(n for n in names if "train_1" in n) + sorted(n for n in names if "train_0" in n)
    _, wanted = train_test_split(x, test_size=1372, stratify=["train_1" in n for n in x], random_state=42)
    assert of(division.parts, "val") == {names[n] for n in wanted}
    ranks = [f"1{n:05d}" for n in range(2379)] + [f"0{n:05d}" for n in range(8296)]
    _, val = siim.stratified(ranks, [int(r[0]) for r in ranks], 42, 1372)
    end = val[-len(TAIL) :]
    assert [r[0] for r in end] == [name.split("_")[2] for name in TAIL]
    for c in "01":
        ranked = [f"{name}.png" for rank, name in sorted(zip(end, TAIL, strict=True)) if rank[0] == c]
        assert len(ranked) > 2
        assert ranked == sorted(ranked)


def test_folds_of_prior(sources):
    for source in sources.values():
        positives = sorted(s.study_id for s in source.studies if s.labels["Pneumothorax"])
        found = {d.name: d.parts for d in source.divisions if d.name.startswith("prior")}
        assert list(found) == [f"prior_fold{k}" for k in range(1, 6)]
        tests = [of(parts, "test") for parts in found.values()]
        folds = KFold(5, shuffle=True, random_state=0).split(positives)
        assert tests == [{positives[i] for i in test} for _, test in folds]
        assert all(set(parts) == set(positives) for parts in found.values())


@pytest.mark.parametrize("by", ["name", "uid"])
def test_published_lists(raw, sources, tmp_path, by):
    """BenchX lists the PNG by their stems, MRM the images by their ids."""
    studies = sources["png"].studies
    names = [s.study_id if by == "uid" else Path(s.images[0].path).stem for s in studies]
    for part, some in (("train", names[:20]), ("val", names[20:25]), ("test", names[25:40])):
        (tmp_path / (f"{part}_list.txt" if by == "uid" else f"{part}.txt")).write_text("\n".join(some))
    division = read(raw, lists=str(tmp_path)).divisions[-1]
    assert division.name == "lists"
    assert Counter(division.parts.values()) == {"train": 20, "val": 5, "test": 15}
    assert of(division.parts, "val") == {s.study_id for s in studies[20:25]}
