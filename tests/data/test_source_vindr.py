"""VinDr-CXR and VinBigData: votes of radiologists, fused boxes, sizes of smaller releases, divisions."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from vlp_bench.data.decode import read_gray
from vlp_bench.data.divisions import by_hash
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import vindr
from vlp_bench.data.sources.vindr import CORNERS, NO_FINDING, fused, overlap
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import vindr as layout
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 50, 2, 96
TRUTH = {layout.name(s): s for s in sample_studies(STUDIES, SEED) if s.frontal}


@pytest.fixture
def challenge(tmp_path):
    """VinBigData from rows `image,class,radiologist,corners`, with images of a size (or empty DICOM)."""

    def make(rows: list[tuple], size: tuple[int, int] | None = None, **more: list) -> Path:
        (tmp_path / "train").mkdir()
        table = pd.DataFrame(
            [[i, c, 0, r, *(corners or [""] * 4)] for i, c, r, corners in rows],
            columns=["image_id", "class_name", "class_id", "rad_id", *CORNERS],
        )
        for name in dict.fromkeys(table["image_id"]):
            if size is None:
                (tmp_path / "train" / f"{name}.dicom").write_bytes(b"")
            else:
                Image.new("L", size).save(tmp_path / "train" / f"{name}.png")
        table.assign(**more).to_csv(tmp_path / "train.csv", index=False)
        return tmp_path

    return make


def images_of(source):
    return {i.image_id: i for s in source.studies for i in s.images}


def kinds(source):
    return [(p.kind, p.lost) for p in source.problems]


def truth_of(study):
    return {layout.NAMES[f.name] for f in study.findings if f.name in layout.NAMES} or {NO_FINDING}


def positive(image):
    return {label for label, value in image.labels.items() if value}


def edit(path: Path, change) -> None:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


# PhysioNet ------------------------------------------------------------------------------------------------------------


def test_votes_are_counted(raw):
    """The first radiologist sees all there is, each of the others most of it."""
    sources = {agree: images_of(vindr.read(raw, agree=agree)) for agree in (1, 2, 3)}
    rows = pd.read_csv(raw / "annotations" / "image_labels_train.csv")
    votes = rows.drop(columns="rad_id").groupby("image_id").sum()
    differ = 0
    for image, study in TRUTH.items():
        assert set(sources[1][image].labels) == set(vindr.LABELS)
        if study.split == "test":
            assert all(positive(sources[agree][image]) == truth_of(study) for agree in (1, 2, 3))
            continue
        assert positive(sources[1][image]) - {NO_FINDING} == truth_of(study) - {NO_FINDING}
        for agree in (1, 2, 3):
            assert positive(sources[agree][image]) == set(votes.columns[votes.loc[image] >= agree])
        differ += positive(sources[1][image]) != positive(sources[3][image])
    assert differ > 5
    assert images_of(vindr.read(raw)) == sources[2]


def test_splits_views_and_patients(raw):
    source = vindr.read(raw)
    assert not source.problems
    assert {s.study_id for s in source.studies} == TRUTH.keys()
    for study in source.studies:
        assert study.patient_id == study.study_id == study.images[0].image_id
        assert study.images[0].view == "PA"
        assert (study.split == "test") == (TRUTH[study.study_id].split == "test")
    assert {s.split for s in source.studies} == {"train", "val", "test"}


def test_prepared_pictures_and_boxes(raw, tmp_path):
    prepare(vindr.read(raw), tmp_path / "out", Plan(64), private=True)
    store = PreparedData(tmp_path / "out")
    labels = Counter()
    for row, image in enumerate(store.images.itertuples()):
        study = TRUTH[image.image_id]
        truth = draw(Job(raw, SIZE, False, 95), study.frontal)
        height, width = truth.picture.shape
        assert (image.width, image.height) == (width, height)
        scale = 64 / max(height, width)
        place = np.array([(64 - int(side * scale)) // 2 for side in (width, height)] * 2)
        wanted = [
            (layout.NAMES[b["label"]], np.array([x, y, x + w, y + h]) * scale + place)
            for b in truth.boxes
            for x, y, w, h in [b["xywh"]]
            if b["label"] in layout.NAMES
        ]
        boxes = [(b["label"], np.array(b["xyxy"])) for b in store.boxes(row)]
        # one box a lesion, of the labels that two of three name
        has = {label for label, value in zip(store.labels, image.labels, strict=True) if value == 1}
        assert Counter(label for label, _ in boxes) == Counter(label for label, _ in wanted if label in has)
        for label, box in boxes:
            assert min(np.abs(box - other).max() for name, other in wanted if name == label) < 2.5
            labels[label] += 1
    assert len(labels) > 5


def test_all_boxes_of_all_radiologists(raw):
    rows = pd.concat([pd.read_csv(raw / "annotations" / f"annotations_{part}.csv") for part in ("train", "test")])
    rows = rows[rows["class_name"] != NO_FINDING]
    found = images_of(vindr.read(raw, boxes="all"))
    assert sum(len(i.boxes) for i in found.values()) == len(rows)
    for image, some in rows.groupby("image_id"):
        assert [b["label"] for b in found[image].boxes] == list(some["class_name"])
        corners = np.array([[x, y, x + w, y + h] for b in found[image].boxes for x, y, w, h in [b["xywh"]]])
        np.testing.assert_allclose(corners, some[CORNERS], atol=1e-6)


def test_dicom_are_of_both_kinds(raw):
    tags = Counter()
    for path in [*raw.glob("train/*.dicom"), *raw.glob("test/*.dicom")]:
        file = pydicom.dcmread(path)
        assert (file.BitsAllocated, file.BitsStored, file.HighBit) == (16, 12, 11)
        assert not [e for e in file.iterall() if e.VR in ("DA", "TM", "DT")]
        tags[file.PhotometricInterpretation, "WindowCenter" in file] += 1
        truth = draw(Job(raw, SIZE, False, 95), TRUTH[path.stem].frontal).picture.astype(float)
        # the window holds all twelve bits; without one the picture's own range is stretched
        truth = truth if "WindowCenter" in file else (truth - truth.min()) / np.ptp(truth) * 255
        assert np.abs(read_gray(path, 64)[0] - truth).max() <= 2
    assert len(tags) == 4


def test_where_wget_puts_it(copy, tmp_path):
    wanted = vindr.read(copy)
    place = tmp_path / "download" / "physionet.org" / "files" / "vindr-cxr" / "1.0.0"
    place.parent.mkdir(parents=True)
    copy.rename(place)
    found = vindr.read(tmp_path / "download")
    assert [s.split for s in found.studies] == [s.split for s in wanted.studies]
    assert [i.boxes for i in images_of(found).values()] == [i.boxes for i in images_of(wanted).values()]


def test_divisions(raw):
    source = vindr.read(raw)
    divisions = {d.name: d.parts for d in source.divisions}
    labels = {part: pd.read_csv(raw / "annotations" / f"image_labels_{part}.csv") for part in ("train", "test")}
    boxes = {part: pd.read_csv(raw / "annotations" / f"annotations_{part}.csv") for part in ("train", "test")}
    test = dict.fromkeys(labels["test"]["image_id"], "test")
    ids = labels["train"].groupby("image_id").first().reset_index()["image_id"]
    train, val = train_test_split(ids, test_size=0.2, random_state=0)
    assert divisions["cxr_clip"] == dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | test
    joined = boxes["train"].groupby("image_id")["class_name"].apply(lambda names: "|".join(np.unique(names)))
    train, val = train_test_split(
        joined.index.tolist(),
        test_size=boxes["test"]["image_id"].nunique(),
        stratify=(joined != NO_FINDING).tolist(),
        random_state=42,
    )
    assert divisions["benchx"] == dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | test
    sizes = [len(some) for some in vindr.shuffled([str(n) for n in range(15000)], 0, 0.2)]
    assert sizes == [12000, 3000]


def test_divisions_count_images_that_are_not_here(copy):
    wanted = {d.name: dict(d.parts) for d in vindr.read(copy).divisions}
    lost = next(copy.glob("train/*.dicom"))
    lost.unlink()
    source = vindr.read(copy)
    assert kinds(source) == [("no image", True)]
    for division in source.divisions:
        wanted[division.name].pop(lost.stem)
        assert division.parts == wanted[division.name]


def test_published_lists(raw, tmp_path):
    """REFERS' lists divide the train folder."""
    ids = sorted(i for i, s in TRUTH.items() if s.split != "test")
    for n, part in enumerate(("train", "val", "test")):
        (tmp_path / f"{part}.txt").write_text("".join(f"{i}.png 1.0 0.0\n" for i in ids[n::3]))
    division = next(d for d in vindr.read(raw, lists=str(tmp_path)).divisions if d.name == "lists")
    assert division.parts == {i: part for n, part in enumerate(("train", "val", "test")) for i in ids[n::3]}


