"""Runs at Weights and Biases: what they are called, what belongs together, what is told of them and how they end."""

import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vlp_bench.config import plain
from vlp_bench.engine.progress import console
from vlp_bench.errors import Interrupted, NotApplicable, UserError
from vlp_bench.files import read_json, write_json
from vlp_bench.vocabulary import CURVES, FRACTION, PRETRAINING, STEP, logged, row

#: the longest that the title of an alert may be
TITLE = 64


def wandb(cfg: DictConfig, out: Path, encoders: Mapping[str, Any], cell: str = "") -> list[WandbLogger]:
    """A logger to wandb where `logger=wandb` asks for one, on the first process; nothing is started.

    Args:
        cfg: the configuration of the run; it is sent, without `paths`.
        out: the run's directory.
        encoders: what is known of the encoders (`Encoders.meta`).
        cell: what an evaluation measures, by `vocabulary.cell`.
    """
    # not of torch.distributed, which begins with the training
    if not cfg.logger.wandb or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return []
    options = plain(cfg.logger.wandb)
    encoder = row(encoders.get("name"), encoders.get("variant"))
    # flat, because the pages of wandb group and filter by flat keys alone without fail
    said = {k: v for k, v in plain(cfg).items() if k != "paths"} | {"encoders": encoder, "cell": cell or PRETRAINING}
    name = f"{encoder} {cell} {cfg.label_fraction:g} {out.name.rpartition('-')[2]}" if cell else out.name
    tags = [*(options.pop("tags", None) or ()), *_tags(cfg, encoders)]
    known: dict[str, Any] = {"save_dir": out, "name": name, "id": _run_id(cfg, out), "config": said, "log_model": False}
    return [WandbLogger(**known | options, tags=list(dict.fromkeys(tags)))]


def _tags(cfg: DictConfig, encoders: Mapping[str, Any]) -> Iterator[str]:
    """What one looks for runs by."""
    # the section `vision` of an evaluation is that of a random backbone
    vision = ("vision",) * (cfg.get("backbone", "random") == "random")
    named = (
        cfg[section].get("name") for section in (*vision, "data", "task", "target", "adaptation") if section in cfg
    )
    yield from filter(None, (encoders.get("method"), encoders.get("variant"), *named))
    if "label_fraction" in cfg:
        yield f"fraction:{cfg.label_fraction:g}"
    if cfg.get("protocol"):
        yield f"protocol:{cfg.protocol.name}"
    yield f"seed:{cfg.seed}"


def _run_id(cfg: DictConfig, out: Path) -> str:
    """The run's name at wandb: the same after an interruption, another one where the run begins anew."""
    path = out / "wandb.json"
    if cfg.overwrite or cfg.get("resume") == "never" or not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(read_json(path, "the run's name at wandb")["id"])


@contextmanager
def recorded(loggers: Sequence[Logger]) -> Iterator[None]:
    """Start the runs at wandb, and end them as the block ends: finished, preempted, or failed with an alert.

    An alert names the run and the kind of error; messages may name studies or places and are not sent.

    Raises:
        UserError: wandb cannot be used.
    """
    ours = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    runs = [_start(logger) for logger in ours]
    try:
        yield
    except BaseException as error:
        # what wandb cannot send must not hide what happened
        with suppress(Exception):
            for run in runs:
                _fail(run, error)
        raise
    for run in runs:
        run.finish()
        _say_how_to_sync(run)


def _start(logger: WandbLogger) -> Any:
    from wandb.errors import Error

    try:
        run = logger.experiment
    except Error as error:
        raise UserError(
            f"logger=wandb: {str(error).splitlines()[0]} Log in with `wandb login`, or set WANDB_MODE=offline and "
            "sync the run later."
        ) from error
    for name, measure in CURVES.items():
        if measure.panel:
            run.define_metric(name, step_metric=STEP, step_sync=True, summary=measure.summary or None)
    return run


def _fail(run: Any, error: BaseException) -> None:
    if isinstance(error, NotApplicable):
        run.summary["not_applicable"] = True
        run.finish()
    elif isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
        run.mark_preempting()
        run.finish(exit_code=Interrupted.exit_code)
    else:
        title = f"failed: {run.name}"
        run.alert(title if len(title) < TITLE else title[: TITLE - 4] + "...", type(error).__name__, level="ERROR")
        run.finish(exit_code=1)
    _say_how_to_sync(run)


def _say_how_to_sync(run: Any) -> None:
    if run.offline:
        # an interrupted run has a part for each time it went on
        parts = sorted(Path(run.settings.sync_dir).parent.glob(f"offline-run-*-{run.id}"))
        console.print(f"not sent yet: wandb sync {shlex.join(map(str, parts))}", soft_wrap=True, highlight=False)


def log_measures(
    loggers: Sequence[WandbLogger], cell: str, fraction: float, found: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Send the measures of one evaluation, drawn over the label fraction.

    Args:
        loggers: where to.
        cell: what was measured, by `vocabulary.cell`.
        fraction: of the labels; 0 where none were used.
        found: entries {value, low, high, n} by name, of `test` and `trivial`.
    """
    parts = {"test": "value", "low": "low", "high": "high", "trivial": "value"}
    numbers = {
        logged(cell, kind, name): entry[part]
        for kind, part in parts.items()
        for name, entry in found["trivial" if kind == "trivial" else "test"].items()
        if entry[part] is not None
    }
    for logger in loggers:
        logger.experiment.define_metric(FRACTION, hidden=True)
        for name in numbers:
            logger.experiment.define_metric(name, step_metric=FRACTION)
        logger.experiment.log({FRACTION: fraction, **numbers})
