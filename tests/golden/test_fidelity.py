"""docs/fidelity.md says what the adapters say."""

import dataclasses
from pathlib import Path

import fidelity
import harness
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"

UNKNOWN = f" | {fidelity.UNKNOWN} | "

harness.import_adapters()


def test_the_committed_page_is_that_of_the_adapters(request):
    if request.config.getoption("--fidelity", None):
        pytest.skip("the page is being written")
    committed = PAGE.read_text("utf-8") if PAGE.exists() else ""
    now = fidelity.without_differences(fidelity.page({}))
    assert fidelity.without_differences(committed) == now, f"{PAGE.name} is outdated; write it: {fidelity.COMMAND}"
    assert UNKNOWN not in committed


def test_adapters_and_pending_stems_have_a_file():
    shipped = {harness.load(path).key for path in harness.files(harness.SHIPPED)}
    assert harness.ADAPTERS.keys() | harness.PENDING.keys() == shipped
    assert not harness.ADAPTERS.keys() & harness.PENDING.keys()


def test_the_page_is_refused_unless_every_shipped_file_was_compared(monkeypatch):
    names = [harness.load(path).name for path in harness.files(harness.SHIPPED)]
    tally = harness.Tally({name: (1, 0.0) for name in names[1:]})
    monkeypatch.setattr(harness, "TALLY", tally)
    monkeypatch.delenv("VLP_GOLDEN_DIR", raising=False)
    assert names[0] in fidelity.refusal(passed=True)
    tally.pending[names[0]] = "a reason"
    assert not fidelity.refusal(passed=True)
    assert "failed" in fidelity.refusal(passed=False)
    monkeypatch.setenv("VLP_GOLDEN_DIR", "elsewhere")
    assert "VLP_GOLDEN_DIR" in fidelity.refusal(passed=True)


def test_a_page_is_compared_without_its_differences():
    key = next(iter(harness.ADAPTERS))
    name = next(v.name for v in map(harness.load, harness.files(harness.SHIPPED)) if v.key == key)
    ran, other = fidelity.page({name: 1e-5}), fidelity.page({})
    assert ran != other
    assert fidelity.without_differences(ran) == fidelity.without_differences(other)


@pytest.mark.parametrize(
    "changed", [{"component": "x"}, {"equation": "x"}, {"departure": "x"}, {"compared": ("out_l",)}]
)
def test_a_changed_adapter_changes_the_page(monkeypatch, changed):
    before = fidelity.without_differences(fidelity.page({}))
    adapter = harness.ADAPTERS["mgca/loss_ita"]
    monkeypatch.setitem(harness.ADAPTERS, "mgca/loss_ita", dataclasses.replace(adapter, **changed))
    assert fidelity.without_differences(fidelity.page({})) != before


def test_an_added_file_changes_the_page(monkeypatch, tmp_path):
    (tmp_path / "method").mkdir()
    np.savez(tmp_path / "method" / "unheard_of_a.npz", out_x=np.ones(1))
    monkeypatch.setattr(harness, "SHIPPED", tmp_path)
    assert "| `unheard_of_a` | - | - | pending: neither an adapter nor a reason |" in fidelity.page({})


@pytest.mark.parametrize(
    "error, shown",
    [(0.0, "equal"), (1e-17, "<= 1e-14"), (6e-8, "<= 1e-6"), (1.1e-7, "<= 1e-6"), (2e-6, "<= 1e-5"), (30.0, "<= 1e2")],
)
def test_a_difference_is_rounded_up(error, shown):
    assert fidelity.bound(error) == shown
