"""The sections of the page beside its leaderboards: pre-training curves, pictures, provenance, problems."""

import base64
from collections.abc import Iterable, Mapping, Sequence

from vlp_bench.report import svg
from vlp_bench.report.boards import Board, Cell, Row
from vlp_bench.report.collect import Curve, Evaluation, Picture, Pretraining, Unreadable
from vlp_bench.report.elements import as_json, figure
from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.tables import cell_id
from vlp_bench.report.wording import counted, duration, fraction_name, metric_name, number, short, words

WIDE = 600  # pixels from which a picture has a row of the gallery to itself
MAX_PICTURE_BYTES = 16_000_000  # keeps the page light enough to be mailed
MAX_CONFIG_BYTES = 4_000_000  # the same of configurations, which lie in the run folders, too
SPLITS = {"train": ("training", 6), "val": ("validation", 1)}


def pretraining_section(pretrainings: Sequence[Pretraining]) -> Markup:
    """Draw the loss curves of every pre-training, a small panel per term."""
    return render([_pretraining(run) for run in pretrainings])


def _pretraining(run: Pretraining) -> Markup:
    info = run.info
    training = info.get("training")
    training = training if isinstance(training, dict) else {}
    name = " ".join(str(info[key]) for key in ("name", "variant") if info.get(key)) or run.folder
    seed, seconds, steps = info.get("pretrain_seed"), training.get("wall_seconds"), training.get("steps")
    facts = [
        f"seed {seed}" if seed is not None else "",
        f"{steps:,} steps" if isinstance(steps, int) else "",
        duration(seconds),
        run.folder,
    ]
    terms = dict.fromkeys(curve.term for curve in run.curves)
    panels = [_panel(term, [c for c in run.curves if c.term == term]) for term in terms]
    legend = [(text, svg.swatch(colour, False, split == "val")) for split, (text, colour) in SPLITS.items()]
    entries = [tag("li", sample, tag("span", label)) for label, sample in legend]
    return tag(
        "article",
        tag("h3", name),
        tag("p", " · ".join(fact for fact in facts if fact), class_="meta"),
        tag("div", panels, class_="panels") if panels else tag("p", "No loss curves were kept.", class_="note"),
        tag("ul", entries, class_="legend") if panels else None,
        tag("details", tag("summary", "What the run recorded"), tag("pre", as_json(info))),
    )


def _panel(term: str, curves: Sequence[Curve]) -> Markup:
    """Draw one loss term, training and validation together."""
    series = [
        svg.Series(
            c.split,
            svg.thinned(list(zip(c.steps, c.values, strict=True))),
            colour=SPLITS[c.split][1],
            marked=False,
            dashed=c.split == "val",
        )
        for c in curves
    ]
    chart = svg.line_chart(series, f"{term} loss over steps", height=160.0, width=240.0, x_name="step")
    return figure(chart, f"{words(term)} loss")


def pictures_section(pictures: Sequence[Picture]) -> Markup:
    """Show the pictures under their headings; what would make the page too heavy is only counted."""
    groups: dict[str, list[Markup]] = {}
    used, left_out = 0, 0
    for picture in pictures:
        used += len(picture.png)
        if used > MAX_PICTURE_BYTES:
            left_out += 1
            continue
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        image = tag("img", src=source, alt=picture.caption or "picture without caption", loading="lazy")
        wide = int.from_bytes(picture.png[16:20], "big") > WIDE  # where a PNG says its width
        figure = tag("figure", image, tag("figcaption", picture.caption), class_="wide" if wide else None)
        groups.setdefault(picture.group, []).append(figure)
    note = f"{counted(left_out, 'more picture')} lie in the run folders, too large for this page." if left_out else ""
    return render(
        [
            render(tag("h3", group) if group else None, tag("div", figures, class_="gallery"))
            for group, figures in groups.items()
        ],
        tag("p", note, class_="note") if note else None,
    )


def provenance_section(boards: Sequence[Board]) -> Markup:
    """List where every value comes from: one entry per cell, one block per run."""
    parts = []
    configs = {run.folder: as_json(c) for run in _all_runs(boards) if (c := run.provenance.get("config"))}
    if sum(map(len, configs.values())) > MAX_CONFIG_BYTES:
        configs = {}
        parts.append(
            tag("p", "The configurations are too many for this page: each lies in its run folder.", class_="note")
        )
    for board in boards:
        entries = [_provenance(board, row, fraction, cell, configs) for row, fraction, cell in board.cells()]
        parts.append(tag("article", tag("h3", board.title), entries))
    return render(parts)


def _all_runs(boards: Sequence[Board]) -> Iterable[Evaluation]:
    return (run for board in boards for _, _, cell in board.cells() for run in cell.runs)


def _provenance(board: Board, row: Row, fraction: float | None, cell: Cell, configs: Mapping[str, str]) -> Markup:
    anchor = cell_id(board, row, fraction)
    name = f"{row.name} ({row.note})" if row.note else row.name
    value = f"{metric_name(board.metric)} {number(cell.value, board.metric)}"
    title = f"{name}, {fraction_name(fraction)}: {value}, {counted(len(cell.runs), 'run')}"
    back = tag("p", tag("a", "Back to the table", href=f"#{board.slug}"))
    sources = {(run.fact("commit")[:10], short(run.fact("target_fingerprint"))) for run in cell.runs}
    basis = [f"commit {commit or 'unknown'}, target data {data or 'unknown'}" for commit, data in sorted(sources)]
    return tag(
        "details",
        tag("summary", title, " ", tag("small", "; ".join(basis))),
        tag(
            "div",
            [_run(run, board.metric, configs.get(run.folder, "")) for run in cell.runs],
            back,
            id=anchor,
            class_="runs",
        ),
    )


def _run(run: Evaluation, metric: str, config: str) -> Markup:
    """Describe one run: enough to repeat it."""
    measured = run.metrics[metric]
    versions = run.provenance.get("versions")
    facts = [
        ("Folder", run.folder),
        ("Value", f"{number(measured.value, metric)} ({number(measured.low, metric)}–{number(measured.high, metric)})"),
        ("Command", tag("code", run.fact("command")) if run.fact("command") else ""),
        ("Commit", run.fact("commit") + (" with local changes" if run.fact("dirty") == "True" else "")),
        ("Seeds", _seeds(run)),
        ("Pre-training data", run.fact("data_fingerprint")),
        ("Target data", run.fact("target_fingerprint")),
        ("Weights", run.fact("bundle_hash")),
        ("Started", run.fact("started")),
        ("Wall time", duration(run.fact("wall_seconds"))),
        ("Device", run.fact("device")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("Configuration", run.fact("config_hash")),
    ]
    return render(
        tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts if v], class_="provenance"),
        tag("details", tag("summary", "Resolved configuration"), tag("pre", config)) if config else None,
    )


def _seeds(run: Evaluation) -> str:
    parts = (("training", run.seed), ("label draw", run.draw), ("pre-training", run.pretrain_seed))
    return ", ".join(f"{name} {value}" for name, value in parts if value)


def problems_section(unreadable: Sequence[Unreadable]) -> Markup:
    """List files that could not be read, with the reason."""
    if not unreadable:
        return Markup("")
    items = [tag("li", tag("code", u.file), f": {u.reason}") for u in unreadable]
    return render(tag("p", "The rest of the report does without these files."), tag("ul", items))
