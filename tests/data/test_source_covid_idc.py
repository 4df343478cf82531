"""The COVID-19 collection: findings as paths, what they leave open, CT among radiographs."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import covid_idc
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.layouts import covid_idc as layout
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 40, 1, 64
TRUTH = {i.image_id: (s, i) for s in sample_studies(STUDIES, SEED) for i in s.images}


@pytest.fixture(scope="module")
def source(raw):
    return covid_idc.read(raw)


@pytest.fixture
def by_hand(tmp_path):
    """A collection from rows of metadata.csv; images are made, empty."""

    def make(rows: list[dict], **columns) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        usual = {"patientid": "1", "offset": "0", "finding": "todo", "view": "PA", "modality": "X-ray",
                 "folder": "images", "clinical_notes": ""}  # fmt: skip
        full = [usual | row for row in rows]
        for row in full:
            if row["filename"]:
                (tmp_path / "images" / row["filename"]).write_bytes(b"")
        pd.DataFrame(full).rename(columns=columns).to_csv(tmp_path / "metadata.csv", index=False)
        return tmp_path

    return make


def truth_of(image):
    return TRUTH[image.image_id.split(".")[0]]


def labels_of(source) -> dict[str, dict]:
    return {i.image_id: dict(i.labels) for s in source.studies for i in s.images}


def kinds(source) -> dict[str, list]:
    found: dict[str, list] = {}
    for problem in source.problems:
        found.setdefault(problem.kind, []).append(problem)
    return found


def test_radiographs_are_those_of_the_world(source, raw, tmp_path):
    images = {i.image_id: i for s in source.studies for i in s.images}
    assert len(images) == len(TRUTH)
    for study in source.studies:
        for image in study.images:
            truth, drawn = truth_of(image)
            assert image.view == drawn.view
            assert json.loads(image.extra)["finding"] == layout.finding(truth)
            assert study.text in ("", layout.notes(truth))
    assert not any(p.lost for p in source.problems)
    assert {p.kind for p in source.problems} == {"no finding", "no radiograph"}
    prepare(source, tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out")
    assert len(store.images) == len(TRUTH)
    assert store.images["frontal"].sum() == sum(i.view != "LATERAL" for _, i in TRUTH.values())


def test_labels_are_the_parts_of_a_finding(source):
    assert {"Pneumonia", "Viral", "COVID-19", "Bacterial", "SARS", "Tuberculosis", "No Finding"} <= set(source.labels)
    checked = set()
    for study in source.studies:
        for image in study.images:
            finding = layout.finding(truth_of(image)[0])
            checked.add(finding)
            labels = image.labels
            if finding == "todo":
                assert labels == {}
            elif finding == "Pneumonia":
                assert labels["Pneumonia"] == 1
                assert labels["Tuberculosis"] == 0
                assert not {"Viral", "Bacterial", "COVID-19", "SARS", "Streptococcus"} & labels.keys()
            else:
                assert labels == {name: float(name in finding.split("/")) for name in source.labels}
    assert checked == {*layout.FINDINGS.values(), "No Finding"}


def test_what_a_finding_leaves_open(by_hand):
    findings = ["Pneumonia/Viral", "Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial/E.Coli", "Pneumonia"]
    rows = [{"patientid": str(n), "filename": f"{n}.png", "finding": f} for n, f in enumerate(findings)]
    labels = labels_of(covid_idc.read(by_hand(rows)))
    assert labels["0.png"] == {"Pneumonia": 1, "Viral": 1, "Bacterial": 0, "E.Coli": 0}
    assert labels["1.png"] == {"Pneumonia": 1, "Viral": 1, "COVID-19": 1, "Bacterial": 0, "E.Coli": 0}
    assert labels["2.png"] == {"Pneumonia": 1, "Viral": 0, "COVID-19": 0, "Bacterial": 1, "E.Coli": 1}
    assert labels["3.png"] == {"Pneumonia": 1}


def test_older_copies(by_hand):
    findings = ["COVID-19", "COVID-19, ARDS", "SARS", "Streptococcus", "No Finding"]
    rows = [{"patientid": str(n), "filename": f"{n}.png", "finding": f, "clinical_notes": "seen"}
            for n, f in enumerate(findings)]  # fmt: skip
    raw = by_hand(rows, patientid="Patientid", clinical_notes="notes", modality="was not there", folder="nor this")
    table = pd.read_csv(raw / "metadata.csv", dtype=str).drop(columns=["was not there", "nor this"])
    table.to_csv(raw / "metadata.csv", index=False)
    source = covid_idc.read(raw)
    labels = labels_of(source)
    assert [labels[f"{n}.png"]["COVID-19"] for n in range(5)] == [1, 1, 0, 0, 0]
    assert [labels[f"{n}.png"]["Viral"] for n in range(5)] == [1, 1, 1, 0, 0]
    assert [labels[f"{n}.png"]["ARDS"] for n in range(5)] == [0, 1, 0, 0, 0]
    assert {s.text for s in source.studies} == {"seen"}


def test_ct_is_left_out_and_said_or_taken(raw, source):
    table = pd.read_csv(raw / "metadata.csv", dtype=str, keep_default_na=False)
    slices = ((table["modality"] == "CT") & (table["folder"] == "images")).sum()
    volumes = (table["folder"] == "volumes").sum()
    assert slices
    assert volumes
    reasons = [p.reason for p in kinds(source)["no radiograph"]]
    assert reasons[0].startswith(f"{slices} rows are CT, no radiographs: left out (ct=true")
    assert reasons[1].startswith(f"{volumes} rows are volume, no radiographs")
    more = covid_idc.read(raw, ct=True)
    views = [i.view for s in more.studies for i in s.images]
    assert len(views) == len(TRUTH) + slices
    assert views.count("AXIAL") == slices


def test_viral_against_bacterial(raw, source):
    narrow = covid_idc.read(raw, within=["Viral", "Bacterial"])
    wanted = {i for i, labels in labels_of(source).items() if labels.get("Viral") == 1 or labels.get("Bacterial") == 1}
    assert labels_of(narrow).keys() == wanted
    assert {(v["Viral"], v["Bacterial"]) for v in labels_of(narrow).values()} == {(0, 1), (1, 0)}
    assert not any(p.lost for p in narrow.problems)
    with pytest.raises(UserError, match="no finding has Parasitic"):
        covid_idc.read(raw, within=["Viral", "Parasitic"])


def test_patients_studies_and_splits(by_hand):
    rows = [
        {"patientid": "7", "offset": "0", "filename": "a-PA.png", "view": "PA", "clinical_notes": "fever"},
        {"patientid": "7", "offset": "0", "filename": "a-L.png", "view": "L", "clinical_notes": "fever"},
        {"patientid": "7", "offset": "3", "filename": "b.png", "view": "AP Supine"},
        {"patientid": "7a", "offset": "0", "filename": "c.png", "view": "AP Erect"},
    ]
    source = covid_idc.read(by_hand(rows))
    assert [(s.study_id, s.patient_id, [i.view for i in s.images], s.text) for s in source.studies] == [
        ("7.1", "7", ["PA", "LATERAL"], "fever"),
        ("7.2", "7", ["AP"], ""),
        ("7a.1", "7a", ["AP"], ""),
    ]
    assert len({(s.patient_id, s.split) for s in source.studies}) == 2


def test_odd_rows(by_hand):
    rows = [{"filename": f"{n}.jpg", "patientid": str(n), "finding": "SARS"} for n in range(4)]
    rows += [rows[0], {"filename": ""}, {"filename": "x.png", "patientid": " "}]
    raw = by_hand(rows)
    (raw / "images" / "1.jpg").rename(raw / "images" / "1.JPG")
    (raw / "images" / "2.jpg").unlink()
    source = covid_idc.read(raw)
    assert labels_of(source).keys() == {"0.jpg", "1.jpg", "3.jpg"}
    assert [p.where for p in source.problems if p.lost] == [f"metadata.csv row {n}" for n in (4, 6, 7, 8)]
    assert kinds(source).keys() == {"no image", "duplicate", "no id"}


def test_lists(raw, source, tmp_path):
    ids = sorted(labels_of(source))
    for n, part in enumerate(("train", "val", "test")):
        (tmp_path / f"{part}.txt").write_text("".join(f"{i} 0 1\n" for i in ids[n::3]))
    division = covid_idc.read(raw, lists=str(tmp_path)).divisions[0]
    assert division.name == "lists"
    assert division.parts == {i: part for n, part in enumerate(("train", "val", "test")) for i in ids[n::3]}


def test_what_is_missing_is_named(raw, tmp_path):
    copy = Path(shutil.copytree(raw, tmp_path / "raw"))
    with pytest.raises(UserError, match=r"No .*metadata\.csv\. It comes with a clone of https://github"):
        covid_idc.read(tmp_path / "nowhere")
    table = pd.read_csv(copy / "metadata.csv", dtype=str)
    table.drop(columns="finding").to_csv(copy / "metadata.csv", index=False)
    with pytest.raises(UserError, match="lacks the column finding"):
        covid_idc.read(copy)
    table.to_csv(copy / "metadata.csv", index=False)
    shutil.rmtree(copy / "images")
    with pytest.raises(UserError, match="No images in"):
        covid_idc.read(copy)
