"""Tables in the pages under docs/."""

from pathlib import Path

START, END = "<!-- table -->\n", "<!-- end -->"


def put(page: Path, text: str) -> None:
    """Put the text between the marks of the page, in the place of what is there."""
    before, _, rest = page.read_text("utf-8").partition(START)
    page.write_text(f"{before}{START}{text}{END}{rest.partition(END)[2]}", "utf-8")
