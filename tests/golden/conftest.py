"""Says at the end of a run how much was compared."""

from typing import Any

from harness import TALLY


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not (TALLY.compared or TALLY.pending):
        return
    terminalreporter.section("golden vectors")
    if terminalreporter.verbosity > 0:
        for name, (arrays, worst) in TALLY.compared.items():
            terminalreporter.line(f"{name}: {arrays} arrays, largest relative error {worst:.1e}")
    arrays = sum(n for n, _ in TALLY.compared.values())
    terminalreporter.line(f"compared {arrays} arrays of {len(TALLY.compared)} files")
    for name, reason in TALLY.pending.items():
        terminalreporter.line(f"pending {name}: {reason}")
