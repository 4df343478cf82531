"""COVIDx: which version, which classes, patients in two lists, published divisions."""

import shutil
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import covidx
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import covidx as layout
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 60, 1, 64
TRUTH = {s.study_id: s for s in sample_studies(STUDIES, SEED) if s.frontal}


@pytest.fixture
def by_hand(tmp_path):
    """Lists with empty images, from {list: lines}; the file of each line's image is made in the list's folder."""

    def make(lines: dict[str, list[str]], images: bool = True) -> Path:
        for name, rows in lines.items():
            part = name.removesuffix(".txt").partition("_")[0]
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / name).write_text("".join(f"{row}\n" for row in rows))
            for row in rows if images else ():
                (tmp_path / part / row.split()[1]).write_bytes(b"")
        return tmp_path

    return make


def truth_of(image_id: str):
    return next(s for key, s in TRUTH.items() if key in image_id)


def kinds(source) -> dict[str, list]:
    found: dict[str, list] = {}
    for problem in source.problems:
        found.setdefault(problem.kind, []).append(problem)
    return found


def test_two_classes_of_the_latest_version(raw, tmp_path):
    source = covidx.read(raw)
    assert source.labels == ("COVID-19",)
    assert "COVIDx CXR-4: 2 classes, lines: train" in kinds(source)["version"][0].reason
    assert [p.where for p in kinds(source)["other version"]] == ["train_COVIDx9A.txt"]
    assert not any(p.lost for p in source.problems)
    assert len(source.studies) == len(TRUTH)
    for study in source.studies:
        assert study.images[0].labels == {"COVID-19": float(truth_of(study.study_id).truth[layout.COVID])}
        assert study.patient_id == truth_of(study.study_id).patient_id
    prepare(source, tmp_path / "out", Plan(64), private=True)
    store = PreparedData(tmp_path / "out")
    assert len(store.images) == len(TRUTH)
    assert store.images.groupby("patient_id")["split"].nunique().max() == 1


def test_three_classes_of_an_earlier_version(raw):
    for name in ("9A", "COVIDx9A", "covidx9a"):
        source = covidx.read(raw, version=name)
        assert source.labels == ("normal", "pneumonia", "COVID-19")
    assert "COVIDx9A: 3 classes" in kinds(source)["version"][0].reason
    assert len(source.studies) == len(TRUTH)
    for study in source.studies:
        labels = study.images[0].labels
        assert sum(labels.values()) == 1
        assert labels[layout.classified(truth_of(study.study_id))] == 1
    assert {"train", "val", "test"} == {s.split for s in source.studies}


def test_a_patient_in_two_lists(raw):
    """The layout plants some."""
    source = covidx.read(raw)
    lists = {p: {line.split()[0] for line in (raw / f"{p}.txt").read_text().splitlines()} for p in ("train", "test")}
    planted = lists["train"] & lists["test"]
    assert planted
    found = {s.patient_id: s.split for s in source.studies}
    assert all(found[p] == "test" for p in lists["test"])
    (problem,) = kinds(source)["patient in two lists"]
    assert problem.where == "train, test"
    assert f"{len(planted)} patients" in problem.reason
    official = next(d for d in source.divisions if d.name == "official")
    assert leaks(source, official) == {"images": 0, "patients": len(planted)}
    assert all(official.parts[i.image_id] == i.path.split("/")[0] for s in source.studies for i in s.images)


def test_patients_in_all_lists_and_in_none_of_two(by_hand):
    raw = by_hand(
        {
            "train.txt": ["p1 a.png positive x", "p2 b.png negative x", "p3 c.png negative x"],
            "val.txt": ["p2 d.png negative x", "p1 e.png positive x"],
            "test.txt": ["p1 f.png positive x"],
        }
    )
    source = covidx.read(raw)
    assert {s.patient_id: s.split for s in source.studies} == {"p1": "test", "p2": "val", "p3": "train"}
    found = {p.where: p.reason for p in kinds(source)["patient in two lists"]}
    assert "their 1 images outside val" in found["train, val"]
    assert "their 2 images outside test" in found["train, val, test"]


def test_lists_without_leaks_are_the_default(by_hand):
    raw = by_hand({f"{part}.txt": [f"p{part} {part}.png positive x"] for part in ("train", "val", "test")})
    source = covidx.read(raw)
    assert [d.name for d in source.divisions] == ["benchx"]
    assert {s.split: s.patient_id for s in source.studies} == {p: f"p{p}" for p in ("train", "val", "test")}


