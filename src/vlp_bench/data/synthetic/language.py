"""What is said about a study: the report, the labels a reader takes from it, and questions with answers.

Every sentence is written about findings in one tone only: it affirms, hedges or denies. The labels are collected while
writing, so they are what a perfect labeler would read in the text, not what was drawn.
"""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from vlp_bench.data.synthetic.pathology import broken_ribs, lesion_radius
from vlp_bench.data.synthetic.world import CHEXPERT_LABELS, DEVICES, FINDINGS, QA, Finding, device_side

T = TypeVar("T")
Labels = dict[str, int | None]

#: Words of which each hedging sentence has at least one.
HEDGES: tuple[str, ...] = ("may", "possible", "possibly", "suspected", "cannot be excluded", "suggest", "questionable")
#: Words of which each denying sentence has at least one.
DENIALS: tuple[str, ...] = ("no", "not", "normal", "without", "resolved", "clear of", "free of", "unremarkable")
#: Terms by which a sentence mentions a label; they match at the beginning of words.
MENTIONS: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("atelecta",),
    "Cardiomegaly": ("cardiomegaly", "heart", "cardiac silhouette"),
    "Consolidation": ("consolidation",),
    "Edema": ("edema",),
    "Enlarged Cardiomediastinum": ("cardiomediastinal", "mediastinal"),
    "Fracture": ("fracture",),
    "Lung Lesion": ("nodule", "mass"),
    "Lung Opacity": ("opacit",),
    "Pleural Effusion": ("effusion", "pleural fluid"),
    "Pleural Other": ("pleural thickening",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothora",),
    "Support Devices": ("tube", "catheter", "pacemaker"),
}

_MILLIMETRES = 390.0  # what the image's side measures in the patient
_HEDGED = (0.0, 0.25, 0.08, 0.03)  # share of findings reported with doubt, by severity
_OMITTED = 0.04
_LUNG_FINDINGS = frozenset({"Atelectasis", "Consolidation", "Edema", "Lung Lesion", "Lung Opacity", "Pneumothorax"})

_AFFIRM = ("There {is_} {np}.", "{Np} {is_} present.", "{Np} {is_} seen.", "{Np} {is_} noted.", "{Np} {is_} visible.")
_HEDGE = (
    "There may be {np}.",
    "Possible {bare}.",
    "{Np} {is_} suspected.",
    "{Np} cannot be excluded.",
    "Findings suggest {np}.",
    "Questionable {bare}.",
)
_NEW = ("There {is_} {new}.", "{New} {is_} seen.", "{New} {has} developed since the previous study.")
_WORSE = ("The {bare} {has} worsened.", "Interval progression of the {bare}.", "Worsening {bare} compared with ___.")
_BETTER = ("The {bare} {has} improved.", "Interval improvement of the {bare}.", "Improving {bare} compared with ___.")
_SAME = ("The {bare} {is_} unchanged.", "Stable {bare}.", "Unchanged {bare} since the previous study.")
_GONE = ("The previously seen {bare} {has} resolved.", "Interval resolution: {bare} {has} resolved since ___.")

_NEGATIONS: tuple[tuple[tuple[str, ...], float, tuple[str, ...]], ...] = (
    # labels denied, how often where all of them are absent, sentences
    (
        ("Pleural Effusion", "Pneumothorax"),
        0.55,
        (
            "There is no pleural effusion or pneumothorax.",
            "No effusion or pneumothorax is seen.",
            "The pleural spaces are free of effusion and pneumothorax.",
        ),
    ),
    (("Pleural Effusion",), 0.3, ("No pleural effusion.", "There is no pleural effusion on either side.")),
    (
        ("Pneumothorax",),
        0.45,
        ("No pneumothorax.", "There is no visible pneumothorax.", "No pneumothorax is detected."),
    ),
    (
        ("Consolidation",),
        0.5,
        ("There is no focal consolidation.", "No consolidation is identified.", "Lungs are without consolidation."),
    ),
    (("Edema",), 0.35, ("No pulmonary edema.", "There is no overt edema.", "Vascularity is normal without edema.")),
    (
        ("Cardiomegaly",),
        0.6,
        (
            "The heart is normal in size.",
            "Heart size is normal.",
            "The cardiac silhouette is not enlarged.",
            "There is no cardiomegaly.",
        ),
    ),
    (
        ("Enlarged Cardiomediastinum", "Cardiomegaly"),
        0.25,
        ("The cardiomediastinal and cardiac silhouettes are normal.", "Normal heart size and mediastinal contours."),
    ),
    (("Enlarged Cardiomediastinum",), 0.3, ("Mediastinal contours are normal.", "Mediastinal widening is not seen.")),
    (("Fracture",), 0.25, ("No displaced rib fracture is seen.", "There is no acute fracture.")),
    (("Lung Lesion",), 0.2, ("No suspicious nodule or mass.", "There is no pulmonary nodule.")),
    (("Atelectasis",), 0.08, ("There is no atelectasis.",)),
    (("Lung Opacity",), 0.15, ("No focal opacity is present.", "There is no new airspace opacity.")),
    (("Pneumonia", "Consolidation", "Lung Opacity"), 0.2, ("No consolidation or opacity to indicate pneumonia.",)),
    (("Pleural Other",), 0.05, ("No pleural thickening is evident.",)),
)

