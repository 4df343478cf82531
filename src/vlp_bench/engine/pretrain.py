"""The verb `pretrain`: configuration to a finished run directory with a bundle."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vlp_bench.config import identity, plain
from vlp_bench.data.datamodule import MimicCxrDataModule
from vlp_bench.data.store import PreparedData
from vlp_bench.encoders import bundle
from vlp_bench.encoders.chunks import cache_gradients
from vlp_bench.engine import build, compute, tracking
from vlp_bench.engine.data import ensure
from vlp_bench.engine.keeping import LossWatch, Resumable, SeededSteps, clear_halves
from vlp_bench.engine.progress import console
from vlp_bench.engine.provenance import provenance
from vlp_bench.engine.throughput import Throughput
from vlp_bench.errors import Stopped, UserError
from vlp_bench.files import digest, read_json, write_json
from vlp_bench.methods.base import VLPMethod

log = logging.getLogger(__name__)


def pretrain(cfg: DictConfig) -> Path:
    """`vlp-bench pretrain`: returns the run directory."""
    return run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, out: Path) -> Path:
    """Pre-train what `cfg` says into `out`; go on where an interrupted run of the same configuration stopped.

    Raises:
        UserError: the configuration, the data or a checkpoint cannot be used.
    """
    if (out / "run.json").exists() and not cfg.overwrite:
        console.print(f"{out} is finished; nothing to do (overwrite=true runs it again).", soft_wrap=True)
        return out
    build.verify(cfg)
    if cfg.overwrite:
        _clear(out)
    resume = _resume_from(cfg, out)
    build.seed(cfg.seed)
    data = ensure(plain(cfg.data), Path(cfg.paths.cache), bundle.stored_size(cfg.vision.image_size))
    about = provenance(cfg) | {"data_fingerprint": data.fingerprint}
    module = build.method(cfg)
    cache_gradients(module, cfg.gradient_cache)
    compute.apply(cfg.compute, [module])
    meta = {
        "name": f"{cfg.method.name} {cfg.vision.name}",
        "method": cfg.method.name,
        "variant": cfg.method.get("variant", "paper"),
        "pretrain_seed": cfg.seed,
        "inputs": plain(cfg.method.inputs),
        "private": data.private,
        "data": {"name": cfg.data.name, "split": data.split} | data.manifest["plan"],
        "provenance": {k: about[k] for k in ("commit", "config_hash", "data_fingerprint", "versions")}
        | {"recipe": digest({k: v for k, v in identity(cfg).items() if k != "seed"}, 6)},
    }
    module.record = {"config": plain(cfg), "meta": meta}
    module_data = data_module(cfg, data, module)
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(module.record["config"]), out / "config.yaml")
    loggers = build.loggers(cfg, out, meta)
    if resume:
        loggers[0].keep_until(torch.load(resume, "cpu", weights_only=True)["global_step"])  # type: ignore[attr-defined]
    throughput = Throughput(out)
    # first, so that a checkpoint that another callback writes is not in the time of its step
    trainer = build.trainer(cfg.trainer, out, [throughput, *_callbacks(cfg, out)], loggers)
    try:
        with tracking.recorded(loggers):
            trainer.fit(module, datamodule=module_data, ckpt_path=resume)
    except Stopped:
        if not trainer.is_global_zero:
            # one voice is enough; and Lightning kills the first process where another one fails
            raise SystemExit(0) from None
        raise
    _finish(
        cfg,
        trainer,
        module,
        out,
        meta,
        about | {k: round(v, 1) for k, v in throughput.spent().items()} | {"throughput": throughput.summary()},
    )
    return out


def data_module(cfg: DictConfig, data: PreparedData, module: VLPMethod) -> MimicCxrDataModule:
    """The batches that a method reads of prepared data."""
    return MimicCxrDataModule(
        data,
        module.text.tokenizer if module.text is not None else build.text(cfg.text).tokenizer,
        build.inputs(cfg),
        image_size=cfg.vision.image_size,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        limit=cfg.data.limit,
        length_window=cfg.data.length_window,
    )


@rank_zero_only
def _clear(out: Path) -> None:
    (out / "run.json").unlink(missing_ok=True)
    for folder in ("bundle", "checkpoints"):
        shutil.rmtree(out / folder, ignore_errors=True)


def _finish(cfg: DictConfig, trainer: Trainer, module: Any, out: Path, meta: dict, about: dict) -> None:
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        best, steps = out / "checkpoints" / "best.ckpt", trainer.global_step
        if cfg.select != "last" and best.is_file():
            module.load_state_dict(torch.load(best, "cpu", weights_only=True)["state_dict"])
        training = {"steps": steps, "epochs": trainer.current_epoch, "select": cfg.select}
        training["batch_size"] = cfg.data.batch_size * trainer.world_size * cfg.trainer.accumulate_grad_batches
        training |= {k: about[k] for k in ("wall_seconds", "cpu_seconds", "throughput")}
        digest = bundle.save(out / "bundle", module.parts(), meta | {"training": training})
        record = {"schema": 1, "verb": "pretrain", **meta, "bundle_hash": digest, "training": training}
        write_json(out / "run.json", record | {"provenance": about})
        console.print(f"pre-trained {meta['name']}: {steps} steps, bundle in {out / 'bundle'}", soft_wrap=True)
    trainer.strategy.barrier()


def _callbacks(cfg: DictConfig, out: Path) -> list[Callback]:
    folder = out / "checkpoints"
    watch = LossWatch(out, cfg.divergence)
    made: list[Callback] = [SeededSteps(cfg.seed), watch, Resumable(out, cfg.checkpoint_steps, watch)]
    made += compute.callbacks(cfg.compute)
    if cfg.select != "last":
        made.append(ModelCheckpoint(folder, "best", monitor=cfg.select, enable_version_counter=False))
    if cfg.early_stop:
        made.append(EarlyStopping(cfg.early_stop.monitor, patience=cfg.early_stop.patience))
    if cfg.trainer.enable_progress_bar:
        made.append(RichProgressBar())
    return made


def _resume_from(cfg: DictConfig, out: Path) -> str | None:
    if cfg.resume == "never":
        return None
    if cfg.resume != "auto":
        if not Path(cfg.resume).is_file():
            raise UserError(f"resume={cfg.resume}: no such checkpoint. Use auto, never, or the path of a checkpoint.")
        return str(cfg.resume)
    last = out / "checkpoints" / "last.ckpt"
    # not of torch.distributed, which begins with the training
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        clear_halves(last.parent)
    if not last.is_file():
        return None
    log.info("resuming from %s", last)
    return str(last)


def finished(out: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None."""
    return read_json(out / "run.json", "a run record") if (out / "run.json").exists() else None
