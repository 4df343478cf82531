"""Tables in the pages under docs/."""

from pathlib import Path

END = "<!-- end -->"


def put(page: Path, text: str, name: str = "table") -> None:
    """Put the text between the marks of the page, in the place of what is there; a page may hold several by name."""
    start = f"<!-- {name} -->\n"
    before, _, rest = page.read_text("utf-8").partition(start)
    page.write_text(f"{before}{start}{text}{END}{rest.partition(END)[2]}", "utf-8")
