"""What keeps a run: repeatable steps, checkpoints to go on from, and an end where the loss is none any more."""

import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from vlp_bench.errors import Interrupted, Stopped, UserError
from vlp_bench.files import whole, write_json

#: what asks a run to end: the user, a cluster that wants its machine back, `sbatch --signal=USR1@120`
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there.

    Lightning writes to the machine's temporary folder, whence a file comes to another disk by copying, and a run that
    is killed meanwhile has lost its checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save, atomically."""
        with whole(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class SeededSteps(Callback):
    """Seeds torch before each training step from (seed, epoch, batch, rank).

    Dropout then draws the same whether a run was interrupted or not, without any generator state in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed this step."""
        key = hash((self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(key % 2**63)


class LossWatch(Callback):
    """Stops a run whose loss is not finite, or far above where it began, with the studies of the batch.

    On a CPU every loss is looked at before its gradient is computed. A GPU is waited for every few steps only, so that
    there the weights may have been spoilt since; which batch it was is known all the same. It is looked, too, before
    the engine keeps a checkpoint: what is kept can be gone on from.

    Args:
        out: the run's directory; `checkpoints/stopped.ckpt` and `stopped.json` are left in it.
        divergence: how often the first loss (or 1, if that is more) a loss may be; None for any finite loss.
    """

    def __init__(self, out: Path, divergence: float | None) -> None:
        if divergence is not None and divergence <= 1:
            raise UserError(f"divergence={divergence}: expected a factor above 1, or null.")
        self.folder, self.divergence = out / "checkpoints", divergence
        self.begin: Tensor | None = None
        self.bad: Tensor | None = None
        self.recent: deque[dict[str, Any]] = deque(maxlen=1)
        self.batch: tuple[Any, int] = (None, 0)

    def state_dict(self) -> dict[str, Any]:
        """The first loss."""
        return {"begin": self.begin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the first loss of the interrupted run."""
        self.begin = state_dict["begin"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch that is due."""
        self.batch = (batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note whether this loss will do, and look now and then."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = loss.detach().float()
        loss = loss if scaler is None else loss / scaler.scale(torch.ones_like(loss))
        size = loss.abs()
        if self.begin is None:
            self.begin = size.clamp(min=1.0)
        limit = self.begin.to(loss.device) * (self.divergence or torch.inf)
        bad = ~torch.isfinite(loss) | (size > limit)
        # every few steps a GPU is waited for anyway, by the loggers
        every: int = 1 if loss.device.type == "cpu" else trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.recent.maxlen != every:
            self.recent = deque(maxlen=every)
        batch, index = self.batch
        where = {"epoch": trainer.current_epoch, "batch": index, "step": trainer.global_step}
        self.recent.append({**where, "loss": loss, "bad": bad, "studies": batch.study_id})
        self.bad = bad if self.bad is None else self.bad | bad
        if (index + 1) % every == 0:
            self.look(trainer)

    def look(self, trainer: Trainer) -> None:
        """Raise what is to be said if a loss since the last look was bad, on all processes together.

        Raises:
            Stopped: one was.
        """
        bad, self.bad = self.bad, None
        if bad is not None and trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            own = [step for step in self.recent if bool(step["bad"])]
            raise self.stop(trainer, own[0] if own else None)

    def check_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """The same for weights: a gradient may not be finite where the loss is.

        Raises:
            Stopped: a parameter is not finite.
        """
        norms = torch._foreach_norm([p.detach() for p in module.parameters() if p.is_floating_point()])
        if not bool(torch.stack(norms).isfinite().all()):
            raise self.stop(trainer, self.recent[-1])

    def stop(self, trainer: Trainer, step: dict[str, Any] | None) -> Stopped:
        """Keep what there is to look at; what is to be said of the step, or None where another process has seen it."""
        now, path = trainer.global_step, self.folder / "stopped.ckpt"
        if step is not None:
            step = {k: float(v) if isinstance(v, Tensor) else v for k, v in step.items() if k != "bad"}
        steps = [step] if trainer.world_size == 1 else _everybodys(step)
        seen = next(s for s in steps if s is not None)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            write_json(self.folder / "stopped.json", seen)
        last = self.folder / "last.ckpt"
        ids = ", ".join(seen["studies"][:4])
        return Stopped(
            f"The loss is {seen['loss']:.4g} at epoch {seen['epoch']}, batch {seen['batch']} (studies {ids}, ...; all "
            f"in {self.folder / 'stopped.json'}), or the weights after it are not finite. {path} holds the weights of "
            f"step {now}" + (f", {last} the last good ones" if last.exists() else "") + ". Lower optimizer.lr, set "
            "trainer.gradient_clip_val, or raise divergence if the loss is finite and meant to grow."
        )


def _everybodys(step: dict[str, Any] | None) -> list[dict[str, Any] | None]:
    """What each process has."""
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, step)
    return everybody


class Resumable(Callback):
    """Keeps `last.ckpt` every few steps and at the end of an epoch, and when a signal asks the run to end.

    A signal is answered at the end of an optimiser step, by all processes together: what was computed is kept. In a
    validation it is answered at once. The last step of an epoch is kept with its validation, which Lightning would
    leave out after a resume between the two; that is why the step before is kept too.

    Args:
        out: the run's directory.
        every: optimiser steps between checkpoints.
        watch: looks at the losses before any is kept.
    """

    def __init__(self, out: Path, every: int, watch: LossWatch) -> None:
        self.path, self.every, self.watch = out / "checkpoints" / "last.ckpt", every, watch
        self.asked, self.ending, self.step, self.kept = False, False, 0, -1
        self.before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would end one process in the middle of a step."""
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.heard) for number in SIGNALS}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self.before:
            signal.signal(*self.before.popitem())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same; Lightning tears nothing down then."""
        self.teardown(trainer, pl_module, "fit")

    def heard(self, number: int, _: Any) -> None:
        """Note that the run is to end; a second Ctrl-C ends it at once."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        # not through a library: the signal may have come in the middle of anything
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step\n".encode())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a checkpoint if one is due or the run is to end."""
        if trainer.global_step == self.step:
            return  # gradients are being gathered, and would be lost
        self.step = trainer.global_step
        # Lightning, too, lets the processes of a run agree on this at every step
        self.ending = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        due = self.step % self.every == 0 or batch_idx + 2 == trainer.num_training_batches
        if (self.ending or due) and not trainer.is_last_batch:
            # Lightning would log the step only after this hook, and a run killed between the two would lack its row
            trainer._logger_connector.update_train_step_metrics()
            self.keep(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End if that was asked for: only now is the last step logged.

        Raises:
            Interrupted: it was.
        """
        if self.ending:
            raise self.interrupted()

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """End if that is asked for.

        Raises:
            Interrupted: it is.
        """
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise self.interrupted()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of the epoch."""
        self.keep(trainer, pl_module)

    def keep(self, trainer: Trainer, module: LightningModule) -> None:
        """Save a checkpoint that can be gone on from."""
        self.watch.look(trainer)
        self.watch.check_weights(trainer, module)
        trainer.save_checkpoint(self.path)
        self.kept = trainer.global_step

    def interrupted(self) -> Interrupted:
        """What is to be said."""
        return Interrupted(f"Interrupted; the same command goes on from step {self.kept} ({self.path}).")


def clear_halves(folder: Path) -> None:
    """Remove what a run that was killed while it wrote has left beside its checkpoints."""
    for path in folder.glob(".*.ckpt.*"):
        path.unlink(missing_ok=True)
