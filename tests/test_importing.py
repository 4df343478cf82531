"""Published checkpoints become bundles with the same weights; what does not fit is refused."""

import argparse

import pytest
import timm
import torch
from helpers import run_cli

from vlp_bench.encoders.bundle import load

RESNET = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
VIT = {
    "patch_embed.proj.": "embeddings.patch_embeddings.",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "blocks.": "encoder.layer.",
    "norm1.": "attention_norm.",
    "norm2.": "ffn_norm.",
    "mlp.": "ffn.",
    "attn.proj.": "attn.out.",
}


def trunk(kind, channels=3):
    torch.manual_seed(0)
    if kind == "resnet":
        return timm.create_model("resnet18", num_classes=0, in_chans=channels).eval()
    small = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 1}
    return timm.create_model("vit_base_patch16_224", num_classes=0, **small).eval()


def indexed(key):
    first, _, rest = key.partition(".")
    return f"{RESNET[first]}.{rest}"


def jeya(state):
    out = {}
    for key, value in state.items():
        if key.startswith("norm."):
            out[f"encoder.encoder_norm.{key[5:]}"] = value
            continue
        for ours, theirs in VIT.items():
            key = key.replace(ours, theirs)
        if "qkv" in key:
            out |= {key.replace("qkv", n): v for n, v in zip(("query", "key", "value"), value.chunk(3), strict=True)}
        else:
            out[key] = value
    return out


def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


CASES = {
    "mgca_vit": ("vit", 3, lambda s: prefixed("img_encoder_q.model.", s)),
    "mgca_resnet": ("resnet", 3, lambda s: prefixed("img_encoder_q.model.", s)),
    "prior": ("resnet", 1, lambda s: prefixed("image_encoder.encoder.", s)),
    "prior_resnet": ("resnet", 1, dict),
    "refers": ("vit", 3, lambda s: prefixed("transformer.", jeya(s))),
    "refers_raw": ("vit", 3, lambda s: prefixed("visual.vit.transformer.", jeya(s))),
    "medvill": ("resnet", 3, lambda s: prefixed("enc.img_encoder.model.", {indexed(k): v for k, v in s.items()})),
    "timm_resnet": ("resnet", 3, dict),
    "timm_vit": ("vit", 3, dict),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_found_and_every_tensor_arrives(name, tmp_path):
    kind, channels, theirs = CASES[name]
    state = trunk(kind, channels).state_dict()
    file = tmp_path / "official.pth"
    torch.save({"state_dict": {**theirs(state), "another.head.weight": torch.ones(2)}}, file)
    assert run_cli("import", f"checkpoint={file}", f"out={tmp_path / 'b'}") == 0
    made = load(tmp_path / "b")
    got = made.vision.trunk.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[k], v) for k, v in state.items())
    about = made.meta["import"]
    assert about["layout"] == name
    assert about["coverage"]["left_over"] == ["another.head.weight"]
    assert not about["coverage"]["missing"]


def test_too_little_of_the_encoder_is_refused(tmp_path, capsys):
    state = {k: v for k, v in trunk("resnet").state_dict().items() if not k.startswith("layer4.1")}
    state["layer4.1.conv1.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "half.pth")
    assert run_cli("import", f"checkpoint={tmp_path / 'half.pth'}", f"out={tmp_path / 'b'}") == 2
    assert "95 % is the" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_pickled_objects_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(a=1)}, tmp_path / "lightning.ckpt")
    assert run_cli("import", f"checkpoint={tmp_path / 'lightning.ckpt'}", f"out={tmp_path / 'b'}") == 2
    assert "save the state dict alone" in capsys.readouterr().err
