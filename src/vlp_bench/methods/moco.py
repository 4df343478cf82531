"""MoCo v2: momentum contrast of two views of an image (Chen et al., 2020), the baseline without text.

A query encoder finds, among the keys of earlier batches in a queue, the key of the other view of its image. The keys
come from a copy of the encoder that follows it slowly: key <- m key + (1 - m) query after every step. The views are
drawn on the device: crop, mirror, brightness and contrast, blur. The colours of the paper's recipe do not exist here.
Keys are not shuffled between processes; use batch statistics over all of them (trainer.sync_batchnorm=true) instead.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlp_bench.distributed import gather
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.contrastive import queue_nce
from vlp_bench.losses.precision import unit
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import StudyBatch


def random_view(image: UInt8[Tensor, "B 1 H W"], smallest: float) -> UInt8[Tensor, "B 1 H W"]:
    """A view of each image: its share `smallest` to 1 of the area, mirrored in half, jittered by 40 %, blurred in half.

    Args:
        image: grey levels.
        smallest: least share of the area that is cut out.
    """
    b, device = len(image), image.device
    u = torch.rand(7, b, device=device)
    side = (smallest + (1 - smallest) * u[0]).sqrt()
    mirror = torch.where(u[1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(b, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
    theta[:, :, 2] = ((1 - side) * (2 * u[2:4] - 1)).T
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    x = F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness, contrast = (1 + 0.4 * (2 * u[4:6] - 1)).view(2, b, 1, 1, 1)
    x = x * brightness
    x = _blurred(x, torch.where(u[6] < 0.5, 0.1 + 3.8 * u[6], 0.01))
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * contrast + mean).round().clamp(0, 255).byte()


def _blurred(x: Float[Tensor, "B 1 H W"], sigma: Float[Tensor, "B"]) -> Float[Tensor, "B 1 H W"]:
    """Gaussian blur, an own sigma for each image, by a kernel of a tenth of the side."""
    half = max(1, x.shape[-1] // 20)
    at = torch.arange(-half, half + 1, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None]
    wide = F.pad(x, (half,) * 4, mode="reflect").transpose(0, 1)
    return F.conv2d(F.conv2d(wide, kernel, groups=len(x)), kernel.mT, groups=len(x)).transpose(0, 1)


class MoCo(VLPMethod):
    """Contrast of two views of an image against a queue.

    Args:
        vision: the image encoder.
        text: not used, and not kept.
        optimizer: see VLPMethod.
        temperature: tau (0.2 in v2).
        momentum: m.
        queue: how many keys it holds; a multiple of the joint batch is best.
        embed_dim: width of the joint space.
        smallest_crop: least share of an image's area that a view shows.
        **common: see VLPMethod; loss_weights are of the only term, `instance`.

    Raises:
        UserError: `across_processes` is false.
    """

    queue: Tensor
    place: Tensor

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone | None,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue: int = 65536,
        embed_dim: int = 128,
        smallest_crop: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(vision, None, optimizer, **common)
        if not self.across_processes:
            raise UserError("method.across_processes=false: all processes share one queue of keys. Leave it out.")
        self.temperature, self.momentum, self.smallest_crop = temperature, momentum, smallest_crop
        width = vision.spec.pooled_dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embed_dim))
        self.key_vision, self.key_head = copy.deepcopy(vision), copy.deepcopy(self.head)
        self.key_vision.requires_grad_(False)
        self.key_head.requires_grad_(False)
        self.register_buffer("queue", unit(torch.randn(queue, embed_dim)))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        #: of the batches since the last step
        self.keys: list[Tensor] = []

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """The query's contrast; out of training both views are the image itself."""
        image = batch.frontal
        one, other = (random_view(image, self.smallest_crop) if self.training else image for _ in range(2))
        q = unit(self.head(self.vision(one).pooled))
        with torch.no_grad():
            k = unit(self.key_head(self.key_vision(other).pooled))
        if self.training:
            self.keys.append(k)
        self.note(len(batch), negatives=q.new_full((), len(self.queue), dtype=torch.float32))
        return {"instance": queue_nce(q, k, self.queue, self.temperature)}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then follow: a checkpoint that is written after it has the queue and the keys' encoder of it."""
        super().optimizer_step(*args, **kwargs)
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Let the key encoder follow and put the newest keys of all processes in the place of the oldest."""
        for mine, theirs in ((self.vision, self.key_vision), (self.head, self.key_head)):
            torch._foreach_lerp_(list(theirs.parameters()), list(mine.parameters()), 1 - self.momentum)
        keys = torch.cat([gather(k) for k in self.keys])[-len(self.queue) :]
        self.queue[(self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)] = keys
        self.place.add_(len(keys)).remainder_(len(self.queue))
        self.keys.clear()
