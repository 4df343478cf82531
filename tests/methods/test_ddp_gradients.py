"""Two processes with half a batch each: the gradients of the whole batch, or the mean of each one's own."""

import pytest
import torch
from batches import rows_of
from hydra.errors import InstantiationException
from method_on_two_ranks import SMALL, build, gradients, on_two_ranks

from vlp_bench.config import groups

ENCODERS = ("test_resnet", "vit_tiny_patch16_224")
METHODS = groups()["method"]


def case(name, vision=ENCODERS[0], *overrides):
    return name, vision, (*SMALL.get(name, ()), *overrides)


JOINED = [case(name, vision) for name in METHODS for vision in ENCODERS]
BY_ITSELF = "method.across_processes=false"
#: the authors' code of two methods, and the option of all that have it
ALONE = [
    *(case(name, ENCODERS[1], "method.variant=official") for name in ("mgca", "refers")),
    *(case(name, ENCODERS[0], BY_ITSELF) for name in METHODS if name != "moco"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), [*JOINED, *ALONE])


def assert_alike(got, expected):
    assert got.keys() == expected.keys()
    # timm starts residual branches at zero
    assert sum(float(g.abs().max()) > 0 for g in expected.values()) > len(expected) / 2
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=1e-5, atol=1e-5 * largest, msg=parameter)


def halves(made):
    for rank in (0, 1):
        method, batch = build(*made)
        yield gradients(method, rows_of(batch, range(6 * rank, 6 * rank + 6)))


@pytest.mark.slow
@pytest.mark.parametrize("made", JOINED, ids=lambda made: "-".join(made[:2]))
def test_gradients_of_two_processes_equal_those_of_the_joined_batch(made, found):
    assert_alike(found[made][0], gradients(*build(*made)))


@pytest.mark.slow
@pytest.mark.parametrize("made", ALONE, ids=lambda made: f"{made[0]}-{made[2][-1]}")
def test_gradients_of_processes_by_themselves_are_the_mean_of_theirs(made, found):
    first, second = halves(made)
    assert_alike(found[made][0], {name: (g + second[name]) / 2 for name, g in first.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("lsp", "moco", "medvill")])
def test_negatives_are_counted_as_they_are_compared(name, found):
    assert found[case(name)][1] == 11
    assert found[case(name, ENCODERS[0], BY_ITSELF)][1] == 5


@pytest.mark.slow
def test_negatives_by_labels_are_those_that_differ(found):
    labels = build("medvill", ENCODERS[0])[1].labels
    differs = (labels[:6, None] != labels[None]).any(-1)
    assert found[case("medvill")][1] == differs.sum() / 6
    assert found[case("medvill", ENCODERS[0], BY_ITSELF)][1] == differs[:, :6].sum() / 6


@pytest.mark.slow
def test_a_queue_is_all_there_is_to_be_told_from_and_is_shared(found):
    assert found[case("moco")][1] == 65536
    with pytest.raises(InstantiationException, match="share one queue"):
        build("moco", ENCODERS[0], [f"+{BY_ITSELF}"])
