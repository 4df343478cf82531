import doctest
import os
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlp_bench.data.reports import sections
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.errors import UserError
from vlp_bench.metrics import labeler as module
from vlp_bench.metrics.labeler import CATEGORIES, RuleLabeler, build_labeler

LABEL = RuleLabeler()
YES, NO, DOUBT = 1, 0, -1
#: sentences with all that they say; "No Finding" is tested by itself
SENTENCES = [
    # affirmed
    ("There is a small left pleural effusion.", {"Pleural Effusion": YES}),
    ("Moderate cardiomegaly.", {"Cardiomegaly": YES}),
    ("The heart is mildly enlarged.", {"Cardiomegaly": YES}),
    ("Stable enlargement of the cardiac silhouette.", {"Cardiomegaly": YES}),
    ("Bibasilar atelectatic changes persist.", {"Atelectasis": YES}),
    ("Complete collapse of the left lung.", {"Atelectasis": YES}),
    ("Right lower lobe consolidation, consistent with pneumonia.", {"Consolidation": YES, "Pneumonia": YES}),
    ("Interstitial oedema has worsened.", {"Edema": YES}),
    ("Pulmonary vascular congestion.", {"Edema": YES}),
    ("Widened mediastinum.", {"Enlarged Cardiomediastinum": YES}),
    ("The cardiomediastinal contours are prominent.", {"Enlarged Cardiomediastinum": YES}),
    ("Healing fractures of the sixth and seventh ribs.", {"Fracture": YES}),
    ("A 9 mm nodule projects over the right apex.", {"Lung Lesion": YES}),
    ("Known lung metastases.", {"Lung Lesion": YES}),
    ("Patchy opacities in both bases.", {"Lung Opacity": YES}),
    ("Right apical pleural thickening.", {"Pleural Other": YES}),
    ("Large tension pneumothorax on the right.", {"Pneumothorax": YES}),
    ("Left hydropneumothorax.", {"Pleural Effusion": YES, "Pneumothorax": YES}),
    ("Endotracheal tube ends above the carina.", {"Support Devices": YES}),
    ("Dual chamber pacemaker and a right PICC are unchanged.", {"Support Devices": YES}),
    ("No change in the right effusion.", {"Pleural Effusion": YES}),
    ("The effusion has not significantly changed.", {"Pleural Effusion": YES}),
    # denied before
    ("No pneumothorax.", {"Pneumothorax": NO}),
    ("There is no evidence of acute fracture.", {"Fracture": NO}),
    ("Lungs are without focal consolidation or edema.", {"Consolidation": NO, "Edema": NO}),
    ("The pleural spaces are free of effusion and pneumothorax.", {"Pleural Effusion": NO, "Pneumothorax": NO}),
    ("Negative for pneumonia.", {"Pneumonia": NO}),
    ("The lungs are clear of infiltrates.", {"Lung Opacity": NO}),
    ("Absence of pleural effusion.", {"Pleural Effusion": NO}),
    (
        "No effusion, consolidation, or pneumothorax.",
        dict.fromkeys(("Pleural Effusion", "Consolidation", "Pneumothorax"), NO),
    ),
    ("Neither nodule nor mass.", {"Lung Lesion": NO}),
    ("No opacity to suggest pneumonia.", {"Lung Opacity": NO, "Pneumonia": NO}),
    ("No displaced rib fracture is seen.", {"Fracture": NO}),
    ("Interval resolution of the edema.", {"Edema": NO}),
    # denied after
    ("Pleural effusion is not seen.", {"Pleural Effusion": NO}),
    ("The previously seen consolidation has resolved.", {"Consolidation": NO}),
    ("Pneumothorax and effusion have completely resolved.", {"Pneumothorax": NO, "Pleural Effusion": NO}),
    ("A fracture was excluded.", {"Fracture": NO}),
    ("The right apical pneumothorax is no longer visible.", {"Pneumothorax": NO}),
    ("Focal opacity is absent.", {"Lung Opacity": NO}),
    # size of heart and mediastinum
    ("The heart is normal in size.", {"Cardiomegaly": NO}),
    ("Heart size is within normal limits.", {"Cardiomegaly": NO}),
    ("The cardiac silhouette is not enlarged.", {"Cardiomegaly": NO}),
    ("Mediastinal contours are unremarkable.", {"Enlarged Cardiomediastinum": NO}),
    ("Normal heart size and mediastinal contours.", {"Cardiomegaly": NO, "Enlarged Cardiomediastinum": NO}),
    ("Heart size is top normal.", {"Cardiomegaly": DOUBT}),
    ("The heart is at the upper limits of normal.", {"Cardiomegaly": DOUBT}),
    ("The heart is unchanged.", {}),
    ("No mediastinal shift.", {}),
    # doubt
    ("Possible small effusion.", {"Pleural Effusion": DOUBT}),
    ("This may represent pneumonia.", {"Pneumonia": DOUBT}),
    ("Right basal opacity, which could represent atelectasis.", {"Lung Opacity": YES, "Atelectasis": DOUBT}),
    ("A tiny pneumothorax cannot be excluded.", {"Pneumothorax": DOUBT}),
    ("Cannot exclude a small nodule.", {"Lung Lesion": DOUBT}),
    ("Superimposed infection is suspected.", {"Pneumonia": DOUBT}),
    ("Questionable consolidation.", {"Consolidation": DOUBT}),
    ("Findings suggest mild edema.", {"Edema": DOUBT}),
    ("There may be a pleural effusion.", {"Pleural Effusion": DOUBT}),
    ("Findings concerning for pneumonia.", {"Pneumonia": DOUBT}),
    # two denials
    ("Pneumonia is not excluded.", {"Pneumonia": DOUBT}),
    ("A fracture has not been ruled out.", {"Fracture": DOUBT}),
    ("Effusion could not be entirely excluded.", {"Pleural Effusion": DOUBT}),
    # scope ends
    ("No pneumothorax, but a small effusion.", {"Pneumothorax": NO, "Pleural Effusion": YES}),
    ("No consolidation; mild edema.", {"Consolidation": NO, "Edema": YES}),
    ("There is no effusion, however there is atelectasis.", {"Pleural Effusion": NO, "Atelectasis": YES}),
    ("Cardiomegaly without edema.", {"Cardiomegaly": YES, "Edema": NO}),
    ("No fracture is seen and an enteric tube is in place.", {"Fracture": NO, "Support Devices": YES}),
    ("The effusion is unchanged and the pneumothorax has resolved.", {"Pleural Effusion": YES, "Pneumothorax": NO}),
    ("No abnormality except for a right nodule.", {"Lung Lesion": YES}),
    ("No effusion, the heart is enlarged.", {"Pleural Effusion": NO, "Cardiomegaly": YES}),
    # what only resembles a finding
    ("Pericardial effusion.", {}),
    ("Normal bone density.", {}),
    ("Massive gastric distension.", {}),
    ("The trachea is midline.", {}),
]  # fmt: skip


