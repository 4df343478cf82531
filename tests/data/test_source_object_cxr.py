"""Object-CXR: shapes as boxes and masks, three csv files, published divisions."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from vlp_bench.data.decode import read_mask
from vlp_bench.data.images import resize_and_pad
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import object_cxr
from vlp_bench.data.sources.object_cxr import LABEL, Row, _shapes
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import object_cxr as layout
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 40, 2, 96
TRUTH = {s.study_id[1:]: s for s in sample_studies(STUDIES, SEED) if s.frontal}


@pytest.fixture
def by_hand(tmp_path):
    """csv files from {part: annotations}, with empty images 0.jpg, 1.jpg, ..."""

    def make(**annotations: list[str]) -> Path:
        number = 0
        for part, some in annotations.items():
            (tmp_path / part).mkdir()
            names = [f"{number + n}.jpg" for n in range(len(some))]
            for name in names:
                (tmp_path / part / name).write_bytes(b"")
            number += len(some)
            pd.DataFrame({"image_name": names, "annotation": some}).to_csv(tmp_path / f"{part}.csv", index=False)
        return tmp_path

    return make


def drawn(raw, image_id):
    return draw(Job(raw, SIZE, False, 95), TRUTH[image_id].frontal)


def stored(mask):
    """A mask of the file, its holes filled, in stored pixels, and the same grown by two pixels."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    square = resize_and_pad(filled, 64).mask(filled, 64)
    return square > 0, cv2.dilate(square, np.ones((5, 5), np.uint8)) > 0


def shapes(annotation: str):
    problems: list = []
    boxes, masks = _shapes(Row("i", "i.jpg", annotation, "here"), problems)
    return boxes, masks, problems


def test_labels_and_splits_are_those_of_the_world(raw):
    source = object_cxr.read(raw)
    assert not source.problems
    assert {s.study_id for s in source.studies} == TRUTH.keys()
    for study in source.studies:
        image = study.images[0]
        has = any(b["label"] == layout.OBJECT for b in drawn(raw, study.study_id).boxes)
        assert image.labels == {LABEL: float(has)}
        assert study.split == {"validate": "val"}.get(TRUTH[study.study_id].split, TRUTH[study.study_id].split)
    assert {i.labels[LABEL] for s in source.studies for i in s.images} == {0.0, 1.0}


def test_prepared_boxes_and_masks(raw, tmp_path):
    prepare(object_cxr.read(raw), tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out")
    kinds = set()
    for row, image in enumerate(store.images.itertuples()):
        truth = drawn(raw, image.image_id)
        boxes, masks = store.boxes(row), [m["mask"] for m in store.masks(row)]
        assert len(boxes) == len(masks)
        kind = TRUTH[image.image_id].frontal.seed % 3
        wanted = [b["xywh"] for b in truth.boxes if b["label"] == layout.OBJECT]
        kinds |= {kind} if boxes else set()
        if kind == 2 and boxes:
            found, (mask, grown) = np.any(masks, axis=0), stored(truth.masks[layout.OBJECT])
            assert (found & mask).sum() > 0.8 * mask.sum()
            assert not (found & ~grown).any()
        elif boxes:
            scale = 64 / max(truth.picture.shape)
            place = np.array([(64 - int(side * scale)) // 2 for side in truth.picture.shape[::-1]] * 2)
            for box, (x, y, w, h) in zip(boxes, wanted, strict=True):
                assert np.abs(np.array(box["xyxy"]) - (np.array([x, y, x + w, y + h]) * scale + place)).max() < 1.5
    assert kinds == {0, 1, 2}


def test_shapes():
    boxes, masks, problems = shapes("0 10 20 30 60;1 100 200 140 260; 2 0 0 10 0 0 10;")
    assert [b["xywh"] for b in boxes] == [[10, 20, 20, 40], [100, 200, 40, 60], [0, 0, 10, 10]]
    assert masks[0]["polygon"] == [10, 20, 30, 20, 30, 60, 10, 60]
    assert len(masks[1]["polygon"]) == 128
    assert masks[2]["polygon"] == [0, 0, 10, 0, 0, 10]
    ellipse = read_mask(Path(), masks[1], (400, 400)) > 0
    y, x = np.mgrid[:400, :400]
    wanted = ((x - 120) / 20) ** 2 + ((y - 230) / 30) ** 2 <= 1
    assert (ellipse & wanted).sum() / (ellipse | wanted).sum() > 0.95
    assert not problems


@pytest.mark.parametrize(
    "text", ["3 1 2 3 4", "0 1 2 3", "1 1 2", "2 1 2 3 4 5", "0 a b c d", "0", "0 1 2 3 4 5 6", "0 1 2 nan 4"]
)
def test_what_is_no_shape_is_said_and_the_rest_stays(text):
    boxes, masks, problems = shapes(f"{text};0 1 2 3 4")
    assert [b["xywh"] for b in boxes] == [[1, 2, 2, 2]]
    assert len(masks) == 1
    assert [(p.kind, p.lost) for p in problems] == [("annotation", False)]
    assert text in problems[0].reason


coordinates = st.integers(0, 4000)


@settings(max_examples=50)
@given(st.sampled_from("012"), st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9), coordinates)
def test_the_box_holds_the_shape(kind, points, more):
    points = points if kind == "2" else points[:2]
    boxes, masks, problems = shapes(f"{kind} {' '.join(f'{x} {y}' for x, y in points)}")
    assert not problems
    x, y, w, h = boxes[0]["xywh"]
    polygon = np.reshape(masks[0]["polygon"], (-1, 2))
    np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], [x, y, x + w, y + h], atol=0.02)
    xs, ys = zip(*points, strict=True)
    np.testing.assert_allclose([x, y, x + w, y + h], [min(xs), min(ys), max(xs), max(ys)], atol=1e-6)


