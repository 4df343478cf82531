"""Open-I, the chest radiographs of Indiana University (NLMCXR, also called IU X-ray): the only file that knows it.

Expected under the raw directory, as downloaded; the reports in one of these forms:

    NLMCXR_reports.tgz, or unpacked ecgen-radiology/1.xml ...   of openi.nlm.nih.gov
    indiana_reports.csv                                         Kaggle's copy: uid, MeSH, findings, impression, ...

and the images under it, wherever they lie:

    CXR1_1_IM-0001-3001.png       NLMCXR_png.tgz, unpacked
    1_IM-0001-3001.dcm            NLMCXR_dcm.tgz, unpacked
    1_IM-0001-3001.dcm.png        Kaggle's copy (images/images_normalized)

    indiana_projections.csv       Kaggle's: uid, filename, projection; which views are frontal, nothing else tells it

The labels are those of the indexers (tags "major"), under the names of CheXpert where `TAGS` has a counterpart. What a
study was not tagged with is absent; "borderline" is uncertain; a study with "No Indexing" has no labels.
"""

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlp_bench.data.divisions import by_hash
from vlp_bench.data.sources import _lists
from vlp_bench.data.sources._tables import find, find_below, images, table
from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
SECTIONS = ("comparison", "indication", "findings", "impression")
#: tags that stand for a label: a heading, with a qualifier where the heading alone says too little
TAGS = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged"),
    "Consolidation": ("Consolidation",),
    "Edema": ("Pulmonary Edema", "Pulmonary Congestion"),
    "Enlarged Cardiomediastinum": ("Mediastinum/enlarged",),
    "Fracture": ("Fractures, Bone",),
    "Lung Lesion": ("Nodule", "Mass"),
    "Lung Opacity": ("Opacity", "Airspace Disease", "Infiltrate"),
    "No Finding": ("normal",),
    "Pleural Effusion": ("Pleural Effusion", "Hydropneumothorax", "Hemothorax", "Hemopneumothorax"),
    "Pleural Other": ("Thickening/pleura",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    "Support Devices": (
        "Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Stents", "Tube, Inserted",
    ),
}  # fmt: skip
UNINDEXED = "No Indexing"
VIEWS = {"frontal": "FRONTAL", "lateral": "LATERAL"}


@dataclass(frozen=True, slots=True)
class _Report:
    uid: str
    sections: Mapping[str, str]
    tags: tuple[str, ...]
    #: ids of the images, where the report names them
    images: tuple[str, ...]


def read(raw_dir: Path, complete: bool = True, assume_frontal: bool = False, lists: str | None = None) -> Source:
    """Index the collection; one study a report, and as many patients.

    Args:
        raw_dir: holds reports and images.
        complete: an image that a report names and that is not here counts as lost; False forgives it.
        assume_frontal: without indiana_projections.csv take every view for a frontal one; else it is unknown, and only
            `views=all` uses it.
        lists: a folder or a file of published lists, for the division `lists`: R2Gen's annotation.json, MedViLL's
            Train.jsonl, Valid.jsonl and Test.jsonl, or any other.

    Raises:
        UserError: no reports, no images, a table without a column.
    """
    problems: list[Problem] = []
    files = {_key(stem): path for stem, path in images(raw_dir, ".").items()}
    views = _views(raw_dir)
    reports = list(_xml_reports(raw_dir, problems) or _table_reports(raw_dir, views))
    if not reports:
        raise UserError(
            f"No reports in {raw_dir}: neither NLMCXR_reports.tgz nor ecgen-radiology/*.xml (openi.nlm.nih.gov/faq), "
            "nor indiana_reports.csv (Kaggle)."
        )
    if not any(_key(i) in files for r in reports for i in r.images):
        raise UserError(
            f"No image of the {len(reports)} reports under {raw_dir} (such as CXR1_1_IM-0001-3001.png). Unpack "
            "NLMCXR_png.tgz there."
        )
    if not views and not assume_frontal:
        reason = "no indiana_projections.csv: views are unknown. Put Kaggle's beside it, or use views=all"
        problems.append(Problem("views", str(raw_dir), reason, lost=False))
    splits = by_hash([f"CXR{r.uid}" for r in reports], SHARES)
    studies = []
    for report in sorted(reports, key=lambda r: _numbered(r.uid)):
        refs = tuple(_refs(report, files, views, "FRONTAL" if assume_frontal else "", complete, problems))
        name = f"CXR{report.uid}"
        if refs:
            studies.append(Study(name, name, splits[name], refs, text=_text(report), labels=labels(report.tags)))
        elif not report.images:
            problems.append(Problem("no image", name, "a report without images", lost=False))
    divisions = (_lists.read(Path(lists), _listed_names(studies)),) if lists else ()
    return Source("openi", raw_dir, tuple(studies), tuple(TAGS), tuple(problems), divisions)