_ASIDES = (
    "Degenerative changes are present in the thoracic spine.",
    "The aorta is tortuous and calcified.",
    "The upper abdomen shows a usual bowel gas pattern.",
    "There is no free air below the diaphragm.",
    "Soft tissues are unremarkable.",
    "Lung volumes are slightly low.",
    "The lungs are well expanded.",
    "The patient is mildly rotated.",
    "Surgical clips project over the right upper quadrant.",
    "The hilar contours are within usual limits.",
    "Dextroconvex scoliosis is incidentally noted.",
    "The trachea is midline.",
)
_COMPLAINTS = (
    "cough",
    "shortness of breath",
    "chest pain",
    "fever and chills",
    "weakness",
    "a fall",
    "hypoxia",
    "recent surgery",
    "a history of smoking",
    "confusion",
)
_NOTHING = (
    "No acute cardiopulmonary process.",
    "No acute intrathoracic abnormality.",
    "Normal chest radiograph.",
    "No evidence of acute disease.",
)


@dataclass(frozen=True, slots=True)
class _Noun:
    """A finding in words; ``number`` is ``one``, ``many`` or ``mass`` (neither article nor plural)."""

    text: str
    number: str = "one"

    def fill(self, frame: str) -> str:
        """Put the noun into a sentence frame."""
        np_, many = _article(self), self.number == "many"
        new = _article(_Noun(f"new {self.text}", self.number))
        return frame.format(
            np=np_,
            Np=_capital(np_),
            bare=self.text,
            new=new,
            New=_capital(new),
            is_="are" if many else "is",
            has="have" if many else "has",
        )


@dataclass(slots=True)
class _Author:
    """Writes sentences and remembers what they say about each label."""

    rng: np.random.Generator
    labels: Labels = field(default_factory=lambda: dict.fromkeys(CHEXPERT_LABELS))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def note(self, label: str, value: int) -> None:
        """Record what a sentence said; saying yes outweighs doubt, and doubt outweighs no."""
        rank = {None: 0, 0: 1, -1: 2, 1: 3}
        if rank[value] > rank[self.labels[label]]:
            self.labels[label] = value


def write_report(
    rng: np.random.Generator,
    findings: tuple[Finding, ...],
    prior: tuple[Finding, ...] | None,
    views: tuple[str, ...],
    sex: str,
) -> tuple[str, Labels]:
    """Write the report of a study.

    Args:
        rng: The study's random stream.
        findings: What was drawn.
        prior: What was drawn in the previous study, or None if there was none.
        views: The views of the study.
        sex: ``F`` or ``M``.

    Returns:
        The raw text in the layout of MIMIC-CXR's files (perhaps empty, perhaps without some sections), and what it
        says about each CheXpert label: 1, 0, -1 or None.
    """
    author = _Author(rng)
    plan = ("full", "no impression", "no findings", "untitled", "empty")
    kind = plan[int(rng.choice(len(plan), p=[0.72, 0.10, 0.12, 0.045, 0.015]))]
    if kind == "empty":
        return "", author.labels
    told = [(f, author.chance(_HEDGED[f.severity])) for f in findings if not author.chance(_OMITTED)]
    told = [told[i] for i in rng.permutation(len(told))]
    sections = _header(author, views, sex, prior is not None)
    if kind in ("full", "no impression"):
        sections.append(("FINDINGS", _findings_text(author, told, findings, prior, views)))
    if kind == "untitled":
        sections.append(("", _findings_text(author, told, findings, prior, views)))
    if kind in ("full", "no findings"):
        sections.append(("IMPRESSION", _impression(author, told, findings)))
    _settle_no_finding(author.labels)
    return _typeset(author, sections), author.labels


