"""MGCA's contrast and prototype losses on two gloo processes."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from vlp_bench.losses.precision import unit
from vlp_bench.methods.mgca import MGCA


def gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
    """Losses of the rows at hand, and their gradients in the projections and the prototypes."""
    projections = [inputs[name].clone().requires_grad_() for name in ("image_weight", "text_weight")]
    prototypes = nn.Linear(4, 6, bias=False)
    prototypes.weight = nn.Parameter(inputs["prototypes"].clone())
    method = SimpleNamespace(
        temperatures={"instance": 0.07, "prototype": 0.2},
        prototypes=prototypes,
        epsilon=0.05,
        sinkhorn_iterations=3,
    )
    method.codes = lambda logits: MGCA.codes(method, logits)
    v, t = (unit(inputs[n] @ w) for n, w in zip(("image", "text"), projections, strict=True))
    loss = sum(MGCA.instance_terms(method, v, t)) + sum(MGCA.prototype_terms(method, v, t)) / 2
    return [loss.detach(), *torch.autograd.grad(loss, (*projections, prototypes.weight))]


def _rank(rank: int, folder: str, inputs: dict[str, Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = {name: x.chunk(2)[rank] if name in ("image", "text") else x for name, x in inputs.items()}
    results = gradients(own)
    for x in results:
        # As DDP averages gradients.
        dist.all_reduce(x)
        x /= 2
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


def on_two(folder: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The mean over two processes that hold half of the rows each."""
    torch.multiprocessing.spawn(_rank, (folder, inputs), nprocs=2)
    return torch.load(Path(folder) / "results.pt")
