"""The rooms look one way, and nobody but `methods/` and `conf/` knows a method's name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vlp_bench"
FILES = sorted(SOURCE.rglob("*.py"))
#: What each room may import from the package, besides errors and files.
MAY_IMPORT = {
    "types": set(),
    "distributed": set(),
    "precision": set(),
    "optim": set(),
    "losses": {"types", "losses", "distributed"},
    "metrics": {"metrics"},
    "data": {"types", "data", "distributed"},
    "encoders": {"types", "encoders", "data"},
    "methods": {"types", "methods", "encoders", "losses", "optim", "distributed"},
    "tasks": {"types", "tasks", "encoders", "data", "losses", "metrics", "optim"},
    "report": {"report", "metrics", "published", "vocabulary"},
    "published": set(),
    "vocabulary": set(),
    "config": set(),
}
ALWAYS = {"errors", "files", "precision", "__init__"}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_file_is_seen():
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    allowed = MAY_IMPORT.get(room(path))
    if allowed is None:
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "vlp_bench" and len(parts) > 1:
            assert parts[1] in allowed | ALWAYS, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_hydra_lives_in_the_configuration_and_the_engine(path):
    if room(path) not in ("config", "cli", "engine"):
        assert not [m for m in imports(path) if m.split(".")[0] in ("hydra", "omegaconf")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_global_state_is_touched(path):
    text = path.read_text()
    assert ".cuda()" not in text
    # what the switches of the section `compute` are
    assert path.name == "compute.py" or "torch.backends" not in text
    assert "os.chdir" not in text
    assert "sys.path" not in text.replace("editing sys.path", "")
    if path.name != "cli.py":
        assert "sys.argv[:]" not in text
        assert "os.environ[" not in text


def test_nobody_names_a_method():
    methods = [p.stem for p in (ROOT / "conf" / "method").glob("*.yaml")]
    assert "mgca" in methods
    for path in FILES:
        if room(path) in ("methods", "losses", "encoders", "data", "checkpoints"):
            continue
        tree = ast.parse(path.read_text())
        documented = {
            ast.get_docstring(n, clean=False)
            for n in ast.walk(tree)
            if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | set(imports(path))
        for text in (strings - documented) | names:
            assert not [m for m in methods if m in text.lower().replace(".", " ").split()], f"{path}: {text!r}"


def test_functions_fit_on_a_screen():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                documented = len((ast.get_docstring(node) or "").splitlines())
                assert length - documented <= 64, f"{path.name}:{node.name} has {length} lines"