def _settle_no_finding(labels: Labels) -> None:
    """Set ``No Finding`` where nothing but devices is affirmed or suspected."""
    others = (value for name, value in labels.items() if name not in ("No Finding", "Support Devices"))
    if all(value in (None, 0) for value in others):
        labels["No Finding"] = 1


def _header(author: _Author, views: tuple[str, ...], sex: str, followed: bool) -> list[tuple[str, str]]:
    """Write what precedes the findings."""
    frontal = views[0]
    two = "LATERAL" in views
    exam = f"CHEST ({frontal} AND LAT)" if two else f"CHEST ({'PORTABLE AP' if frontal == 'AP' else 'PA'})"
    who = author.pick((f"___{sex}", f"___-year-old {'woman' if sex == 'F' else 'man'}", f"___ year old {sex}"))
    why = f"{who} with {author.pick(_COMPLAINTS)}"
    if author.chance(0.4):
        why += author.pick(
            (", evaluate for pneumonia", ", assess for effusion", ", rule out pneumothorax", ", ? edema")
        )
    sections = [("EXAMINATION", exam), (author.pick(("INDICATION", "INDICATION", "HISTORY")), why)]
    if author.chance(0.25):
        sections.append(("TECHNIQUE", "Frontal and lateral views of the chest." if two else "Single frontal view."))
    since = author.pick(("Chest radiograph ___.", "Prior study from ___.", "___."))
    sections.append(("COMPARISON", since if followed else author.pick(("None.", "No prior studies available."))))
    return [s for s in sections if s[0] != "COMPARISON" or author.chance(0.9)]


def _findings_text(
    author: _Author,
    told: list[tuple[Finding, bool]],
    findings: tuple[Finding, ...],
    prior: tuple[Finding, ...] | None,
    views: tuple[str, ...],
) -> str:
    """Write the body: what is there, what has gone, what is not there, and what does not matter."""
    before = {f.name: f for f in prior or ()}
    present = {f.name for f in findings}
    sentences = []
    if author.chance(0.2):
        both = "LATERAL" in views
        sentences.append("Frontal and lateral views were obtained." if both else "A single frontal view was obtained.")
    if prior is not None and author.chance(0.2):
        sentences.append("Comparison is made with the previous study of ___.")
    if not present & _LUNG_FINDINGS and author.chance(0.5):
        sentences.append(author.pick(("The lungs are clear.", "Both lungs are clear.", "Lungs are clear bilaterally.")))
    for finding, hedged in told:
        earlier = before.get(finding.name)
        sentences += _describe(author, finding, hedged, earlier, new=prior is not None and earlier is None)
    sentences += _resolved(author, before, present)
    sentences += _negate(author, present)
    sentences += [author.pick(_ASIDES) for _ in range(int(author.rng.integers(0, 3)))]
    return " ".join(dict.fromkeys(sentences))


def _describe(author: _Author, finding: Finding, hedged: bool, earlier: Finding | None, new: bool) -> list[str]:
    """Write the sentences about one finding that is there."""
    if finding.name == "Support Devices":
        author.note(finding.name, 1)
        return [_noun(author, finding, device).fill(author.pick(_AFFIRM)) for device in finding.devices]
    frames: Sequence[str] = _AFFIRM
    if hedged:
        frames = _HEDGE
    elif earlier is not None and author.chance(0.6):
        change = finding.severity - earlier.severity
        frames = _WORSE if change > 0 else _BETTER if change < 0 else _SAME
    elif new and author.chance(0.4):
        frames = _NEW
    author.note(finding.name, -1 if hedged else 1)
    sentences = [_noun(author, finding).fill(author.pick(frames))]
    if not hedged and frames is _AFFIRM and finding.name == "Cardiomegaly" and author.chance(0.4):
        degree = ("", "mildly", "moderately", "severely")[finding.severity]
        sentences = [
            author.pick(("The heart is {} enlarged.", "The cardiac silhouette is {} enlarged.")).format(degree)
        ]
    return sentences + _pneumonia(author, finding)


