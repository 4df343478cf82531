"""Learning rates by step and parameters by group."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vlp_bench.errors import UserError


def multiplier(step: int, total: int, warmup: int, final: float = 0.0, schedule: str = "cosine") -> float:
    """Factor on the learning rate at an optimiser step: linear warm-up, then half a cosine or a straight line.

    From `final` to 1 over `warmup` steps, back to `final` at `total`; after that the cycle begins anew, as in the
    scheduler that MGCA uses (supplement A.3).

    >>> [round(multiplier(i, 10, 4), 3) for i in (0, 2, 4, 7, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        UserError: another schedule than `cosine` and `linear`.
    """
    if schedule not in ("cosine", "linear"):
        raise UserError(f"method.schedule={schedule}: expected cosine or linear.")
    step %= max(total, 1)
    if step < warmup:
        return final + (1 - final) * step / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return final + (1 - final) * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def warmup_cosine(step: int, length: int, warmup: int, start: float = 0.0, final: float = 0.0) -> float:
    """Factor on the learning rate of one stage of `length` steps: `start` to 1 in `warmup` steps, then half a cosine.

    The last of the warm-up's steps and the one after it are both at 1, as in lightning-bolts.

    >>> [round(warmup_cosine(i, 10, 4, 0.1), 3) for i in (0, 1, 3, 4, 7, 10)]
    [0.1, 0.4, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return start + (1 - start) * step / max(warmup - 1, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(length - warmup, 1)))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, decay_all: bool = False) -> list[dict]:
    """Two groups of the trainable parameters: decayed matrices, and the biases and norms that are not.

    Args:
        modules: their parameters, each counted once.
        weight_decay: of the first group.
        decay_all: put everything into the first group, as MGCA's code does.
    """
    parameters = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    matrices = [p for p in parameters if p.ndim > 1 or decay_all]
    vectors = [p for p in parameters if p.ndim <= 1 and not decay_all]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def look_ahead(optimizer: torch.optim.Optimizer, k: int = 5, alpha: float = 0.5) -> torch.optim.Optimizer:
    """Pull the weights back to a slow copy of them after every k-th step (Zhang et al., NeurIPS 2019).

    Args:
        optimizer: takes the steps; it keeps the slow weights, which start at the present ones, in its own state.
        k: steps between two visits of the slow weights.
        alpha: how far the slow weights move towards the fast ones, which then go on from there.
    """
    for group in optimizer.param_groups:
        group["steps"] = 0
        for p in group["params"]:
            optimizer.state[p]["slow"] = p.detach().clone()

    @torch.no_grad()
    def visit(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["steps"] += 1
            if group["steps"] % k == 0:
                slow = [optimizer.state[p]["slow"] for p in group["params"]]
                torch._foreach_lerp_(slow, group["params"], alpha)
                torch._foreach_copy_(group["params"], slow)

    optimizer.register_step_post_hook(visit)
    return optimizer