def named(report):
    labels = dict(zip(CATEGORIES, LABEL([report])[0].tolist(), strict=True))
    return {name: value for name, value in labels.items() if value == value and name != "No Finding"}


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES, ids=[s for s, _ in SENTENCES])
def test_sentences(sentence, expected):
    assert named(sentence) == expected
    assert named(sentence.upper()) == expected


def test_enough_sentences():
    assert len(SENTENCES) >= 60
    assert {n for _, e in SENTENCES for n in e} == {*CATEGORIES} - {"No Finding"}
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("No effusion. The lungs are clear.", 1),
        ("No effusion. Right chest tube in place.", 1),
        ("Possible effusion.", np.nan),
        ("Cardiomegaly.", np.nan),
        ("", np.nan),
        (" \n", np.nan),
    ],
)
def test_no_finding(report, expected):
    assert LABEL([report])[0, CATEGORIES.index("No Finding")] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_strongest_statement_of_a_report_counts(seed):
    said = ["No effusion.", "Possible effusion.", "Small effusion."]
    order = np.random.default_rng(seed).permutation(3)
    assert named(" ".join(said[i] for i in order)) == {"Pleural Effusion": YES}
    assert named(" ".join(said[i] for i in order if i < 2)) == {"Pleural Effusion": DOUBT}


