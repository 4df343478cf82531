"""Progress bars with an estimate, on the console only."""

import time
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


#: Seconds between two lines where there is no terminal for a bar.
EVERY = 60.0


@contextmanager
def counted(what: str) -> Iterator[Report]:
    """A bar for one piece of work, shown once the block reports (done, total): work that is done already has none.

    Where there is no terminal, as in a batch job, a line a minute says how long it will still take.
    """
    display = bars()
    task = display.add_task(what, total=None)
    started = said = time.monotonic()
    first: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal first, said
        if console.is_terminal:
            display.start()
            display.update(task, completed=done, total=total)
            return
        now = time.monotonic()
        first = done if first is None else first
        if now - said >= EVERY and done > first:
            said = now
            left = (now - started) / (done - first) * (total - done)
            console.print(f"{what}: {done:,} of {total:,}, {duration(now - started)} gone, about {duration(left)} left")

    try:
        yield report
    finally:
        if display.live.is_started:
            display.stop()


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42), duration(200), duration(7500)
    ('42 s', '3 min', '2 h 5 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
