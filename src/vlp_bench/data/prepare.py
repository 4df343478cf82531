"""Raw data to prepared data: every image decoded once, every report parsed once, in shards that survive a kill.

A prepared directory holds

    plan.json            what it is made from; a build with another plan is refused
    shards/NNNNN.*       images.arrow (uint8 grey, one fixed size), studies.arrow, done.json (written last)
    prepare_report.json  what was counted, and every row that was lost, with the reason
    manifest.json        written last of all: version, counts, labels, fingerprint
    tokens/              word pieces, one folder per tokenizer and text form (see store.py)
"""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from vlp_bench.data.images import Geometry, resize_and_pad
from vlp_bench.data.reports import last_section, sections
from vlp_bench.data.study import ImageRef, Problem, Source, Study
from vlp_bench.errors import UserError
from vlp_bench.files import Progress, digest, read_json, whole, write_json

VERSION = 1
STUDIES_PER_SHARD = 256
SECTIONS = ("findings", "impression", "last_paragraph")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the prepared images look like; part of the fingerprint."""

    size: int
    rule: str = "resize_and_pad"


def prepare(
    source: Source,
    out: Path,
    plan: Plan,
    *,
    private: bool,
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
        max_bad_fraction: lost rows over all rows above which the build stops.
        workers: processes; 1 works in this one.
        progress: called with (studies done, studies in all).

    Raises:
        UserError: no study, a patient in two splits, another plan's directory, too many bad rows, no disk space.
    """
    _check(source, out)
    identity = {"version": VERSION, "source": source.name, "plan": asdict(plan), "index": index_hash(source)}
    if (out / "plan.json").exists():
        if read_json(out / "plan.json", "a preparation plan") != identity:
            raise UserError(
                f"{out} was prepared from other data, another size or another version. "
                "Give another data.dir, or remove it to prepare anew."
            )
        if (out / "manifest.json").exists():
            return read_json(out / "manifest.json", "a manifest")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists and holds something else. Give an empty or new data.dir.")
    _check_space(source, out, plan)
    write_json(out / "plan.json", identity)
    rows = sum(len(s.images) for s in source.studies) + len(source.studies)
    guard = _Guard(source, out, max_bad_fraction * rows)
    done = _run_shards(source, out, plan, workers, progress, guard)
    counts = {key: sum(s[key] for s in done) for key in ("images", "studies")}
    guard.write(counts)
    manifest = {
        "version": VERSION,
        "source": source.name,
        "private": private,
        "plan": asdict(plan),
        "labels": list(source.labels),
        "counts": counts | {"splits": dict(sum((Counter(s["splits"]) for s in done), Counter()))},
        "shards": len(done),
        "fingerprint": digest([identity["version"], identity["plan"], [s["hash"] for s in done]], 16),
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _check(source: Source, out: Path) -> None:
    if not source.studies:
        raise UserError(f"{source.root} holds no usable study ({len(source.problems)} rows were refused).")
    split_of: dict[str, str] = {}
    for study in source.studies:
        if split_of.setdefault(study.patient_id, study.split) != study.split:
            raise UserError(
                f"Patient {study.patient_id} is in the splits {split_of[study.patient_id]} and {study.split} of "
                f"{source.root}. Splits must be disjoint by patient: correct the split column."
            )


def _check_space(source: Source, out: Path, plan: Plan) -> None:
    out.mkdir(parents=True, exist_ok=True)
    needed = sum(len(s.images) for s in source.studies) * plan.size**2
    free = shutil.disk_usage(out).free
    if needed * 1.1 > free:
        raise UserError(
            f"{out}: the prepared images need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free. "
            "Free some space, or choose a smaller data.store_size or another data.dir."
        )


def index_hash(source: Source) -> str:
    """Changes with any id, path, split, text or label of the index."""
    rows = [
        [s.study_id, s.patient_id, s.split, [i.path for i in s.images], s.text, dict(s.labels)] for s in source.studies
    ]
    return digest([source.labels, rows], 16)


class _Guard:
    """Collects the problems and stops the build when too many rows are lost."""

    def __init__(self, source: Source, out: Path, limit: float) -> None:
        self.source, self.out, self.limit = source, out, limit
        self.problems: list[Problem] = []
        self.add(source.problems)

    def add(self, problems: Iterable[Problem]) -> None:
        self.problems += problems
        lost = [p for p in self.problems if p.lost]
        if len(lost) > self.limit:
            self.write({})
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


def _run_shards(
    source: Source, out: Path, plan: Plan, workers: int, progress: Progress | None, guard: _Guard
) -> list[dict[str, Any]]:
    starts = range(0, len(source.studies), STUDIES_PER_SHARD)
    jobs = [
        (source.root, source.studies[i : i + STUDIES_PER_SHARD], source.labels, plan, out / "shards", n, i)
        for n, i in enumerate(starts)
    ]
    done: list[dict[str, Any]] = []
    for result in _map(jobs, workers):
        done.append(result)
        guard.add(Problem(**p) for p in result["problems"])
        if progress:
            progress(sum(d["studies"] for d in done), len(source.studies))
    return done


def _map(jobs: list[tuple], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1 or len(jobs) == 1:
        yield from map(_build_shard, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_build_shard, jobs)


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
        said = [{k: v for k, v in i.items() if k not in ("pixels", "masks")} for i in images]
        content.update(json.dumps([row, said], sort_keys=True).encode())
        for image in images:
            content.update(image["pixels"].tobytes())
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
    text, parsed = study.text, dict.fromkeys(SECTIONS, "")
    if study.report_path is not None:
        try:
            text = (root / study.report_path).read_text("utf-8", errors="replace")
        except OSError as error:
            problems.append(Problem("missing report", study.report_path, error.strerror or "cannot be read"))
    if text and study.report_path is not None:
        found = sections(text)
        parsed = {name: last_section(found, name) for name in SECTIONS}
    elif text:
        parsed["findings"] = text
    if not any(parsed.values()):
        problems.append(
            Problem("empty report", f"study_id {study.study_id}", "no findings and no impression", lost=False)
        )
    return {
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "split": study.split,
        **parsed,
        "labels": [_number(study.labels.get(name)) for name in labels],
    }


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _image_row(
    root: Path, ref: ImageRef, study: int, labels: tuple[str, ...], plan: Plan, problems: list[Problem]
) -> dict[str, Any] | None:
    try:
        gray = decode_gray(root / ref.path, plan.size)
        with Image.open(root / ref.path) as image:
            size = image.size
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)[:160] or type(error).__name__
        problems.append(Problem("broken image", ref.path, reason))
        return None
    pixels, geometry = resize_and_pad(gray, plan.size)
    scaled = Geometry(
        geometry.scale * gray.shape[1] / size[0], geometry.left, geometry.top, width=size[0], height=size[1]
    )
    return {
        "image_id": ref.image_id,
        "path": ref.path,
        "view": ref.view,
        "study": study,
        "width": size[0],
        "height": size[1],
        "labels": [_number(ref.labels.get(n)) for n in labels] if ref.labels is not None else None,
        "boxes": json.dumps([_box(b, scaled) for b in ref.boxes]),
        "extra": ref.extra,
        "masks": _masks(root, ref, plan, problems),
        "pixels": pixels,
    }


def decode_gray(path: Path, size: int) -> np.ndarray:
    """Grey uint8 pixels (H, W); a JPEG is decoded at the smallest scale that still covers `size`.

    Raises:
        OSError: the file is missing, truncated or no image.
    """
    with Image.open(path) as image:
        if image.format == "JPEG":
            image.draft("L", (size, size))
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image, dtype=np.float32)
            low, high = float(values.min()), float(values.max())
            return ((values - low) / max(high - low, 1.0) * 255).round().astype(np.uint8)
        return np.asarray(image if image.mode == "L" else image.convert("L"))