def _pneumonia(author: _Author, finding: Finding) -> list[str]:
    """Interpret a consolidation or an opacity, now and then, as pneumonia."""
    if finding.name not in ("Consolidation", "Lung Opacity"):
        return []
    fate = author.rng.random()
    if fate < 0.35:
        author.note("Pneumonia", -1)
        return [author.pick(("This may represent pneumonia.", "Possible pneumonia.", "Pneumonia is suspected."))]
    if fate < 0.55:
        author.note("Pneumonia", 1)
        return [author.pick(("This is consistent with pneumonia.", "The appearance is compatible with pneumonia."))]
    return []


def _resolved(author: _Author, before: dict[str, Finding], present: set[str]) -> list[str]:
    """Write about what the previous study showed and this one does not."""
    sentences = []
    for name, finding in before.items():
        if name not in present and name != "Support Devices" and author.chance(0.5):
            author.note(name, 0)
            sentences.append(_noun(author, finding).fill(author.pick(_GONE)))
    return sentences


def _negate(author: _Author, present: set[str]) -> list[str]:
    """Deny some of what is absent, nothing twice."""
    sentences: list[str] = []
    denied: set[str] = set()
    for labels, share, options in _NEGATIONS:
        if not present & set(labels) and not denied & set(labels) and author.chance(share):
            sentences.append(author.pick(options))
            denied |= set(labels)
            for label in labels:
                if author.labels[label] is None:
                    author.note(label, 0)
    return [sentences[i] for i in author.rng.permutation(len(sentences))]


def _impression(author: _Author, told: list[tuple[Finding, bool]], findings: tuple[Finding, ...]) -> str:
    """Sum up: the findings in short, or that there are none."""
    items = []
    for finding, hedged in told:
        if finding.name == "Support Devices":
            if author.chance(0.4) or len(told) == 1:
                author.note(finding.name, 1)
                listed = " and ".join(f"{_an(device)}" for device in finding.devices)
                items.append(f"{_capital(listed)} in place.")
            continue
        author.note(finding.name, -1 if hedged else 1)
        frames = _HEDGE if hedged else ("{Np}.", "{Bare_}.", "{Np} as described above.")
        noun = _noun(author, finding)
        items.append(noun.fill(author.pick(frames).replace("{Bare_}", _capital(noun.text))))
        items += _pneumonia(author, finding) if author.labels["Pneumonia"] is None else []
    if not {f.name for f in findings} - {"Support Devices"}:
        items.append(author.pick(_NOTHING))
    if len(items) > 1 and author.chance(0.6):
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    return " ".join(items) or "Findings as described above."


def _noun(author: _Author, finding: Finding, device: str = "") -> _Noun:
    """Name a finding with its severity, side and place, in one of several ways."""
    return _NOUNS[finding.name](author, finding, device) if device else _NOUNS[finding.name](author, finding)


def _place(author: _Author, side: str, zone: str) -> str:
    """Name a part of one lung or of both."""
    if side == "bilateral":
        return author.pick((f"the {zone} zones of both lungs", f"both {zone} lungs"))
    lobe = {"upper": f"{side} upper lobe", "lower": f"{side} lower lobe", "mid": "right middle lobe"}[zone]
    if zone == "mid" and side == "left":
        lobe = "lingula"
    return author.pick((f"the {lobe}", f"the {side} {zone} lung", f"the {side} {zone} lung zone"))


def _atelectasis(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("minimal", "mild"), ("moderate",), ("severe", "extensive"))[f.severity - 1])
    if f.side == "bilateral":
        return _Noun(
            author.pick((f"{degree} bibasilar atelectasis", f"{degree} atelectasis at both lung bases")), "mass"
        )
    options = (
        f"{degree} {f.side} basilar atelectasis",
        f"{degree} linear atelectasis at the {f.side} base",
        f"{degree} atelectasis at the {f.side} lung base",
    )
    return _Noun(author.pick(options), "mass")


