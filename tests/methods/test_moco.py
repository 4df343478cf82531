import dataclasses

import pytest
import torch
from method_on_two_ranks import build

from vlp_bench.losses.contrastive import queue_nce
from vlp_bench.losses.precision import unit
from vlp_bench.methods.moco import random_view


@pytest.fixture
def moco():
    method, batch = build("moco", "test_resnet", ["method.queue=30", "method.momentum=0.9"])
    return method.train(), batch


def test_the_own_key_is_found_among_the_queue():
    g = torch.Generator().manual_seed(0)
    q, k, queue = (unit(torch.randn(n, 6, generator=g)) for n in (3, 3, 8))
    slow = [-torch.log_softmax(torch.stack([q[i] @ k[i], *(q[i] @ x for x in queue)]) / 0.2, 0)[0] for i in range(3)]
    assert torch.allclose(queue_nce(q, k, queue, 0.2), torch.stack(slow).mean())


def test_the_queue_takes_the_newest_keys_in_the_place_of_the_oldest(moco):
    method, batch = moco
    start = method.queue.clone()
    seen = []
    for _ in range(3):  # 12 keys each into 30 places
        method.losses(batch)
        seen.append(method.keys[0].clone())
        method.follow()
    assert int(method.place) == 6
    assert torch.equal(method.queue[12:24], seen[1])
    assert torch.equal(method.queue[24:], seen[2][:6])
    assert torch.equal(method.queue[:6], seen[2][6:])
    assert torch.equal(method.queue[6:12], seen[0][6:])
    assert not torch.equal(method.queue, start)


def test_the_key_encoder_follows_and_has_no_gradient(moco):
    method, batch = moco
    with torch.no_grad():
        for p in method.vision.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.key_vision.parameters()]
    method.losses(batch)["instance"].backward()
    method.follow()
    for old, new, goal in zip(before, method.key_vision.parameters(), method.vision.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * goal, atol=1e-6)
    assert all(p.grad is None for p in [*method.key_vision.parameters(), *method.key_head.parameters()])


def test_out_of_training_both_views_are_the_image(moco):
    method, batch = moco
    method.eval()
    image = dataclasses.replace(batch)
    assert torch.equal(method.losses(image)["instance"], method.losses(batch)["instance"])


def test_views_differ_and_stay_images():
    ramp = torch.arange(40, dtype=torch.uint8).mul(5).expand(64, 1, 40, 40).contiguous()
    torch.manual_seed(0)
    one, other = random_view(ramp, 0.2), random_view(ramp, 0.2)
    assert one.shape == ramp.shape
    assert one.dtype == torch.uint8
    assert not torch.equal(one, other)
    slopes = one.float().diff(dim=-1).mean((1, 2, 3))
    assert 0.25 < float((slopes < 0).float().mean()) < 0.75  # mirrored
    assert slopes.abs().min() < 0.6 * slopes.abs().max()  # of another size or contrast
    steady = random_view(torch.full((8, 1, 40, 40), 100, dtype=torch.uint8), 0.2).float()
    assert torch.all(steady.flatten(1).std(1) == 0)  # neither border nor kernel leaves a trace
    assert steady.mean((1, 2, 3)).unique().numel() > 1
