"""Two processes with half a batch each give the gradients of one process with the whole batch, for every method."""

from pathlib import Path

import pytest
import torch
from method_on_two_ranks import build, gradients, on_two_ranks

from vlp_bench.config import groups


@pytest.mark.slow
@pytest.mark.parametrize("name", groups()["method"])
@pytest.mark.parametrize("vision", ["test_resnet", "vit_tiny_patch16_224"])
def test_gradients_of_two_processes_equal_those_of_the_joined_batch(name, vision, tmp_path: Path):
    expected = gradients(*build(name, vision))
    found = on_two_ranks(tmp_path, name, vision)
    assert found.keys() == expected.keys()
    assert sum(float(g.abs().max()) > 0 for g in expected.values()) > 0.8 * len(expected)
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-5 * largest, msg=parameter)
