"""Progress bars with an estimate, on the console only."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlp_bench.files import Progress as Report

console = Console(stderr=True)
if not console.is_terminal:
    # a log file has no width of its own; tables should not be cut for it
    console = Console(stderr=True, width=140)


def bars() -> Progress:
    """A progress display with elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def counted(what: str) -> Iterator[Report]:
    """A bar for one piece of work, shown once the block reports (done, total): work that is done already has none."""
    display = bars()
    task = display.add_task(what, total=None)

    def report(done: int, total: int) -> None:
        display.start()
        display.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if display.live.is_started:
            display.stop()
