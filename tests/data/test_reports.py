import pytest

from vlp_bench.data.reports import (
    clean_alphanumeric,
    count_words,
    last_section,
    section_name,
    sections,
    select_text,
    split_sentences,
    swap_laterality,
)
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
    assert select_text(study, "impression_findings") == "Normal. Lungs are clear."
    assert select_text(study, "findings") == select_text(study, "longer") == "Lungs are clear."
    assert select_text(study, "impression") == "Normal."
    assert clean_alphanumeric(select_text({}, "impression_findings")) == []
    with pytest.raises(UserError, match="sections=both"):
        select_text(study, "both")


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