def test_without_test_or_boxes(copy):
    for name in ("image_labels_test", "annotations_test", "annotations_train"):
        (copy / "annotations" / f"{name}.csv").unlink()
    source = vindr.read(copy)
    assert kinds(source) == [("no boxes", False), ("no labels", False), ("no official split", False)]
    assert {s.study_id: s.split for s in source.studies} == by_hash([s.study_id for s in source.studies], vindr.ANEW)
    assert not any(i.boxes for i in images_of(source).values())
    assert not source.divisions


def test_odd_rows(copy):
    folder = copy / "annotations"
    first = pd.read_csv(folder / "image_labels_train.csv")["image_id"][0]

    def labels(rows):
        rows.loc[1, "COPD"] = "x"
        rows.loc[2, "rad_id"] = rows.loc[1, "rad_id"]
        return rows

    def boxes(rows):
        more = [
            [first, "R1", "Sign", 1, 2, 3, 4],
            [first, "R1", "Edema", 5, 2, 3, 4],
            [first, "R1", "Edema", 1, 2, 3, "a"],
        ]
        strange = [["0" * 32, "R1", "Edema", 1, 2, 3, 4]]
        return pd.concat([rows, pd.DataFrame([*more, *strange], columns=rows.columns)])

    edit(folder / "image_labels_train.csv", labels)
    edit(folder / "annotations_train.csv", boxes)
    (copy / "train" / f"{'1' * 32}.dicom").write_bytes(b"")
    source = vindr.read(copy)
    assert [(p.where, p.lost) for p in source.problems if p.kind in ("label", "duplicate")][:2] == [
        ("image_labels_train.csv row 3", False),
        ("image_labels_train.csv row 4", True),
    ]
    count = Counter(kinds(source))
    assert count == {("label", False): 2, ("duplicate", True): 1, ("box", False): 2, ("radiologists", False): 1,
                     ("no labels", False): 2}  # fmt: skip
    rows = pd.read_csv(folder / "image_labels_train.csv").iloc[:2].set_index("rad_id")
    both = {label for label in vindr.LABELS if label != "COPD" and (rows[label].astype(int) == 1).all()}
    assert positive(images_of(source)[first]) == both


