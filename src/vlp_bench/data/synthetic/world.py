"""Who is X-rayed and what is wrong with them: the words and the records of the synthetic world.

Nothing is drawn here: an image is described by numbers that the renderer turns into pixels.
"""

from dataclasses import dataclass, field

from vlp_bench.data.synthetic.anatomy import Anatomy

CHEXPERT_LABELS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)

#: How often each drawable finding is present before the share of clear studies is taken out.
PREVALENCE: dict[str, float] = {
    "Atelectasis": 0.17,
    "Cardiomegaly": 0.24,
    "Consolidation": 0.14,
    "Edema": 0.15,
    "Fracture": 0.11,
    "Lung Lesion": 0.14,
    "Lung Opacity": 0.15,
    "Pleural Effusion": 0.24,
    "Pneumothorax": 0.13,
    "Support Devices": 0.24,
}
FINDINGS: tuple[str, ...] = tuple(PREVALENCE)

DEVICES: tuple[str, ...] = (
    "endotracheal tube",
    "central venous catheter",
    "enteric tube",
    "pacemaker",
    "chest tube",
)
ZONES: tuple[str, ...] = ("upper", "mid", "lower")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of one study.

    Attributes:
        name: CheXpert name, one of ``FINDINGS``.
        side: The patient's side: ``left``, ``right``, ``bilateral``, or empty where sides mean nothing.
        severity: 1 mild, 2 moderate, 3 severe.
        zone: ``upper``, ``mid`` or ``lower`` lung zone, or empty.
        devices: What is in place, for ``Support Devices`` only.
        jitter: Eight numbers in [0, 1) that fix place and shape; the same in every study of the patient.
    """

    name: str
    side: str
    severity: int
    zone: str
    devices: tuple[str, ...]
    jitter: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QA:
    """A question about the study, answered from what was drawn; ``type`` is closed, laterality or open."""

    question: str
    answer: str
    type: str


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """One radiograph, as numbers; ``render`` turns it into pixels.

    Attributes:
        image_id: Identifier in the style of MIMIC-CXR (five groups of eight hex digits).
        view: ``PA``, ``AP`` or ``LATERAL``.
        seed: Fixes pose, exposure and noise.
        anatomy: The patient's body.
        findings: What is drawn.
    """

    image_id: str
    view: str
    seed: int
    anatomy: Anatomy
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class SyntheticStudy:
    """One visit: its images, the report written about them, and the truth behind both.

    Attributes:
        study_id: Eight digits.
        patient_id: Eight digits, the first of them 1.
        split: ``train``, ``validate`` or ``test``; all studies of a patient share it.
        images: One to four images with the same findings.
        findings: What is drawn.
        report: Raw text with sections, in the layout of the MIMIC-CXR text files; may be empty.
        labels: What a labeler reads in the report, by CheXpert name: 1, 0, -1 (uncertain) or None (not mentioned).
        truth: 1 or 0 for each name of ``FINDINGS``, whatever the report says.
        questions: Questions with answers.
        sex: ``F`` or ``M``.
        age: Years.
        when: Date and time in the style of MIMIC-CXR, such as ``("21630411", "153012")``.
    """

    study_id: str
    patient_id: str
    split: str
    images: tuple[SyntheticImage, ...]
    findings: tuple[Finding, ...]
    report: str
    labels: dict[str, int | None]
    truth: dict[str, int]
    questions: tuple[QA, ...]
    sex: str
    age: int
    when: tuple[str, str] = field(default=("21500101", "120000"))

    @property
    def frontal(self) -> SyntheticImage | None:
        """The image that a data set of single frontal images has of the study."""
        return next((image for image in self.images if image.view != "LATERAL"), None)


def device_side(device: str, jitter: tuple[float, ...]) -> str:
    """Give the patient's side that a device enters from, or an empty text for those in the midline.

    A chest tube lies opposite the central venous catheter; pacemakers are on the left.
    """
    catheter, drain = ("left", "right") if jitter[7] < 0.5 else ("right", "left")
    return {"central venous catheter": catheter, "chest tube": drain, "pacemaker": "left"}.get(device, "")
