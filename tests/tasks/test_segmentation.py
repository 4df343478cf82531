"""Segmentation as a task: what is trained, measured, drawn and refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlp_bench.config import compose_verb, plain
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.segmentation import mixed_loss
from vlp_bench.tasks.annotations import UNKNOWN
from vlp_bench.tasks.segmentation import DECODERS, PatchDecoder, PyramidDecoder, Segmentation, Segmenter
from vlp_bench.types import LabelledBatch

QUICK = (
    "adaptation=frozen",
    "adaptation.epochs=1",
    "adaptation.min_steps=0",
    "adaptation.batch_size=16",
    "label_fraction=0.15",
)
VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}


def backbone(kind="resnet", size=64):
    torch.manual_seed(0)
    if kind == "vit":
        return VisionBackbone("vit_tiny_patch16_224", size, architecture=VIT)
    return VisionBackbone({"resnet": "test_resnet"}.get(kind, kind), size)


def batch(masks=2, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 1, size, size), generator=generator, dtype=torch.uint8)
    mask = (F.interpolate(torch.rand(3, masks, 4, 4, generator=generator), size=size) > 0.6).to(torch.uint8)
    return LabelledBatch(image, torch.zeros(3, masks), torch.arange(3), mask=mask)


def segmenter(vision, thresholds=(0.5,)):
    adaptation = plain(compose_verb("evaluate", ["task=segmentation", "adaptation=frozen"]).adaptation)
    return Segmenter(vision, ["a", "b"], mixed_loss, np.array(thresholds), "dice", adaptation)


@pytest.mark.parametrize("kind", ["resnet", "vit", "densenet121", "efficientnet_lite0"])
@pytest.mark.parametrize("size", [64, 72])
def test_logits_of_every_pixel(kind, size):
    model = backbone(kind, size)
    decoder = (PatchDecoder if model.is_vit else PyramidDecoder)(model, 2)
    image = batch(size=size).image
    assert decoder(model(image, pyramid=True), image).shape == (3, 2, size, size)


def test_a_vit_decoder_has_the_published_widths_on_the_published_backbone():
    wide = VisionBackbone("vit_base_patch16_224", 32, architecture={"depth": 1})
    widths = [b[0].out_channels for b in PatchDecoder(wide, 1).blocks]
    assert widths == [512, 256, 128, 64]
    assert [b[0].out_channels for b in PatchDecoder(backbone("vit"), 1).blocks] == [32, 16, 8, 8]


def test_the_image_is_read_at_its_own_size():
    enlarged = VisionBackbone("test_resnet", 64, upsample_to=96)
    model = segmenter(enlarged)
    assert model.parts["vision"](batch().image, pyramid=True).stem.shape[-1] == 32


def test_masks_that_are_not_known_teach_nothing_and_count_nowhere():
    model = segmenter(backbone()).eval()
    before = batch()
    unknown = before.mask.clone()
    unknown[1, 0] = UNKNOWN
    unknown[1, 0, :5] = 0  # a corner that rotation filled
    losses = []
    for inside in (0, 1):
        drawn = before.mask.clone()
        drawn[1, 0] = inside
        losses.append(model.loss(LabelledBatch(before.image, before.target, before.row, mask=drawn)))
    hidden = LabelledBatch(before.image, before.target, before.row, mask=unknown)
    loss = model.loss(hidden)
    assert loss not in losses
    overlap, found, true = model.predict(hidden)
    assert torch.isnan(true).nonzero().tolist() == [[1, 0]]
    assert torch.isnan(found[1, :, 0]).all()
    assert torch.isnan(overlap[1, :, 0]).all()
    everything = model.predict(before)
    torch.testing.assert_close(found[0], everything[1][0])


def test_counts_are_those_of_the_pixels():
    model = segmenter(backbone(), (0.3, 0.5)).eval()
    given = batch()
    called = model(given).sigmoid() > 0.3
    overlap, found, true = model.predict(given)
    torch.testing.assert_close(found[:, 0], called.sum((2, 3)).float())
    torch.testing.assert_close(overlap[:, 0], (called & (given.mask == 1)).sum((2, 3)).float())
    torch.testing.assert_close(true, (given.mask == 1).sum((2, 3)).float())


@pytest.mark.parametrize(("statistics", "drift"), [("running", False), ("batch", True)])
def test_a_frozen_encoder_keeps_its_weights_and_its_statistics_unless_asked(pretrained, cell_of, statistics, drift):
    encoders = pretrained("mgca")
    before = {k: v.clone() for k, v in encoders.vision.state_dict().items()}
    cell = cell_of(encoders, "task=segmentation", *QUICK, f"adaptation.batch_statistics={statistics}")
    Segmentation("dice").run(cell)
    changed = {k for k, v in encoders.vision.state_dict().items() if not torch.equal(v, before[k])}
    assert bool(changed) == drift
    assert all("running" in k or "num_batches" in k for k in changed)


def test_a_trained_encoder_trains_in_train_mode(pretrained, cell_of):
    encoders = pretrained("mgca")
    before = {k: v.clone() for k, v in encoders.vision.state_dict().items()}
    Segmentation("dice").run(cell_of(encoders, "task=segmentation", *QUICK, "adaptation=finetune"))
    same = {k for k, v in encoders.vision.state_dict().items() if torch.equal(v, before[k])}
    assert not [k for k in same if "running" in k or "weight" in k]


@pytest.mark.parametrize("vision", ["tiny", "vit"])
@pytest.mark.parametrize("masks", ["masks", "boxes"])
def test_at_test_size(pretrained, cell_of, vision, masks):
    labels = ["Cardiomegaly", "Pleural Effusion"]
    cell = cell_of(pretrained("mgca", vision), "task=segmentation", *QUICK, labels=labels)
    task = Segmentation("dice", masks=masks)
    outcome = task.run(cell)
    assert outcome.labels == labels
    assert outcome.metrics.keys() == outcome.trivial.keys()
    table = outcome.predictions
    assert table["item_id"].is_unique
    for name in ("dice", "dice/Cardiomegaly", "dice_positive", "false_positive_rate"):
        value = outcome.metrics[name]["value"]
        assert np.nanmean(table[f"mean_{name}"]) == pytest.approx(value)
    for label in labels:
        empty = np.nanmean(table[f"true_{label}"] == 0)
        assert outcome.trivial[f"dice/{label}"]["value"] == pytest.approx(empty)
    assert set(outcome.facts["thresholds"]) == set(labels)
    pictures = list(task.pictures(cell, outcome, 3))
    assert [p.image.shape for p in pictures] == [(224, 224, 3)] * 3
    assert "Cardiomegaly" in pictures[0].caption or "Pleural Effusion" in pictures[0].caption
    assert not list(task.pictures(cell, outcome, 0))


def test_the_published_threshold_and_a_structure(pretrained, cell_of):
    cell = cell_of(pretrained("mgca"), "task=segmentation", *QUICK)
    outcome = Segmentation("dice", labels=["Lungs"], loss="dice", thresholds=0.5).run(cell)
    assert outcome.facts["thresholds"] == {"Lungs": 0.5}
    assert outcome.labels == ["Lungs"]
    # lungs are on every image: nothing predicted is right nowhere
    assert outcome.trivial["dice"]["value"] == 0


def test_the_score_chooses_the_epoch(pretrained, cell_of):
    cell = cell_of(pretrained("mgca"), "task=segmentation", "adaptation.select=score", *QUICK)
    assert 0 <= Segmentation("dice").run(cell).facts["best_val_score"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primary": "map"}, r"task\.primary=map"),
        ({"loss": "focal"}, r"task\.loss=focal"),
        ({"thresholds": "best"}, r"task\.thresholds=best"),
    ],
)
def test_options_that_there_are_not_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Segmentation(**{"primary": "dice", **options})


@pytest.mark.parametrize("decoder", ["linear", "upernet"])
@pytest.mark.parametrize("vision", ["tiny", "vit"])
def test_further_decoders_give_a_logit_for_every_pixel(decoder, vision, pretrained):
    backbone = pretrained("lsp", vision).vision
    image = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    made = DECODERS[decoder](backbone, 3)
    assert made(backbone(image, pyramid=True), image).shape == (2, 3, 64, 64)


def test_a_decoder_that_does_not_fit_is_refused(pretrained):
    with pytest.raises(UserError, match=r"task\.decoder=unet is for CNNs"):
        DECODERS["unet"](pretrained("lsp", "vit").vision, 1)
    with pytest.raises(UserError, match=r"task\.decoder=fpn"):
        Segmentation("dice", decoder="fpn")
