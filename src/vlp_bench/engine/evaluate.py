"""The verb `evaluate`: a backbone, a target and a task to `result.json` and `predictions.parquet`."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger

from vlp_bench import vocabulary
from vlp_bench.config import compose_verb, identity, plain
from vlp_bench.data.catalogue import overlap
from vlp_bench.data.corruptions import chosen
from vlp_bench.data.store import PreparedData
from vlp_bench.encoders.bundle import Encoders, stored_size
from vlp_bench.engine import build, compute, tracking
from vlp_bench.engine.data import ensure
from vlp_bench.engine.progress import console
from vlp_bench.engine.provenance import provenance
from vlp_bench.engine.throughput import Throughput
from vlp_bench.errors import UserError
from vlp_bench.files import digest, read_json, whole, write_json
from vlp_bench.tasks.base import Cell, Outcome, Picture, Target, Task
from vlp_bench.tasks.robustness import robustness

SCHEMA = 1
#: What evaluations must share to be comparable, beside the target's data and TARGET_KEYS.
RECIPE_KEYS = ("task", "adaptation", "trainer", "split", "subset", "protocol")
#: What a run may set without departing from a protocol.
FREE = ("num_workers",)
TARGET_KEYS = ("name", "kind", "labels", "uncertain", "views")


def evaluate(cfg: DictConfig) -> Path:
    """`vlp-bench evaluate`: returns the run directory."""
    return run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, out: Path) -> Path:
    """Evaluate what `cfg` says into `out`.

    Raises:
        UserError: the backbone, the target or the combination cannot be used.
    """
    if (out / "result.json").exists() and not cfg.overwrite:
        console.print(f"{out} is finished; nothing to do (overwrite=true runs it again).", soft_wrap=True)
        return out
    build.verify(cfg)
    if not 0 < cfg.label_fraction <= 1:
        raise UserError(f"label_fraction={cfg.label_fraction}: expected a share above 0 and at most 1.")
    task = build.task(cfg)
    worse = _worse(cfg, task)
    build.seed(cfg.seed)
    started = time.monotonic()
    about = provenance(cfg)
    encoders = build.encoders(cfg)
    compute.apply(cfg.compute, encoders.parts.values())
    section = plain(cfg.target)
    store = ensure(section, Path(cfg.paths.cache), stored_size(encoders.vision.spec.image_size))
    if encoders.vision.spec.image_size > store.size:
        raise UserError(
            f"{store.path} holds images of {store.size} px and this backbone reads "
            f"{encoders.vision.spec.image_size}. Prepare the target with a larger target.store_size."
        )
    cell = Cell(
        encoders=encoders,
        target=Target(store, **{k: section[k] for k in TARGET_KEYS}),
        adaptation=plain(cfg.adaptation),
        label_fraction=cfg.label_fraction,
        draw=cfg.draw,
        seed=cfg.seed,
        split=cfg.split,
        subset=cfg.subset,
        resamples=cfg.resamples,
        out=out,
        cache=Path(cfg.paths.cache),
        trainer=lambda callbacks, **more: build.trainer(
            cfg.trainer,
            out,
            [Throughput(out), *callbacks, *compute.callbacks(cfg.compute)],
            False,
            enable_progress_bar=False,
            **build.one_device(cfg.trainer),
            **more,
        ),
    )
    loggers = tracking.wandb(cfg, out, encoders.meta, _cell(cfg))
    with tracking.recorded(loggers):
        outcome = task.run(cell)
        if worse:
            outcome.facts["robustness"] = robustness(cell, task, worse)
        about |= _measured(cfg, store, encoders) | {"wall_seconds": round(time.monotonic() - started, 1)}
        _leave(cfg, cell, task, outcome, about, loggers)
    return out


def _worse(cfg: DictConfig, task: Task) -> list[str]:
    """The corruptions that are asked for; refused where the task cannot score images again."""
    worse = chosen(cfg.robustness or [])
    if worse and not task.rescores:
        raise UserError(f"robustness= is for task=classification and zero_shot; task={cfg.task.name} has no such pass.")
    return worse


def _leave(
    cfg: DictConfig, cell: Cell, task: Task, outcome: Outcome, about: dict[str, Any], loggers: Sequence[WandbLogger]
) -> None:
    """Write, draw, log and say what was found."""
    if task.primary not in outcome.metrics:
        first = next(iter(outcome.metrics))
        known = ", ".join(name for name in outcome.metrics if name.partition("/")[2] not in outcome.labels)
        console.print(f"task.primary={task.primary} is not measured ({known}); {first} is shown.", style="yellow")
        task.primary = first
    _write(cfg, cell.out, cell.encoders, task, outcome, about)
    pictures: list[Picture] = []
    if cfg.pictures and (not cell.target.store.private or cfg.privacy.allow_media):
        pictures = list(task.pictures(cell, outcome, cfg.pictures))
    _draw(pictures, cell.out / "pictures")
    _log(cfg, task, loggers, outcome, pictures)
    _say(cell.out, task, outcome)


def _target(cfg: DictConfig) -> str:
    return " ".join(filter(None, (cfg.target.name, cfg.target.split)))


def _cell(cfg: DictConfig) -> str:
    return vocabulary.cell(cfg.task.name, _target(cfg), cfg.adaptation.name, cfg.protocol.name)


def _draw(pictures: list[Picture], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)  # of a run that this one overwrites
    if not pictures:
        return
    with whole(out) as folder:
        folder.mkdir()
        index = []
        for number, picture in enumerate(pictures):
            name = f"{number:02d}.png"
            cv2.imwrite(str(folder / name), picture.image)
            index.append({"file": name, "caption": picture.caption, "group": picture.group})
        write_json(folder / "index.json", index)


def _log(
    cfg: DictConfig, task: Task, loggers: Sequence[WandbLogger], outcome: Outcome, pictures: list[Picture]
) -> None:
    """Numbers, and those pictures that may be kept, to wandb, where it is asked for."""
    found = {"test": outcome.metrics, "trivial": outcome.trivial}
    tracking.log_measures(loggers, _cell(cfg), cfg.label_fraction if task.learns else 0.0, found)
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    for logger in loggers:
        for group, shown in groups.items():
            images = [cv2.cvtColor(picture.image, cv2.COLOR_BGR2RGB) for picture in shown]
            logger.log_image(group, images, caption=[picture.caption for picture in shown])


def _measured(cfg: DictConfig, store: PreparedData, encoders: Encoders) -> dict[str, Any]:
    """What was measured on what, and how."""
    pretraining = encoders.meta.get("provenance")
    return {
        "target_fingerprint": store.fingerprint,
        "recipe": _recipe(cfg),
        "bundle_hash": encoders.hash,
        "pretrain": {**encoders.meta.get("training", {}), "provenance": pretraining},
        "data_fingerprint": (pretraining or {}).get("data_fingerprint"),
        "exposure": list(_exposure(cfg, store, encoders)),
    }


def _exposure(cfg: DictConfig, store: PreparedData, encoders: Encoders) -> Iterator[str]:
    """Why the encoders, or what is trained on them, may have seen test images before."""
    data = encoders.meta.get("data") or {}
    target = cfg.target.name
    for name in dict.fromkeys([*([data["name"]] if data.get("name") else []), *cfg.exposure]):
        if name == target and name not in cfg.exposure and data.get("split") == store.split:
            continue  # its training images alone
        if why := overlap(name, target):
            yield f"pre-trained on {name}: {why}"
    for kind, number in (store.manifest["divisions"].get(store.split, {}).get("leaks") or {}).items():
        yield f"the split {store.split} has {number} {kind} in more than one part"


def _recipe(cfg: DictConfig) -> str:
    """A hash of how the backbone is evaluated, whichever it is, with whatever labels and seeds."""
    # as written: what a protocol publishes for each fraction is one way of evaluating
    written = {"adaptation": OmegaConf.to_container(cfg.adaptation, resolve=False)}
    target = {k: plain(cfg.target).get(k) for k in (*TARGET_KEYS, "split")}
    return digest([identity(cfg, RECIPE_KEYS) | written, target], 6)


def _protocol(cfg: DictConfig) -> dict[str, Any]:
    """What the protocol says of itself, and where this run departs from it."""
    said: dict[str, Any] = {key: cfg.protocol.get(key) or [] for key in ("breaks", "differs")}
    said = {k: list(v) for k, v in said.items()} | {"name": cfg.protocol.name, "source": cfg.protocol.source}
    if cfg.protocol.source is None:
        return said | {"departures": []}
    fresh = [f"protocol={cfg.protocol.name}", f"target.name={cfg.target.name}", f"label_fraction={cfg.label_fraction}"]
    try:
        meant = compose_verb("evaluate", fresh)
    except UserError:  # a protocol of the user's own tree, which is not searched here
        return said | {"departures": None}
    return said | {"departures": list(_departures(cfg, meant))}


def _departures(cfg: DictConfig, meant: DictConfig) -> Iterator[str]:
    for section in ("task", "adaptation"):
        ours, theirs = plain(cfg[section]), plain(meant[section])
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in FREE and ours.get(key) != theirs.get(key):
                yield f"{section}.{key}={ours.get(key)}, published {theirs.get(key)}"
    if cfg.target.split != meant.target.split:
        yield f"target.split={cfg.target.split}, published {meant.target.split}"
    if cfg.subset != meant.subset:
        yield f"subset={cfg.subset}, published {meant.subset}"


def not_applicable(cfg: DictConfig, out: Path, reason: str) -> None:
    """Leave a result without a value, which tables show as a dash with the reason."""
    encoders = build.encoders(cfg)
    task = build.task(cfg)
    nothing = {task.primary: {"value": None, "low": None, "high": None, "n": 0}}
    store = ensure(plain(cfg.target), Path(cfg.paths.cache), stored_size(encoders.vision.spec.image_size))
    about = provenance(cfg) | _measured(cfg, store, encoders)
    outcome = Outcome(nothing, {}, pd.DataFrame({"item_id": [], "patient_id": []}), [], {"not_applicable": reason})
    _write(cfg, out, encoders, task, outcome, about)


def _write(cfg: DictConfig, out: Path, encoders: Encoders, task: Task, outcome: Outcome, about: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(about["config"]), out / "config.yaml")
    with whole(out / "predictions.parquet") as temporary:
        outcome.predictions.to_parquet(temporary, index=False)
    result = {
        "schema": SCHEMA,
        "method": encoders.meta.get("method"),
        "variant": encoders.meta.get("variant"),
        "backbone": encoders.meta.get("name"),
        "pretrain_seed": encoders.meta.get("pretrain_seed"),
        "task": cfg.task.name,
        "target": _target(cfg),
        "where": cfg.target.get("where"),
        "split": cfg.split,
        "protocol": _protocol(cfg),
        "label_fraction": cfg.label_fraction if task.learns else None,
        "draw": cfg.draw,
        "adaptation": cfg.adaptation.name,
        "seed": cfg.seed,
        "primary": task.primary,
        "labels": outcome.labels,
        "metrics": outcome.metrics,
        "trivial": outcome.trivial,
        "facts": outcome.facts,
        "demonstration": cfg.note,
        "provenance": about,
    }
    write_json(out / "result.json", result)


def _say(out: Path, task: Task, outcome: Outcome) -> None:
    shown = {name: (outcome.metrics.get(task.primary), outcome.trivial.get(task.primary)) for name in [task.primary]}
    for name, (value, trivial) in shown.items():
        text = f"{name} {format_metric(value)}   trivial {format_metric(trivial)}"
        console.print(f"{text}   {out / 'result.json'}", soft_wrap=True, highlight=False)


def format_metric(metric: dict[str, Any] | None) -> str:
    """`0.812 [0.790, 0.833]`, or a dash where there is no value."""
    if not metric or metric["value"] is None:
        return "-"
    interval = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None else ""
    return f"{metric['value']:.3f}{interval}"


def finished(out: Path) -> dict[str, Any] | None:
    """The result of a finished cell, or None."""
    return read_json(out / "result.json", "a result") if (out / "result.json").exists() else None
