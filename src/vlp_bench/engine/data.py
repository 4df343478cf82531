"""The verbs `synthesize` and `prepare`, and prepared data for the verbs that need some."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

import vlp_bench.data.synthetic
from vlp_bench.config import plain
from vlp_bench.data.prepare import VERSION, Plan, index_hash
from vlp_bench.data.prepare import prepare as build
from vlp_bench.data.remote import is_remote, mirror
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import Source
from vlp_bench.engine.progress import counted
from vlp_bench.errors import UserError
from vlp_bench.files import alone, digest

log = logging.getLogger(__name__)


def synthesize(cfg: DictConfig) -> None:
    """`vlp-bench synthesize layout=... out=... studies=... seed=...`."""
    from vlp_bench.data.synthetic import write_raw

    given(cfg, "out")
    with counted(f"synthesize {cfg.layout}") as progress:
        summary = write_raw(
            cfg.layout,
            Path(cfg.out),
            studies=cfg.studies,
            seed=cfg.seed,
            size=cfg.size,
            full_size=cfg.full_size,
            workers=cfg.workers,
            progress=progress,
        )
    print(f"{cfg.out}: " + ", ".join(f"{v} {k}" for k, v in summary.items()))


def prepare(cfg: DictConfig) -> None:
    """`vlp-bench prepare data=... data.raw_dir=... data.dir=...`."""
    data = plain(cfg.data)
    if data.get("layout"):
        store = ensure(data, Path(cfg.paths.cache), int(data["store_size"] or 256), cfg.workers)
    else:
        if not data["raw_dir"] or not data["dir"]:
            raise UserError("prepare needs data.raw_dir=RAW (where the raw data lie) and data.dir=PREPARED (new).")
        source = read(data, Path(data["raw_dir"]))
        store = _build(data, source, Path(data["dir"]), int(data["store_size"] or 256), cfg.workers, data["split"])
    if cfg.tokens:
        from vlp_bench.data.tokenization import Tokenizer
        from vlp_bench.engine.build import inputs

        tokenizer = Tokenizer.load(cfg.text.vocab, cfg.text.name, cfg.text.lowercase)
        store.pieces(tokenizer, inputs(cfg).form)
    counts = store.manifest["counts"]
    print(
        f"{store.path}: {counts['images']} images of {counts['studies']} studies at {store.size} px, "
        f"fingerprint {store.fingerprint}; what was lost and why: {store.path / 'prepare_report.json'}"
    )


def ensure(section: Mapping[str, Any], cache: Path, size: int, workers: int | None = None) -> PreparedData:
    """Prepared data for a `data` or `target` section: opened, or made once in the cache.

    Args:
        section: the resolved section.
        cache: where synthetic data and the preparations of raw folders are kept.
        size: side of the stored images, where the section leaves it open.
        workers: processes for the preparation.

    Raises:
        UserError: neither `dir` nor `raw_dir` is given, or preparation fails.
    """
    if section.get("dir"):
        return ready(section, cache)
    size = int(section.get("store_size") or size)
    if section.get("layout"):
        world = {k: section[k] for k in ("layout", "studies", "seed")} | {"size": size}
        code = digest([_world_code(), VERSION, *(section[k] for k in ("private", "image_rule", "window", "reader"))], 6)
        name = "synthetic-{layout}-{studies}x{size}px-seed{seed}-{code}".format(**world, code=code)
        if (cache / "prepared" / name / "manifest.json").exists():
            return PreparedData(cache / "prepared" / name, split=section["split"])
        source = read(section, _synthetic_raw(cache / "raw" / name, world))
        return _build(section, source, cache / "prepared" / name, size, workers)
    group = "target" if "kind" in section else "data"
    if not section.get("raw_dir"):
        raise UserError(
            f"{group}={section['name']} needs {group}.dir=PREPARED (made by vlp-bench prepare)"
            + (f" or {group}.raw_dir=FOLDER." if section["name"] == "folder" else ".")
        )
    source = read(section, Path(section["raw_dir"]))
    plan = [size, section["image_rule"], section["window"], section["private"]]
    key = [VERSION, index_hash(source), _stamps(source), plan]
    name = f"{section['name']}-{digest(key, 8)}"
    return _build(section, source, cache / "prepared" / name, size, workers)


def ready(section: Mapping[str, Any], cache: Path) -> PreparedData:
    """The prepared data of a section's `dir`: a directory, or a URL, of which only the index is fetched now.

    Raises:
        UserError: it is not there, not whole, or not what the section expects.
    """
    place, url = Path(section["dir"]), None
    if is_remote(str(section["dir"])):
        url = str(section["dir"]).rstrip("/")
        place = mirror(url, cache)
    store = PreparedData(place, section.get("fingerprint"), section["split"], url)
    for key, asked in (("rule", section.get("image_rule")), ("window", section.get("window"))):
        made = store.manifest["plan"][key]
        if asked not in (None, made):
            log.warning(
                "%s was prepared with %s=%s, and this run asks for %s: prepared it stays", place, key, made, asked
            )
    return store


def _stamps(source: Source) -> list[tuple[int, int] | None]:
    """Size and time of every image and mask, so that the cache of a folder does not outlive an exchanged file."""
    images = [i for s in source.studies for i in s.images]
    masks = [m["path"] for i in images for m in i.masks if isinstance(m, Mapping) and "path" in m]
    paths = [i.path for i in images] + [str(p) for m in masks for p in ([m] if isinstance(m, str) else m)]
    stats = [p.stat() if (p := source.root / path).is_file() else None for path in paths]
    return [(s.st_size, s.st_mtime_ns) if s else None for s in stats]


def _world_code() -> str:
    """Changes with the code that draws the synthetic world, so that a cache never outlives it."""
    folder = Path(vlp_bench.data.synthetic.__file__).parent
    return digest([f.read_text("utf-8") for f in sorted(folder.rglob("*.py"))], 6)


def _synthetic_raw(folder: Path, world: Mapping[str, Any]) -> Path:
    from vlp_bench.data.synthetic import write_raw

    if folder.is_dir():
        return folder
    with alone(folder.parent / f".{folder.name}.lock"), counted(f"synthesize {world['layout']}") as progress:
        # another process may have drawn it while this one waited
        if not folder.is_dir():
            write_raw(
                world["layout"],
                folder,
                studies=world["studies"],
                seed=world["seed"],
                size=world["size"],
                workers=processes(None),
                progress=progress,
            )
    return folder


def _build(
    section: Mapping[str, Any], source: Source, out: Path, size: int, workers: int | None, only: str | None = None
) -> PreparedData:
    with counted(f"prepare {section['name']}") as progress:
        build(
            source,
            out,
            Plan(size, section["image_rule"], section["window"]),
            split=only,
            private=bool(section["private"]),
            max_bad_fraction=float(section["max_bad_fraction"]),
            workers=processes(workers),
            progress=progress,
        )
    return PreparedData(out, split=section["split"])


def read(section: Mapping[str, Any], raw: Path) -> Source:
    """What the section's reader finds in `raw`.

    Raises:
        UserError: there is no such directory, or the reader refuses what is in it.
    """
    if not raw.is_dir():
        raise UserError(f"No raw data at {raw}: no such directory.")
    options = {k: v for k, v in section["reader"].items() if k != "_target_"}
    return get_object(section["reader"]["_target_"])(raw, **options)


def processes(wanted: int | None) -> int:
    """How many to work with: as many as wanted, or one a core, at most 16."""
    return wanted or min(len(os.sched_getaffinity(0)), 16)


def given(cfg: DictConfig, *keys: str) -> None:
    """Refuse a command that lacks a key it needs.

    Raises:
        UserError: naming it.
    """
    for key in keys:
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"vlp-bench {cfg.verb} needs {key}=...")
