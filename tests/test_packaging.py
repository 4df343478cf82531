"""The built wheel, alone, in another environment and another directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_carries_what_the_tree_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        assert f"vlp_bench/conf/{path.relative_to(ROOT / 'conf')}" in names
    for path in sorted((ROOT / "docs" / "datasets").glob("*.yaml")):
        assert f"vlp_bench/datasets/{path.name}" in names
    for path in sorted((ROOT / "src" / "vlp_bench").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT / "src")) in names


@pytest.mark.slow
def test_the_wheel_works_from_elsewhere(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    # the dependencies of this environment, without its editable install
    own = Path(next(p for p in sys.path if p.endswith("site-packages")))
    for entry in own.iterdir():
        if (
            "vlp_bench" not in entry.name
            and "distutils-precedence" not in entry.name
            and not (site / entry.name).exists()
        ):
            (site / entry.name).symlink_to(entry)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = "import sys; from vlp_bench.cli import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VLP_BENCH_OUTPUT")}

    def run(*arguments):
        command = [str(venv / "bin" / "python"), "-P", "-c", script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "mgca" in run("config", "list")
    assert "object_cxr" in run("doctor")
    run("pretrain", "trainer=smoke")
    assert list(tmp_path.glob("runs/pretrain/mgca-*/bundle/bundle.json"))