# VinBigData -----------------------------------------------------------------------------------------------------------

THREE = [
    ("a", "Cardiomegaly", "R1", [100, 200, 300, 400]),
    ("a", "Cardiomegaly", "R2", [110, 190, 310, 410]),
    ("a", NO_FINDING, "R3", None),
    ("b", NO_FINDING, "R1", None),
    ("b", NO_FINDING, "R2", [0, 0, 1, 1]),
    ("b", "Nodule/Mass", "R3", [10, 20, 30, 40]),
]


def test_challenge(challenge):
    raw = challenge(THREE)
    (raw / "test").mkdir()
    (raw / "test" / "c.dicom").write_bytes(b"")
    source = vindr.read(raw)
    assert source.labels == vindr.CHALLENGE
    found = images_of(source)
    assert [positive(i) for i in found.values()] == [{"Cardiomegaly"}, {NO_FINDING}]
    assert [i.boxes for i in found.values()] == [({"label": "Cardiomegaly", "xywh": [105, 195, 200, 210]},), ()]
    assert [len(i.boxes) for i in images_of(vindr.read(raw, boxes="all")).values()] == [2, 1]
    assert positive(images_of(vindr.read(raw, agree=1))["b"]) == {NO_FINDING, "Nodule/Mass"}
    assert positive(images_of(vindr.read(raw, agree=3))["a"]) == set()
    assert kinds(source) == [("no labels", False), ("no official split", False)]
    assert not source.divisions


