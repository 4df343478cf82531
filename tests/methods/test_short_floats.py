"""A training step of every method in short floats: finite, and near that in float32."""

import pytest
import torch
from method_on_two_ranks import SMALL, build

from vlp_bench.config import groups

#: of a term, beside its value in float32; docs/precision.md has what was measured
RELATIVE, ABSOLUTE = 0.05, 0.01
#: of the gradients of both
COSINE = 0.85
NO_DROPOUT = [f"+text.architecture.{kind}_dropout_prob=0.0" for kind in ("hidden", "attention_probs")]
#: the stage that has all terms
LAST = {"prior": ("method.stage=3",)}
VARIANTS = [*((name, "paper") for name in groups()["method"])]
VARIANTS += [(name, "official") for name in ("medvill", "mgca", "prior", "refers")]
FLOATS = [("cpu", torch.bfloat16), ("cuda", torch.float16), ("cuda", torch.bfloat16)]


def step(method, batch):
    method.zero_grad()
    torch.manual_seed(0)
    terms = method.terms(batch)
    weights = method.weights(0.0)
    torch.stack([weights[k] * term for k, term in terms.items()]).sum().backward()
    gradient = torch.cat([p.grad.flatten().double() for p in method.parameters() if p.grad is not None])
    return {k: v.detach() for k, v in terms.items()}, gradient


@pytest.mark.parametrize("device, dtype", FLOATS, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("vision", ["test_resnet", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, variant", VARIANTS, ids=lambda x: x)
def test_a_training_step_is_near_that_in_float32(name, variant, vision, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    method, batch = build(
        name, vision, [f"method.variant={variant}", *NO_DROPOUT, *SMALL.get(name, ()), *LAST.get(name, ())]
    )
    method, batch = method.train().to(device), batch.to(device)
    start = {k: v.clone() for k, v in method.state_dict().items()}
    expected, gradient = step(method, batch)
    method.load_state_dict(start)
    with torch.autocast(device, dtype):
        got, short = step(method, batch)
    assert got.keys() == expected.keys()
    for term, value in expected.items():
        assert got[term].dtype == torch.float32
        assert torch.isfinite(got[term])
        torch.testing.assert_close(got[term], value, rtol=RELATIVE, atol=ABSOLUTE, msg=f"{term}: {got[term]}, {value}")
    assert torch.isfinite(short).all()
    assert torch.cosine_similarity(gradient, short, dim=0) > COSINE