def _cardiomegaly(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("mild", "borderline"), ("moderate",), ("severe", "marked"))[f.severity - 1])
    return _Noun(author.pick((f"{degree} cardiomegaly", f"{degree} enlargement of the cardiac silhouette")), "mass")


def _consolidation(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("small", "subtle"), ("moderate", "patchy"), ("large", "dense"))[f.severity - 1])
    plural = f.side == "bilateral"
    kind = author.pick(("consolidation", "airspace consolidation"))
    return _Noun(f"{degree} {kind}{'s' * plural} in {_place(author, f.side, f.zone)}", "many" if plural else "one")


def _edema(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("mild", "slight"), ("moderate",), ("severe", "marked"))[f.severity - 1])
    kind = author.pick(("pulmonary edema", "perihilar edema", "interstitial pulmonary edema", "bilateral edema"))
    return _Noun(f"{degree} {kind}", "mass")


def _fracture(author: _Author, f: Finding) -> _Noun:
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    ribs = [names[rib] for rib in broken_ribs(f)]
    if len(ribs) == 1:
        options = (f"fracture of the {f.side} {ribs[0]} rib", f"displaced {f.side} {ribs[0]} rib fracture")
        return _Noun(author.pick(options))
    listed = f"{', '.join(ribs[:-1])} and {ribs[-1]}"
    span = author.pick((f"fractures of the {f.side} {listed} ribs", f"{f.side} {ribs[0]} to {ribs[-1]} rib fractures"))
    return _Noun(author.pick((span, f"displaced {span}")), "many")


def _lesion(author: _Author, f: Finding) -> _Noun:
    centimetres = 2.0 * lesion_radius(f) * _MILLIMETRES / 10.0
    kind = "mass" if f.severity == 3 else author.pick(("nodule", "pulmonary nodule"))
    place = _place(author, f.side, f.zone)
    return _Noun(
        author.pick((f"{centimetres:.1f} cm {kind} in {place}", f"{kind} in {place} measuring {centimetres:.1f} cm"))
    )


def _opacity(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("faint", "subtle"), ("moderate", "patchy"), ("extensive", "large"))[f.severity - 1])
    kind = author.pick(("hazy opacity", "ground glass opacity", "airspace opacity"))
    plural = f.side == "bilateral"
    kind = kind.replace("opacity", "opacities") if plural else kind
    return _Noun(f"{degree} {kind} in {_place(author, f.side, f.zone)}", "many" if plural else "one")


def _effusion(author: _Author, f: Finding) -> _Noun:
    degree = author.pick(
        (("small", "trace", "tiny"), ("moderate", "moderate-sized"), ("large", "sizeable"))[f.severity - 1]
    )
    if f.side == "bilateral":
        return _Noun(f"{degree} bilateral pleural effusions", "many")
    options = (
        f"{degree} {f.side} pleural effusion",
        f"{degree} {f.side}-sided pleural effusion",
        f"{degree} amount of pleural fluid at the {f.side} base",
    )
    return _Noun(author.pick(options))


def _pneumothorax(author: _Author, f: Finding) -> _Noun:
    degree = author.pick((("small", "tiny"), ("moderate", "moderate-sized"), ("large",))[f.severity - 1])
    options = [f"{degree} {f.side} pneumothorax", f"{degree} {f.side}-sided pneumothorax"]
    return _Noun(author.pick(options if f.severity == 3 else [*options, f"{degree} {f.side} apical pneumothorax"]))


def _device(author: _Author, f: Finding, device: str) -> _Noun:
    side = device_side(device, f.jitter)
    options = {
        "endotracheal tube": ("endotracheal tube ending above the carina", "endotracheal tube in standard position"),
        "central venous catheter": (
            f"{side} central venous catheter ending in the superior vena cava",
            f"{side} subclavian catheter with its tip in the lower cava",
        ),
        "enteric tube": ("enteric tube passing below the diaphragm", "nasogastric tube with its tip in the stomach"),
        "pacemaker": ("left chest wall pacemaker with two leads", "left-sided dual lead pacemaker"),
        "chest tube": (f"{side} chest tube", f"{side}-sided chest tube directed to the apex"),
    }
    return _Noun(author.pick(options[device]))


