"""Drawing lots: patients, their studies, images and findings, all fixed by the seed.

Patient ``i`` of seed ``s`` has random streams of its own, keyed by ``(s, i)``, so it is the same patient however many
others are asked for.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from vlp_bench.data.synthetic.anatomy import Anatomy, sample_anatomy
from vlp_bench.data.synthetic.language import write_questions, write_report
from vlp_bench.data.synthetic.world import (
    DEVICES,
    FINDINGS,
    PREVALENCE,
    ZONES,
    Finding,
    SyntheticImage,
    SyntheticStudy,
)
from vlp_bench.errors import UserError

_CLEAR = 0.10  # studies forced to be normal, on top of those where nothing happened to be drawn
_PERSISTENCE = 0.6  # chance that a finding's presence carries over to the patient's next study
_MOST_STUDIES = 8  # studies of one patient; also the stride of study numbers
_ZONED = frozenset({"Consolidation", "Lung Lesion", "Lung Opacity"})
_UNSIDED = frozenset({"Cardiomegaly", "Support Devices"})
_BILATERAL = {"Edema": 1.0, "Pleural Effusion": 0.3, "Lung Opacity": 0.2, "Atelectasis": 0.2, "Consolidation": 0.1}
_VIEW_SETS = (("PA",), ("PA", "LATERAL"), ("PA", "LATERAL", "LATERAL"), ("PA", "PA", "LATERAL", "LATERAL"))
_PORTABLE_SETS = (("AP",), ("AP", "AP"), ("AP", "LATERAL"))


def sample_studies(studies: int, seed: int) -> list[SyntheticStudy]:
    """Draw studies from as many patients as they need.

    Args:
        studies: How many; the last patient's later studies are left out if they would be too many.
        seed: Non-negative. A longer list of the same seed begins with the shorter one.

    Returns:
        Exactly ``studies`` studies, patient by patient and in the order of time.

    Raises:
        UserError: If ``studies`` or ``seed`` is negative.
    """
    if studies < 0 or seed < 0:
        raise UserError(f"synthetic data: studies={studies}, seed={seed}: give numbers that are not negative")
    found: list[SyntheticStudy] = []
    patient = 0
    while len(found) < studies:
        found.extend(_sample_patient(seed, patient))
        patient += 1
    return found[:studies]


def split_of(patient_id: str) -> str:
    """Give the split of a patient from a hash of the id: about 80 % train, 8 % validate, 12 % test."""
    bucket = int(hashlib.md5(patient_id.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return "train" if bucket < 80 else "validate" if bucket < 88 else "test"


def _sample_patient(seed: int, index: int) -> Iterator[SyntheticStudy]:
    """Yield the studies of one patient, oldest first."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    patient_id = f"1{_scatter(index, seed):07d}"
    sex, age = ("F", "M")[int(rng.integers(2))], int(rng.integers(20, 91))
    anatomy = sample_anatomy(rng, sex)
    day = int(rng.integers(110 * 365, 190 * 365))
    prior: tuple[Finding, ...] | None = None
    for number, findings in enumerate(_course(rng, min(int(rng.geometric(0.5)), _MOST_STUDIES))):
        study_id = f"5{_scatter(index * _MOST_STUDIES + number, seed):07d}"
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, number)))
        images = _sample_images(stream, f"{seed}/{study_id}", anatomy, findings)
        day += int(stream.integers(1, 200))
        views = tuple(image.view for image in images)
        report, labels = write_report(stream, findings, prior, views, sex)
        yield SyntheticStudy(
            study_id=study_id,
            patient_id=patient_id,
            split=split_of(patient_id),
            images=images,
            findings=findings,
            report=report,
            labels=labels,
            truth={name: int(any(f.name == name for f in findings)) for name in FINDINGS},
            questions=write_questions(stream, findings),
            sex=sex,
            age=min(age + number // 3, 90),
            when=_date(day, int(stream.integers(86400))),
        )
        prior = findings


def _course(rng: np.random.Generator, visits: int) -> Iterator[tuple[Finding, ...]]:
    """Yield the findings of each visit: presence and severity drift, place and shape stay."""
    kinds = [_sample_finding(rng, name) for name in FINDINGS]
    rates = np.array([PREVALENCE[name] for name in FINDINGS])
    present = rng.random(len(kinds)) < rates
    severity = rng.choice([1, 2, 3], size=len(kinds), p=[0.3, 0.4, 0.3])
    for _ in range(visits):
        clear = rng.random() < _CLEAR
        yield tuple(
            _with_severity(kind, int(grade))
            for kind, here, grade in zip(kinds, present, severity, strict=True)
            if here and not clear
        )
        stays = rng.random(len(kinds)) < _PERSISTENCE
        present = np.where(stays, present, rng.random(len(kinds)) < rates)
        severity = np.clip(severity + rng.integers(-1, 2, len(kinds)), 1, 3)


def _sample_finding(rng: np.random.Generator, name: str) -> Finding:
    """Draw the place and shape that a finding has in this patient, should it occur."""
    side = "" if name in _UNSIDED else ("left", "right")[int(rng.integers(2))]
    if rng.random() < _BILATERAL.get(name, 0.0):
        side = "bilateral"
    zone = ZONES[int(rng.integers(3))] if name in _ZONED else ""
    devices = tuple(DEVICES[i] for i in rng.permutation(len(DEVICES))) if name == "Support Devices" else ()
    return Finding(name, side, 1, zone, devices, tuple(rng.random(8).tolist()))


def _with_severity(kind: Finding, severity: int) -> Finding:
    """Grade a finding; for devices the grade is how many there are."""
    return Finding(kind.name, kind.side, severity, kind.zone, kind.devices[:severity], kind.jitter)


def _sample_images(
    rng: np.random.Generator, key: str, anatomy: Anatomy, findings: tuple[Finding, ...]
) -> tuple[SyntheticImage, ...]:
    """Draw the views of a study; the sicker patient is more often X-rayed in bed (AP)."""
    bedside = 0.65 if any(f.name == "Support Devices" for f in findings) else 0.3
    views: tuple[str, ...]
    if rng.random() < bedside:
        views = _PORTABLE_SETS[int(rng.choice(3, p=[0.75, 0.15, 0.10]))]
    else:
        views = _VIEW_SETS[int(rng.choice(4, p=[0.25, 0.60, 0.10, 0.05]))]
    images = []
    for number, view in enumerate(views):
        digest = hashlib.sha1(f"{key}/{number}".encode(), usedforsecurity=False).hexdigest()
        image_id = "-".join(digest[start : start + 8] for start in range(0, 40, 8))
        images.append(SyntheticImage(image_id, view, int(rng.integers(2**31)), anatomy, findings))
    return tuple(images)


def _scatter(index: int, seed: int) -> int:
    """Map numbers below ten million one to one onto seven-digit numbers that look random."""
    return (index * 3_719_587 + 4_093_871 * (seed + 1)) % 10_000_000


def _date(day: int, second: int) -> tuple[str, str]:
    """Write a day since 2000 and a second of the day as DICOM date and time."""
    stamp = np.datetime64("2000-01-01") + np.timedelta64(day, "D")
    hour, rest = divmod(second, 3600)
    return str(stamp).replace("-", ""), f"{hour:02d}{rest // 60:02d}{rest % 60:02d}"