def test_without_annotations_of_test_dev_is_test(by_hand):
    raw = by_hand(train=["0 1 2 3 4", ""] * 100, dev=["", "1 1 2 3 4"], test=["", ""])
    source = object_cxr.read(raw)
    splits = pd.Series({s.study_id: s.split for s in source.studies})
    assert len(splits) == 202
    assert set(splits[["200", "201"]]) == {"test"}
    assert set(splits.drop(["200", "201"])) == {"train", "val"}
    assert [(p.where, p.lost) for p in source.problems] == [("test.csv", False)]
    assert [d.name for d in source.divisions] == ["mgca"]
    (raw / "test.csv").unlink()
    assert {s.study_id: s.split for s in object_cxr.read(raw).studies} == splits.to_dict()


def test_published_divisions(by_hand):
    """8,000, 1,000 and 1,000 rows, of which images need not be there to be counted."""
    raw = by_hand(train=["0 1 2 3 4", ""] * 40, dev=[""] * 10, test=["0 1 2 3 4"] * 10)
    (raw / "train" / "7.jpg").unlink()
    divisions = {d.name: d for d in object_cxr.read(raw).divisions}
    ids = [str(n) for n in range(80)]
    train, val = train_test_split(pd.DataFrame({"id": ids}), test_size=0.1, random_state=0)
    wanted = dict.fromkeys(train["id"], "train") | dict.fromkeys(val["id"], "val")
    wanted |= {str(n): "test" for n in range(80, 90)}
    wanted.pop("7")
    assert divisions["mgca"].parts == wanted
    assert divisions["benchx"].parts == {
        str(n): "train" if n < 80 else "val" if n < 90 else "test" for n in range(100) if n != 7
    }
    sizes = [len(some) for some in object_cxr.shuffled([str(n) for n in range(8000)], 0, 0.1)]
    assert sizes == [7200, 800]


def test_odd_rows(by_hand):
    raw = by_hand(train=["", "0 1 2 3 4", ""], dev=[""])
    extra = "1.jpg,\n,\nlost.jpg,0 1 2 3 4\n"
    (raw / "train.csv").write_text((raw / "train.csv").read_text() + extra)
    (raw / "train" / "2.jpg").rename(raw / "train" / "2.JPEG")
    source = object_cxr.read(raw)
    assert {i.image_id: i.path for s in source.studies for i in s.images} == {
        "0": "train/0.jpg",
        "1": "train/1.jpg",
        "2": "train/2.JPEG",
        "3": "dev/3.jpg",
    }
    assert [(p.where, p.lost) for p in source.problems] == [(f"train.csv row {n}", True) for n in (5, 6, 7)]


def test_lists_and_a_folder_deeper(copy, tmp_path):
    ids = sorted(TRUTH)
    for n, part in enumerate(("train", "val", "test")):
        (tmp_path / f"{part}.txt").write_text("".join(f"{i}\n" for i in ids[n::3]))
    (tmp_path / "deep").mkdir()
    copy.rename(tmp_path / "deep" / "object-CXR")
    source = object_cxr.read(tmp_path / "deep", lists=str(tmp_path))
    assert len(source.studies) == len(TRUTH)
    division = next(d for d in source.divisions if d.name == "lists")
    assert division.parts == {i: part for n, part in enumerate(("train", "val", "test")) for i in ids[n::3]}


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match=r"No train\.csv in .*raddar"):
        object_cxr.read(tmp_path / "nowhere")
    table = pd.read_csv(copy / "dev.csv", dtype=str)
    table.drop(columns="annotation").to_csv(copy / "dev.csv", index=False)
    with pytest.raises(UserError, match=r"dev\.csv lacks the column annotation"):
        object_cxr.read(copy)
    table.drop(columns="image_name").to_csv(copy / "dev.csv", index=False)
    with pytest.raises(UserError, match=r"dev\.csv lacks the column image_name"):
        object_cxr.read(copy)
    (copy / "dev.csv").unlink()
    with pytest.raises(UserError, match=r"No .*dev\.csv"):
        object_cxr.read(copy)
    table.to_csv(copy / "dev.csv", index=False)
    for part in ("train", "dev", "test"):
        shutil.rmtree(copy / part)
    with pytest.raises(UserError, match="No image that train"):
        object_cxr.read(copy)
