"""VQA-RAD: questions by image, the published split of questions, and a split of cases."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.sources.vqa_rad import FILE, read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.errors import UserError

STUDIES, SEED, SIZE = 60, 1, 64


@pytest.fixture(scope="module")
def world():
    return {f"synpic{int(s.study_id)}": s for s in sample_studies(STUDIES, SEED)}


def rows_of(raw: Path) -> list[dict]:
    return json.loads((raw / FILE).read_text("utf-8"))


def write(raw: Path, rows) -> None:
    (raw / FILE).write_text(json.dumps(rows), "utf-8")


def asked(source) -> list[tuple[str, dict]]:
    return [(i.image_id, q) for s in source.studies for i in s.images for q in json.loads(i.extra)["questions"]]


def test_questions_are_those_of_the_world(raw, world, tmp_path):
    source = read(raw)
    assert not source.problems
    assert {s.study_id for s in source.studies} == {
        name for name, s in world.items() if any(i.view != "LATERAL" for i in s.images)
    }
    for study in source.studies:
        true = world[study.study_id]
        assert study.patient_id == true.patient_id
        told = {(q["question"], q["answer"]) for q in json.loads(study.images[0].extra)["questions"]}
        assert told >= {(q.question, q.answer) for q in true.questions}
    assert {q["type"] for _, q in asked(source)} == {"closed", "open"}, "no blank is left at their end"
    prepare(source, tmp_path / "out", Plan(64), private=False)
    store = PreparedData(tmp_path / "out", split="official")
    assert len(store.images) == len(source.studies)
    assert store.manifest["divisions"]["official"]


def test_the_published_split_is_one_of_questions(raw):
    source, rows = read(raw), rows_of(raw)
    (official,) = source.divisions
    assert official.name == "official"
    test = [r for r in rows if r["phrase_type"].startswith("test_")]
    found = Counter((name, q["question"]) for name, q in asked(source) if q["split"] == "test")
    assert found == Counter((Path(r["image_name"]).stem, r["question"]) for r in test)
    parts = {}
    for name, question in asked(source):
        parts.setdefault(name, set()).add(question["split"])
    assert {name: set(where.split()) for name, where in official.parts.items()} == parts
    assert leaks(source, official)["images"] > 0
    # of the training questions a case has none in validation, or all
    held = {}
    for study in source.studies:
        for question in json.loads(study.images[0].extra)["questions"]:
            if question["split"] != "test":
                held.setdefault(study.patient_id, set()).add(question["split"])
    assert {len(parts) for parts in held.values()} == {1}
    assert 0 < sum(parts == {"val"} for parts in held.values()) < len(held) / 3


def test_the_own_split_is_one_of_cases(raw):
    where: dict[str, set[str]] = {}
    for study in read(raw).studies:
        where.setdefault(study.patient_id, set()).add(study.split)
    assert {len(parts) for parts in where.values()} == {1}
    assert {p for parts in where.values() for p in parts} == {"train", "val", "test"}


def test_framed_wordings_of_training_questions_only(raw):
    plain, framed = (
        Counter(q["split"] for _, q in asked(read(raw))),
        Counter(q["split"] for _, q in asked(read(raw, framed=True))),
    )
    rows = rows_of(raw)
    more = sum(r["question_frame"] != "NULL" and not r["phrase_type"].startswith("test") for r in rows)
    assert more > 0
    assert framed["test"] == plain["test"]
    assert framed.total() == plain.total() + more


def test_organs_and_numbers(raw):
    organs = Counter(q["organ"] for _, q in asked(read(raw)))
    assert organs == Counter(r["image_organ"].lower() for r in rows_of(raw))
    assert set(organs) == {"chest", "head", "abd"}
    assert all(isinstance(q["answer"], str) for _, q in asked(read(raw)))


def test_odd_questions_are_listed_and_stop_nothing(copy, raw):
    rows = rows_of(copy)
    rows[0]["answer"], rows[1]["question"], rows[2]["answer"] = " ", "", 2
    gone = rows[-1]["image_name"]
    (copy / "VQA_RAD Image Folder" / gone).unlink()
    write(copy, rows)
    source = read(copy)
    assert [(p.kind, p.lost) for p in source.problems] == [("question", True), ("question", True), ("no file", True)]
    assert "qid 0" in source.problems[0].where
    assert "answer is empty" in source.problems[0].reason
    assert source.problems[2].where == gone
    assert "2" in {q["answer"] for _, q in asked(source)}
    assert len(source.studies) == len(read(raw).studies) - 1


def test_a_folder_in_a_folder_and_other_endings(copy, raw):
    deeper = copy / "osf" / "VQA_RAD"
    deeper.mkdir(parents=True)
    for name in (FILE, "VQA_RAD Image Folder"):
        (copy / name).rename(deeper / name)
    assert [s.study_id for s in read(copy).studies] == [s.study_id for s in read(raw).studies]
    first = sorted((deeper / "VQA_RAD Image Folder").iterdir())[0]
    first.rename(first.with_suffix(".JPG"))
    assert not read(copy).problems


def test_what_is_missing_is_refused(copy):
    rows = rows_of(copy)
    write(copy, [{k: v for k, v in row.items() if k != "answer_type"} for row in rows])
    with pytest.raises(UserError, match=r"lacks answer_type \(it has qid"):
        read(copy)
    for wrong, said in (("{", "cannot be read as JSON"), ("{}", "is no list of questions"), ("[]", "is no list")):
        (copy / FILE).write_text(wrong)
        with pytest.raises(UserError, match=rf"{said}.*osf\.io/89kps"):
            read(copy)
    write(copy, rows)
    shutil.rmtree(copy / "VQA_RAD Image Folder")
    with pytest.raises(UserError, match=r"None of the .* images .*VQA_RAD Image Folder"):
        read(copy)
    (copy / FILE).unlink()
    with pytest.raises(UserError, match=rf"No '{FILE}' in .*osf\.io/89kps"):
        read(copy)


def test_the_same_data_whatever_the_order_of_the_file(copy, raw):
    rows = rows_of(copy)
    by_image = sorted(rows, key=lambda r: r["image_name"])
    write(copy, by_image)
    assert index_hash(read(copy)) == index_hash(read(raw))
