"""Raw data to prepared data: every image decoded once, every report parsed once, in shards that survive a kill.

A prepared directory holds

    plan.json            what it is made from; a build with another plan is refused
    shards/NNNNN.*       images.arrow (uint8 grey, one fixed size), studies.arrow, done.json (written last)
    .lock                keeps a second process waiting while one builds
    prepare_report.json  what was counted, and every row that was lost, with the reason
    images.arrow         all images without their pixels, with the part of each in every division
    studies.arrow        all studies
    manifest.json        written last of all: version, counts, labels, divisions, fingerprint
    tokens/              word pieces, one folder per tokenizer and text form (see store.py)
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from vlp_bench.data.decode import WINDOWS, read_gray, read_mask, reason
from vlp_bench.data.divisions import leaks
from vlp_bench.data.images import Geometry, known_rule, to_square
from vlp_bench.data.reports import conclusion, last_section, sections
from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError
from vlp_bench.files import Progress, alone, digest, read_json, whole, write_json

VERSION = 3
#: at most; large images make smaller shards, so that a worker never holds much more than 100 MB of pixels
STUDIES_PER_SHARD = 256
ROWS_PER_PIECE = 128
#: prefix of the columns of the index that say where an image lies in a division
DIVISION = "division/"
SECTIONS = ("findings", "impression", "last_paragraph")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the prepared images look like; part of the fingerprint.

    Args:
        size: side of the square in pixels.
        rule: how an image comes into its square, a name of `images.RULES`.
        window: how more than eight bits become eight, see `decode.read_gray`.

    Raises:
        UserError: an unknown rule or window.
    """

    size: int
    rule: str = "resize_and_pad"
    window: str = "voi"

    def __post_init__(self) -> None:
        known_rule(self.rule)
        if self.window not in WINDOWS:
            raise UserError(f"data.window={self.window}: expected one of {', '.join(WINDOWS)}.")


