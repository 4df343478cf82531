"""Open-I: reports as XML, in their archive and in Kaggle's tables, indexers' tags, views and published lists."""

import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.reports import last_section, sections
from vlp_bench.data.sources import openi
from vlp_bench.data.sources.openi import TAGS, labels, read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import FRONTAL
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 40, 1, 64


@pytest.fixture(scope="module")
def world():
    return {f"CXR{int(s.study_id)}": s for s in sample_studies(STUDIES, SEED)}


@pytest.fixture
def kaggle(copy) -> Path:
    """Kaggle's copy: no XML, other file names."""
    shutil.rmtree(copy / "ecgen-radiology")
    folder = copy / "images" / "images_normalized"
    folder.mkdir(parents=True)
    names = pd.read_csv(copy / "indiana_projections.csv")["filename"]
    long = {p.stem.removeprefix("CXR").rpartition("_IM")[2]: p for p in (copy / "NLMCXR_png").iterdir()}
    for name in names:
        long[name.partition("_IM")[2].removesuffix(".dcm.png")].rename(folder / name)
    return copy


def kinds(source) -> Counter:
    return Counter(p.kind for p in source.problems)


def test_studies_are_those_of_the_world(raw, world, tmp_path):
    source = read(raw)
    assert not source.problems
    assert {s.study_id for s in source.studies} == set(world)
    for study in source.studies:
        true = world[study.study_id]
        assert study.patient_id == study.study_id
        views = ["LATERAL" if i.view == "LATERAL" else "FRONTAL" for i in true.images]
        assert [i.view for i in study.images] == views
        if study.labels:
            assert {name: study.labels[name] for name in true.truth} == true.truth
            assert study.labels["No Finding"] == (not any(true.truth.values()))
    assert sum(not s.labels for s in source.studies) <= 4, "few reports are not indexed"
    prepare(source, tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out")
    for row in store.studies.to_dict("records"):
        told = sections(world[row["study_id"]].report)
        for name in ("findings", "impression"):
            written = " ".join(last_section(told, name).split())
            assert row[name].replace("XXXX", "seen") == written
    assert len(store.images) == sum(len(s.images) for s in world.values())


def test_kaggles_copy_is_the_same_collection(raw, kaggle):
    ours, theirs = read(raw), read(kaggle)
    assert not theirs.problems
    for a, b in zip(ours.studies, theirs.studies, strict=True):
        assert (a.study_id, a.split, a.text, a.labels) == (b.study_id, b.split, b.text, b.labels)
        assert [i.view for i in a.images] == [i.view for i in b.images]
        assert [openi._key(i.image_id) for i in a.images] == [i.image_id for i in b.images]
        assert all((kaggle / i.path).is_file() for i in b.images)


def test_reports_in_their_archive(copy, raw):
    with tarfile.open(copy / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(copy / "ecgen-radiology", "ecgen-radiology")
    shutil.rmtree(copy / "ecgen-radiology")
    assert index_hash(read(copy)) == index_hash(read(raw))
    (copy / "NLMCXR_reports.tgz").write_bytes((copy / "NLMCXR_reports.tgz").read_bytes()[:300])
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz cannot be read .*Download it again"):
        read(copy)


def test_folders_of_people_and_dicom(copy, raw):
    (copy / "NLMCXR_reports").mkdir()
    (copy / "ecgen-radiology").rename(copy / "NLMCXR_reports" / "ecgen-radiology")
    first = sorted((copy / "NLMCXR_png").iterdir())[0]
    first.rename(first.with_suffix(".PNG"))
    found = read(copy)
    assert [s.study_id for s in found.studies] == [s.study_id for s in read(raw).studies]
    assert not found.problems


def test_without_projections_views_are_unknown(copy):
    (copy / "indiana_projections.csv").unlink()
    source = read(copy)
    assert {i.view for s in source.studies for i in s.images} == {""}
    assert [p.kind for p in source.problems] == ["views"]
    assert "views=all" in source.problems[0].reason
    assumed = read(copy, assume_frontal=True)
    assert {i.view for s in assumed.studies for i in s.images} <= set(FRONTAL)
    assert not assumed.problems


def test_what_is_missing_is_refused(copy, kaggle, tmp_path):
    shutil.rmtree(copy / "images")
    with pytest.raises(UserError, match=r"No image of the 40 reports .*NLMCXR_png\.tgz"):
        read(copy)
    (copy / "indiana_reports.csv").write_text("uid,MeSH\n")
    with pytest.raises(UserError, match=r"indiana_reports\.csv lacks the column comparison"):
        read(copy)
    (copy / "indiana_reports.csv").unlink()
    with pytest.raises(UserError, match=r"No reports in .*NLMCXR_reports\.tgz"):
        read(copy)


def test_odd_reports_are_listed_and_stop_nothing(copy, raw):
    reports = sorted((copy / "ecgen-radiology").iterdir())
    reports[0].write_text("<eCitation><uId")
    (copy / "ecgen-radiology" / "9.xml").write_text('<eCitation><uId id="CXR9"/><MeSH/></eCitation>')
    gone = read(raw).studies[-1].images[0]
    (copy / gone.path).unlink()
    source = read(copy)
    found = {p.kind: p for p in source.problems}
    assert kinds(source) == {"report": 1, "no image": 1, "no file": 1}
    assert found["report"].where == reports[0].name
    assert found["report"].lost
    assert not found["no image"].lost
    assert (found["no file"].where, found["no file"].lost) == (gone.image_id, True)
    assert not any(p.lost for p in read(copy, complete=False).problems if p.kind == "no file")


# Tags -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, positive",
    [
        (["normal"], ["No Finding"]),
        (["Pulmonary Atelectasis/base/left"], ["Atelectasis"]),
        (["Cardiac Shadow/enlarged/mild"], ["Cardiomegaly"]),
        (["Cardiac Shadow/obscured"], []),
        (["Thickening/lung/apex"], []),
        (["Thickening/pleura/apex"], ["Pleural Other"]),
        (["Hydropneumothorax/left"], ["Pleural Effusion", "Pneumothorax"]),
        (["Catheters, Indwelling/right", " Opacity /lung "], ["Lung Opacity", "Support Devices"]),
        (["Calcified Granuloma/lung"], []),
    ],
)
def test_tags_as_labels(tags, positive):
    assert labels(tags) == dict.fromkeys(TAGS, 0.0) | dict.fromkeys(positive, 1.0)


def test_borderline_is_uncertain_and_no_indexing_unknown():
    assert labels(["Cardiomegaly/borderline"])["Cardiomegaly"] == -1
    both = ["Cardiac Shadow/enlarged", "Cardiomegaly/borderline"]
    assert labels(both)["Cardiomegaly"] == labels(both[::-1])["Cardiomegaly"] == 1
    assert labels(["No Indexing"]) == labels([]) == labels([""]) == {}


@given(
    st.lists(
        st.sampled_from([t for some in TAGS.values() for t in some] + ["Spine", "Cardiomegaly/borderline"]), min_size=1
    )
)
def test_the_order_of_tags_means_nothing(tags):
    assert labels(tags) == labels(tags[::-1]) == labels(tags * 2)
    assert set(labels(tags).values()) <= {-1.0, 0.0, 1.0}


# Lists ----------------------------------------------------------------------------------------------------------------


def test_r2gens_annotation_and_medvills_lines(raw, tmp_path):
    source = read(raw)
    some = source.studies[:4]
    names = {s.study_id: s.images[0].image_id.rpartition("-")[0] for s in some}
    parts = dict(zip(names, ("train", "train", "val", "test"), strict=True))
    expected = {i.image_id: parts[s.study_id] for s in some for i in s.images}

    def entry(study: str) -> dict:
        name = names[study]
        return {"id": name, "report": "1 2 3", "image_path": [f"{name}/0.png", f"{name}/1.png"], "split": parts[study]}

    written = {p: [entry(s) for s in names if parts[s] == p] for p in ("train", "val", "test")}
    (tmp_path / "annotation.json").write_text(json.dumps(written))
    assert read(raw, lists=str(tmp_path / "annotation.json")).divisions[0].parts == expected
    folder = tmp_path / "medvill"
    folder.mkdir()
    for part, name in (("train", "Train"), ("val", "Valid"), ("test", "Test")):
        rows = [
            {
                "id": s[3:],
                "label": "'No Finding'",
                "text": "Clear.",
                "img": f"data/preprocessed/openi/{part}/{s[3:]}.jpg",
            }
            for s in names
            if parts[s] == part
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (division,) = read(raw, lists=str(folder)).divisions
    assert (division.name, division.parts) == ("lists", expected)
    (tmp_path / "annotation.json").write_text("{")
    with pytest.raises(UserError, match=r"annotation\.json cannot be read"):
        read(raw, lists=str(tmp_path / "annotation.json"))


@pytest.mark.slow
def test_real_reports(tmp_path):
    """The published counts, on the real archive with an image for each name."""
    root = os.environ.get("VLP_BENCH_REAL_DIR")
    path = Path(root or ".") / "data" / "openi_reports_text" / "NLMCXR_reports.tgz"
    if not path.is_file():
        pytest.skip("VLP_BENCH_REAL_DIR is not set: it names the folder with data/openi_reports_text")
    (tmp_path / path.name).symlink_to(path)
    reports = openi._xml_reports(tmp_path, [])
    assert len(reports) == 3955
    shown = [i for r in reports for i in r.images]
    assert len(shown) == len(set(shown)) == len({openi._key(i) for i in shown}) == 7470
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "png").mkdir()
    for name in shown:
        (tmp_path / "png" / f"{name}.png").symlink_to(tmp_path / "one.png")
    source = read(tmp_path, assume_frontal=True)
    assert len(source.studies) == 3851
    assert kinds(source) == {"no image": 104}
    counts = Counter(k for s in source.studies for k, v in s.labels.items() if v == 1)
    assert counts["No Finding"] > 1300
    assert min(counts[name] for name in TAGS) > 0
    assert sum(not s.labels for s in source.studies) < 100
    assert sum(bool(s.text) for s in source.studies) > 3800
