"""Radiology reports as strings: sections, cleaning, sentences, sides. Neither torch nor files here.

The rules for sections are those by which MIMIC-CXR's own `create_section_files` (MIT-LCP/mimic-cxr) cuts its reports,
so that a section here is the section that other work on MIMIC-CXR reads.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Section(NamedTuple):
    """One section of a report; `start` is where its text begins in the report."""

    name: str
    text: str
    start: int


_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
#: what stands between the paragraphs of a report
PARAGRAPH = "\n \n"

#: section names as they are written, by what they mean; names that only need their own spelling are left out
_SPELLINGS = {
    "impression": (
        "conclusion, findings and impression, findings/impression, findings/ impression, ndication, impresson, "
        "imprression, imoression, impressoin, imprssion, impresion, imperssion, mpression, impession"
    ),
    "findings": (
        "chest, two views | finding | findins | findindgs | findgings | findngs | findnings | finidngs | "
        "reference findings"
    ),
    "comparison": (
        "comparisons, reference exam, comparison exam, comparison film, comparision, comparsion, comparrison, "
        "comparisions"
    ),
    "indication": "reason for examination, reason for exam, clinical indication, idication",
    "history": "clinical history, clinical information, patient history, pfi",
    "examination": "exam, type of examination",
    "recommendations": "recommendation(s), recommendation",
    "wet read": "wetread",
}
_MEANING = {
    spelling.strip(): name
    for name, listed in _SPELLINGS.items()
    for spelling in listed.split("|" if "|" in listed else ",")
}
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
#: a header that describes the pictures taken opens the findings
_VIEWS = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|"
    "pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)


def section_name(header: str) -> str:
    """What a header means.

    >>> [section_name(h) for h in ("IMPRESSON", "PORTABLE AP", "ADDENDUM BY RADIOLOGIST", "NOTIFICATION")]
    ['impression', 'findings', 'addendum', 'notification']
    """
    name = header.lower()
    if name in _MEANING:
        return _MEANING[name]
    for main in _CONTAINED:
        if main in name:
            return main
    return "findings" if _VIEWS.search(name) else name


def sections(text: str) -> list[Section]:
    """Cut a report at its headers.

    What stands before the first header is the `preamble`; a report without any is one `full report`. Empty impressions
    and findings are dropped. Where neither is left, the last section is cut after its first paragraph and the rest
    called `last_paragraph`.
    """
    header = _HEADER.search(text)
    if header is None:
        found = [Section("full report", text, 0)]
    else:
        found = [Section("preamble", text[: header.start(1)], 0)]
    while header is not None:
        start = header.end()
        # What follows a header on its line is never a header.
        newline = text.find("\n", start)
        following = _HEADER.search(text, newline if newline >= 0 else start)
        end = following.start() if following else len(text)
        found.append(Section(section_name(header[1]), text[start:end], start))
        header = following
    found = [s for s in found if s.text.strip() or s.name not in ("impression", "findings")]
    return found if any(s.name in ("impression", "findings") for s in found) else _with_last_paragraph(found)


def _with_last_paragraph(found: list[Section]) -> list[Section]:
    last = found[-1]
    first, gap, rest = last.text.partition(PARAGRAPH)
    if not gap:
        return found
    return [*found[:-1], last._replace(text=first), Section("last_paragraph", rest, last.start + len(first))]


def last_section(found: Iterable[Section], name: str) -> str:
    """The stripped text of the last section of that name, or nothing."""
    return next((s.text.strip() for s in reversed(list(found)) if s.name == name), "")


def conclusion(text: str, place: str | tuple[int, int]) -> str:
    """The stripped text of a section, or from one character to another, where no rule finds what a report concludes."""
    return last_section(sections(text), place) if isinstance(place, str) else text[slice(*place)].strip()


#: what a method may read of a report: the sections, in their order
SELECTIONS = {
    "impression_findings": ("impression", "findings"),
    "findings_impression": ("findings", "impression"),
    "findings": ("findings",),
    "impression": ("impression",),
    "longer": ("findings", "impression"),
}


def select_text(study: Mapping[str, str], policy: str, fallback: str = "none") -> str:
    """The part of a report that a method reads; sections are paragraphs.

    Args:
        study: has `findings` and `impression`, and `last_paragraph` for the fallback.
        policy: one of SELECTIONS; `longer` is one of the two sections, all others are what they say.
        fallback: `last_paragraph` takes that where there would be nothing.
    """
    parts = [study.get(name) or "" for name in SELECTIONS[policy]]
    text = max(parts, key=len) if policy == "longer" else PARAGRAPH.join(filter(str.strip, parts))
    return (study.get("last_paragraph") or "") if fallback == "last_paragraph" and not text.strip() else text


def drop_marks(text: str) -> str:
    """Without the marks of what was taken out so that nobody is recognised: `___` of MIMIC-CXR, `XXXX` of Open-I.

    >>> drop_marks("Seen with Dr. ___ of XXXX's team")
    'Seen with Dr.   of   team'
    """
    return _MARK.sub(" ", text)


_MARK = re.compile(r"(?:_{3,}|X{4,})(?:'s\b)?")


def clean_alphanumeric(text: str, shortest: int = 2) -> list[str]:
    r"""Sentences in lower case without punctuation, by the rules of GLoRIA and MGCA (supplement A.1).

    A number with a point after it ends a sentence, as in a numbered list (and, for want of better, inside 1.5); pieces
    of fewer words than `shortest` are dropped; what is not ASCII is removed.

    >>> clean_alphanumeric("1. Stable cardiomegaly.  2. Left-sided PICC. Unchanged.")
    ['stable cardiomegaly', 'left sided picc']
    """
    pieces = re.split(r"[0-9]*\.", text.replace("\n", " "))
    words = [re.findall(r"\w+", piece.replace("\ufffd\ufffd", " ").lower()) for piece in pieces]
    ascii_words = [[w.encode("ascii", "ignore").decode() for w in ws] for ws in words if len(ws) >= shortest]
    return [" ".join(filter(None, ws)) for ws in ascii_words if any(ws)]


def count_words(sentences: Iterable[str]) -> int:
    """How many words, for leaving out reports with too few."""
    return sum(len(s.split()) for s in sentences)


def split_sentences(text: str) -> list[str]:
    """Sentences with their punctuation and case; the numbers of a list are dropped, decimals kept whole.

    A sentence ends at the end of a paragraph, before the next number of a list, and at a full stop, also at one without
    a blank after it.

    >>> split_sentences("1. Heart is 1.5 times normal 2. Dr. X was told!No edema")
    ['Heart is 1.5 times normal', 'Dr. X was told!', 'No edema']
    """
    paragraphs = [one_line(p) for p in _GAP.split(text)]
    items = [item.strip() for p in paragraphs for item in _LIST_NUMBER.split(p)]
    return [s for item in items for s in _END.split(item) if re.search("[A-Za-z]", s)]


def one_line(text: str) -> str:
    r"""With single blanks for all white space.

    >>> one_line(" Heart\n  is normal. ")
    'Heart is normal.'
    """
    return " ".join(text.split())


_GAP = re.compile(r"\n\s*\n")
_LIST_NUMBER = re.compile(r"(?:^|(?<=\s))\d{1,2}[.)]\s*(?=[A-Z_])")
_END = re.compile(
    r"(?<=[.!?])(?<!\b(?:Dr|Mr|Ms|St|vs)\.)(?<!\b(?:Drs|Mrs|e\.g|i\.e)\.)(?<![ap]\.m\.(?= [a-z])) "
    r"|(?<=[a-z]{2}[.!?])(?=[A-Z][a-z])"
)
#: how left and right are told apart in a report: as words in any case, or as lower-case letters anywhere (REFERS' code)
SWAPS = ("words", "substrings")
_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


def swap_laterality(sentence: str, rule: str = "words") -> str:
    """Left for right and right for left; `words` in the case in which they stand, `substrings` as REFERS' code does.

    >>> swap_laterality("Left-sided PICC; RIGHT lung clear, lefty")
    'Right-sided PICC; LEFT lung clear, lefty'
    >>> swap_laterality("Left upright, bright on the left", "substrings")
    'Left upleft, bleft on the right'
    """

    def swapped(match: re.Match[str]) -> str:
        other = _SIDES[match[0].lower()]
        return other.upper() if match[0].isupper() else other.capitalize() if match[0][0].isupper() else other

    if rule == "substrings":
        # by way of a mark that a report should not have
        for old, new in (("left", "[TMP]"), ("right", "left"), ("[TMP]", "right")):
            sentence = sentence.replace(old, new)
        return sentence
    return _SIDE.sub(swapped, sentence)