_NOUNS: dict[str, Callable[..., _Noun]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Fracture": _fracture,
    "Lung Lesion": _lesion,
    "Lung Opacity": _opacity,
    "Pleural Effusion": _effusion,
    "Pneumothorax": _pneumothorax,
    "Support Devices": _device,
}


def _article(noun: _Noun) -> str:
    return _an(noun.text) if noun.number == "one" else noun.text


def _an(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou8' else 'a'} {text}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _typeset(author: _Author, sections: Iterable[tuple[str, str]]) -> str:
    """Lay the sections out like a MIMIC-CXR text file: indented by one blank, wrapped, empty lines in between."""
    short = {"EXAMINATION", "INDICATION", "HISTORY", "TECHNIQUE", "COMPARISON"}
    inline = author.chance(0.5)
    blocks = []
    opening = " " * 33 + "FINAL REPORT\n" if author.chance(0.4) else ""
    for title, text in sections:
        if not title:
            blocks.append(_wrap(text))
        elif title in short or inline:
            blocks.append(_wrap(f"{title}:  {text}"))
        else:
            blocks.append(f" {title}: \n \n{_wrap(text)}")
    return opening + "\n \n".join(blocks) + "\n"


def _wrap(text: str) -> str:
    """Wrap each line of a text to 78 characters, keeping the double blank after a section's title."""
    wrapper = textwrap.TextWrapper(78, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


_PLAIN = {
    "Fracture": "rib fracture",
    "Lung Lesion": "lung lesion",
    "Lung Opacity": "lung opacity",
    "Support Devices": "support device",
    "Edema": "pulmonary edema",
}


def write_questions(rng: np.random.Generator, findings: tuple[Finding, ...]) -> tuple[QA, ...]:
    """Ask about a study.

    Args:
        rng: The study's random stream.
        findings: What was drawn.

    Returns:
        Up to two closed questions answered yes and as many answered no, one on laterality, and one or two open ones.
    """
    author = _Author(rng)
    present = [findings[i] for i in rng.permutation(len(findings))]
    absent = [name for name in FINDINGS if name not in {f.name for f in findings}]
    count = min(max(len(present), 1), 2)
    asked = [(f.name, "yes") for f in present[:count]]
    asked += [(absent[i], "no") for i in rng.permutation(len(absent))[:count]]
    questions = [QA(_ask_presence(author, name), answer, "closed") for name, answer in asked]
    for finding in [f for f in present if f.side][:1]:
        questions.append(_ask_side(author, finding))
    return tuple(questions + _ask_open(author, present))


def _plain(name: str) -> str:
    return _PLAIN.get(name, name.lower())


def _ask_presence(author: _Author, name: str) -> str:
    noun = _plain(name)
    thing = _an(noun) if name in {*_PLAIN, "Pleural Effusion", "Pneumothorax"} - {"Edema"} else noun
    return author.pick((f"Is there {thing}?", f"Is {thing} present?", f"Does the image show {thing}?"))


def _ask_side(author: _Author, finding: Finding) -> QA:
    noun = _plain(finding.name)
    frames = (f"Which side is the {noun} on?", f"On which side of the chest is the {noun}?")
    return QA(author.pick(frames), "both" if finding.side == "bilateral" else finding.side, "laterality")


def _ask_open(author: _Author, present: list[Finding]) -> list[QA]:
    """Ask what is seen and, about one finding, where it is, how severe, or which device."""
    seen = ", ".join(sorted(_plain(f.name) for f in present)) or "none"
    questions = [QA(author.pick(("What abnormalities are seen?", "What does the image show?")), seen, "open")]
    for finding in present[:1]:
        noun = _plain(finding.name)
        if finding.devices:
            listed = ", ".join(device for device in DEVICES if device in finding.devices)
            questions.append(QA("Which devices are in place?", listed, "open"))
        elif finding.zone:
            side = "both" if finding.side == "bilateral" else finding.side
            questions.append(QA(f"Where is the {noun}?", f"{side} {finding.zone} lung", "open"))
        else:
            grade = ("mild", "moderate", "severe")[finding.severity - 1]
            questions.append(QA(f"How severe is the {noun}?", grade, "open"))
    return questions