def prepare(
    source: Source,
    out: Path,
    plan: Plan,
    *,
    private: bool,
    split: str | None = None,
    max_bad_fraction: float = 0.05,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build, or go on building, the prepared directory `out`; return its manifest.

    Args:
        source: what the reader of the raw data set found.
        out: the directory; a finished one made from the same plan is returned as it is.
        plan: size and rule of the images.
        private: whether texts and pixels may never leave the machine.
        split: only the images of this division; it is then the one that holds where nobody asks for another.
        max_bad_fraction: lost rows over all rows above which the build stops.
        workers: processes; 1 works in this one.
        progress: called with (studies done, studies in all).

    Raises:
        UserError: no study, a patient in two splits, an unknown division, another plan's directory, too many bad rows,
            no disk space.
    """
    if split:
        source = _only(source, split)
    _check(source)
    identity = {
        "version": VERSION,
        "source": source.name,
        "private": private,
        "plan": asdict(plan) | {"shard": _studies_per_shard(plan)},
        "split": split,
        "index": index_hash(source),
    }
    if finished := _finished(out, identity):
        return finished
    _check_space(source, out, plan)
    with alone(out / ".lock"):
        # another process may have built it while this one waited
        if finished := _finished(out, identity):
            return finished
        _sweep(out)
        write_json(out / "plan.json", identity)
        guard = _Guard(source, out, max_bad_fraction)
        done = _run_shards(source, out, plan, workers, progress, guard)
        counts = {key: sum(s[key] for s in done) for key in ("images", "studies")}
        guard.write(counts)
        divisions = _write_index(source, out, len(done))
        manifest = {
            "version": VERSION,
            "source": source.name,
            "private": private,
            "plan": asdict(plan),
            "labels": list(source.labels),
            "counts": counts | {"splits": dict(sum((Counter(s["splits"]) for s in done), Counter()))},
            "split": split,
            "divisions": divisions,
            "shards": len(done),
            "shard_images": [s["images"] for s in done],
            "fingerprint": digest(
                [VERSION, identity["plan"], source.labels, [s["hash"] for s in done], split, _parts(source)], 16
            ),
        }
        write_json(out / "manifest.json", manifest)
    return manifest


def _finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished build of the same plan; None where there is work to do."""
    if (out / "plan.json").exists():
        begun = (out / "manifest.json").exists() or any((out / "shards").glob("*.done.json"))
        if begun and read_json(out / "plan.json", "a preparation plan") != identity:
            raise UserError(
                f"{out} was prepared from other data, another size, data.private or version. "
                "Give another data.dir, or remove it to prepare anew."
            )
        return read_json(out / "manifest.json", "a manifest") if (out / "manifest.json").exists() else None
    if out.is_dir() and any(f.name != ".lock" and not f.name.startswith(".plan.json.") for f in out.iterdir()):
        if (out / "plan.json").exists():  # another process began meanwhile
            return _finished(out, identity)
        raise UserError(f"{out} exists and holds something else. Give an empty or new data.dir.")
    return None


def _sweep(out: Path) -> None:
    """Remove what a killed build left half-written."""
    for left in (*out.glob(".*.json.*"), *out.glob(".*.arrow.*"), *(out / "shards").glob(".*")):
        left.unlink(missing_ok=True)


def _check(source: Source) -> None:
    if not source.studies:
        first = f" (first: {source.problems[0].where}: {source.problems[0].reason})" if source.problems else ""
        raise UserError(f"{source.root} holds no usable study; {len(source.problems)} rows were refused{first}.")
    split_of: dict[str, str] = {}
    for study in source.studies:
        if split_of.setdefault(study.patient_id, study.split) != study.split:
            raise UserError(
                f"Patient {study.patient_id} is in the splits {split_of[study.patient_id]} and {study.split} of "
                f"{source.root}. Splits must be disjoint by patient: correct the split column."
            )


def _only(source: Source, name: str) -> Source:
    """The images of one division."""
    division = next((d for d in source.divisions if d.name == name), None)
    if division is None:
        names = ", ".join(d.name for d in source.divisions) or "none"
        raise UserError(f"data.split={name}: {source.name} has no such division here. It has: {names}.")
    kept = [replace(s, images=tuple(i for i in s.images if division.parts.get(i.image_id))) for s in source.studies]
    return replace(source, studies=tuple(s for s in kept if s.images))


def _write_index(source: Source, out: Path, shards: int) -> dict[str, Any]:
    """Tables of all images and studies, so that nobody opens every shard for them; what the divisions are."""
    files = {kind: [out / "shards" / f"{n:05d}.{kind}.arrow" for n in range(shards)] for kind in ("images", "studies")}
    images = []
    for path in files["images"]:
        table = read_arrow(path)
        named = pa.array(_mask_labels(table.column("masks")), pa.list_(pa.string()))
        images.append(table.drop(["pixels", "masks"]).append_column("mask_labels", named))
    index = pa.concat_tables(images)
    ids = index.column("image_id").to_pylist()
    said = {}
    for division in source.divisions:
        column = [division.parts.get(i, "") for i in ids]
        index = index.append_column(f"{DIVISION}{division.name}", pa.array(column, pa.string()))
        counts = Counter(part for where in column for part in where.split())
        leaking = {kind: n for kind, n in leaks(source, division).items() if n}
        said[division.name] = {"origin": division.origin, "images": dict(counts), "leaks": leaking}
    _write_arrow(out / "images.arrow", index)
    _write_arrow(out / "studies.arrow", pa.concat_tables(map(read_arrow, files["studies"])))
    return said


def _mask_labels(column: pa.ChunkedArray) -> list[list[str]]:
    """What each image has masks of; no mask is read for it."""
    found: list[set[str]] = [set() for _ in range(len(column))]
    start = 0
    for chunk in column.chunks:
        names = pc.struct_field(pc.list_flatten(chunk), "label").to_pylist()
        for parent, name in zip(pc.list_parent_indices(chunk).to_pylist(), names, strict=True):
            found[start + parent].add(name)
        start += len(chunk)
    return [sorted(names) for names in found]


def _check_space(source: Source, out: Path, plan: Plan) -> None:
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    written = sum(f.stat().st_size for f in (out / "shards").glob("*.images.arrow"))
    needed = sum(len(s.images) for s in source.studies) * plan.size**2 * 1.1 - written
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out}: the prepared images need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free. "
            "Free some space, or choose a smaller data.store_size or another data.dir."
        )


