import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from vlp_bench.losses.segmentation import dice_loss, focal_loss, mixed_loss, soft_dice


def sample(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 5, 4, generator=generator, dtype=dtype)
    return logits, (torch.rand(3, 2, 5, 4, generator=generator) < 0.4).to(dtype)


def test_focal_by_hand_and_as_cross_entropy():
    logit, mask = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    torch.testing.assert_close(focal_loss(logit, mask), torch.tensor(0.25 * 0.6931472))
    logits, masks = sample()
    torch.testing.assert_close(focal_loss(logits, masks, gamma=0.0), F.binary_cross_entropy_with_logits(logits, masks))
    p = torch.where(masks > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(focal_loss(logits, masks, gamma=2.0), ((1 - p) ** 2 * -p.log()).mean())


def test_dice_by_hand():
    logits = torch.tensor([[[[50.0, 50.0], [-50.0, -50.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(soft_dice(logits, masks), torch.tensor([(2 * 1 + 1) / (4 + 1)]))
    torch.testing.assert_close(dice_loss(logits, masks), torch.tensor(0.4))
    torch.testing.assert_close(soft_dice(logits.abs(), masks.new_ones(1, 1, 2, 2)), torch.ones(1))


def test_the_mixed_loss_is_what_it_is_mixed_of():
    logits, masks = sample()
    expected = 10 * focal_loss(logits, masks) - soft_dice(logits, masks).log().mean()
    torch.testing.assert_close(mixed_loss(logits, masks), expected)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, mixed_loss])
def test_what_is_not_known_changes_nothing(loss):
    logits, masks = sample()
    known = torch.ones(3, 2, 1, 1, dtype=torch.bool)
    known[1, 0] = False
    torch.testing.assert_close(loss(logits, masks, torch.ones_like(known)), loss(logits, masks))
    other, drawn = logits.clone().requires_grad_(), masks.clone()
    drawn[1, 0] = 1 - drawn[1, 0]
    other.data[1, 0] = 99.0
    value = loss(other, drawn, known)
    torch.testing.assert_close(value, loss(logits, masks, known))
    (gradient,) = torch.autograd.grad(value, other)
    assert gradient[1, 0].abs().max() == 0
    assert gradient[1, 1].abs().min() > 0
    # a label of which nothing is known is as if it were not there
    known[:, 0] = False
    torch.testing.assert_close(loss(logits, masks, known), loss(logits[:, 1:], masks[:, 1:]))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, mixed_loss])
def test_nothing_known_costs_nothing(loss):
    logits, masks = sample()
    logits.requires_grad_()
    value = loss(logits, masks, torch.zeros_like(masks, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, mixed_loss])
def test_gradients(loss):
    logits, masks = sample()
    known = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.7
    assert gradcheck(lambda x: loss(x, masks, known), logits.requires_grad_())


def test_large_logits_stay_finite():
    logits = torch.tensor([[[[500.0, -500.0]]]], requires_grad=True)
    loss = mixed_loss(logits, torch.tensor([[[[0.0, 1.0]]]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
