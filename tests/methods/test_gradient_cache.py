"""A batch whose encoders see it in chunks has the gradient of the whole."""

import pytest
import torch
from helpers import only, run_cli
from method_on_two_ranks import Step, build, gradients
from torch.autograd.graph import saved_tensors_hooks

from vlp_bench.config import groups
from vlp_bench.encoders.chunks import InChunks, cache_gradients
from vlp_bench.errors import UserError

METHODS = groups()["method"]
VIT = "vit_tiny_patch16_224"
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.mark.slow
@every_method
def test_gradients_equal_those_of_the_whole_batch(name):
    torch.manual_seed(0)
    expected = gradients(*build(name, VIT))
    method, batch = build(name, VIT)
    cache_gradients(method, 5)
    torch.manual_seed(0)
    found = gradients(method, batch)
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-5, atol=1e-5 * largest, msg=parameter)


@pytest.mark.slow
@every_method
def test_the_second_pass_draws_the_dropout_of_the_first(name, monkeypatch):
    found = []
    for plain in (False, True):
        if plain:
            # the same chunks, of which everything is kept
            monkeypatch.setattr(InChunks, "_part", lambda self, _, a, k: torch.nn.Module.__call__(self, *a, **k))
        method, batch = build(name, VIT, ["+vision.architecture.drop_path_rate=0.5"])
        cache_gradients(method.train(), 5)
        torch.manual_seed(1)
        found.append(gradients(method, batch))
    cached, kept = found
    assert cached.keys() == kept.keys()
    assert all(torch.equal(cached[parameter], kept[parameter]) for parameter in kept)
    method, batch = build(name, VIT, ["+vision.architecture.drop_path_rate=0.5"])
    torch.manual_seed(2)
    other = gradients(method.train(), batch)
    assert any(not torch.equal(other[parameter], kept[parameter]) for parameter in kept)


def kept_by(method, batch):
    """Bytes that the encoders keep of a batch for their gradients, and how many images they see at most at once."""
    kept, seen, within = 0, [], []

    def pack(x):
        nonlocal kept
        kept += x.nbytes * bool(within)
        return x

    def watched(forward):
        def run(*args, **kwargs):
            within.append(1)
            try:
                return forward(*args, **kwargs)
            finally:
                within.pop()

        return run

    for part in (method.vision, method.text):
        part.forward = watched(part.forward)
    method.vision.trunk.patch_embed.register_forward_hook(lambda _, x, y: seen.append(len(y)))
    with saved_tensors_hooks(pack, lambda x: x):
        loss = Step(method)(batch)
    loss.backward()
    return kept, max(seen)


def test_what_the_encoders_keep_does_not_grow_with_the_batch():
    method, batch = build("convirt", VIT)
    everything, most = kept_by(method, batch)
    assert most == 12
    assert everything > 1e6
    method, batch = build("convirt", VIT)
    cache_gradients(method, 2)
    assert kept_by(method, batch) == (0, 2)


def test_batch_statistics_are_refused_with_the_reason():
    method, _ = build("convirt", "test_resnet")
    with pytest.raises(UserError, match=r"vision normalises over the batch \(at trunk.*group norm"):
        cache_gradients(method, 4)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_a_chunk_is_a_positive_number(chunk):
    method, _ = build("convirt", VIT)
    with pytest.raises(UserError, match="expected how many samples"):
        cache_gradients(method, chunk)


def test_a_run_with_and_without_is_the_same_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["method=convirt", "trainer=smoke", "trainer.max_steps=1", "vision=vit_ti16", "data.studies=48"]
    assert run_cli("pretrain", *small, "gradient_cache=3") == 0
    only(tmp_path, "runs/pretrain/*")
    assert run_cli("pretrain", *small) == 0
    assert "nothing to do" in capsys.readouterr().err
