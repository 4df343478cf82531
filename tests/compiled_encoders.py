"""Encoders before and after `compute.compile`. A process of its own: no fixture, no test."""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from vlp_bench.encoders import bundle
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import compute
from vlp_bench.types import Tokens

VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def main(folder: Path) -> None:
    """Compare losses, gradients and keys, and a bundle of what was compiled."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vision = VisionBackbone("vit_tiny_patch16_224", image_size=32, architecture=VIT).eval()
    text = TextBackbone("none", architecture={**BERT, "max_position_embeddings": 32}).eval()
    parts = {"vision": vision, "text": text}
    project = torch.randn(vision.spec.pooled_dim, text.width)
    ids = torch.randint(5, 50, (3, 9))
    tokens = Tokens(ids, ids > 8, ids, ids)
    image = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    parameters = [p for part in parts.values() for p in part.parameters()]

    def step() -> list[Tensor]:
        for p in parameters:
            p.grad = None
        v, t = vision(image, saliency=True), text(tokens, saliency=True)
        loss = (v.pooled @ project @ t.pooled.T).logsumexp(1).mean() + v.tokens.square().mean()
        loss.backward()
        return [loss.detach(), v.tokens, t.tokens, *(p.grad for p in parameters if p.grad is not None)]

    expected, keys = step(), [list(part.state_dict()) for part in parts.values()]
    switches = OmegaConf.create({"tf32": False, "channels_last": True, "sdpa": True, "fused": False, "compile": True})
    compute.apply(switches, parts.values())
    for got, value in zip(step(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(parts)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert keys == [list(part.state_dict()) for part in parts.values()]
    bundle.save(folder / "bundle", parts, {})
    loaded = bundle.load(folder / "bundle")
    torch.testing.assert_close(loaded.vision.eval()(image).pooled, vision(image).pooled, rtol=1e-4, atol=1e-5)
    print("alike")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
