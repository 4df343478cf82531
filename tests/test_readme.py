"""Every command of the README runs, but for those that it marks as needing real data, a GPU or make itself."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import run_cli

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- not tested here: [^>]*-->\n)?```bash\n(.*?)```", README, re.S)
TESTED = [commands for mark, commands in BLOCKS if not mark]


def commands(block):
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def test_the_blocks_are_found():
    assert len(BLOCKS) >= 7
    assert len(TESTED) >= 4


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
@pytest.mark.parametrize("block", TESTED, ids=range(len(TESTED)))
def test_readme_commands_run(block, somewhere, monkeypatch):
    monkeypatch.chdir(somewhere)
    for words in commands(block):
        assert words[0] == "vlp-bench"
        assert run_cli(*words[1:]) == 0, words


def test_makefile_has_the_targets_that_the_readme_names():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        if target not in ("itself",):
            assert re.search(rf"^{target}:", makefile, re.M), target
