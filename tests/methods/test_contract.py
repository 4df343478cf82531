"""What every method of `conf/method` keeps, whatever it does inside."""

import dataclasses
import math

import pytest
import torch
from batches import rows_of
from method_on_two_ranks import REPORTS, build

from vlp_bench.config import groups
from vlp_bench.encoders import bundle
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import StudyBatch, Tokens

pytestmark = pytest.mark.slow

METHODS = groups()["method"]
VISION = "test_resnet"
#: the least that a loss can be, where it is not 0
FLOORS = {
    # own key at 1 and a queue of 65,536 at 0, which this test holds fixed
    "moco": math.log(1 + 65536 * math.exp(-1 / 0.2)),
}
every_method = pytest.mark.parametrize("name", METHODS)


def step(method, batch, seed=0):
    torch.manual_seed(seed)
    terms = method.losses(batch)
    weights = method.weights(0.0)
    return terms, torch.stack([weights[k] * term for k, term in terms.items()]).sum()


def padded(batch: StudyBatch, pad: int, more: int = 3) -> StudyBatch:
    def wider(x, value):
        return torch.nn.functional.pad(x, (0, more), value=value)

    t = batch.text
    text = Tokens(wider(t.ids, pad), wider(t.mask, False), wider(t.word, -1), wider(t.sentence, -1))
    return dataclasses.replace(batch, text=text)


@every_method
def test_losses_are_finite_named_scalars_with_a_weight_each(name):
    method, batch = build(name, VISION)
    terms, total = step(method.train(), batch)
    assert terms.keys() == method.weights(0.0).keys()
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in terms.values())
    assert torch.isfinite(total)


@every_method
def test_every_trainable_parameter_has_a_gradient_in_some_stage(name, monkeypatch):
    method, batch = build(name, VISION)
    method.train()
    moved = set()
    for progress in (0.0, 0.4, 0.9):
        monkeypatch.setattr(VLPMethod, "progress", progress)
        method.zero_grad()
        torch.manual_seed(0)
        terms, weights = method.losses(batch), method.weights(progress)
        torch.stack([weights[k] * term for k, term in terms.items()]).sum().backward()
        moved |= {n for n, p in method.named_parameters() if p.grad is not None}
    assert {n for n, p in method.named_parameters() if p.requires_grad} == moved


@every_method
def test_the_order_of_studies_and_padding_change_nothing(name):
    method, batch = build(name, VISION)
    pad = method.text.tokenizer.pad if method.text is not None else 0
    with torch.no_grad():
        expected, _ = step(method, batch)
        changed = [rows_of(batch, list(range(len(REPORTS)))[::-1]), padded(batch, pad)]
        for other in changed:
            for term, value in step(method, other)[0].items():
                torch.testing.assert_close(value, expected[term], rtol=1e-4, atol=1e-5, msg=term)


@every_method
def test_a_masked_view_equals_one_that_is_not_there(name):
    method, batch = build(name, VISION)
    n = len(batch)
    noise = torch.randint(0, 256, (n, 1, *batch.image.shape[2:]), dtype=torch.uint8)
    absent = torch.zeros(n, 1, dtype=torch.bool)
    more = dataclasses.replace(
        batch,
        image=torch.cat([batch.image, noise], 1),
        view_mask=torch.cat([batch.view_mask, absent], 1),
        flipped=torch.cat([batch.flipped, absent], 1),
    )
    with torch.no_grad():
        expected, _ = step(method, batch)
        for term, value in step(method, more)[0].items():
            torch.testing.assert_close(value, expected[term], msg=term)


@every_method
def test_two_steps_with_one_seed_are_equal(name):
    ends = []
    for _ in range(2):
        method, batch = build(name, VISION)
        method.train()
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
        for seed in (1, 2):
            optimizer.zero_grad()
            step(method, batch, seed)[1].backward()
            optimizer.step()
        ends.append({k: v.clone() for k, v in method.state_dict().items()})
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


@every_method
def test_export_and_reload_are_equal(name, tmp_path):
    method, batch = build(name, VISION)
    bundle.save(tmp_path / "b", method.parts(), {})
    loaded = bundle.load(tmp_path / "b")
    assert loaded.parts.keys() == method.parts().keys()
    with torch.no_grad():
        assert torch.equal(loaded.vision(batch.frontal).pooled, method.vision(batch.frontal).pooled)
        if loaded.aligner is not None:
            image, text = method.vision(batch.frontal), method.text(batch.text)
            expected = method.aligner().similarity(image, text)
            assert expected.shape == (len(batch), len(batch))
            assert torch.equal(loaded.similarity(image, text), expected)


@every_method
def test_learning_one_batch_halves_the_distance_to_the_floor(name):
    method, batch = build(name, VISION)
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    above = []
    for _ in range(240):
        optimizer.zero_grad()
        total = step(method, batch)[1]  # the same draws each time: one batch
        total.backward()
        optimizer.step()
        above.append(float(total.detach()) - FLOORS.get(name, 0.0))
        if sum(above[-3:]) < sum(above[:3]) / 2:
            break
    assert sum(above[-3:]) < sum(above[:3]) / 2
    assert min(above) > 0
