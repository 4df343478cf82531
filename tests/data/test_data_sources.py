"""Readers: MIMIC-CXR-JPG's tables, and a folder of one's own."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.sources import folder, mimic_cxr
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import ImageRef, Source, Study
from vlp_bench.errors import UserError


def table_of(raw: Path, name: str) -> Path:
    return next(raw.glob(f"mimic-cxr-2*-{name}.csv.gz"))


def edit(path: Path, change) -> None:
    """Pass a table through `change`."""
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def kinds(source) -> dict[str, list]:
    found: dict[str, list] = {}
    for problem in source.problems:
        found.setdefault(problem.kind, []).append(problem)
    return found


# MIMIC-CXR-JPG --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metadata", "split", "chexpert"])
def test_mimic_missing_table(mimic_copy, name):
    table_of(mimic_copy, name).unlink()
    with pytest.raises(UserError, match=rf"No mimic-cxr-2\.\*-{name}\.csv\.gz in .*raw_dir must be"):
        mimic_cxr.read(mimic_copy)


@pytest.mark.parametrize("name, column", [("metadata", "ViewPosition"), ("split", "split"), ("chexpert", "study_id")])
def test_mimic_missing_column(mimic_copy, name, column):
    edit(table_of(mimic_copy, name), lambda t: t.drop(columns=column))
    with pytest.raises(UserError, match=rf"{name}\.csv\.gz lacks the column {column} \(it has "):
        mimic_cxr.read(mimic_copy)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b truncated", None])
def test_mimic_unreadable_table(mimic_copy, content):
    path = table_of(mimic_copy, "metadata")
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UserError, match="cannot be read"):
        mimic_cxr.read(mimic_copy)


def test_mimic_tables_may_be_unpacked(mimic_copy, mimic_source):
    for path in mimic_copy.glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert index_hash(mimic_cxr.read(mimic_copy)) == index_hash(mimic_source)


def test_mimic_without_reports(mimic_copy):
    shutil.rmtree(mimic_copy / "mimic-cxr-reports")
    with pytest.raises(UserError, match=r"Unpack mimic-cxr-reports\.zip there"):
        mimic_cxr.read(mimic_copy)


def test_mimic_reports_beside_the_images(mimic_copy):
    shutil.copytree(mimic_copy / "mimic-cxr-reports" / "files", mimic_copy / "files", dirs_exist_ok=True)
    shutil.rmtree(mimic_copy / "mimic-cxr-reports")
    assert all((mimic_copy / s.report_path).is_file() for s in mimic_cxr.read(mimic_copy).studies)


def test_mimic_odd_rows_are_listed(mimic_copy, mimic_source):
    first, second, third = mimic_source.studies[:3]

    def metadata(table):
        double = table[table["dicom_id"] == second.images[0].image_id]
        nameless = double.assign(dicom_id="")
        return pd.concat([table, double, nameless])

    edit(table_of(mimic_copy, "metadata"), metadata)
    edit(table_of(mimic_copy, "split"), lambda t: t[t["dicom_id"] != first.images[0].image_id])
    edit(
        table_of(mimic_copy, "split"),
        lambda t: t.assign(split=t["split"].where(t["study_id"] != third.study_id, "holdout")),
    )
    edit(
        table_of(mimic_copy, "chexpert"),
        lambda t: t[t["study_id"] != second.study_id].assign(Lumbago="1.0", Comment=""),
    )
    source = mimic_cxr.read(mimic_copy)
    found = kinds(source)
    assert [p.where for p in found["no split"]] == [f"dicom_id {first.images[0].image_id}"]
    assert [p.where for p in found["duplicate"]] == [f"dicom_id {second.images[0].image_id}"]
    assert "row" in found["no id"][0].where
    assert "holdout" in found["split"][0].reason
    assert [p.where for p in found["no labels"]] == [f"study_id {second.study_id}"]
    assert {p.where.split()[-1] for p in found["unknown column"]} == {"Lumbago", "Comment"}
    assert not any(p.lost for p in found["unknown column"] + found["no labels"])
    assert source.labels == mimic_source.labels
    kept = {s.study_id: s for s in source.studies}
    assert third.study_id not in kept
    assert kept[second.study_id].labels == {}
    assert len(kept[second.study_id].images) == len(second.images)


def test_mimic_a_label_that_is_no_label(mimic_copy, mimic_source):
    study = mimic_source.studies[0].study_id
    edit(
        table_of(mimic_copy, "chexpert"),
        lambda t: t.assign(Edema=t["Edema"].where(t["study_id"] != study, "maybe")),
    )
    with pytest.raises(UserError, match=rf"study_id {study} has Edema='maybe'\. A label is 1, 0, -1 or empty"):
        mimic_cxr.read(mimic_copy)


def test_mimic_knows_the_reports_that_its_own_code_reads_by_hand():
    special = mimic_cxr.special_cases()
    names = [place for place in special.values() if isinstance(place, str)]
    ranges = [place for place in special.values() if not isinstance(place, str)]
    # as MIT-LCP/mimic-cxr lists them: 23 with a section, 31 with characters, 8 of which without any
    assert (len(names), len(ranges), ranges.count((0, 0))) == (23, 31, 8)
    assert special["50913680"] == "recommendations"
    assert special["50525523"] == (201, 349)
    assert all(start < stop for start, stop in ranges if stop)
    assert all(study.isdecimal() and len(study) == 8 for study in special)


def test_mimic_reports_that_are_read_by_hand(mimic_copy, tmp_path, monkeypatch):
    first, second, third = (s.study_id for s in mimic_cxr.read(mimic_copy).studies[:3])
    places = {first: "comparison", second: (3, 9), third: (0, 0)}
    monkeypatch.setattr(mimic_cxr, "special_cases", lambda: places)
    source = mimic_cxr.read(mimic_copy)
    assert [s.conclusion for s in source.studies[:4]] == [*places.values(), None]
    for study in source.studies[:3]:
        (mimic_copy / study.report_path).write_text("No edema.\n FINDINGS: None.\n COMPARISON: Mild edema.\n\n")
    prepare(source, tmp_path / "out", Plan(32), private=True)
    store = PreparedData(tmp_path / "out")
    table = store.studies.iloc[:4]
    assert table["special"].tolist() == [True, True, True, False]
    assert table["impression"].tolist()[:3] == ["Mild edema.", "edema.", ""]
    assert not any(table["findings"][:3])
    report = json.loads((tmp_path / "out" / "prepare_report.json").read_text())
    assert [p["where"][-12:-4] for p in report["problems"] if p["kind"] == "empty report"].count(third) == 1


def test_mimic_empty_label_is_unknown(mimic_source):
    values = [v for s in mimic_source.studies for v in s.labels.values()]
    assert set(values) <= {-1.0, 0.0, 1.0}
    assert len(values) < len(mimic_source.studies) * len(mimic_source.labels)


# A folder -------------------------------------------------------------------------------------------------------------


def test_folder_missing_csv_and_column(tmp_path, own_folder):
    with pytest.raises(UserError, match=r"No .*metadata\.csv\. A folder of images needs"):
        folder.read(tmp_path)
    with pytest.raises(UserError, match=r"lacks the column image_path \(it has file, view\)"):
        folder.read(own_folder([{"file": "a.png", "view": "PA"}]))


@pytest.mark.parametrize("content", [b"", "image_path,view\nä.png,PA\n".encode("latin-1")])
def test_folder_unreadable_csv(tmp_path, content):
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metadata\.csv cannot be read as csv in UTF-8"):
        folder.read(tmp_path)


def test_folder_columns_of_its_own_and_where(own_folder):
    rows = [{"image_path": f"{n}.png", "source": "nih" if n % 2 else "vinbig", "ward": "A3"} for n in range(6)]
    raw = own_folder(rows)
    assert [p.where for p in folder.read(raw).problems] == ["metadata.csv column ward"]
    assert len(folder.read(raw, "source == 'nih' and ward == 'A3'").studies) == 3
    with pytest.raises(UserError, match="keeps none of the 6 rows"):
        folder.read(raw, "source == 'padchest'")
    for bad in ("sauce == 'nih'", "source ==", "image_path"):
        with pytest.raises(UserError, match=r"is not a condition on .*Its columns: image_path, source, ward"):
            folder.read(raw, bad)


def test_folder_named_splits_are_kept(raw_folder):
    table = pd.read_csv(raw_folder / "metadata.csv", dtype=str).set_index("study_id")["split"]
    source = folder.read(raw_folder)
    assert {s.study_id: s.split for s in source.studies} == table[~table.index.duplicated()].to_dict()


def test_folder_split_by_patient_is_disjoint_and_stable(own_folder):
    rows = [{"image_path": f"{n}.png", "patient_id": f"p{n // 3}", "split": "demo"} for n in range(600)]
    raw = own_folder(rows[:300])
    some, more = (folder.read(own_folder(r)).studies for r in (rows[:300][::-1], rows))
    split_of = {s.patient_id: s.split for s in more}
    assert all(s.split == split_of[s.patient_id] for s in (*some, *more))
    counts = pd.Series([split_of[f"p{n}"] for n in range(200)]).value_counts(normalize=True)
    assert abs(counts["train"] - 0.7) < 0.1
    assert counts["val"] > 0.03
    assert counts["test"] > 0.1
    assert {s.split for s in folder.read(raw, None, {"train": 0.0, "val": 0.0, "test": 1.0}).studies} == {"test"}
    with pytest.raises(UserError, match="together 1"):
        folder.read(raw, None, {"train": 0.9})


def test_folder_split_column_with_gaps(own_folder):
    rows = [{"image_path": f"{n}.png", "split": s} for n, s in enumerate(["Train", "valid", "test", "", "later"])]
    source = folder.read(own_folder(rows))
    assert {s.study_id: s.split for s in source.studies} == {"0.png": "train", "1.png": "val", "2.png": "test"}
    assert [(p.where, p.lost) for p in source.problems] == [("row 5", True), ("row 6", True)]
    partly = folder.read(own_folder(rows[:1] + rows[2:3]))
    assert "names only test, train" in partly.problems[0].reason
    assert not partly.problems[0].lost


def test_folder_patient_in_two_splits(own_folder):
    rows = [{"image_path": f"{n}.png", "patient_id": "p", "study_id": "s", "split": "train"} for n in range(2)]
    rows += [{"image_path": f"{s}.png", "patient_id": s, "study_id": s, "split": s} for s in ("val", "test")]
    rows[1]["split"] = "test"
    with pytest.raises(UserError, match="Patient p is in the splits test and train of"):
        folder.read(own_folder(rows))


def test_folder_rows_that_name_no_image_of_their_own(own_folder):
    names = ["a.png", "", "a.png", "../secret.png", "/etc/x.png", "sub/a.png"]
    raw = own_folder([{"image_path": n, "patient_id": f"p{k}"} for k, n in enumerate(names)])
    source = folder.read(raw)
    assert [(p.where, p.reason) for p in source.problems] == [
        ("row 3", "image_path is empty"),
        ("row 4", "the image has a row already; the first counts"),
        ("row 5", "image_path leaves the folder"),
        ("row 6", "image_path leaves the folder"),
    ]
    ids = [i.image_id for s in source.studies for i in s.images]
    assert sorted(ids) == ["a.png", "sub/a.png"]


def test_folder_equal_study_ids_of_two_patients(own_folder):
    rows = [{"image_path": f"{p}.png", "patient_id": p, "study_id": "1", "report_text": f"Text of {p}."} for p in "ab"]
    source = folder.read(own_folder(rows))
    assert [(s.patient_id, s.text) for s in source.studies] == [("a", "Text of a."), ("b", "Text of b.")]


def test_folder_labels_unknown_where_empty(own_folder, tmp_path):
    written = ["Edema|Cardiomegaly", "", "No Finding", "nan"]
    raw = own_folder([{"image_path": f"{n} ö.png", "labels": v} for n, v in enumerate(written)], "mit Lücke")
    prepare(folder.read(raw), tmp_path / "out", Plan(32), private=False)
    store = PreparedData(tmp_path / "out")
    assert store.labels == ["Cardiomegaly", "Edema", "No Finding"]
    nan = np.nan
    np.testing.assert_array_equal(store.image_labels, [[1, 1, 0], [nan] * 3, [0, 0, 1], [nan] * 3])
    assert np.isnan(store.study_labels).all()


@pytest.mark.parametrize(
    "text, findings, impression",
    [
        ("Heart is large.\n\nNo effusion.", "Heart is large.\n\nNo effusion.", ""),
        ("FINDINGS: Heart is large. IMPRESSION: Cardiomegaly.", "Heart is large.", "Cardiomegaly."),
        ("Findings:\nHeart is large.\n\nImpression:\nCardiomegaly.", "Heart is large.", "Cardiomegaly."),
        (" FINAL REPORT\n FINDINGS:  Clear\n lungs.\n \n IMPRESSION:  Normal.\n", "Clear\n lungs.", "Normal."),
        ("These findings: effusion, edema.", "These findings: effusion, edema.", ""),
        ("TECHNIQUE: PA.", "TECHNIQUE: PA.", ""),
        ("IMPRESSION:", "IMPRESSION:", ""),
        ("", "", ""),
    ],
)
def test_folder_reports_with_and_without_headers(own_folder, tmp_path, text, findings, impression):
    prepare(
        folder.read(own_folder([{"image_path": "a.png", "report_text": text}])),
        tmp_path / "out",
        Plan(32),
        private=False,
    )
    study = PreparedData(tmp_path / "out").studies.iloc[0]
    assert (study["findings"], study["impression"]) == (findings, impression)


def test_folder_reads_the_same_sections_as_mimic(mimic_store, folder_store):
    texts = ["findings", "impression"]
    mimic = mimic_store.studies.set_index("study_id")[texts]
    own = folder_store.studies.set_index("study_id")[texts].loc[mimic.index]
    both = (mimic != "").any(axis=1)
    assert both.mean() > 0.8
    one, other = (frame[both].map(lambda text: " ".join(text.split())) for frame in (mimic, own))
    pd.testing.assert_frame_equal(one, other)


def test_folder_boxes_and_masks_follow_the_pixels(folder_store, raw_folder):
    """The boxes of a finding still span its mask."""
    checked = 0
    for row in range(len(folder_store.images)):
        masks = {m["label"]: m["mask"] for m in folder_store.masks(row)}
        boxes = folder_store.boxes(row)
        for label in {b["label"] for b in boxes} & set(masks):
            if not masks[label].any():
                continue
            ys, xs = np.nonzero(masks[label])
            mine = np.array([b["xyxy"] for b in boxes if b["label"] == label])
            left, top, right, bottom = *mine[:, :2].min(0), *mine[:, 2:].max(0)
            # the mask is cut at half its height of grey, the box at whole pixels of the file
            assert left - 1.5 <= xs.min()
            assert xs.max() + 1 <= right + 1.5
            assert top - 1.5 <= ys.min()
            assert ys.max() + 1 <= bottom + 1.5
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (1201, 777), (64, 64), (31, 17), (2545, 3056)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_bright_square_its_box_and_its_mask(own_folder, tmp_path, size, suffix):
    width, height = size
    x, y, w, h = width // 3, height // 4, width // 3, height // 3
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    (tmp_path / "own").mkdir()
    Image.fromarray(pixels).save(tmp_path / f"own/a.{suffix}")
    Image.fromarray((pixels > 0).astype(np.uint8)).save(tmp_path / "own/m.png")
    row = {
        "image_path": f"a.{suffix}",
        "boxes_json": json.dumps([{"label": "square", "xywh": [x, y, w, h]}]),
        "masks_json": json.dumps([{"label": "square", "path": "m.png"}]),
    }
    prepare(folder.read(own_folder([row])), tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out")
    (box,), (mask,) = store.boxes(0), store.masks(0)
    ys, xs = np.nonzero(store.pixels(np.array([0]))[0] > 127)
    np.testing.assert_allclose(box["xyxy"], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.1)
    ys, xs = np.nonzero(mask["mask"])
    np.testing.assert_allclose(box["xyxy"], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.1)


def test_folder_broken_boxes_and_masks_are_listed(own_folder, tmp_path):
    boxes = [{"label": "a"}, {"xywh": [1, 2, 3]}, {"xywh": [0, 0, "w", 1]}, "box", {"xywh": [0, 0, -1, 5]}]
    rows = [
        {"image_path": "a.png", "boxes_json": json.dumps([*boxes, {"xywh": [1, 2, 3, 4]}]), "masks_json": ""},
        {"image_path": "b.png", "boxes_json": "{", "masks_json": json.dumps([{"path": "none.png"}, {"label": "x"}])},
        {"image_path": "c.png", "boxes_json": '{"xywh": 1}', "masks_json": json.dumps([{"path": "small.png"}])},
    ]
    raw = own_folder(rows)
    Image.new("1", (5, 5)).save(raw / "small.png")
    prepare(folder.read(raw), tmp_path / "out", Plan(32), private=False)
    report = json.loads((tmp_path / "out" / "prepare_report.json").read_text())
    assert report["kinds"] == {"boxes_json": 2, "broken box": 5, "broken mask": 3}
    assert not any(p["lost"] for p in report["problems"])
    store = PreparedData(tmp_path / "out")
    assert len(store.boxes(0)) == 1
    assert store.masks(2) == []


@pytest.mark.parametrize("change", ["label", "box", "mask", "extra", "view", "text", "conclusion", "split"])
def test_the_index_hash_sees_everything(change):
    ref = ImageRef("a", "a.png", "PA", {"Edema": 1.0})
    study = Study("s", "p", "train", (ref,), None, "Text.")
    changed = {
        "label": replace(study, images=(replace(ref, labels={"Edema": 0.0}),)),
        "box": replace(study, images=(replace(ref, boxes=({"xywh": [0, 0, 1, 1]},)),)),
        "mask": replace(study, images=(replace(ref, masks=({"path": "m"},)),)),
        "extra": replace(study, images=(replace(ref, extra="{}"),)),
        "view": replace(study, images=(replace(ref, view="AP"),)),
        "text": replace(study, text="Other."),
        "conclusion": replace(study, conclusion="indication"),
        "split": replace(study, split="test"),
    }[change]
    one, other = (index_hash(Source("folder", Path(), (s,), ("Edema",))) for s in (study, changed))
    assert one != other


def test_the_real_sample(real_dir, tmp_path):
    source = folder.read(real_dir / "data" / "cxr_sample", "source == 'hannover'")
    assert len({s.split for s in source.studies}) > 1
    manifest = prepare(source, tmp_path / "out", Plan(64), private=True)
    assert manifest["counts"]["images"] == sum(len(s.images) for s in source.studies)
    store = PreparedData(tmp_path / "out")
    assert store.images.groupby("patient_id")["split"].nunique().max() == 1
    report = json.loads((tmp_path / "out" / "prepare_report.json").read_text())
    assert set(report["kinds"]) <= {"empty report"}
    rows = [r for r in range(len(store.images)) if store.masks(r)]
    assert rows
    assert all(m["mask"].any() for r in rows for m in store.masks(r))
