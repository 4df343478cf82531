"""VQA-RAD, questions of clinicians on radiographs and sections of MedPix: the only file that knows its layout.

Expected as downloaded from osf.io/89kps, here or in a folder of it:

    VQA_RAD Dataset Public.json    a list of questions: qid, image_name, image_case_url, image_organ, phrase_type,
                                   question, question_frame, question_type, answer, answer_type, ...
    VQA_RAD Image Folder/synpic100132.jpg

The test questions are those whose `phrase_type` begins with `test`, and most of their images have training questions
too. So the published split is one of questions: the division `official` has such an image in several parts, and each
question says in which of them it lies (`split`). The own split is one of cases: whatever is asked on an image, and on
others of its case, lies in one part.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlp_bench.data.divisions import by_hash
from vlp_bench.data.sources._tables import find_below, images
from vlp_bench.data.study import SPLITS, Division, ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError

FILE = "VQA_RAD Dataset Public.json"
ORIGIN = "It comes with VQA-RAD (osf.io/89kps)."
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
#: of the cases with training questions in `official`: it has no validation questions of its own
OFFICIAL = {"train": 0.9, "val": 0.1, "test": 0.0}
PUBLISHED = (
    "phrase_type test_*, as in MEVF and MedViLL: a split of questions, so that images and cases lie in several parts; "
    "a tenth of the training cases is validation, of which it has none"
)


def read(raw_dir: Path, framed: bool = False) -> Source:
    """Index the questions by image; one study an image, one patient a case.

    Args:
        raw_dir: holds the JSON and the folder of images.
        framed: training questions are asked in their framed wording (`question_frame`) as well, where they have one.

    Raises:
        UserError: no JSON, one that is no list of questions, or none of its images.
    """
    problems: list[Problem] = []
    path = find_below(raw_dir, FILE)
    if path is None:
        raise UserError(f"No '{FILE}' in {raw_dir}. {ORIGIN}")
    asked: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for number, row in enumerate(_rows(path)):
        if _complete(row, f"question {number + 1} (qid {row.get('qid')})", problems):
            asked[str(row["image_name"]).strip()].append(row)
    here = images(raw_dir, ".")
    if not any(Path(name).stem in here for name in asked):
        raise UserError(f"None of the {len(asked)} images of {path.name} is under {raw_dir} (VQA_RAD Image Folder).")
    case_of = {name: _case(rows, name) for name, rows in asked.items()}
    own = by_hash(case_of.values(), SHARES)
    held = by_hash(case_of.values(), OFFICIAL)
    studies, parts = [], {}
    for name, rows in sorted(asked.items()):
        stem, case = Path(name).stem, case_of[name]
        if stem not in here:
            problems.append(Problem("no file", name, f"the image of {len(rows)} questions"))
            continue
        questions = [q for row in rows for q in _questions(row, held[case], framed)]
        image = ImageRef(stem, here[stem], extra=json.dumps({"questions": questions}))
        studies.append(Study(stem, case, own[case], (image,), text=""))
        found = {q["split"] for q in questions}
        parts[stem] = " ".join(p for p in SPLITS if p in found)
    divisions = (Division("official", parts, PUBLISHED),)
    return Source("vqa_rad", raw_dir, tuple(studies), (), tuple(problems), divisions)


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). {ORIGIN}") from error
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise UserError(f"{path} is no list of questions. {ORIGIN}")
    needed = ("image_name", "image_organ", "phrase_type", "question", "answer", "answer_type")
    if missing := [key for key in needed if not any(key in row for row in rows)]:
        raise UserError(f"{path} lacks {missing[0]} (it has {', '.join(map(str, rows[0]))}). {ORIGIN}")
    return rows


def _complete(row: Mapping[str, Any], where: str, problems: list[Problem]) -> bool:
    empty = [key for key in ("image_name", "question", "answer", "answer_type") if not str(row.get(key, "")).strip()]
    if empty:
        problems.append(Problem("question", where, f"{empty[0]} is empty"))
    return not empty


def _case(rows: Iterable[Mapping[str, Any]], otherwise: str) -> str:
    """The MedPix case of an image, which may have several images."""
    found = next((str(r["image_case_url"]) for r in rows if r.get("image_case_url")), otherwise)
    return found.rpartition("id=")[2].strip() or otherwise


def _questions(row: Mapping[str, Any], held: str, framed: bool) -> Iterable[dict[str, Any]]:
    test = str(row.get("phrase_type", "")).strip().lower().startswith("test")
    split = "test" if test else held
    texts = [str(row["question"]).strip()]
    frame = str(row.get("question_frame") or "").strip()
    if framed and not test and frame and frame.upper() != "NULL":
        texts.append(frame)
    for text in texts:
        yield {
            "question": text,
            "answer": str(row["answer"]).strip(),
            "type": str(row["answer_type"]).strip().lower(),
            "organ": str(row.get("image_organ", "")).strip().lower(),
            "about": str(row.get("question_type", "")).strip(),
            "split": split,
        }
