"""The verb `compare`: our cells beside published numbers."""

from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table as Shown

from vlp_bench.engine.progress import console
from vlp_bench.errors import UserError
from vlp_bench.files import whole
from vlp_bench.published import chosen, protocols, results
from vlp_bench.report.tables import pipe_table


def compare(cfg: DictConfig) -> None:
    """`vlp-bench compare runs=DIR against=PROTOCOL|METHOD|PAPER [out=FILE.md|FILE.csv]`.

    Raises:
        UserError: `against` or `out` cannot be used, there are no results, or none of them can be compared.
    """
    if str(cfg.against) == "list":
        print(listing())
        return
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None and out.suffix not in (".md", ".csv"):
        raise UserError(f"out={out}: expected a file that ends in .md or .csv.")
    rows = chosen(str(cfg.against))
    from vlp_bench.report.boards import boards
    from vlp_bench.report.collect import collect
    from vlp_bench.report.published import compared_with

    found = compared_with(boards(collect(Path(cfg.runs)).evaluations), rows, str(cfg.against))
    table = found.table()
    if table.rows:
        shown = Shown(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in table.notes:
        print(note)
    if out is not None:
        with whole(out) as temporary:
            temporary.write_text(table.csv() if out.suffix == ".csv" else table.markdown(), "utf-8")
        print(out)
    if not found.lines:
        raise UserError(f"against={cfg.against}: none of these results can be compared; the reasons are above.")


def listing() -> str:
    """What there is to compare with: protocols with their tests, methods, papers."""
    lines = []
    for name, about in protocols().items():
        rows = [r for r in results() if r.protocol == name]
        tests = dict.fromkeys(f"{r.dataset} {r.metric}" for r in rows)
        lines.append((name, str(len(rows)), about["what"], ", ".join(tests)))
    methods = ", ".join(sorted({r.method for r in results()}, key=str.lower))
    papers = "\n".join(f"- {source}" for source in dict.fromkeys(r.source for r in results()))
    table = pipe_table(("against=", "rows", "what", "tests"), lines)
    return f"{table}\nmethods: {methods}\n\npapers (a part of the name will do):\n{papers}"
