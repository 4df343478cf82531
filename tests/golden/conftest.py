"""Says at the end of a run how much was compared, and writes that down where `--fidelity` asks for it."""

from pathlib import Path
from typing import Any

import fidelity
import pytest
from harness import TALLY

OPTION = "--fidelity"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, metavar="PAGE", help="write what all golden files compare to this page")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption(OPTION, None)
    if path is None:
        return
    if reason := fidelity.refusal(passed=exitstatus == pytest.ExitCode.OK):
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
        TALLY.page = f"ERROR: {path} was not written: {reason}"
    else:
        fidelity.write(path)
        TALLY.page = f"{path} was written"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not (TALLY.compared or TALLY.pending or TALLY.page):
        return
    terminalreporter.section("golden vectors")
    if terminalreporter.verbosity > 0:
        for name, (arrays, worst) in TALLY.compared.items():
            terminalreporter.line(f"{name}: {arrays} arrays, largest relative error {worst:.1e}")
    arrays = sum(n for n, _ in TALLY.compared.values())
    terminalreporter.line(f"compared {arrays} arrays of {len(TALLY.compared)} files")
    for name, reason in TALLY.pending.items():
        terminalreporter.line(f"pending {name}: {reason}")
    if TALLY.page:
        terminalreporter.line(TALLY.page)
