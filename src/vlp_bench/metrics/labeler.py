r"""The 14 findings of CheXpert as a report states them: 1 affirmed, 0 denied, -1 uncertain, nan not mentioned.

A labeler is any function from N reports to float64 (N, 14). `RuleLabeler` works anywhere and is the default;
`chexbert` is the network of Smit et al. (EMNLP 2020), of a package that has to be installed.

The rules, in the spirit of NegEx (Chapman et al., 2001) and of CheXpert's labeler (Irvin et al., 2019), with words of
our own: a sentence is cut where scope ends ("but", "however", ";", "there is", ...). A finding that a clause mentions
is denied or doubted by the nearest cue before it ("no", "without", "may represent") or by one that follows it in the
same predicate ("is not seen", "cannot be excluded"). Over a report the strongest statement counts: affirmed, then
uncertain, then denied. Nothing affirmed or doubted but devices is `No Finding`. What the rules do not do: more than one
grammatical subject to a predicate, spelling mistakes, reports without any sentence ends (scope may then run on).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlp_bench.errors import UserError

CATEGORIES = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip

#: from N reports to float64 (N, 14): 1, 0, -1 or nan for each of CATEGORIES
Labeler = Callable[[Sequence[str]], NDArray[np.float64]]

#: phrases that name a finding
_PHRASES = {
    "Atelectasis": r"atelecta\w+|(?:lung|lobar|lobe) collapse|collapse of the (?:\w+ ){0,2}(?:lung|lobe)",
    "Cardiomegaly": r"cardiomegaly|enlarged heart|cardiac enlargement",
    "Consolidation": r"consolidat\w+",
    "Edema": r"o?edema(?:tous)?|vascular (?:congestion|engorgement)|heart failure|(?:fluid|volume) overload|chf",
    "Enlarged Cardiomediastinum": r"mediastinal (?:widening|enlargement)|widened mediastinum",
    "Fracture": r"fractur\w+",
    "Lung Lesion": r"nodul(?:es?|ar\w*)|mass(?:es)?|(?:lung|pulmonary|parenchymal|cavitary) lesions?|tumou?rs?"
    r"|neoplasms?|metasta\w+|malignancy",
    "Lung Opacity": r"opaci\w+|infiltrat\w+|airspace disease|(?:interstitial|reticular) markings?"
    r"|(?<!bone )(?<!bony )densit(?:y|ies)",
    "Pleural Effusion": r"(?<!pericardial )effusions?|pleural fluid|(?:hydropneumo|hydro|ha?emo)thorax",
    "Pleural Other": r"pleural (?:thickening|scarring|plaques?|calcifications?|fibrosis)|thickening of the pleura"
    r"|fibrothorax",
    "Pneumonia": r"(?:broncho)?pneumonias?|infecti(?:on|ous)\w*",
    "Pneumothorax": r"(?:hydro)?pneumothora(?:x|ces)",
    "Support Devices": r"tubes?|catheters?|picc|(?:central|venous|arterial|subclavian|jugular|swan ganz) lines?"
    r"|pacemakers?|pacer|pacing (?:wires?|leads?)|defibrillators?|icd|stents?|port a cath|sternal wires"
    r"|(?:spinal|surgical|fixation) hardware|prosthe(?:sis|tic)\w*|balloon pump|drains?",
}  # fmt: skip
#: anatomy whose size is the finding: large is 1, normal is 0, neither is no statement
_ANATOMY = {
    "Cardiomegaly": r"heart|cardiac (?:silhouettes?|size|contours?|shadow)|cardiac and mediastinal"
    r"|cardiomediastinal and cardiac",
    "Enlarged Cardiomediastinum": r"(?:cardio)?mediastin(?:um|al)(?! shift)",
}
_LARGE = r"enlarge(?:d|ment)|widen(?:ed|ing)|prominen(?:t|ce)|big|increased in size"
_USUAL = r"normal|unremarkable|not remarkable|within (?:normal|usual) limits|of (?:normal|usual) size"
_BETWEEN = r"borderline|top normal|upper limits? of normal|upper normal|high normal"

#: cues, the first that matches at a place is taken: what looks like a denial and is none, then doubt, then denial
_SEEN = r"(?:clearly |definitely |well )?(?:seen|identified|detected|visuali[sz]ed|evident|present|noted|demonstrated"
_SEEN += r"|visible|apparent|appreciated|found|observed|shown)"
_EXCLUDED = r"(?:be )?(?:entirely |completely |definitively |fully )?(?:excluded|ruled out)"
_CUES = (
    ("none", r"no(?:t)? (?:\w+ )?(?:chang\w+|different|increased?|decreased?|worse\w*)(?: (?:in|of))?|not only|no doubt"
     r"|normal in number"),
    ("doubted", rf"(?:can ?not|could not|may not|is not|are not|ha(?:s|ve) not been|not) {_EXCLUDED}"
     rf"|(?:is|are) (?:possible|suspected|questioned|questionable|uncertain|unlikely|likely)"
     rf"|(?:may|might|could) be {_SEEN}"),
    ("doubt", r"may (?:represent|reflect|indicate|be|have|also|still)|might|could (?:represent|reflect|be|indicate)"
     r"|possib(?:le|ly)|questionable|question of|suspected|suspicious for|suspicion (?:of|for)|concern(?:ing)? for"
     r"|(?:can ?not|could not) (?:exclude|rule out)|versus|vs|rule out|evaluate for|probabl[ey]|presumed|likely|perhaps"
     r"|equivocal|less likely|unlikely|potential(?:ly)?|differential includes|not excluded"),
    ("hint", r"suggest(?:s|ing|ive of|ed)?|to indicate|indicating"),
    ("denied", rf"(?:is|are|was|were|be|been)? ?(?:not|no longer) (?:{_SEEN})|(?:has|have|had)? ?(?:now )?"
     r"(?:completely |entirely |fully )?resolved|(?:is|are|was|were) (?:now )?absent"
     rf"|(?:is|are|was|were|has been|have been) {_EXCLUDED}"),
    ("deny", r"no|not|without|never|negative for|absen(?:ce|t)(?: of)?|free (?:of|from)|clear of|lack of|rather than"
     r"|nor|neither|denies|resolution of|resolved|exclude[sd]?|ruled out"),
)  # fmt: skip
_AFTER = {"doubted": -1, "denied": 0}
_BEFORE = {"doubt": -1, "hint": -1, "deny": 0, "denied": 0}

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\D)|(?<=[a-z])\.(?=\s|$)|\n\s*\n|(?:^|\s)\d+[.)]\s+")
_CLAUSE = re.compile(
    r"[;:]|,? \b(?:but|however|although|though|except(?: for)?|aside from|apart from|other than|besides|whereas|while"
    r"|yet|with the exception of)\b|, (?=(?:there|the|an?|with|this|these)\b)| (?=there (?:is|are|may|was|were|has)\b)"
    r"|(?<= )and (?=(?:the|there|an?)\b)"
)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|remains?|appears?)\b")
#: a predicate has ended: "is seen and ..."
_OVER = re.compile(rf"{_VERB.pattern}.*(?:\band\b|,)")


def _whole(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b")


_FINDINGS = {name: _whole(pattern) for name, pattern in _PHRASES.items()}
_PARTS = {name: _whole(pattern) for name, pattern in _ANATOMY.items()}
_STATES = _whole(f"(?P<between>{_BETWEEN})|(?P<large>{_LARGE})|(?P<usual>{_USUAL})")
_CUE = _whole("|".join(f"(?P<{name}>{pattern})" for name, pattern in _CUES))


class _Cue(NamedTuple):
    kind: str
    start: int
    end: int


class RuleLabeler:
    """The rules of this module.

    >>> labels = RuleLabeler()(["No effusion. Possible pneumonia. The heart is enlarged."])[0]
    >>> {name: value for name, value in zip(CATEGORIES, labels.tolist()) if value == value}
    {'Cardiomegaly': 1.0, 'Pleural Effusion': 0.0, 'Pneumonia': -1.0}
    """

    def __call__(self, reports: Sequence[str]) -> NDArray[np.float64]:
        """Label N reports: float64 (N, 14) of 1, 0, -1 and nan; an empty report is all nan."""
        return np.array([_label(report) for report in reports], np.float64).reshape(len(reports), len(CATEGORIES))


#: which statement counts where a report makes several
_STRENGTH = {0: 1, -1: 2, 1: 3}


def _label(report: str) -> list[float]:
    said: dict[str, int] = {}
    for clause in _clauses(report):
        for name, value in _statements(clause):
            if name not in said or _STRENGTH[value] > _STRENGTH[said[name]]:
                said[name] = value
    if report.strip() and all(v == 0 for n, v in said.items() if n != "Support Devices"):
        said["No Finding"] = 1
    return [float(said.get(name, np.nan)) for name in CATEGORIES]


def _clauses(report: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(report.lower()):
        flat = re.sub(r"[^\w\s,;:?]|_", " ", sentence.replace("can't", "cannot"))
        flat = " ".join(flat.split()).replace(" ,", ",")
        held = ""
        for piece in _CLAUSE.split(flat):
            # Without a verb it is a list that goes on: "the heart and the mediastinum are normal".
            joined = f"{held} and {piece.strip()}" if held else piece.strip()
            held = "" if _VERB.search(joined) or not joined.startswith(("the ", "a ", "an ")) else joined
            if not held:
                yield joined
        if held:
            yield held


def _statements(clause: str) -> Iterator[tuple[str, int]]:
    """Every finding of a clause with what is said of it."""
    cues = [_Cue(m.lastgroup or "", m.start(), m.end()) for m in _CUE.finditer(clause)]
    for name, pattern in _FINDINGS.items():
        for mention in pattern.finditer(clause):
            yield name, _value(clause, mention.start(), mention.end(), cues)
    states = list(_STATES.finditer(clause))
    for name, pattern in _PARTS.items():
        for part in pattern.finditer(clause) if states else ():
            start, end = part.span()
            nearest = min(states, key=lambda s: max(s.start() - end, start - s.end(), 0))
            if nearest.lastgroup == "large":
                yield name, _value(clause, nearest.start(), nearest.end(), cues)
            else:
                yield name, {"usual": 0, "between": -1}[str(nearest.lastgroup)]


def _value(clause: str, start: int, end: int, cues: list[_Cue]) -> int:
    """What the cues of the clause make of the mention between start and end."""
    for cue in cues:
        # A second verb in between begins another predicate.
        if cue.start >= end and cue.kind in _AFTER and not _VERB.search(clause[end : cue.start]):
            return _AFTER[cue.kind]
    before = [c for c in cues if c.end <= start and c.kind in _BEFORE and not _OVER.search(clause[c.end : start])]
    # "no opacity to suggest pneumonia" denies both.
    strong = [c for c in before if c.kind != "hint"] or before
    return _BEFORE[strong[-1].kind] if strong else 1


def chexbert() -> Labeler:
    """CheXbert (Smit et al., 2020) as the package f1chexbert runs it.

    Raises:
        UserError: the package is not installed, or its weights are neither in its cache nor to be had.
    """
    try:
        from f1chexbert import F1CheXbert
    except ImportError as error:
        raise UserError("task.labeler=chexbert needs a package: pip install 'vlp-bench[chexbert]'.") from error
    try:
        network = F1CheXbert()
    except OSError as error:
        raise UserError(
            f"task.labeler=chexbert cannot load its network ({error}). It needs bert-base-uncased, and chexbert.pth of "
            "StanfordAIMI/RRG_scorers where the package f1chexbert looks for it."
        ) from error
    order = [network.target_names.index(name) for name in CATEGORIES]

    def label(reports: Sequence[str]) -> NDArray[np.float64]:
        rows = [network.get_label(report, mode="classification") for report in reports]
        values = [[np.nan if row[i] == "" else float(row[i]) for i in order] for row in rows]
        return np.array(values, np.float64).reshape(len(reports), len(CATEGORIES))

    return label


LABELERS: dict[str, Callable[[], Labeler]] = {"rules": RuleLabeler, "chexbert": chexbert}


def build_labeler(labeler: str | Labeler) -> Labeler:
    """A labeler by its name, or one that is one already.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    if not isinstance(labeler, str):
        return labeler
    if labeler not in LABELERS:
        raise UserError(f"task.labeler={labeler}: expected one of {', '.join(LABELERS)}, or a function.")
    return LABELERS[labeler]()
