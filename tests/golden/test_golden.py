"""Every file of golden vectors against the project; `VLP_GOLDEN_DIR` names another folder of them."""

from pathlib import Path

import harness
import pytest

harness.import_adapters()


def test_there_are_vectors():
    assert harness.files(), f"no golden vectors in {harness.folder()}"


@pytest.mark.parametrize("path", harness.files(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path: Path):
    vector = harness.load(path)
    if vector.key in harness.PENDING:
        harness.TALLY.pending[vector.name] = harness.PENDING[vector.key]
        pytest.skip(harness.PENDING[vector.key])
    harness.check(path)
