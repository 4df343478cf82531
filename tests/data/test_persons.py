"""Sex and age, as data sets write them."""

import json

import numpy as np
import pytest

from vlp_bench.data.persons import age_of, persons, sex_of


@pytest.mark.parametrize(
    "written, sex", [("F", "F"), ("Female", "F"), ("m", "M"), ("male", "M"), ("Unknown", ""), ("", ""), (None, "")]
)
def test_sex(written, sex):
    assert sex_of(written) == sex


@pytest.mark.parametrize(
    "written, years",
    [("058Y", 58), (58, 58), ("58.0", 58), ("16 month", 16 / 12), ("28yrs", 28), ("3 d", 3 / 365), ("120", 120)],
)
def test_age(written, years):
    assert age_of(written) == pytest.approx(years)


@pytest.mark.parametrize("written", ["", None, "old", "413", "-3", "5 parsecs"])
def test_no_age(written):
    assert np.isnan(age_of(written))


def test_what_readers_keep_becomes_columns():
    kept = ["", json.dumps({"sex": "F", "age": "016 month"}), json.dumps([1]), "{broken", json.dumps({"nih": "x"})]
    table = persons(kept)
    assert table["sex"].tolist() == ["", "F", "", "", ""]
    assert table["age"][1] == 1.0
    assert table["age"].isna().tolist() == [True, False, True, True, True]
