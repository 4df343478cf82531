"""What an uncertain label counts as, by policy; an unknown one is unknown under each."""

import numpy as np
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import ImageRef, Source, Study
from vlp_bench.errors import UserError
from vlp_bench.tasks.base import UNCERTAIN, Target

nan = np.nan
NAMES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Fracture")
#: what each study says of all six
SAID = (1.0, 0.0, -1.0, nan)
#: -1 under each policy, by label; published code (CheXpert, GLoRIA, MGCA) has the last one
EXPECTED = {
    "ignore": [nan] * 6,
    "ones": [1.0] * 6,
    "zeros": [0.0] * 6,
    "mixed": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PreparedData:
    """A study for each of the four values, a fifth whose image says otherwise than the study."""
    folder = tmp_path_factory.mktemp("uncertain")
    Image.new("L", (16, 16), 90).save(folder / "x.png")
    studies = [
        Study(str(n), str(n), "train", (ImageRef(str(n), "x.png", "PA"),), labels={k: v for k in NAMES if v == v})
        for n, v in enumerate(SAID)
    ]
    own = ImageRef("own", "x.png", "AP", labels={"Edema": -1.0})
    studies.append(Study("own", "own", "train", (own,), labels=dict.fromkeys(NAMES, 1.0)))
    prepare(Source("world", folder, tuple(studies), NAMES), folder / "out", Plan(16), private=False)
    return PreparedData(folder / "out")


def target(store: PreparedData, **options) -> Target:
    return Target(store, name="world", **options)


def test_every_policy_is_tested():
    assert EXPECTED.keys() == UNCERTAIN.keys()


@pytest.mark.parametrize("policy", UNCERTAIN)
def test_uncertain_by_policy_and_all_else_as_it_is(store, policy):
    found = target(store, uncertain=policy).targets
    np.testing.assert_array_equal(found[:4], [[1.0] * 6, [0.0] * 6, EXPECTED[policy], [nan] * 6])
    edema = EXPECTED[policy][NAMES.index("Edema")]
    np.testing.assert_array_equal(found[4], [nan, nan, nan, edema, nan, nan])


@pytest.mark.parametrize("policy", UNCERTAIN)
def test_the_absence_of_a_label(store, policy):
    """`!label` turns the target after the policy: uncertain counts as its opposite, unknown stays unknown."""
    turned = target(store, uncertain=policy, labels={"clear": "!Edema", "Edema": "Edema"}).targets
    np.testing.assert_array_equal(turned[:, 0], 1 - turned[:, 1])
    assert np.isnan(turned[3]).all()


def test_the_policy_goes_by_the_name_in_the_data(store):
    renamed = target(store, uncertain="mixed", labels={"fluid": "Pleural Effusion", "heart": "Cardiomegaly"})
    np.testing.assert_array_equal(renamed.targets[2], [1, 0])


@pytest.mark.parametrize(
    "policy, kind, rows",
    [
        ("ignore", "multilabel", [0, 1]),
        ("ones", "multilabel", [0, 1, 2, 4]),
        ("zeros", "binary", [0, 1, 2, 4]),
        ("ignore", "binary", [0, 1]),
    ],
)
def test_an_image_without_any_known_label_has_no_target(store, policy, kind, rows):
    assert target(store, uncertain=policy, kind=kind, labels=["Edema"]).rows("train").tolist() == rows


def test_an_unknown_policy(store):
    with pytest.raises(UserError, match=r"target\.uncertain=maybe: expected one of ignore, ones, zeros, mixed"):
        target(store, uncertain="maybe")