def test_smaller_files_with_their_sizes(challenge):
    raw = challenge(THREE, (256, 512), width=1024, height=1024)
    found = images_of(vindr.read(raw, boxes="all"))
    assert [b["xywh"] for b in found["a"].boxes] == [[25, 100, 50, 100], [27.5, 95, 50, 110]]
    edit(raw / "train.csv", lambda rows: rows.drop(columns=["width", "height"]))
    # numpy's order: the height comes first
    pd.DataFrame({"image_id": ["a", "b"], "dim0": [2048, 1024], "dim1": [512, 256]}).to_csv(
        raw / "train_meta.csv", index=False
    )
    source = vindr.read(raw, boxes="all")
    assert [b["xywh"] for b in images_of(source)["a"].boxes] == [[50, 50, 100, 50], [55, 47.5, 100, 55]]
    assert images_of(source)["b"].boxes[0]["xywh"] == [10, 10, 20, 10]
    assert kinds(source) == [("no official split", False)]


@pytest.mark.parametrize("side, boxes", [(256, 0), (512, 3)])
def test_files_of_unknown_size(challenge, side, boxes):
    """Boxes that reach beyond give smaller files away; else they are taken as they are. Both are said."""
    source = vindr.read(challenge(THREE, (side, side)), boxes="all")
    assert sum(len(i.boxes) for i in images_of(source).values()) == boxes
    (problem,) = [p for p in source.problems if p.kind == "size"]
    assert not problem.lost
    assert ("no boxes" in problem.reason) == (boxes == 0)
    assert "width" in problem.reason


def test_fused():
    boxes = [
        ("A", "R1", [0.0, 0.0, 10.0, 10.0]),
        ("A", "R1", [1.0, 0.0, 10.0, 10.0]),
        ("A", "R2", [2.0, 0.0, 10.0, 10.0]),
        ("A", "R3", [50.0, 0.0, 10.0, 10.0]),
        ("B", "R3", [0.0, 0.0, 10.0, 10.0]),
        ("C", "R3", [0.0, 0.0, 10.0, 10.0]),
    ]
    found = fused(boxes, {"A": 1, "B": 1, "C": 0})
    # the second radiologist's box lies nearer to the second of the first
    assert [(b["label"], b["xywh"][0]) for b in found] == [("A", 0), ("A", 1.5), ("A", 50), ("B", 0)]
    assert len(fused([("A", "", b[2]) for b in boxes], {"A": 1})) == len(boxes)


places = st.integers(0, 200)
sides = st.integers(1, 200)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("123"), places, places, sides, sides), max_size=12))
def test_fused_boxes_lie_within_their_parts(drawn):
    boxes = [(label, f"R{reader}", [float(v) for v in xywh]) for label, reader, *xywh in drawn]
    found = fused(boxes, {"A": 1.0, "B": 1.0})
    for label in "AB":
        per_reader = Counter(reader for name, reader, _ in boxes if name == label)
        count = sum(b["label"] == label for b in found)
        assert max(per_reader.values(), default=0) <= count <= sum(per_reader.values())
        some = np.array([xywh for name, _, xywh in boxes if name == label]).reshape(-1, 4)
        for box in (b["xywh"] for b in found if b["label"] == label):
            assert (some.min(0) - 1e-3 <= box).all()
            assert (box <= some.max(0) + 1e-3).all()


def test_overlap():
    assert overlap([0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(1 / 3)
    assert overlap([0, 0, 10, 10], [10, 0, 10, 10]) == 0
    assert overlap([0, 0, 10, 10], [0, 0, 10, 10]) == 1


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match=r"agree=4"):
        vindr.read(copy, agree=4)
    with pytest.raises(UserError, match=r"boxes=some.*fused, all"):
        vindr.read(copy, boxes="some")
    with pytest.raises(UserError, match=r"No image_labels_train\.csv.*physionet.*Kaggle"):
        vindr.read(tmp_path / "nowhere")
    for name, column in (
        ("image_labels_train", "rad_id"),
        ("image_labels_train", "Lung cyst"),
        ("image_labels_test", "Other disease"),
        ("annotations_train", "x_max"),
        ("annotations_test", "class_name"),
    ):
        path = copy / "annotations" / f"{name}.csv"
        whole = path.read_bytes()
        edit(path, lambda rows, column=column: rows.drop(columns=column))
        with pytest.raises(UserError, match=rf"{name}\.csv lacks the column {column}"):
            vindr.read(copy)
        path.write_bytes(whole)
    shutil.rmtree(copy / "train")
    with pytest.raises(UserError, match="No image that the csv of train names"):
        vindr.read(copy)