def _box(box: Any, geometry: Geometry) -> dict[str, Any]:
    x, y, w, h = (float(v) for v in box["xywh"])
    left, top = x * geometry.scale + geometry.left, y * geometry.scale + geometry.top
    xyxy = [left, top, left + w * geometry.scale, top + h * geometry.scale]
    return {"label": box.get("label", ""), "xyxy": [round(v, 2) for v in xyxy]}


def _masks(root: Path, ref: ImageRef, plan: Plan, problems: list[Problem]) -> list[dict[str, Any]]:
    kept = []
    for mask in ref.masks:
        try:
            with Image.open(root / mask["path"]) as image:
                pixels, _ = resize_and_pad(np.asarray(image.convert("L")), plan.size)
        except OSError as error:
            problems.append(Problem("broken mask", str(mask.get("path")), str(error)[:160], lost=False))
            continue
        buffer = io.BytesIO()
        Image.fromarray((pixels > 127).astype(np.uint8) * 255).convert("1").save(buffer, "PNG")
        kept.append({"label": mask.get("label", ""), "png": buffer.getvalue()})
    return kept


def _study_schema() -> pa.Schema:
    text = [pa.field(n, pa.string()) for n in ("study_id", "patient_id", "split", *SECTIONS)]
    return pa.schema([*text, pa.field("labels", pa.list_(pa.float32()))])


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
        out.write_table(table, max_chunksize=128)