def test_sentences_of_a_list_and_across_lines():
    assert named("1. No effusion.\n 2. Left\n basilar atelectasis.") == {"Pleural Effusion": NO, "Atelectasis": YES}
    assert named("No pneumothorax\n\nSmall effusion") == {"Pneumothorax": NO, "Pleural Effusion": YES}


def test_no_reports():
    assert LABEL([]).shape == (0, 14)


def test_synthetic_reports_are_read_as_they_were_meant():
    studies = sample_studies(400, 11)
    told = [[s.text for s in sections(study.report) if s.name in ("findings", "impression")] for study in studies]
    kept = [i for i, t in enumerate(told) if t]
    got = LABEL(["\n\n".join(told[i]) for i in kept])
    true = np.array([[np.nan if (v := studies[i].labels[c]) is None else v for c in CATEGORIES] for i in kept])
    same = (got == true) | (np.isnan(got) & np.isnan(true))
    assert len(kept) > 300
    assert same.mean() > 0.999


def test_real_reports():
    root = os.environ.get("VLP_BENCH_REAL_DIR")
    if not root:
        pytest.skip("VLP_BENCH_REAL_DIR is not set")
    path = Path(root) / "data" / "openi_reports_text" / "NLMCXR_reports.tgz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    reports, normal = [], []
    with tarfile.open(path) as archive:
        for member in archive.getmembers()[:1500]:
            if member.name.endswith(".xml"):
                root_element = ElementTree.parse(archive.extractfile(member)).getroot()
                parts = {e.get("Label"): e.text or "" for e in root_element.iter("AbstractText")}
                reports.append(f"{parts.get('FINDINGS', '')} {parts.get('IMPRESSION', '')}")
                normal.append([e.text for e in root_element.iter("major")] == ["normal"])
    labels = LABEL(reports)
    assert set(np.unique(labels[~np.isnan(labels)])) == {-1, 0, 1}
    clear = labels[:, CATEGORIES.index("No Finding")] == 1
    # An indexer's "normal" and no finding are not the same, but near.
    assert clear[normal].mean() > 0.85 > 0.6 > clear[~np.array(normal)].mean()


class FakeNetwork:
    target_names: tuple[str, ...] = tuple(reversed(CATEGORIES))

    def get_label(self, report, mode):
        assert mode == "classification"
        row = [""] * 14
        row[self.target_names.index("Edema")] = 1
        row[self.target_names.index("Pneumonia")] = -1
        return row


def test_chexbert_by_a_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "f1chexbert", SimpleNamespace(F1CheXbert=FakeNetwork))
    labels = build_labeler("chexbert")(["one", "two"])
    assert labels.shape == (2, 14)
    row = {name: v for name, v in zip(CATEGORIES, labels[1].tolist(), strict=True) if v == v}
    assert row == {"Edema": 1, "Pneumonia": -1}


def test_chexbert_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "f1chexbert", None)
    with pytest.raises(UserError, match=r"pip install 'vlp-bench\[chexbert\]'"):
        build_labeler("chexbert")

    def unreachable():
        raise FileNotFoundError("chexbert.pth")

    monkeypatch.setitem(sys.modules, "f1chexbert", SimpleNamespace(F1CheXbert=unreachable))
    with pytest.raises(UserError, match=r"cannot load its network \(chexbert.pth\)"):
        build_labeler("chexbert")


def test_labelers_by_name():
    assert build_labeler("rules")(["Edema."])[0, CATEGORIES.index("Edema")] == 1
    assert build_labeler(LABEL) is LABEL
    with pytest.raises(UserError, match="expected one of rules, chexbert"):
        build_labeler("other")