def index_hash(source: Source) -> str:
    """Changes with anything that the reader found: ids, paths, splits, texts, views, labels, boxes, masks."""
    content = hashlib.sha256(json.dumps([source.name, source.labels, _parts(source)]).encode())
    for s in source.studies:
        images = [[i.image_id, i.path, i.view, i.labels, i.boxes, i.masks, i.extra] for i in s.images]
        row = [s.study_id, s.patient_id, s.split, s.report_path, s.text, s.conclusion, s.labels, images]
        content.update(json.dumps(row, sort_keys=True, default=dict).encode())
    return content.hexdigest()[:16]


def _parts(source: Source) -> list[list[Any]]:
    return [[d.name, sorted(d.parts.items())] for d in source.divisions]


class _Guard:
    """Collects the problems and stops the build when too many rows are lost."""

    def __init__(self, source: Source, out: Path, fraction: float) -> None:
        refused = sum(p.lost for p in source.problems)
        rows = refused + sum(1 + len(s.images) for s in source.studies)
        self.source, self.out, self.limit = source, out, fraction * rows
        self.problems: list[Problem] = []
        self.lost = 0
        self.add(source.problems)

    def add(self, problems: Iterable[Problem]) -> None:
        new = list(problems)
        self.problems += new
        self.lost += sum(p.lost for p in new)
        if self.lost > self.limit:
            self.write({})
            lost = [p for p in self.problems if p.lost]
            first = "; ".join(f"{p.where}: {p.reason}" for p in lost[:2])
            raise UserError(
                f"{len(lost)} rows of {self.source.root} are bad, more than data.max_bad_fraction allows "
                f"(first: {first}). All are listed in {self.out / 'prepare_report.json'}."
            )

    def write(self, counts: dict[str, int]) -> None:
        kinds = dict(Counter(p.kind for p in self.problems))
        listed = [asdict(p) for p in self.problems]
        report = {"source": self.source.name, **counts, "kinds": kinds, "problems": listed}
        write_json(self.out / "prepare_report.json", report)


