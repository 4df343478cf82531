"""A method on two gloo processes as DDP runs it. Imported by name in both: no fixture, no test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from batches import rows_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlp_bench.config import compose_verb
from vlp_bench.data.datamodule import assemble
from vlp_bench.engine import build as engine
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import StudyBatch

#: makes what is large in a method small; nothing is dropped
SMALL = {
    "prior": ("method.embed_dim=96", "method.decoder={layers: 1, heads: 4, hidden: 96, dropout: 0.0}"),
    "refers": ("method.decoder={width: 64, heads: 4, feedforward: 64, layers: 1, dropout: 0.0}",),
}
#: a method, an image encoder, and overrides
Case = tuple[str, str, tuple[str, ...]]
#: the longest of one half is longer than that of the other
REPORTS = [
    *["no effusion", "left effusion", "edema improved", "heart enlarged", "lungs clear", "small nodule"],
    *["no effusion or edema", "stable", "small left effusion", "heart enlarged", "lungs are clear", "no nodule"],
]


def build(name: str, vision: str, overrides: Sequence[str] = ()) -> tuple[VLPMethod, StudyBatch]:
    """The method in eval mode (batch statistics have no CPU kernel across processes) with a batch of 12."""
    torch.manual_seed(0)
    small = ["vision.image_size=32", f"vision.name={vision}", "text.architecture.num_hidden_layers=1"]
    cfg = compose_verb("pretrain", [f"method={name}", *small, *overrides])
    method = engine.method(cfg, train=False).eval()
    tokenizer = engine.text(cfg.text).tokenizer
    tokens = assemble(tokenizer.encode([[r] for r in REPORTS]), np.arange(len(REPORTS)), tokenizer, 16)
    views = engine.inputs(cfg).views
    shades = torch.rand(len(REPORTS) * views, 1, 4, 4)
    batch = StudyBatch(
        image=(255 * F.interpolate(shades, size=32, mode="bicubic").clamp(0, 1)).byte().unflatten(0, (-1, views)),
        view_mask=torch.ones(len(REPORTS), views, dtype=torch.bool),
        flipped=torch.zeros(len(REPORTS), views, dtype=torch.bool),
        text=tokens,
        labels=torch.randint(0, 2, (len(REPORTS), 14)).float(),
        study=torch.arange(len(REPORTS)),
        study_id=tuple(map(str, range(len(REPORTS)))),
    )
    return method, batch


class Step(nn.Module):
    """What Lightning hands to DDP: one forward that ends in the loss."""

    def __init__(self, method: VLPMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: StudyBatch) -> Tensor:
        """The weighted sum of the terms."""
        weights = self.method.weights(0.0)
        return torch.stack([weights[k] * term for k, term in self.method.terms(batch).items()]).sum()


def gradients(method: VLPMethod, batch: StudyBatch, across: bool = False) -> dict[str, Tensor]:
    """Gradient of every parameter that has one; as DDP's `across` processes, the mean of two batches alike."""
    step: nn.Module = Step(method)
    if not across:
        step(batch).backward()
        return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    step = DistributedDataParallel(step)
    step(batch).backward()
    method.zero_grad()
    with step.no_sync():
        # would say here if a parameter had not been used in the first step
        step(batch).backward()
    step(batch).backward()
    return {name: p.grad / 2 for name, p in method.named_parameters() if p.grad is not None}


def _rank(rank: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for case in cases:
        method, batch = build(*case)
        half = len(batch) // 2
        own = rows_of(batch, range(rank * half, (rank + 1) * half))
        noted: dict[str, Tensor] = {}
        method.note = lambda _, kept=noted, **values: kept.update(values)
        found[case] = gradients(method, own, across=True), noted.get("negatives")
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def on_two_ranks(folder: Path, cases: list[Case]) -> dict[Case, tuple[dict[str, Tensor], Tensor | None]]:
    """For each case the gradients that both processes end with, and the negatives that the first one counts."""
    torch.multiprocessing.spawn(_rank, (str(folder), cases), nprocs=2)
    return torch.load(folder / "gradients.pt", weights_only=True)
