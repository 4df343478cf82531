"""Classification by steps: what is frozen, what is read, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.tasks.classification import (
    Classification,
    Classifier,
    linear_probe,
    masked_loss,
    positive_weight,
)
from vlp_bench.tasks.training import TargetImages


@pytest.fixture(scope="module")
def dual(pretrained):
    return pretrained("mgca")


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items() if v.is_floating_point()}


def changed(before, module):
    after = module.state_dict()
    return {k for k, v in before.items() if not torch.equal(v, after[k])}


QUICK = ("adaptation.max_steps=3", "adaptation.batch_size=16")


@pytest.mark.parametrize("vision", ["tiny", "vit"])
def test_a_probe_changes_nothing_of_the_encoder_and_partial_only_its_last_layers(vision, pretrained, cell_of):
    encoders = pretrained("lsp", vision)
    before = weights(encoders.vision)
    Classification("auroc").run(cell_of(encoders, "adaptation=probe", *QUICK))
    assert changed(before, encoders.vision) == set()
    Classification("auroc").run(cell_of(encoders, "adaptation=partial", "adaptation.trained_layers=1", *QUICK))
    moved, last = changed(before, encoders.vision), encoders.vision.layers()[-1]
    own = {id(p) for p in last.state_dict(keep_vars=True).values()}
    names = {n for n, p in encoders.vision.state_dict(keep_vars=True).items() if id(p) in own}
    assert moved
    assert moved <= names
    Classification("auroc").run(cell_of(encoders, "adaptation=finetune", *QUICK))
    assert len(changed(before, encoders.vision)) > len(moved)


def test_batch_statistics_of_a_frozen_encoder_move_only_when_asked(pretrained, cell_of):
    encoders = pretrained("lsp")
    before = weights(encoders.vision)
    Classification("auroc").run(cell_of(encoders, "adaptation=probe", "adaptation.batch_statistics=batch", *QUICK))
    moved = changed(before, encoders.vision)
    assert moved
    assert all("running_" in name for name in moved)


def test_too_many_layers_and_unknown_options_are_refused(dual, cell_of):
    for override, said in (
        ("adaptation.trained_layers=99", "has .* layers"),
        ("adaptation.trained_layers=-1", "trained_layers=-1"),
        ("adaptation.optimizer=adamx", "adaptation.optimizer=adamx"),
        ("adaptation.select=auroc", "adaptation.select=auroc"),
        ("adaptation.batch_statistics=both", "adaptation.batch_statistics=both"),
        ("adaptation.augment=flop", "adaptation.augment=flop"),
    ):
        with pytest.raises(UserError, match=said):
            Classification("auroc").run(cell_of(dual, "adaptation=finetune", *QUICK, override))


def test_a_probe_is_for_one_linear_layer(dual, cell_of):
    from vlp_bench.tasks.segmentation import Segmentation

    with pytest.raises(UserError, match="adaptation=frozen"):
        Segmentation("dice").run(cell_of(dual, "task=segmentation", "adaptation=probe"))


def test_few_labels_take_as_many_steps(dual, cell_of):
    cell = cell_of(dual, "adaptation=probe", "label_fraction=0.05", "adaptation.min_steps=40", "adaptation.epochs=4")
    facts = Classification("auroc").run(cell).facts
    assert facts["train_images"] < 48
    # one step an epoch
    assert facts["epochs"] >= 10


def test_positives_weigh_more():
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, float("nan")], [1.0, 0.0]])
    assert positive_weight(targets).tolist() == [1.0, 1.0]
    assert positive_weight(targets[1:]).tolist() == [2.0, 1.0]
    logits = torch.zeros(3, 2)
    expected = (np.log(2) * (2 + 2 + 1)) / 5 + np.log(2) / 5
    assert float(masked_loss(logits, targets[1:], False, torch.tensor([2.0, 1.0]))) == pytest.approx(expected)


def test_augmented_images_are_drawn_from_seed_epoch_and_step(dual, cell_of):
    cell = cell_of(dual)
    rows = cell.target.rows("train")[:4]

    def images(seed, step=0):
        from vlp_bench.data.datamodule import BatchKey

        return TargetImages(cell.target, rows, 64, seed, "moco")[BatchKey(0, step, np.arange(4))].image

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))
    assert not torch.equal(images(1), images(1, step=1))


def test_image_and_report_through_a_joint_encoder(pretrained, cell_of, dual):
    joint = pretrained("medvill")
    task = Classification("auroc", positive_weight=True, thresholds=0.5, reads="both")
    outcome = task.run(cell_of(joint, "adaptation=finetune", "adaptation.select=score", *QUICK))
    assert outcome.metrics["auroc"]["value"] is not None
    assert set(outcome.facts["averages"]) == {"auroc_micro", "auroc_macro", "f1_micro", "f1_macro"}
    assert outcome.facts["averages"]["auroc_macro"] == pytest.approx(outcome.metrics["auroc"]["value"])
    with pytest.raises(NotApplicable, match=r"task\.reads=both needs a joint encoder"):
        task.run(cell_of(dual, "adaptation=finetune"))
    with pytest.raises(UserError, match="trained by steps"):
        task.run(cell_of(joint, "adaptation=probe_cached"))


def test_the_best_epoch_is_kept(dual, cell_of, monkeypatch):
    """Validation scores fall after the first epoch: its weights must be those that are measured."""
    seen = []

    def score(self, predictions):
        seen.append(self.head.weight.detach().clone())
        return 1.0 / len(seen)

    monkeypatch.setattr(Classifier, "score", score)
    made = []
    original = Classifier.__init__
    monkeypatch.setattr(Classifier, "__init__", lambda self, *a, **k: (original(self, *a, **k), made.append(self))[0])
    options = ("adaptation.select=score", "adaptation.epochs=3", "adaptation.min_steps=0")
    Classification("auroc").run(cell_of(dual, "adaptation=probe", *options))
    assert len(seen) == 3
    assert torch.equal(made[0].head.weight, seen[0])
    assert not torch.equal(seen[0], seen[2])


def test_of_several_rates_validation_chooses(dual, cell_of):
    options = ("adaptation.lr=[1e-6,2e-2]", "adaptation.epochs=2", "adaptation.min_steps=20")
    facts = Classification("auroc").run(cell_of(dual, "adaptation=probe", *options)).facts
    assert facts["lr"] == 2e-2
    assert facts["tried"].keys() == {"1e-06", "0.02"}
    assert facts["best_val_loss"] == facts["tried"]["0.02"] < facts["tried"]["1e-06"]


@pytest.mark.parametrize("images", [12, 60])
def test_the_cached_probe_is_the_logistic_regression_of_scikit_learn(images):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features = rng.normal(2.0, 3.0, (images + 40, 20)).astype(np.float32)
    targets = (features[:, :2] + rng.normal(0, 4, (images + 40, 2)) > 2).astype(np.float32)
    rows = {"train": np.arange(images), "val": np.arange(images, images + 40)}
    given = SimpleNamespace(
        adaptation={"penalties": [0.1, 0.01]}, target=SimpleNamespace(kind="multilabel", targets=targets)
    )
    probe = linear_probe(given, {k: features[r] for k, r in rows.items()}, rows)
    train = features[rows["train"]].astype(np.float64)
    mean, std = train.mean(0), train.std(0)
    for label in (0, 1):
        # theirs is C sum of losses + |w|^2 / 2; ours the mean over both labels
        theirs = LogisticRegression(C=1 / (probe.penalty * images * 2), tol=1e-10, max_iter=5000)
        theirs.fit((train - mean) / std, targets[rows["train"], label])
        expected = theirs.decision_function((features[rows["val"]] - mean) / std)
        got = probe(torch.from_numpy(features[rows["val"]]).double())[:, label]
        np.testing.assert_allclose(got, expected, atol=2e-3)
