"""What must never be in the repository."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_image_no_table_no_large_file(tracked):
    assert len(tracked) > 100
    published = ROOT / "src" / "vlp_bench" / "published" / "results.csv"  # numbers of papers, no data of anybody
    for path in tracked:
        if path == published:
            continue
        assert path.suffix not in (".jpg", ".jpeg", ".dcm", ".gz", ".tgz", ".csv", ".parquet", ".arrow", ".ckpt"), path
        # recorded numbers do not compress
        assert path.stat().st_size < (1_500_000 if "vectors" in path.parts else 600_000), path


def test_no_registry_and_no_path_of_a_machine(tracked):
    forbidden = ["pypi." + "org", "files." + "pythonhosted", "/home" + "/", "/root" + "/", "/work" + "/"]
    for path in tracked:
        if path.suffix in (".npz", ".png") or "vectors" in path.parts:
            continue
        text = path.read_text("utf-8")
        assert not [word for word in forbidden if word in text], path


def test_constraints_are_names_and_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name
        assert version
        assert " " not in line


def test_notebooks_carry_no_output(tracked):
    notebooks = [p for p in tracked if p.suffix == ".ipynb"]
    assert notebooks
    for path in notebooks:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
