"""The comparison itself: it must fail when it should."""

import harness
import numpy as np
import pytest


@pytest.fixture
def vector() -> harness.Vector:
    arrays = {
        "in_x": np.ones(2),
        "out_y": np.array([1.0, 200.0], np.float32),
        "grad_y__x": np.array([3.0]),
        "after_n": np.array(4),
        "out_name": np.array(["a", "b"]),
        "mid_z": np.array([5.0]),
        "ref_z": np.array([6.0]),
    }
    return harness.Vector("method", "stem", "a", arrays)


RIGHT = {"out_y": np.array([1.0, 200.0]), "grad_y__x": np.array([3.0]), "after_n": 4, "out_name": ["a", "b"]}


def compare(vector, **changed):
    return harness.compare(vector, RIGHT | changed, harness.default_tolerance)


def test_agreement_counts_every_array(vector):
    assert compare(vector) == (4, 0.0)
    assert compare(vector, mid_z=np.array([5.0])) == (4, 0.0)


def test_tolerance_follows_the_recorded_precision(vector):
    assert compare(vector, out_y=np.array([1.01, 200.0]))[1] == pytest.approx(0.01 / 200)
    with pytest.raises(AssertionError, match="out_y: differs"):
        compare(vector, out_y=np.array([1.03, 200.0]))
    with pytest.raises(AssertionError, match="grad_y__x: differs"):
        compare(vector, grad_y__x=np.array([3.0 + 1e-8]))


def test_the_rounding_of_zero_is_allowed_and_has_no_relative_error():
    vector = harness.Vector("method", "stem", "a", {"grad_y__x": np.array([4e-18])})
    results = {"grad_y__x": np.array([-9e-18])}
    assert harness.compare(vector, results, harness.default_tolerance) == (1, 0.0)


@pytest.mark.parametrize("name", RIGHT)
def test_an_array_left_out_fails(vector, name):
    with pytest.raises(AssertionError, match=f"uncompared.*{name}"):
        harness.compare(vector, {k: v for k, v in RIGHT.items() if k != name}, harness.default_tolerance)


@pytest.mark.parametrize(
    "changed",
    [
        {"out_y": np.array([np.nan, 200.0])},
        {"out_y": np.array([[1.0, 200.0]])},
        {"after_n": 5},
        {"out_name": ["a", "c"]},
        {"out_new": np.ones(1)},
        {"mid_z": np.array([5.1])},
    ],
)
def test_what_is_wrong_fails(vector, changed):
    with pytest.raises(AssertionError):
        compare(vector, **changed)


def test_an_unknown_stem_fails(tmp_path):
    (tmp_path / "method").mkdir()
    np.savez(tmp_path / "method" / "unheard_of_a.npz", out_x=np.ones(1))
    with pytest.raises(AssertionError, match="neither an adapter"):
        harness.check(tmp_path / "method" / "unheard_of_a.npz")


def test_a_result_may_be_called_just_out():
    vector = harness.Vector("method", "stem", "a", {"in_x": np.ones(1), "out": np.ones(2)})
    assert harness.compare(vector, {"out": np.ones(2)}, harness.default_tolerance) == (1, 0.0)
    with pytest.raises(AssertionError, match=r"uncompared.*out"):
        harness.compare(vector, {}, harness.default_tolerance)


def test_json_is_read_like_npz(tmp_path):
    (tmp_path / "some_stem_b.json").write_text('{"out_x": [1, 2], "meta_json": {"n": 1}}')
    vector = harness.load(tmp_path / "some_stem_b.json")
    assert (vector.stem, vector.letter, vector.meta["n"], vector["out_x"].tolist()) == ("some_stem", "b", 1, [1, 2])


def test_a_list_is_one_array_and_an_adapter_says_what_is_compared(tmp_path):
    (tmp_path / "some_stem_b.json").write_text('[{"seed": 1, "drawn": [2]}, {"seed": 2, "drawn": []}]')
    vector = harness.load(tmp_path / "some_stem_b.json")
    cases = vector["cases"].tolist()
    with pytest.raises(AssertionError, match="nothing to compare"):
        harness.compare(vector, {"cases": cases}, harness.default_tolerance)
    assert harness.compare(vector, {"cases": cases}, harness.default_tolerance, ("cases",)) == (1, 0.0)
    with pytest.raises(AssertionError, match="not equal"):
        harness.compare(vector, {"cases": [cases[0], cases[1] | {"drawn": [3]}]}, harness.default_tolerance, ("cases",))


def test_nan_agrees_with_nan_alone():
    both = np.array([np.nan, 1.0])
    assert harness._difference(both, both, 1e-9) == (0.0, "")
    assert harness._difference(np.array([0.0, 1.0]), both, 1e-9)[1]
    assert harness._difference(both, np.array([0.0, 1.0]), 1e-9)[1]
