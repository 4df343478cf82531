"""MIMIC-CXR beyond its tables: partial downloads, reports elsewhere, published divisions and lists."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.sources._five import FIVE
from vlp_bench.data.sources.mimic_cxr import LABELS, read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import FRONTAL
from vlp_bench.errors import UserError


def edit(raw: Path, name: str, change) -> None:
    (path,) = raw.glob(f"mimic-cxr-2*-{name}.csv.gz")
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def division(source, name: str):
    return next(d for d in source.divisions if d.name == name)


def exclusive_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Every study with one of the five findings alone, the first half of them in turn; the rest with two."""
    values = np.full((len(table), len(LABELS)), "", object)
    for n in range(len(table)):
        values[n, LABELS.index(FIVE[n % 5])] = "1.0"
        if n % 4 == 3:
            values[n, LABELS.index("Pneumonia")] = "-1.0"
    return table.assign(**dict(zip(LABELS, values.T, strict=True)))


# What is here ---------------------------------------------------------------------------------------------------------


def test_tables_of_release_2_1_0(mimic_copy, mimic_source):
    for path in mimic_copy.glob("*.csv.gz"):
        path.rename(path.with_name(path.name.replace("2.0.0", "2.1.0")))
    (mimic_copy / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text("study_id,Airspace Opacity\n")
    assert index_hash(read(mimic_copy)) == index_hash(mimic_source)


def test_images_of_some_patients_only(mimic_copy, mimic_source, tmp_path):
    patients = sorted(p for p in mimic_copy.glob("files/p1*/p*"))
    for patient in patients[4:]:
        shutil.rmtree(patient)
    with pytest.raises(
        UserError, match=rf"{len(patients) - 4} of {len(patients)} patients .*data\.reader\.complete=false"
    ):
        read(mimic_copy)
    next(patients[0].rglob("*.jpg")).unlink()
    source = read(mimic_copy, complete=False)
    assert {s.patient_id for s in source.studies} <= {p.name[1:] for p in patients[:4]}
    here = {p.stem for p in mimic_copy.rglob("*.jpg")}
    assert {i.image_id for s in source.studies for i in s.images} == here
    (said,) = source.problems
    whole = sum(len(s.images) for s in mimic_source.studies)
    assert said.reason.startswith(f"{whole - len(here)} of {whole} images have no file")
    assert not said.lost
    assert prepare(source, tmp_path / "out", Plan(32), private=True)["counts"]["images"] == len(here)


def test_a_single_missing_patient_is_told_image_by_image(mimic_copy, mimic_source):
    shutil.rmtree(sorted(mimic_copy.glob("files/p1*/p*"))[0])
    assert index_hash(read(mimic_copy)) == index_hash(mimic_source)


def test_reports_of_some_studies_only(mimic_copy, mimic_source, tmp_path):
    reports = sorted(mimic_copy.rglob("s*.txt"))
    for path in reports[5:]:
        path.unlink()
    source = read(mimic_copy, complete=False)
    assert len(source.studies) == len(mimic_source.studies)
    assert sum(s.report_path is not None for s in source.studies) == 5
    assert f"{len(reports) - 5} of {len(reports)} studies with images have no report file" in source.problems[0].reason
    prepare(source, tmp_path / "out", Plan(32), private=True)
    assert (PreparedData(tmp_path / "out").studies[["findings", "impression"]] != "").any(axis=1).sum() <= 5
    for path in reports[:5]:
        path.unlink()
    assert len(read(mimic_copy, complete=False).studies) == len(mimic_source.studies)


@pytest.mark.parametrize("inside", ["", "files", "mimic-cxr-reports/files"])
def test_reports_in_a_folder_of_their_own(mimic_copy, tmp_path, inside):
    elsewhere = tmp_path / "reports"
    (elsewhere / inside).parent.mkdir(parents=True, exist_ok=True)
    (mimic_copy / "mimic-cxr-reports" / "files").rename(elsewhere / inside)
    with pytest.raises(UserError, match=r"No report text .*data\.reader\.reports="):
        read(mimic_copy)
    for name in (str(elsewhere), "../reports"):
        source = read(mimic_copy, reports=name)
        assert all((mimic_copy / s.report_path).is_file() for s in source.studies)
        assert not Path(source.studies[0].report_path).is_absolute()


def test_blank_may_be_absent(mimic_source, raw_mimic):
    for unknown, absent in zip(mimic_source.studies, read(raw_mimic, blank="absent").studies, strict=True):
        assert dict(absent.labels) == dict.fromkeys(LABELS, 0.0) | dict(unknown.labels)
    with pytest.raises(UserError, match="expected unknown or absent"):
        read(raw_mimic, blank="0")


# Divisions ------------------------------------------------------------------------------------------------------------


def test_divisions_of_the_official_split(mimic_source):
    mgca, refers = (division(mimic_source, name).parts for name in ("mgca", "refers"))
    for study in mimic_source.studies:
        for image in study.images:
            assert mgca.get(image.image_id, "") == (
                "" if image.view not in FRONTAL else "train" if study.split == "train" else "val"
            )
            assert refers[image.image_id] == ("train" if study.split == "train" else "val test")
    assert leaks(mimic_source, division(mimic_source, "mgca")) == {"images": 0, "patients": 0}
    assert leaks(mimic_source, division(mimic_source, "refers"))["images"] > 0


def test_mgca_leaves_out_reports_that_are_cut_by_hand(raw_mimic, mimic_source, monkeypatch):
    study = next(s for s in mimic_source.studies if s.images[0].view in FRONTAL)
    monkeypatch.setattr("vlp_bench.data.sources.mimic_cxr.special_cases", lambda: {study.study_id: "impression"})
    before, after = (division(source, "mgca").parts for source in (mimic_source, read(raw_mimic)))
    assert before.keys() - after.keys() == {i.image_id for i in study.images if i.view in FRONTAL}


def test_5x200_has_studies_of_one_label_and_leaves_their_patients_out(mimic_copy):
    edit(mimic_copy, "chexpert", exclusive_labels)
    source = read(mimic_copy)
    drawn = division(source, "5x200")
    shown = {i.image_id: (s, i) for s in source.studies for i in s.images}
    counts: Counter = Counter()
    for name, part in drawn.parts.items():
        study, image = shown[name]
        assert image.view in FRONTAL
        assert name == next(i.image_id for i in study.images if i.view in FRONTAL)
        ((label, value),) = study.labels.items()
        assert value == 1
        counts[part, label] += 1
    each = {counts["test", name] for name in FIVE}
    assert len(each) == 1
    assert min(each) >= 5
    assert leaks(source, drawn) == {"images": 0, "patients": 0}
    owners = {shown[i][0].patient_id for i, part in drawn.parts.items() if part == "test"}
    left = division(source, "without_5x200").parts
    assert {i for i, (s, _) in shown.items() if s.patient_id not in owners} == set(left)
    assert all(part == shown[i][0].split for i, part in left.items())


def test_5x200_is_drawn_as_pandas_draws(mimic_copy):
    edit(mimic_copy, "chexpert", exclusive_labels)
    source = read(mimic_copy)
    table = pd.DataFrame(
        [{"id": s.study_id, "front": any(i.view in FRONTAL for i in s.images)} | s.labels for s in source.studies]
    )
    alone = table[(table[[c for c in table if c in LABELS]] != 0).where(table.notna()).fillna(0).sum(axis=1) == 1]
    fitting = [alone[alone["front"] & (alone[name] == 1)] for name in FIVE]
    count = min(map(len, fitting))
    expected = {i for rows in fitting for i in rows.sample(n=count, random_state=0)["id"]}
    study_of = {i.image_id: s.study_id for s in source.studies for i in s.images}
    assert {study_of[i] for i, part in division(source, "5x200").parts.items() if part == "test"} == expected


def test_published_lists(raw_mimic, mimic_source, tmp_path):
    some = [s for s in mimic_source.studies if len(s.images) > 1][:3]
    rows = [
        {"Path": "path/of/images", "dicom_id": s.images[1].image_id, "subject_id": s.patient_id, "study_id": s.study_id}
        for s in some
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "mimic_5x200_ids.csv", index=False)
    found = division(read(raw_mimic, lists=str(tmp_path / "mimic_5x200_ids.csv")), "lists").parts
    assert found == {s.images[1].image_id: "test" for s in some}
    folder = tmp_path / "refers"
    folder.mkdir()
    for part, study in zip(("train", "val", "test"), some, strict=True):
        (folder / f"{part}.txt").write_text(
            f"MIMIC/files/p1/p{study.patient_id}/s{study.study_id}/\tA caption, with 2 commas.\n"
        )
    found = division(read(raw_mimic, lists=str(folder)), "lists").parts
    assert found == {i.image_id: p for p, s in zip(("train", "val", "test"), some, strict=True) for i in s.images}
