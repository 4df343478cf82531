"""Open-I: NLM's reports as XML and its PNG files, with Kaggle's tables of reports and projections beside them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from vlp_bench.data.reports import last_section, sections
from vlp_bench.data.synthetic.world import Finding, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_png, write_table

#: the indexers' heading and where it is, of each finding
TAGS = {
    "Atelectasis": "Pulmonary Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Pulmonary Edema",
    "Fracture": "Fractures, Bone/ribs",
    "Lung Lesion": "Nodule/lung",
    "Lung Opacity": "Opacity/lung",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumothorax": "Pneumothorax",
    "Support Devices": "Catheters, Indwelling",
}
SEVERITY = ("", "mild", "moderate", "severe")


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write a report as XML and the images of its study; give its rows of Kaggle's tables."""
    uid = str(int(study.study_id))
    rng = np.random.default_rng([study.images[0].seed, 5])
    told = _sections(study, rng)
    tags = _tags(study, rng)
    rows: Rows = {"projections": []}
    names = []
    serial = int(rng.integers(1, 3000))
    for number, image in enumerate(study.images):
        # series 1 frontal, series 2 lateral, as a rule; the first report's names repeat its number
        series = f"{1 + (image.view == 'LATERAL')}{number + 1:03d}"
        short = f"{uid}_IM-{serial:04d}-{series}"
        names.append(f"CXR{uid}_{short}" if rng.random() < 0.1 else f"CXR{short}")
        save_png(job.root / "NLMCXR_png" / f"{names[-1]}.png", draw(job, image).picture)
        projection = "Lateral" if image.view == "LATERAL" else "Frontal"
        rows["projections"].append({"uid": uid, "filename": f"{short}.dcm.png", "projection": projection})
    _write_xml(job.root / "ecgen-radiology" / f"{uid}.xml", uid, told, tags, names)
    problems = ";".join(dict.fromkeys(tag.partition("/")[0] for tag in tags))
    about = {"uid": uid, "MeSH": ";".join(tags), "Problems": problems, "image": "Xray Chest PA and Lateral"}
    rows["reports"] = [about | {k.lower(): text for k, text in told.items()}]
    return rows


def _sections(study: SyntheticStudy, rng: np.random.Generator) -> dict[str, str]:
    """The four sections, each of them blank in some; words that were taken out are XXXX."""
    found = sections(study.report)
    told = {name.upper(): " ".join(last_section(found, name).split()) for name in ("findings", "impression")}
    hidden = {k: text.replace("seen", "XXXX") if rng.random() < 0.3 else text for k, text in told.items()}
    before = "Comparison XXXX, XXXX." if rng.random() < 0.5 else ""
    return {"COMPARISON": before, "INDICATION": f"{study.age}-year-old {study.sex}, XXXX."} | hidden


def _tags(study: SyntheticStudy, rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.03:
        return ["No Indexing"]
    tags = [_tag(finding) for finding in study.findings if finding.name in TAGS]
    # what is no finding of the world is tagged as well, and changes nothing
    extra = ["Thoracic Vertebrae/degenerative/mild"] if tags and rng.random() < 0.2 else []
    return tags + extra or ["normal"]


def _tag(finding: Finding) -> str:
    where = [] if finding.name == "Support Devices" else [finding.side, SEVERITY[finding.severity]]
    return "/".join([TAGS[finding.name], *(w for w in where if w)])


def _write_xml(path: Path, uid: str, told: dict[str, str], tags: list[str], names: list[str]) -> None:
    root = ElementTree.Element("eCitation")
    ElementTree.SubElement(root, "uId", id=f"CXR{uid}")
    article = ElementTree.SubElement(ElementTree.SubElement(root, "MedlineCitation"), "Article")
    abstract = ElementTree.SubElement(article, "Abstract")
    for label, text in told.items():
        ElementTree.SubElement(abstract, "AbstractText", Label=label).text = text or None
    mesh = ElementTree.SubElement(root, "MeSH")
    for tag in tags:
        ElementTree.SubElement(mesh, "major").text = tag
    for number, name in enumerate(names, start=1):
        image = ElementTree.SubElement(root, "parentImage", id=name)
        ElementTree.SubElement(image, "figureId").text = f"F{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ElementTree.tostring(root, "utf-8", xml_declaration=True))


def write_tables(root: Path, tables: Rows) -> None:
    columns = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    write_table(root / "indiana_reports.csv", tables["reports"], columns=columns)
    write_table(root / "indiana_projections.csv", tables["projections"])