def _studies_per_shard(plan: Plan) -> int:
    return max(1, min(STUDIES_PER_SHARD, STUDIES_PER_SHARD * 256**2 // plan.size**2))


def _run_shards(
    source: Source, out: Path, plan: Plan, workers: int, progress: Progress | None, guard: _Guard
) -> list[dict[str, Any]]:
    count = _studies_per_shard(plan)
    starts = range(0, len(source.studies), count)
    jobs = [
        (source.root, source.studies[i : i + count], source.labels, plan, out / "shards", n, i)
        for n, i in enumerate(starts)
    ]
    done: list[dict[str, Any]] = []
    try:
        # closed on any error, so that no further shard is begun
        with closing(_map(jobs, workers)) as results:
            for result in results:
                done.append(result)
                guard.add(Problem(**p) for p in result["problems"])
                if progress:
                    progress(sum(d["studies"] for d in done), len(source.studies))
    except UserError:
        _forget_losses(out)
        raise
    return done


def _forget_losses(out: Path) -> None:
    """Let the next call try again what was lost: the user may have mended the files by then."""
    for path in (out / "shards").glob("*.done.json"):
        if any(p["lost"] for p in read_json(path, "a shard summary")["problems"]):
            path.unlink()


def _map(jobs: list[tuple], workers: int) -> Generator[dict[str, Any], None, None]:
    if workers <= 1 or len(jobs) == 1:
        yield from map(_build_shard, jobs)
        return
    # spawned: a fork would inherit the locks of this process's threads
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        try:
            yield from pool.map(_build_shard, jobs)
        except BrokenProcessPool as error:
            raise UserError(
                "A worker of the preparation was ended from outside, perhaps for want of memory. "
                "The same command goes on from here; fewer workers need less memory (workers=1)."
            ) from error


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _build_shard(job: tuple) -> dict[str, Any]:
    """One shard, unless it is whole already; the summary that done.json holds."""
    root, studies, labels, plan, folder, number, first_study = job
    stem = folder / f"{number:05d}"
    done_path = stem.with_suffix(".done.json")
    if done_path.exists():
        return read_json(done_path, "a shard summary")
    cv2.setNumThreads(1)
    problems: list[Problem] = []
    content = hashlib.sha256()
    image_rows: list[dict[str, Any]] = []
    study_rows: list[dict[str, Any]] = []
    for k, study in enumerate(studies):
        images = [
            row for ref in study.images if (row := _image_row(root, ref, first_study + k, labels, plan, problems))
        ]
        row = _study_row(root, study, labels, problems)
        study_rows.append(row)
        image_rows += images
        for said in (row, *images):
            plain = {k: v for k, v in said.items() if k not in ("pixels", "masks")}
            content.update(json.dumps(plain, sort_keys=True).encode())
            for mask in said.get("masks", ()):
                content.update(mask["label"].encode() + mask["png"])
            content.update(said.get("pixels", b""))
    _write_arrow(stem.with_suffix(".images.arrow"), _image_table(image_rows, plan.size, len(labels)))
    _write_arrow(stem.with_suffix(".studies.arrow"), pa.Table.from_pylist(study_rows, _study_schema()))
    summary = {
        "images": len(image_rows),
        "studies": len(study_rows),
        "splits": dict(Counter(r["split"] for r in study_rows)),
        "hash": content.hexdigest(),
        "problems": [asdict(p) for p in problems],
    }
    write_json(done_path, summary)
    return summary


def _study_row(root: Path, study: Study, labels: tuple[str, ...], problems: list[Problem]) -> dict[str, Any]:
    where = study.report_path or f"study_id {study.study_id}"
    parsed = dict.fromkeys(SECTIONS, "")
    try:
        parsed = _report(root, study)
    except OSError as error:
        problems.append(Problem("missing report", where, error.strerror or "cannot be read"))
    else:
        if not any(parsed.values()):
            if study.report_path or study.text:  # else a data set without reports
                problems.append(Problem("empty report", where, "no findings and no impression", lost=False))
        elif not (parsed["findings"] or parsed["impression"]):
            problems.append(Problem("no section", where, "neither findings nor impression", lost=False))
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "split": study.split,
        **parsed,
        "special": study.conclusion is not None,
        "labels": [_number(study.labels.get(name)) for name in labels],
    }


def _report(root: Path, study: Study) -> dict[str, str]:
    """The sections of a study's report.

    A file is cut by MIMIC-CXR's own rules; where it was cut by hand, what was found counts as the impression. A text
    from a table may have lost the indent or the line breaks before its headers; one without headers is all findings.
    """
    if study.report_path is not None:
        content = (root / study.report_path).read_text("utf-8", errors="replace")
        if study.conclusion is not None:
            return dict.fromkeys(SECTIONS, "") | {"impression": conclusion(content, study.conclusion)}
        found = sections(content)
        return {name: last_section(found, name) for name in SECTIONS}
    text = (study.text or "").strip()
    broken = _HEADERS.sub(lambda m: f"\n{m[1].upper()}: ", text)
    found = sections("\n ".join(["", *map(str.strip, broken.split("\n")), ""]))
    parsed = {name: last_section(found, name) for name in SECTIONS}
    headed = any(s.name == "preamble" for s in found)
    return parsed if headed and any(parsed.values()) else dict.fromkeys(SECTIONS, "") | {"findings": text}


#: the usual headers wherever they stand, in capitals at least at their beginning
_HEADERS = re.compile(
    r"(?:^|\s+)(?=[A-Z])"
    r"((?i:examination|indication|(?:clinical )?history|technique|comparison|findings|impression|conclusion))"
    r":(?:\s+|$)"
)


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _image_row(
    root: Path, ref: ImageRef, study: int, labels: tuple[str, ...], plan: Plan, problems: list[Problem]
) -> dict[str, Any] | None:
    try:
        gray, size = read_gray(root / ref.path, plan.size, plan.window)
        # the decoder may have halved the sides
        pixels, geometry = to_square(gray, plan.size, plan.rule)
    except Exception as error:
        problems.append(Problem("broken image", ref.path, reason(error)))
        return None
    whole_size = geometry.enlarged(*size)
    return {
        "image_id": ref.image_id,
        "path": ref.path,
        "view": ref.view,
        "study": study,
        "width": size[0],
        "height": size[1],
        "labels": [_number(ref.labels.get(n)) for n in labels] if ref.labels is not None else None,
        "boxes": json.dumps(_boxes(ref, whole_size, plan.size, problems)),
        "extra": ref.extra,
        "masks": _masks(root, ref, whole_size, plan.size, problems),
        "pixels": pixels,
    }


def _boxes(ref: ImageRef, geometry: Geometry, size: int, problems: list[Problem]) -> list[dict[str, Any]]:
    kept = []
    for box in ref.boxes:
        try:
            x, y, w, h = (float(v) for v in box["xywh"])
            if not (all(map(math.isfinite, (x, y))) and 0 < w < math.inf and 0 < h < math.inf):
                raise ValueError("not a box")
            label = str(box.get("label", ""))
        except (KeyError, TypeError, ValueError, AttributeError):
            problems.append(Problem("broken box", ref.path, f"no {{label, xywh}}: {box}"[:160], lost=False))
            continue
        xyxy = geometry.boxes(np.array([[x, y, x + w, y + h]]))[0]
        inside = x < geometry.width and y < geometry.height and x + w > 0 and y + h > 0
        if inside and (xyxy[:2].max() >= size or xyxy[2:].min() <= 0):
            problems.append(Problem("box cut away", ref.path, f"in what data.image_rule cuts: {box}"[:160], lost=False))
            continue
        kept.append({"label": label, "xyxy": [round(float(v), 2) for v in xyxy]})
    return kept


def _masks(root: Path, ref: ImageRef, geometry: Geometry, size: int, problems: list[Problem]) -> list[dict[str, Any]]:
    kept = []
    for mask in ref.masks:
        try:
            drawn = read_mask(root, mask, (geometry.width, geometry.height))
            label = str(mask.get("label", ""))
        except Exception as error:
            problems.append(Problem("broken mask", ref.path, f"{mask}: {reason(error)}"[:160], lost=False))
            continue
        buffer = io.BytesIO()
        Image.fromarray(geometry.picture(drawn, size) > 127).save(buffer, "PNG")
        kept.append({"label": label, "png": buffer.getvalue()})
    return kept


def _study_schema() -> pa.Schema:
    text = [pa.field(n, pa.string()) for n in ("study_id", "patient_id", "split", *SECTIONS)]
    return pa.schema([*text, pa.field("special", pa.bool_()), pa.field("labels", pa.list_(pa.float32()))])


def _image_table(rows: list[dict[str, Any]], size: int, labels: int) -> pa.Table:
    mask = pa.struct([("label", pa.string()), ("png", pa.binary())])
    fields = [("image_id", pa.string()), ("path", pa.string()), ("view", pa.string()), ("study", pa.int32()),
              ("width", pa.int32()), ("height", pa.int32()), ("labels", pa.list_(pa.float32())),
              ("boxes", pa.string()), ("extra", pa.string()), ("masks", pa.list_(mask))]  # fmt: skip
    pixels = np.stack([r.pop("pixels") for r in rows]) if rows else np.zeros((0, size, size), np.uint8)
    table = pa.Table.from_pylist(rows, pa.schema(fields))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), size * size)
    return table.append_column("pixels", flat)


def _write_arrow(path: Path, table: pa.Table) -> None:
    with (
        whole(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        # rows are fetched at random: small record batches keep each fetch short
        out.write_table(table, max_chunksize=ROWS_PER_PIECE)


def read_arrow(path: Path) -> pa.Table:
    """A table of a prepared directory, mapped, not read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()
