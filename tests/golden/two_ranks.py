"""Work for two gloo processes; imports little, because each process imports it anew."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from vlp_bench.distributed import all_reduce
from vlp_bench.losses.prototypes import sinkhorn


def _rank(rank: int, folder: str, logits: torch.Tensor, epsilon: float, iterations: list[int]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = logits.chunk(2)[rank]
    torch.save({n: sinkhorn(own, epsilon, n, all_reduce) for n in iterations}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def sinkhorn_on_two(folder: str, logits: torch.Tensor, epsilon: float, iterations: list[int]) -> list[dict]:
    """Codes of each rank, by the number of iterations; rank r holds the r-th half of the rows."""
    torch.multiprocessing.spawn(_rank, (folder, logits, epsilon, iterations), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
