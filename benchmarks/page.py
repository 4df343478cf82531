"""Tables in the pages under docs/."""

from collections.abc import Sequence
from pathlib import Path

START, END = "<!-- table -->\n", "<!-- end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def put(page: Path, text: str) -> None:
    """Put the text between the marks of the page, in the place of what is there."""
    before, _, rest = page.read_text("utf-8").partition(START)
    page.write_text(f"{before}{START}{text}\n{END}{rest.partition(END)[2]}", "utf-8")
