"""Two processes with half a batch each give the gradients of one process with the whole batch, for every method."""

import pytest
import torch
from method_on_two_ranks import build, gradients, on_two_ranks

from vlp_bench.config import groups

CASES = [(name, vision) for name in groups()["method"] for vision in ("test_resnet", "vit_tiny_patch16_224")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_of_two_processes_equal_those_of_the_joined_batch(case, found):
    expected = gradients(*build(*case))
    assert found[case].keys() == expected.keys()
    # timm starts residual branches at zero
    assert sum(float(g.abs().max()) > 0 for g in expected.values()) > len(expected) / 2
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[case][parameter], gradient, rtol=1e-5, atol=1e-5 * largest, msg=parameter)
