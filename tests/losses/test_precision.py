"""Every loss in short floats: whatever comes in is widened before it is computed with, and float32 comes out."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlp_bench import losses
from vlp_bench.encoders.prototypes import SentenceBank
from vlp_bench.losses.precision import full_precision, unit

B, N, M, E, K, T = 4, 5, 6, 8, 7, 9


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def some(*shape: int) -> Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.7
    mask[..., 0] = True
    return mask


V, U = unit(draw(B, E)), unit(draw(B, E + 1)[:, 1:])
PATCHES, WORDS = unit(draw(B, M, E)), unit(draw(B, N, E))
LABELS = torch.tensor([0.0, 1.0, -1.0, float("nan")]).repeat(B, 2)
MASKS = (draw(B, 2, 8, 8) > 0).float()
HEAD, ANCHORS = draw(B, 2 * (5 + 3), 4, 4), torch.tensor([[10.0, 13.0], [30.0, 20.0]])
BOXES = torch.tensor([0.4, 0.6, 0.2, 0.3]).repeat(B, 2, 1)

#: function -> arguments in float32, of which the floating ones are shortened
CASES: dict[str, tuple[Any, ...]] = {
    "contrastive.similarity": (V, U, 0.07),
    "contrastive.info_nce": (V, U, 0.07),
    "contrastive.info_nce_both": (V, U, 0.01),
    "contrastive.negatives": (V,),
    "contrastive.queue_nce": (V, U, unit(draw(K, E)), 0.2),
    "contrastive.retrieval_accuracy": (V, U, 1),
    "detection.shape_overlap": (BOXES[..., 2:] * 4, ANCHORS, 1.0),
    "detection.yolo_terms": (HEAD, ANCHORS, 32, BOXES, torch.zeros(B, 2).long()),
    "detection.decode": (HEAD, ANCHORS, 32),
    "labels.label_loss": (draw(B, 8), LABELS),
    "language.word_loss": (draw(N, K), whole(K, N)),
    "local_alignment.attend": (WORDS, PATCHES, 0.1, some(B, M)),
    "local_alignment.token_contrast": (WORDS, unit(draw(B, N, E + 2)[..., 2:]), torch.full((B, N), 0.2), 0.1),
    "local_alignment.shares": (draw(B, N).abs(),),
    "local_alignment.quantile": (draw(B, N).abs(), some(B, N), 0.9),
    "local_alignment.clipped_shares": (draw(B, N).abs(),),
    "masked_language.masked_language_loss": (draw(N, K), whole(K, N), torch.tensor(5.0)),
    "masked_language.writing_loss": (draw(B, M, K), whole(K, B, M), some(B, M)),
    "matching.matching_loss": (draw(B, 2), some(B)),
    "prototypes.sinkhorn": (V @ unit(draw(K, E)).T, 0.05, 3),
    "prototypes.swapped_prediction": (draw(B, K), draw(B, K).softmax(1), 0.2),
    "reconstruction.l1": (PATCHES, PATCHES.flip(0)),
    "reconstruction.quantisation_error": (WORDS, WORDS.flip(0)),
    "reconstruction.divergence": (draw(B, N, K), draw(B, N, K + 1)[..., 1:]),
    "reconstruction.masked_mean": (draw(B, N), some(B, N), torch.tensor(9.0)),
    "segmentation.focal_loss": (draw(B, 2, 8, 8), MASKS),
    "segmentation.soft_dice": (draw(B, 2, 8, 8), MASKS),
    "segmentation.dice_loss": (draw(B, 2, 8, 8), MASKS),
    "segmentation.mixed_loss": (draw(B, 2, 8, 8), MASKS),
    "siamese.negative_cosine": (WORDS, WORDS.flip(0)),
    "word_region.word_region_similarity": (PATCHES, WORDS, some(B, N), 4.0, 5.0),
    "word_region.partner_loss": (draw(B, B), 0.1),
    "words.sum_pieces": (WORDS, torch.tensor([[0, 1, 1, 2, -1]]).repeat(B, 1)),
}
#: what chooses, orders, moves or adds up, in whatever floats it is given
LEFT = {
    "detection.corners",
    "detection.suppress",
    "detection.yolo_loss",
    "language.next_words",
    "language.reverse_words",
    "masked_language.hide_to_write",
    "masked_language.mask_words",
    "matching.choose_reports",
    "matching.label_sets_differ",
    "reconstruction.assign",
    "reconstruction.pick",
    "words.word_slots",
}
DEVICES = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bf16"),
    *(
        pytest.param(
            "cuda", dtype, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), id=name
        )
        for dtype, name in ((torch.float16, "gpu-fp16"), (torch.bfloat16, "gpu-bf16"))
    ),
]


def function(name: str) -> Callable[..., Any]:
    module, _, own = name.partition(".")
    return getattr(importlib.import_module(f"vlp_bench.losses.{module}"), own)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def moved(arguments: tuple[Any, ...], device: str, dtype: torch.dtype | None = None) -> list[Any]:
    def move(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(device, dtype if x.is_floating_point() else None)

    return [move(x) for x in arguments]


def test_no_function_of_the_losses_is_forgotten():
    found = set()
    for module in pkgutil.iter_modules(losses.__path__):
        if module.name != "precision":
            loaded = importlib.import_module(f"vlp_bench.losses.{module.name}")
            members = inspect.getmembers(loaded, inspect.isfunction)
            found |= {f"{module.name}.{n}" for n, f in members if f.__module__ == loaded.__name__ and n[0] != "_"}
    assert found == CASES.keys() | LEFT


@pytest.mark.parametrize("device, dtype", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name, device, dtype):
    arguments = moved(CASES[name], device)
    expected = flat(function(name)(*arguments))
    with torch.autocast(device, dtype):
        got = flat(function(name)(*arguments))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("device, dtype", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_short_floats_are_widened_first(name, device, dtype):
    short = moved(CASES[name], device, dtype)
    expected = flat(function(name)(*moved(tuple(short), device, torch.float32)))
    with torch.autocast(device, dtype):
        got = flat(function(name)(*short))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("device, dtype", DEVICES)
def test_pairs_are_assigned_by_costs_in_float32(device, dtype):
    # in bfloat16 both targets are equally far: 1 and 1.002 are one number, and so are the sums of their distances
    generated = torch.tensor([[[1.0, 1.0], [1.002, 1.002]]], device=device)
    targets = generated.flip(1)
    with torch.autocast(device, dtype):
        assert function("reconstruction.assign")(generated, targets).tolist() == [[1, 0]]


@pytest.mark.parametrize("device, dtype", DEVICES)
def test_the_bank_mixes_at_a_low_temperature_in_float32(device, dtype):
    torch.manual_seed(0)
    bank, x = SentenceBank(K, E, normalised=False).to(device), WORDS.to(device, dtype)
    expected = bank(x.float(), 0.01)
    with torch.autocast(device, dtype):
        got = bank(x, 0.01)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_products_inside_are_not_shortened_either():
    seen = []

    @full_precision
    def look(x: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return x

    try:
        torch.set_float32_matmul_precision("high")
        look(V)
        seen.append(torch.get_float32_matmul_precision())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "high"]


def test_a_loss_that_is_double_stays_so():
    arguments = moved(CASES["contrastive.info_nce"], "cpu", torch.float64)
    assert function("contrastive.info_nce")(*arguments).dtype == torch.float64
