import pytest
import torch
import two_processes


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"image": (8, 5), "text": (8, 5), "image_weight": (5, 4), "text_weight": (5, 4), "prototypes": (6, 4)}
    inputs = {n: torch.randn(*s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    for got, expected in zip(two_processes.on_two(str(tmp_path), inputs), two_processes.gradients(inputs), strict=True):
        torch.testing.assert_close(got, expected)