def labels(tags: Iterable[str]) -> dict[str, float]:
    """CheXpert's labels from the tags of an indexer: 1, 0, or -1 for what is borderline; none without indexing."""
    parts = [[word.strip() for word in tag.split("/")] for tag in tags if tag.strip()]
    if not parts or any(heading == UNINDEXED for heading, *_ in parts):
        return {}
    found = dict.fromkeys(TAGS, 0.0)
    for label, wanted in TAGS.items():
        for heading, *qualifiers in parts:
            if any(heading == h and (not q or q in qualifiers) for h, _, q in (w.partition("/") for w in wanted)):
                # of two tags the surer one counts
                found[label] = 1.0 if "borderline" not in qualifiers or found[label] == 1 else -1.0
    return found


# Files ----------------------------------------------------------------------------------------------------------------


def _key(stem: str) -> str:
    """One name for an image of whatever copy: CXR10_IM-0002-1001, of NLM's name as of Kaggle's 10_IM-0002-1001.dcm."""
    name = re.sub(r"\.(dcm|png|jpe?g)$", "", stem, flags=re.IGNORECASE)
    # NLM names the first report's images CXR1_1_IM-...
    return re.sub(r"^CXR(\d+)_\1_", r"CXR\1_", name if name.startswith("CXR") else f"CXR{name}")


def _numbered(uid: str) -> tuple[int, str]:
    return (int(uid) if uid.isdigit() else 0, uid)


def _views(raw_dir: Path) -> dict[str, str]:
    path = find_below(raw_dir, "indiana_projections.csv")
    if path is None:
        return {}
    rows = table(path, ["uid", "filename", "projection"], "It is part of Kaggle's copy of the collection.")
    names = (_key(Path(name).stem) for name in rows["filename"])
    return {i: VIEWS.get(v.strip().lower(), "") for i, v in zip(names, rows["projection"], strict=True)}


def _xml_reports(raw_dir: Path, problems: list[Problem]) -> list[_Report]:
    found = []
    for name, content in _xml_files(raw_dir):
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            problems.append(Problem("report", name, f"not XML ({error})"))
            continue
        named = root.find("uId")
        uid = (named.get("id") if named is not None else "") or Path(name).stem
        told = {e.get("Label", "").lower(): " ".join((e.text or "").split()) for e in root.iter("AbstractText")}
        tags = tuple(e.text or "" for e in root.iter("major"))
        shown = tuple(e.get("id", "") for e in root.iter("parentImage"))
        found.append(_Report(uid.removeprefix("CXR"), told, tags, shown))
    return found


def _xml_files(raw_dir: Path) -> Iterator[tuple[str, bytes]]:
    first = find(
        raw_dir, *(f"{p}*.xml" for p in ("ecgen-radiology/", "*/ecgen-radiology/", "*/*/ecgen-radiology/", ""))
    )
    if first is not None:
        yield from ((path.name, path.read_bytes()) for path in sorted(first.parent.glob("*.xml")))
        return
    path = find(raw_dir, "NLMCXR_reports.tgz", "*/NLMCXR_reports.tgz")
    if path is not None:
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".xml") and (file := archive.extractfile(member)):
                        yield member.name, file.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}). Download it again from openi.nlm.nih.gov/faq."
            ) from error


def _table_reports(raw_dir: Path, views: Mapping[str, str]) -> Iterator[_Report]:
    """Kaggle's table; which images belong to a report their names say."""
    path = find_below(raw_dir, "indiana_reports.csv")
    if path is None:
        return
    rows = table(path, ["uid", "MeSH", *SECTIONS], "It is part of Kaggle's copy of the collection.")
    shown: dict[str, list[str]] = {}
    for name in views or {_key(stem) for stem in images(raw_dir, ".")}:
        shown.setdefault(name.partition("_")[0], []).append(name)
    for row in rows.to_dict("records"):
        told = {name: " ".join(row[name].split()) for name in SECTIONS}
        owned = tuple(sorted(shown.get(f"CXR{row['uid']}", ())))
        yield _Report(row["uid"], told, tuple(row["MeSH"].split(";")), owned)


# Studies --------------------------------------------------------------------------------------------------------------


def _refs(
    report: _Report,
    files: Mapping[str, str],
    views: Mapping[str, str],
    otherwise: str,
    complete: bool,
    problems: list[Problem],
) -> Iterator[ImageRef]:
    for image in dict.fromkeys(report.images):
        key = _key(image)
        if key in files:
            yield ImageRef(image, files[key], views.get(key, "" if views else otherwise))
        else:
            problems.append(Problem("no file", image, f"an image of the report CXR{report.uid}", lost=complete))


def _text(report: _Report) -> str:
    """The report with its headers; nothing where it has neither findings nor impression."""
    told = [(name, report.sections.get(name, "")) for name in SECTIONS]
    if not any(text for name, text in told if name in ("findings", "impression")):
        return ""
    return "\n".join(f"{name.upper()}: {text}" for name, text in told if text)


def _listed_names(studies: Iterable[Study]) -> dict[str, list[str]]:
    """Images by the names that lists use: an image's id, a report's number, R2Gen's name of a report."""
    known: dict[str, list[str]] = {}
    for study in studies:
        ids = [i.image_id for i in study.images]
        for image in ids:
            known |= {name: [image] for name in (image, _key(image), _key(image).removeprefix("CXR"))}
            # R2Gen has the first image's name without its last number
            known[image.rpartition("-")[0]] = ids
        known |= dict.fromkeys((study.study_id, study.study_id.removeprefix("CXR")), ids)
    return known
