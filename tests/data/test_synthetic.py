"""The synthetic chest world: the same for the same seed, and its pictures, texts, labels and files agree."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_bench.data import synthetic
from vlp_bench.data.synthetic import CHEXPERT_LABELS, FINDINGS, HEDGES, MENTIONS
from vlp_bench.data.synthetic.language import DENIALS
from vlp_bench.errors import UserError

STUDIES = synthetic.sample_studies(800, seed=7)
IMAGES = [image for study in STUDIES for image in study.images]


def _has(words, text):
    return any(re.search(rf"\b{re.escape(word)}", text) for word in words)


def _sentences(report):
    """Give the sentences of a report without those of its head, in lower case."""
    body = re.sub(r"(?m)^ (EXAMINATION|INDICATION|HISTORY|TECHNIQUE|COMPARISON):(.*\S.*\n)+", "", report)
    body = re.sub(r"FINAL REPORT|FINDINGS:|IMPRESSION:|\b\d\. ", " ", body)
    return [" ".join(s.split()).lower() for s in re.split(r"\.(?=\s|$)", body) if s.strip()]


def _read(report):
    """Label a report by simple rules, unaware of how it was written."""
    found = {}
    for sentence in _sentences(report):
        hedged = _has([f"{word}" for word in HEDGES], sentence)
        denied = any(re.search(rf"\b{word}\b", sentence) for word in DENIALS)
        value = -1 if hedged else 0 if denied else 1
        for label, terms in MENTIONS.items():
            if _has(terms, sentence):
                found.setdefault(label, set()).add(value)
    best = {1: 2, -1: 1, 0: 0}
    return {label: max(values, key=best.get) for label, values in found.items()}


# Sampling


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), fewer=st.integers(0, 12), more=st.integers(0, 12))
def test_a_longer_list_begins_with_the_shorter_one(seed, fewer, more):
    long = synthetic.sample_studies(fewer + more, seed)
    assert len(long) == fewer + more
    assert synthetic.sample_studies(fewer, seed) == long[:fewer]


def test_another_process_draws_the_same():
    code = (
        "import hashlib, sys; from vlp_bench.data import synthetic as s; made = s.sample_studies(6, 3);"
        "images = [i for m in made for i in m.images];"
        "print(hashlib.md5((repr(made)).encode() + s.render(images, 64).tobytes()).hexdigest());"
        "assert not {'torch', 'pandas', 'hydra', 'tokenizers'} & set(sys.modules), 'the import has become slow'"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment(h))
        for h in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def _environment(hash_seed):
    source = str(Path(synthetic.__file__).resolve().parents[3])
    return {"PYTHONPATH": source, "PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"}


def test_seeds_differ():
    assert synthetic.sample_studies(3, 1)[0].report != synthetic.sample_studies(3, 2)[0].report


@pytest.mark.parametrize("arguments", [(-1, 0), (1, -1)])
def test_negative_numbers_are_refused(arguments):
    with pytest.raises(UserError, match="not negative"):
        synthetic.sample_studies(*arguments)


def test_identifiers():
    assert all(re.fullmatch(r"1\d{7}", study.patient_id) for study in STUDIES)
    assert all(re.fullmatch(r"5\d{7}", study.study_id) for study in STUDIES)
    assert all(re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", image.image_id) for image in IMAGES)
    assert len({study.study_id for study in STUDIES}) == len(STUDIES)
    assert len({image.image_id for image in IMAGES}) == len(IMAGES)
    assert all(1 <= len(study.images) <= 4 for study in STUDIES)


def test_patients_keep_body_and_split_while_findings_change():
    patients = {}
    for study in STUDIES:
        patients.setdefault(study.patient_id, []).append(study)
    assert len(patients) > 300
    for studies in patients.values():
        assert len({study.split for study in studies}) == 1
        assert len({image.anatomy for study in studies for image in study.images}) == 1
        assert [study.when for study in studies] == sorted(study.when for study in studies)
    assert any(len({study.findings for study in studies}) > 1 for studies in patients.values())
    shares = pd.Series([studies[0].split for studies in patients.values()]).value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.80, abs=0.06)
    assert shares["validate"] == pytest.approx(0.08, abs=0.05)


def test_every_finding_is_neither_rare_nor_everywhere():
    for name in FINDINGS:
        assert 0.07 <= np.mean([study.truth[name] for study in STUDIES]) <= 0.30, name
    assert 0.18 <= np.mean([not study.findings for study in STUDIES]) <= 0.32
    assert {image.view for image in IMAGES} == {"PA", "AP", "LATERAL"}
    assert all(image.findings == study.findings for study in STUDIES for image in study.images)


# Pictures


def test_pictures_do_not_depend_on_their_company():
    together = synthetic.render(IMAGES[:6], 96)
    assert together.shape == (6, 96, 96)
    assert together.dtype == np.uint8
    assert np.array_equal(together[::-1], synthetic.render(IMAGES[5::-1], 96))
    assert synthetic.render([], 32).shape == (0, 32, 32)


def test_sizes_show_the_same_picture():
    large, small = synthetic.render(IMAGES[:3], 512), synthetic.render(IMAGES[:3], 256)
    for a, b in zip(large, small, strict=True):
        reduced = cv2.GaussianBlur(cv2.resize(a, (256, 256), interpolation=cv2.INTER_AREA), (0, 0), 3.0)
        assert np.abs(reduced.astype(int) - cv2.GaussianBlur(b, (0, 0), 3.0)).mean() < 4.0


def test_lungs_are_dark_and_the_heart_is_bright():
    for image in [i for i in IMAGES if not i.findings][:8]:
        picture = synthetic.render([image], 128)[0]
        _, masks = synthetic.annotate(image, 128)
        assert picture[masks["Lungs"]].mean() + 40 < picture[masks["Heart"]].mean()


def _example(name, severity, lateral=False):
    """Find an image with a finding and as little else as possible."""
    found = [
        image
        for image in IMAGES
        if (image.view == "LATERAL") == lateral
        and any(f.name == name and f.severity == severity for f in image.findings)
    ]
    return min(found, key=lambda image: len(image.findings))


@pytest.mark.parametrize("severity", [1, 2, 3])
@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_what_its_mask_covers(name, severity):
    image = _example(name, severity)
    healthy = dataclasses.replace(image, findings=tuple(f for f in image.findings if f.name != name))
    with_it, without = synthetic.render([image, healthy], 256).astype(int)
    boxes, masks = synthetic.annotate(image, 256)
    change = np.abs(with_it - without)
    assert any(box["label"] == name for box in boxes)
    assert name not in synthetic.annotate(healthy, 256)[1]
    assert change[masks[name]].mean() > 3.0
    assert change[masks[name]].mean() > 2.0 * change[~masks[name]].mean()


@pytest.mark.parametrize("name", ["Cardiomegaly", "Pleural Effusion", "Consolidation", "Lung Lesion", "Edema"])
def test_the_lateral_view_shows_the_finding_too(name):
    image = _example(name, 3, lateral=True)
    healthy = dataclasses.replace(image, findings=tuple(f for f in image.findings if f.name != name))
    with_it, without = synthetic.render([image, healthy], 256).astype(int)
    assert np.abs(with_it - without)[synthetic.annotate(image, 256)[1][name]].mean() > 3.0


def test_sides_are_the_patients():
    for image in IMAGES:
        for finding in image.findings if image.view != "LATERAL" else ():
            if finding.name in ("Pneumothorax", "Consolidation") and finding.side in ("left", "right"):
                mask = synthetic.annotate(dataclasses.replace(image, findings=(finding,)), 64)[1].get(finding.name)
                if mask is not None:
                    assert (np.nonzero(mask)[1].mean() > 32) == (finding.side == "left")


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, len(IMAGES) - 1), size=st.integers(8, 300))
def test_boxes_lie_inside_and_enclose_their_masks(number, size):
    boxes, masks = synthetic.annotate(IMAGES[number], size)
    assert {"Lungs", "Heart"} <= set(masks)
    assert {box["label"] for box in boxes} == set(masks) - {"Lungs", "Heart"}
    for label, mask in masks.items():
        assert mask.shape == (size, size)
        assert mask.dtype == np.bool_
        covered = np.zeros_like(mask)
        for x0, y0, x1, y1 in (box["xyxy"] for box in boxes if box["label"] == label):
            assert 0 <= x0 < x1 <= size
            assert 0 <= y0 < y1 <= size
            assert mask[y0:y1, x0:x1].any()
            covered[y0:y1, x0:x1] = True
        if label not in ("Lungs", "Heart"):
            assert not (mask & ~covered).any()


def test_tiny_pictures_are_refused():
    with pytest.raises(UserError, match="at least 8"):
        synthetic.render(IMAGES[:1], 4)


# Language


def test_labels_are_what_a_reader_finds_in_the_report():
    for study in STUDIES:
        stated = {name: value for name, value in study.labels.items() if value is not None and name != "No Finding"}
        assert tuple(study.labels) == CHEXPERT_LABELS
        assert _read(study.report) == stated, study.report


def test_no_finding_means_that_nothing_else_is_said_to_be_there():
    for study in STUDIES:
        others = [v for k, v in study.labels.items() if k not in ("No Finding", "Support Devices")]
        expected = 1 if study.report and not {1, -1} & set(others) else None
        assert study.labels["No Finding"] == expected


def test_reports_follow_the_truth():
    for study in STUDIES:
        for name in FINDINGS:
            if study.labels[name] in (1, -1):
                assert study.truth[name] == 1
            if study.labels[name] == 0:
                assert study.truth[name] == 0
    mentioned = [study.labels[f.name] in (1, -1) for study in STUDIES if study.report for f in study.findings]
    assert np.mean(mentioned) > 0.9


def test_reports_name_the_side():
    for study in STUDIES:
        for finding in study.findings:
            if finding.name in ("Pneumothorax", "Fracture") and study.labels[finding.name] == 1:
                text = " ".join(s for s in _sentences(study.report) if _has(MENTIONS[finding.name], s))
                assert finding.side in text


def test_reports_vary_as_real_ones_do():
    reports = [study.report for study in STUDIES]
    assert len(set(reports)) > 0.95 * len(reports)
    assert 0 < sum(not report for report in reports) < 0.05 * len(reports)
    for section in ("FINDINGS", "IMPRESSION"):
        assert 0.03 < np.mean([f" {section}:" not in report for report in reports]) < 0.35
    assert any("FINDINGS" not in r and "IMPRESSION" not in r and r for r in reports)
    assert all(line.startswith(" ") and len(line) <= 79 for report in reports for line in report.splitlines())
    values = {value for study in STUDIES for value in study.labels.values()}
    assert values == {1, 0, -1, None}


def test_questions_are_answered_from_the_truth():
    kinds = set()
    for study in STUDIES:
        present = {f.name.lower() for f in study.findings}
        for question in study.questions:
            kinds.add(question.type)
            if question.type == "closed":
                assert question.answer in ("yes", "no")
                asked = [n for n in present if n.removeprefix("support ").rstrip("s") in question.question]
                assert bool(asked) == (question.answer == "yes"), question
            if question.type == "laterality":
                assert question.answer in ("left", "right", "both")
    assert kinds == {"closed", "laterality", "open"}


# Vocabulary


def test_no_word_is_unknown_to_the_shipped_vocabulary():
    from tokenizers import BertWordPieceTokenizer

    pieces = synthetic.VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
    assert tuple(pieces[:5]) == synthetic.SPECIAL_TOKENS
    assert len(pieces) == len(set(pieces))
    assert 1000 <= len(pieces) <= 1500
    tokenizer = BertWordPieceTokenizer(str(synthetic.VOCABULARY), lowercase=True)
    encoded = tokenizer.encode_batch([study.report for study in STUDIES[:200]])
    assert not any("[UNK]" in encoding.tokens for encoding in encoded)
    assert "[UNK]" not in tokenizer.encode("Quixotic xylophones, 37%?").tokens


def test_training_a_vocabulary():
    reports = [study.report for study in STUDIES]
    pieces = synthetic.train_vocabulary(reports, 400)
    assert tuple(pieces[:5]) == synthetic.SPECIAL_TOKENS
    assert 200 < len(pieces) <= 400
    assert "effusion" in pieces


# Layouts


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "mimic"
    calls = []
    counts = synthetic.write_raw(
        "mimic_cxr", out, studies=40, seed=7, size=64, progress=lambda done, of: calls.append((done, of))
    )
    assert calls == [(done, 40) for done in range(1, 41)]
    return out, counts


def test_mimic_layout(mimic):
    out, counts = mimic
    tables = {n: pd.read_csv(out / f"mimic-cxr-2.0.0-{n}.csv.gz") for n in ("metadata", "split", "chexpert", "negbio")}
    assert counts["studies"] == 40 == len(tables["chexpert"]) == len(tables["negbio"])
    assert counts["images"] == len(tables["metadata"]) == len(tables["split"])
    assert list(tables["chexpert"].columns) == ["subject_id", "study_id", *CHEXPERT_LABELS]
    assert set(tables["split"].split) <= {"train", "validate", "test"}
    for row in tables["metadata"].itertuples():
        folder = f"p{str(row.subject_id)[:2]}/p{row.subject_id}"
        picture = cv2.imread(f"{out}/files/{folder}/s{row.study_id}/{row.dicom_id}.jpg", cv2.IMREAD_UNCHANGED)
        assert picture.shape == (row.Rows, row.Columns)
    for study, row in zip(STUDIES, tables["chexpert"].itertuples(index=False), strict=False):
        text = out / "mimic-cxr-reports" / "files" / f"p{study.patient_id[:2]}" / f"p{study.patient_id}"
        assert (text / f"s{study.study_id}.txt").read_text(encoding="utf-8") == study.report
        assert [None if np.isnan(v) else v for v in row[2:]] == list(study.labels.values())


def test_views_are_named_as_in_the_archive():
    from vlp_bench.data.synthetic.layouts.mimic_cxr import metadata as _mimic_metadata

    views = {_mimic_metadata(s, i, (1, 1))["ViewPosition"] for s in STUDIES for i in s.images}
    assert views == {"PA", "AP", "LATERAL", "LL", ""}


def test_workers_write_the_same_files(mimic, tmp_path):
    out, counts = mimic
    assert synthetic.write_raw("mimic_cxr", tmp_path / "two", studies=40, seed=7, size=64, workers=2) == counts
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    assert all((out / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_folder_layout(tmp_path):
    out = tmp_path / "folder"
    out.mkdir()  # an empty directory may be there
    counts = synthetic.write_raw("folder", out, studies=30, seed=7, size=96)
    table = pd.read_csv(out / "metadata.csv", dtype=str, keep_default_na=False)
    assert len(table) == counts["images"] == len(list((out / "images").iterdir()))
    truth = {study.study_id: study for study in STUDIES[:30]}
    assert set(table.study_id) == set(truth)
    for row in table.itertuples():
        study = truth[row.study_id]
        assert row.report_text == study.report
        assert row.labels.split("|") == ([n for n, v in study.truth.items() if v] or ["No Finding"])
        assert row.split == {"train": "train", "validate": "val", "test": "test"}[study.split]
        shape = (int(row.height), int(row.width))
        assert cv2.imread(str(out / row.image_path), cv2.IMREAD_UNCHANGED).shape == shape
        for box in json.loads(row.boxes_json):
            x, y, width, height = box["xywh"]
            assert 0 <= x < x + width <= shape[1]
            assert 0 <= y < y + height <= shape[0]
        for mask in json.loads(row.masks_json):
            pixels = cv2.imread(str(out / mask["path"]), cv2.IMREAD_UNCHANGED)
            assert pixels.shape == shape
            assert set(np.unique(pixels)) <= {0, 255}
        extra = json.loads(row.extra_json)
        assert (extra["sex"], extra["age"]) == (study.sex, study.age)
        assert [q["answer"] for q in extra["questions"]] == [q.answer for q in study.questions]


def test_full_size_pictures_are_as_large_as_real_ones(tmp_path):
    synthetic.write_raw("mimic_cxr", tmp_path / "full", studies=1, seed=0, full_size=True)
    path = next((tmp_path / "full").rglob("*.jpg"))
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (3056, 2544)
    assert 0.9e6 < path.stat().st_size < 2.5e6


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        synthetic.write_raw("folder", tmp_path, studies=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "bad",
    [{"layout": "padchest"}, {"studies": 0}, {"workers": 0}, {"quality": 0}],
)
def test_bad_arguments_are_refused(tmp_path, bad):
    with pytest.raises(UserError):
        synthetic.write_raw(**({"layout": "mimic_cxr", "out": tmp_path / "x", "studies": 1, "seed": 0} | bad))
    assert not any(tmp_path.iterdir())


def test_a_failed_run_leaves_nothing_behind(tmp_path):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_raw("folder", tmp_path / "half", studies=2, seed=0, size=64, progress=stop)
    assert not any(tmp_path.iterdir())
