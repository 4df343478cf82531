"""VQA-RAD: the JSON of questions and the folder of JPEG files."""

import json
from pathlib import Path

import numpy as np

from vlp_bench.data.synthetic.world import QA, SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save_jpeg

FILE = "VQA_RAD Dataset Public.json"
#: what is asked about, by the type of a question of the world
ABOUT = {"closed": "PRES", "laterality": "POS", "open": "ABN"}


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    """Write the first frontal image of a study; give a row for each question, and some a second time in other words."""
    image = study.frontal
    if image is None:
        return {"questions": []}
    rng = np.random.default_rng([image.seed, 6])
    name = f"synpic{int(study.study_id)}.jpg"
    save_jpeg(job.root / "VQA_RAD Image Folder" / name, draw(job, image).picture, job.quality)
    # all of them are chests; a few pass for something else, as the real ones are
    organ = ("CHEST", "HEAD", "ABD")[int(rng.choice(3, p=[0.7, 0.15, 0.15]))]
    about = {
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={study.patient_id}",
        "image_name": name,
        "image_organ": organ,
        "evaluation": ("not evaluated", "evaluated", "given")[int(rng.integers(3))],
    }
    rows = []
    for question in study.questions:
        rows.append(_row(about, question, rng, ""))
        if rng.random() < 0.3:
            reworded = QA(f"In this image: {question.question.lower()}", question.answer, question.type)
            rows.append(_row(about, reworded, rng, "para"))
    return {"questions": rows}


def _row(about: dict, asked: QA, rng: np.random.Generator, kind: str) -> dict:
    test = "test_" if rng.random() < 0.2 else ""
    # some answer types end with a blank, some answers are numbers
    closed = asked.answer.lower() in ("yes", "no")
    ending = " " if rng.random() < 0.1 else ""
    frame = f"Tell me: {asked.question.lower()}" if rng.random() < 0.5 else "NULL"
    return {
        "phrase_type": test + (kind or "freeform"),
        **about,
        "question": asked.question,
        "question_rephrase": "NULL",
        "question_frame": frame,
        "question_type": ABOUT.get(asked.type, "OTHER"),
        "answer": int(asked.answer) if asked.answer.isdigit() else asked.answer,
        "answer_type": ("CLOSED" if closed else "OPEN") + ending,
    }


def write_tables(root: Path, tables: Rows) -> None:
    # the first number is a text in the real file, all others are numbers
    rows = [{"qid": n if n else "0"} | row for n, row in enumerate(tables["questions"])]
    (root / FILE).write_text(json.dumps(rows, indent=3), "utf-8")