def test_the_divided_training_list_of_the_published_code(by_hand):
    lines = [f"{n // 2} im{n}.png {('normal', 'pneumonia', 'COVID-19')[n % 3]} rsna" for n in range(101)]
    raw = by_hand({"train_COVIDx9A.txt": lines, "test_COVIDx9A.txt": [f"t{n} t{n}.png normal rsna" for n in range(9)]})
    division = next(d for d in covidx.read(raw).divisions if d.name == "mgca")
    train, val = train_test_split([f"train/im{n}.png" for n in range(101)], train_size=0.8, random_state=0)
    wanted = dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | {f"test/t{n}.png": "test" for n in range(9)}
    assert division.parts == wanted


def test_the_first_line_of_each_list_is_a_header_for_others(by_hand):
    raw = by_hand({f"{p}.txt": [f"{p}{n} {p}{n}.png negative x" for n in range(4)] for p in ("train", "val", "test")})
    division = next(d for d in covidx.read(raw).divisions if d.name == "benchx")
    assert division.parts == {f"{p}/{p}{n}.png": p for p in ("train", "val", "test") for n in (1, 2, 3)}


def test_published_lists(copy, tmp_path):
    ids = {p: [s.study_id for s in covidx.read(copy).studies if s.study_id.startswith(p)] for p in ("train", "test")}
    folder = tmp_path / "lists"
    folder.mkdir()
    for part, some in ids.items():
        plain = [i for i in some if " " not in i]
        (folder / f"{part}.txt").write_text("".join(f"{Path(i).with_suffix('.png')}\n" for i in plain))
    division = next(d for d in covidx.read(copy, lists=str(folder)).divisions if d.name == "lists")
    assert division.parts == {i: p for p, some in ids.items() for i in some if " " not in i}


def test_odd_lines(by_hand):
    raw = by_hand({"train.txt": ["1 a.png positive x", "2 b.PNG negative"], "test.txt": ["3 c.png POSITIVE some lab"]})
    more = "1 a.png positive x\n4 d.png\n5 e.png maybe x\n6 lost.png negative x\n\n7 with blank.png negative\n"
    (raw / "train.txt").write_text((raw / "train.txt").read_text() + more)
    (raw / "train" / "with blank.png").write_bytes(b"")
    source = covidx.read(raw)
    assert [s.study_id for s in source.studies] == [
        "train/a.png",
        "train/b.PNG",
        "train/with blank.png",
        "test/c.png",
    ]
    said = {p.where: p.reason for p in kinds(source)["line"]}
    assert said["train.txt line 3"].startswith("the image has a line already")
    assert said["train.txt line 4"].startswith("not `patient file class source`")
    assert said["train.txt line 5"].startswith("not `patient file class source`")
    assert said["train.txt line 6"] == "no such image: lost.png"
    assert all(p.lost for p in kinds(source)["line"])


def test_the_latest_of_several_versions(by_hand):
    names = ("5", "8B", "9B", "9A", "_CXR-3B", "_CXR-3A", "_CXR-2")
    lines = {f"{p}_COVIDx{n}.txt": [f"{p} {p}.png {'normal' if n[-1] == 'A' else 'negative'} x"]
             for n in names for p in ("train", "test")}  # fmt: skip
    source = covidx.read(by_hand(lines))
    assert "COVIDx CXR-3A: 3 classes" in kinds(source)["version"][0].reason
    assert len(kinds(source)["other version"]) == len(names) - 1
    with pytest.raises(UserError, match=r"version=7A: .* has only train_COVIDx.*\.txt"):
        covidx.read(by_hand({}), version="7A")


def test_lists_of_the_repository_beside_the_images(copy, tmp_path):
    (copy / "labels").mkdir()
    (copy / "data").mkdir()
    for part in ("train", "val", "test"):
        (copy / part).rename(copy / "data" / part)
        (copy / f"{part}.txt").unlink()
    for path in copy.glob("*.txt"):
        path.rename(copy / "labels" / path.name)
    source = covidx.read(copy)
    assert len(source.studies) == len(TRUTH)
    assert all((copy / i.path).is_file() for s in source.studies for i in s.images)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match=r"No train\.txt or train_COVIDx.*Kaggle"):
        covidx.read(tmp_path / "nowhere")
    (copy / "test.txt").unlink()
    with pytest.raises(UserError, match=r"No test\.txt beside"):
        covidx.read(copy)
    (copy / "test.txt").write_text("1 a.png normal x\n")
    (copy / "test" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="mix lists of two and of three classes"):
        covidx.read(copy)
    for part in ("train", "val", "test"):
        shutil.rmtree(copy / part)
    with pytest.raises(UserError, match="No folders train and test"):
        covidx.read(copy)
