import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_bench.data.reports import (
    SELECTIONS,
    clean_alphanumeric,
    conclusion,
    count_words,
    drop_marks,
    last_section,
    one_line,
    section_name,
    sections,
    select_text,
    split_sentences,
    swap_laterality,
)
from vlp_bench.data.store import TextForm
from vlp_bench.errors import UserError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 Heart is normal. No effusion on the left.

 IMPRESSION:

 No acute process.
"""


def test_sections_of_a_report():
    found = sections(REPORT)
    assert [s.name for s in found] == ["preamble", "examination", "findings", "impression"]
    assert last_section(found, "findings") == "Heart is normal. No effusion on the left."
    assert last_section(found, "impression") == "No acute process."
    assert last_section(found, "history") == ""
    assert all(REPORT[s.start :].startswith(s.text) for s in found)


def test_a_capital_word_on_the_line_of_a_header_is_no_header():
    found = sections("\n FINDINGS: CHEST: clear\n IMPRESSION:  fine")
    assert [(s.name, s.text) for s in found[1:]] == [("findings", " CHEST: clear".lstrip()), ("impression", " fine")]


def test_the_last_section_of_a_name_counts_and_empty_ones_do_not():
    assert last_section(sections("\n IMPRESSION:  one\n IMPRESSION:  two\n IMPRESSION: \n"), "impression") == "two"


@pytest.mark.parametrize(
    "header, name",
    [
        ("IMPRESSON", "impression"),
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("IMPRESSION AND PLAN", "impression"),
        ("PORTABLE AP CHEST", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PFI", "history"),
        ("NDICATION", "impression"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("TECHNIQUE", "technique"),
    ],
)
def test_headers_have_one_name(header, name):
    assert section_name(header) == name


def test_policies():
    study = {"findings": "Lungs are clear.", "impression": "Normal."}
    assert one_line(select_text(study, "impression_findings")) == "Normal. Lungs are clear."
    assert one_line(select_text(study, "findings_impression")) == "Lungs are clear. Normal."
    assert select_text(study, "findings") == select_text(study, "longer") == "Lungs are clear."
    assert select_text(study, "impression") == "Normal."
    assert clean_alphanumeric(select_text({}, "impression_findings")) == []


def test_both_sections_are_two_paragraphs_so_that_no_sentence_runs_over():
    study = {"findings": "Lungs are clear", "impression": "No edema"}
    assert split_sentences(select_text(study, "findings_impression")) == ["Lungs are clear", "No edema"]
    assert split_sentences(select_text(study, "impression_findings")) == ["No edema", "Lungs are clear"]


@pytest.mark.parametrize("sections", SELECTIONS)
def test_the_last_paragraph_stands_in_only_where_there_is_nothing_else(sections):
    form = TextForm(sections, "none", fallback="last_paragraph")
    bare = {"findings": "", "impression": " ", "last_paragraph": "Lungs are clear."}
    assert form.sentences(bare) == ["Lungs are clear."]
    assert TextForm(sections, "none").sentences(bare) == []
    assert form.sentences(bare | dict.fromkeys(("findings", "impression"), "No edema.")) in (
        ["No edema."],
        ["No edema."] * 2,
    )


@pytest.mark.parametrize("option", ["sections", "fallback", "clean", "marks", "swap"])
def test_unknown_choices_are_refused(option):
    with pytest.raises(UserError, match=f"{option}=sideways: expected one of"):
        TextForm(**{option: "sideways"})


def test_a_conclusion_by_name_and_by_characters():
    assert conclusion(REPORT, "examination") == "CHEST (PA AND LAT)"
    assert conclusion(REPORT, "recommendations") == ""
    start = REPORT.index("Heart")
    assert conclusion(REPORT, (start - 2, start + 16)) == "Heart is normal."
    assert conclusion(REPORT, (0, 0)) == ""


def test_short_reports_can_be_counted():
    assert count_words(clean_alphanumeric("Normal. Lungs clear.")) == 2


def test_sentences_keep_punctuation_and_decimals():
    assert split_sentences("1. Nodule of 1.5 cm,\n left.  2. Stable; see Dr. X.") == [
        "Nodule of 1.5 cm, left.",
        "Stable; see Dr. X.",
    ]
    assert split_sentences(" \n ") == []


def test_sides_are_swapped_and_swapping_twice_changes_nothing():
    text = "LEFT and right-sided; Left/Right, copyright, leftward"
    assert swap_laterality(text) == "RIGHT and left-sided; Right/Left, copyright, leftward"
    assert swap_laterality(swap_laterality(text)) == text


def test_pieces_of_one_word_are_kept_when_asked():
    assert clean_alphanumeric("Edema. No effusion.") == ["no effusion"]
    assert clean_alphanumeric("Edema. No effusion.", shortest=1) == ["edema", "no effusion"]


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("No effusion 2. Stable heart 3. ___ line out", ["No effusion", "Stable heart", "___ line out"]),
        ("1.Severe arthritis.\n 2.No edema", ["Severe arthritis.", "No edema"]),
        ("1) Edema. 2) No nodule", ["Edema.", "No nodule"]),
        ("Lungs are clear.There is no edema.", ["Lungs are clear.", "There is no edema."]),
        (
            "Told to Dr. ___ at 3 p.m. by Mrs. ___. At 4 p.m. Clear",
            ["Told to Dr. ___ at 3 p.m. by Mrs. ___.", "At 4 p.m.", "Clear"],
        ),
        ("St. Jude valve vs. stent, e.g. in the arch. End", ["St. Jude valve vs. stent, e.g. in the arch.", "End"]),
        ("7 mm nodule. 2 images. 1.4 cm in size", ["7 mm nodule.", "2 images.", "1.4 cm in size"]),
        ("CHEST\n \n No edema\n  or effusion", ["CHEST", "No edema or effusion"]),
        ("At T1. Unchanged since 2009. S.O.B", ["At T1.", "Unchanged since 2009.", "S.O.B"]),
    ],
)
def test_sentences_of_what_radiologists_write(text, sentences):
    assert split_sentences(text) == sentences


# Of any text ----------------------------------------------------------------------------------------------------------

PARTS = ["left", "Right", "LEFT", "bright", "upright", "1.5", "2.", ".", " ", "\n", "\n ", "\n \n ", "___", "XXXX", "é"]
PARTS += ["FINDINGS:", "IMPRESSION: ", "CHEST, TWO VIEWS:", "No edema", "heart", "X", "_", "[TMP]", "-"]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=25).map("".join)


@given(texts)
def test_swapping_words_twice_changes_nothing(text):
    assert swap_laterality(swap_laterality(text)) == text


@given(texts)
def test_swapping_words_leaves_all_other_words_alone(text):
    def others(t):
        return re.sub("(?i)(?<![a-z])(left|right)(?![a-z])", "", t)

    assert others(swap_laterality(text)) == others(text)


def test_marks_are_dropped_from_words():
    study = {"impression": "___F with a line since ___. XXXX-year-old's XXXX."}
    assert TextForm("impression", marks="drop").sentences(study) == ["f with a line since", "year old s"]
    assert TextForm("impression").sentences(study) == ["___f with a line since ___", "xxxx year old s xxxx"]


def test_swapping_letters_slips_where_the_authors_code_does():
    assert swap_laterality("Left: bright, upright on the left [TMP]", "substrings") == (
        "Left: bleft, upleft on the right right"
    )


@given(texts)
def test_what_is_clean_stays_as_it_is(text):
    # Of letters that fall out, a piece may become too short for a second time.
    for piece in clean_alphanumeric(text.encode("ascii", "ignore").decode()):
        assert clean_alphanumeric(piece) == [piece]


@given(texts)
def test_sections_lie_one_behind_the_other_and_cover_the_report(text):
    found = sections(text)
    assert found[0].start == 0 or found[0].name in ("impression", "findings")
    at = 0
    for section in found:
        assert section.start >= at
        at = section.start + len(section.text)
    assert at <= len(text)
    # All that lies between is headers, and sections without a word.
    bare = "".join(text.split())
    if not re.search("[A-Z ()/,-]+:", text):
        assert "".join("".join(s.text.split()) for s in found) == bare


@given(texts)
def test_dropping_marks_leaves_no_mark_and_nothing_else_goes(text):
    assert not re.search("___|XXXX", drop_marks(text))
    assert not any(re.search("___|XXXX", s) for s in TextForm(clean="none", marks="drop").cut(text))
    unmarked = text.replace("_", "").replace("X", "")
    assert drop_marks(unmarked) == unmarked


@given(texts)
def test_sentences_hold_every_word_but_the_numbers_of_lists(text):
    kept = "".join(split_sentences(text))
    letters = re.sub("[^A-Za-z]", "", text)
    assert re.sub("[^A-Za-z]", "", kept) == letters
    assert all(s == one_line(s) for s in split_sentences(text))
