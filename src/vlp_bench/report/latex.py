"""Tables as LaTeX, for the package booktabs and a document in UTF-8."""

import re
from collections.abc import Sequence

#: What a plain LaTeX document cannot take as it is.
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "\u202f": r"\,",
    "\u00a0": "~",
    "…": r"\dots{}",
}
BOLD = re.compile(r"\*\*(.+?)\*\*")


def latex_text(text: str) -> str:
    """Write text, of which `**this**` is bold, so that LaTeX prints it and does nothing else with it."""
    parts = BOLD.split(text.replace("\n", " "))
    return "".join(rf"\textbf{{{_plain(part)}}}" if i % 2 else _plain(part) for i, part in enumerate(parts))


def latex_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], label: str
) -> str:
    r"""Write a `table` environment: caption, `\toprule`, the columns, the rows, notes below."""
    lines = [_line(row) for row in rows] or [rf"\multicolumn{{{len(columns)}}}{{l}}{{--}} \\"]
    below = [rf"\par\footnotesize {latex_text(note)}" for note in notes]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(title)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            _line(columns),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *below,
            r"\end{table}",
            "",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


def _plain(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)
