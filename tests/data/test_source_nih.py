"""NIH ChestX-ray14: headers with commas inside, boxes of 1024 pixels, official and published lists."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.divisions import by_hash, leaks
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import nih
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import nih as layout
from vlp_bench.data.synthetic.writing import Job, draw
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 60, 2, 96
TRUTH = {
    f"{int(s.patient_id[1:]):08d}_{int(s.study_id[-3:]):03d}": s for s in sample_studies(STUDIES, SEED) if s.frontal
}
OLD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


@pytest.fixture
def by_hand(tmp_path):
    """A raw folder from rows `image,labels,visit,patient,age,view`; every image is there, empty, or of a size."""

    def make(rows: list[tuple], size: tuple[int, int] | None = None, **files: str) -> Path:
        (tmp_path / "images").mkdir()
        for name, *_ in rows:
            path = tmp_path / "images" / name
            path.write_bytes(b"") if size is None else Image.new("L", size).save(path)
        lines = [f"{i},{labels},{v},{p},{age},M,{view},2500,2048,0.168,0.168," for i, labels, v, p, age, view in rows]
        (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([OLD, *lines]))
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        return tmp_path

    return make


def images_of(source):
    return {i.image_id: i for s in source.studies for i in s.images}


def kinds(source):
    return [(p.kind, p.lost) for p in source.problems]


# As written -----------------------------------------------------------------------------------------------------------


def test_labels_views_ids_and_splits_are_those_of_the_world(raw):
    source = nih.read(raw)
    assert not source.problems
    assert images_of(source).keys() == TRUTH.keys()
    seen = set()
    for study in source.studies:
        (image,) = study.images
        truth = TRUTH[image.image_id]
        assert study.patient_id == str(int(truth.patient_id[1:]))
        assert study.study_id == f"{study.patient_id}_{int(truth.study_id[-3:])}"
        assert image.view == truth.frontal.view
        assert json.loads(image.extra) == {"sex": truth.sex, "age": truth.age}
        named = {name for name, value in image.labels.items() if value}
        wanted = {layout.NAMES[f.name] for f in truth.findings if f.name in layout.NAMES}
        if "Nodule" in wanted and next(f for f in truth.findings if f.name == "Lung Lesion").severity == 3:
            wanted = wanted - {"Nodule"} | {"Mass"}
        assert named == (wanted or {"No Finding"})
        assert set(image.labels) == set(nih.LABELS)
        assert (study.split == "test") == (truth.split == "test")
        seen |= named
    assert {"Mass", "Nodule", "Infiltration", "No Finding"} <= seen
    assert {s.split for s in source.studies} == {"train", "val", "test"}


def test_prepared_boxes(raw, tmp_path):
    prepare(nih.read(raw), tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out")
    labels = set()
    for row, image in enumerate(store.images.itertuples()):
        study = TRUTH[image.image_id]
        drawn, names = draw(Job(raw, SIZE, False, 95), study.frontal), layout.found(study)
        height, width = drawn.picture.shape
        wanted = [
            (names[b["label"]], np.array([x / width, y / height, (x + w) / width, (y + h) / height]) * 64)
            for b in drawn.boxes
            for x, y, w, h in [b["xywh"]]
            if names.get(b["label"]) in layout.BOXED
        ]
        boxes = store.boxes(row)
        labels |= {b["label"] for b in boxes}
        for box, (label, place) in zip(boxes, wanted if boxes else [], strict=True):
            assert box["label"] == label
            assert np.abs(np.array(box["xyxy"]) - place).max() < 0.1
        square = cv2.resize(drawn.picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        square = cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(store.pixels(np.array([row]))[0] - square).max() <= 2
    assert {"Infiltration", "Effusion", "Nodule"} <= labels


def test_some_images_are_rgba(raw):
    modes = set()
    for path in raw.glob("images_*/images/*.png"):
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"L", "RGBA"}


# By hand --------------------------------------------------------------------------------------------------------------


def test_the_older_csv_and_the_boxes(by_hand):
    rows = [
        ("00000001_000.png", "Cardiomegaly|Emphysema", 0, "1", "058Y", "PA"),
        ("00000001_001.png", "No Finding", 1, "00000001", "013M", "AP"),
        ("00000002_000.png", "Pleural_Thickening", 0, "2", "411Y", "PA"),
        ("00000003_000.png", "Hernia", 0, "3", "004D", "PA"),
    ]
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    listed = "00000001_000.png,Cardiomegaly,256.5,512,128,64,,,\n00000001_000.png,Infiltrate,0,0,1024,1024\n"
    raw = by_hand(rows, (512, 256), BBox_List_2017__csv=header + listed)
    source = nih.read(raw)
    assert [(s.study_id, s.patient_id) for s in source.studies] == [
        ("1_0", "1"),
        ("1_1", "1"),
        ("2_0", "2"),
        ("3_0", "3"),
    ]
    found = images_of(source)
    assert [i.view for i in found.values()] == ["PA", "AP", "PA", "PA"]
    ages = [json.loads(i.extra).get("age") for i in found.values()]
    assert ages == [58, 1, None, 0]
    named = [{name for name, value in i.labels.items() if value} for i in found.values()]
    assert named == [{"Cardiomegaly", "Emphysema"}, {"No Finding"}, {"Pleural_Thickening"}, {"Hernia"}]
    assert found["00000001_000"].boxes == (
        {"label": "Cardiomegaly", "xywh": [128.25, 128, 64, 16]},
        {"label": "Infiltration", "xywh": [0, 0, 512, 256]},
    )


def test_odd_rows(by_hand):
    rows = [
        ("1_000.png", "Mass", 0, "1", "58", "PA"),
        ("1_001.png", "", 1, "1", "58", ""),
        ("1_002.png", "mass|Scoliosis", 2, "1", "58", "LL"),
        ("2_000.png", "Mass", 0, "", "58", "PA"),
        ("3_000.png", "Mass", 0, "3", "58", "PA"),
        ("1_000.png", "Hernia", 0, "1", "58", "PA"),
        ("4_000.PNG", "Mass", 0, "4", "58", "PA"),
    ]
    boxes = (
        "Image Index,Finding Label,Bbox [x,y,w,h]\n1_000.png,Mass,1,2,3,4\n9_000.png,Mass,1,2,3,4\n"
        "1_000.png,Sign,1,2,3,4\n1_000.png,Mass,1,2,a,4\n1_000.png,Mass,1,2,0,4\n1_000.png,Mass,1,2\n"
    )
    raw = by_hand(rows, BBox_List_2017__csv=boxes, train_val_list__txt="1_000.png\n", test_list__txt="3_000.png\n")
    (raw / "images" / "3_000.png").unlink()
    with (raw / "Data_Entry_2017.csv").open("a") as file:
        file.write("\n,Mass,0,5,58,M,PA,1,1,1,1,\n")
    source = nih.read(raw)
    found = images_of(source)
    assert found.keys() == {"1_000", "1_001", "1_002", "4_000"}
    assert found["1_000"].labels["Mass"] == 1
    assert found["1_000"].labels["Hernia"] == 0
    assert found["1_001"].labels is None
    assert found["1_002"].labels["Mass"] == 1
    assert [found[i].view for i in ("1_001", "1_002")] == ["FRONTAL", "FRONTAL"]
    assert [b["xywh"] for b in found["1_000"].boxes] == [[1, 2, 3, 4]]
    assert [p.where for p in source.problems if p.lost] == [f"Data_Entry_2017.csv row {n}" for n in (5, 6, 7, 9)]
    assert [p.where for p in source.problems if p.kind == "box"] == [f"BBox_List_2017.csv row {n}" for n in range(3, 8)]
    assert kinds(source).count(("view", False)) == 2
    assert kinds(source).count(("label", False)) == 2
    assert "3 images" in next(p.reason for p in source.problems if p.kind == "in no list")


def test_official_lists_and_what_they_lack(by_hand):
    rows = [(f"{p:08d}_{n:03d}.png", "Mass", n, str(p), "58", "PA") for p in range(300) for n in range(2)]
    names = [name for name, *_ in rows]
    # patient 0 in both lists, the last patient in neither
    lists = {"train_val_list__txt": "\n".join(names[1:400]), "test_list__txt": "\n".join([names[0], *names[400:-2]])}
    raw = by_hand(rows, **lists)
    source = nih.read(raw)
    split = {s.patient_id: s.split for s in source.studies}
    assert {split[str(p)] for p in (0, *range(200, 299))} == {"test"}
    drawn = by_hash(split, {"train": 0.9, "val": 0.1, "test": 0})
    assert all(split[str(p)] == drawn[str(p)] for p in (*range(1, 200), 299))
    assert 5 <= list(split.values()).count("val") <= 40
    assert kinds(source) == [("no boxes", False), ("in no list", False), ("patient in two lists", False)]
    (raw / "test_list.txt").unlink()
    source = nih.read(raw)
    assert kinds(source) == [("no boxes", False), ("no official split", False)]
    assert source.problems[1].where == "test_list.txt"
    assert {s.patient_id: s.split for s in source.studies} == by_hash(split, nih.ANEW)


@pytest.mark.parametrize("end", ["", "_list"])
def test_published_lists(copy, tmp_path, end):
    """As REFERS (with folders and labels), MRM (train_list.txt) and BenchX (names alone) have them."""
    ids = sorted(TRUTH)
    (tmp_path / "lists").mkdir()
    for n, part in enumerate(("train", "val", "test")):
        lines = [f"images_006/{i}.png {' '.join('0' * 14)}" if end == "" else f"{i}.png" for i in ids[n::3]]
        (tmp_path / "lists" / f"{part}{end}.txt").write_text("\n".join([*lines, "images_001/99999999_000.png 0"]))
    (tmp_path / "deep").mkdir()
    copy.rename(tmp_path / "deep" / "NIH")
    source = nih.read(tmp_path / "deep", lists=str(tmp_path / "lists"))
    (division,) = source.divisions
    assert division.name == "lists"
    assert division.parts == {i: part for n, part in enumerate(("train", "val", "test")) for i in ids[n::3]}
    assert leaks(source, division)["patients"] > 0
    assert [s.split for s in source.studies] == [s.split for s in nih.read(tmp_path / "deep").studies]


def test_all_images_in_one_folder(copy):
    source = nih.read(copy)
    (copy / "images").mkdir()
    for path in sorted(copy.glob("images_*/images/*.png")):
        path.rename(copy / "images" / path.name)
    flat = nih.read(copy)
    assert [i.path for i in images_of(flat).values()] == [f"images/{i}.png" for i in images_of(source)]
    assert [i.boxes for i in images_of(flat).values()] == [i.boxes for i in images_of(source).values()]


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match=r"No Data_Entry_2017_v2020\.csv .*nihcc"):
        nih.read(tmp_path / "nowhere")
    path = copy / "BBox_List_2017.csv"
    path.write_text("Image Index,Finding Label,Bbox\n")
    with pytest.raises(UserError, match=r"lacks the four columns .*nihcc"):
        nih.read(copy)
    path = copy / "Data_Entry_2017_v2020.csv"
    whole = pd.read_csv(path, dtype=str)
    for column in (nih.IMAGE, "Finding Labels", nih.VISIT, nih.PATIENT, "View Position"):
        whole.drop(columns=column).to_csv(path, index=False)
        with pytest.raises(UserError, match=rf"lacks the column {column}"):
            nih.read(copy)
    whole.to_csv(path, index=False)
    for folder in copy.glob("images_*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="No image that Data_Entry"):
        nih.read(copy)
