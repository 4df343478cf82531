"""Published checkpoints become bundles with the same weights; what does not fit is refused."""

import argparse

import numpy as np
import pytest
import timm
import torch
from helpers import run_cli

from vlp_bench.checkpoints.layouts import of_sentences
from vlp_bench.encoders.aligner import DualEncoderAligner
from vlp_bench.encoders.bundle import load
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone

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


@pytest.fixture
def mgca(tmp_path):
    """A tiny MGCA under the authors' names: file, vocabulary, text encoder and heads."""
    vision = trunk("vit").state_dict()
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "clear", "lungs", "effusion"]) + "\n")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32}
    text = TextBackbone("small", vocab=str(vocab), architecture=sizes, positions=False, token_types=False)
    head = {"inputs": 64, "hidden": 16, "outputs": 8}
    aligner = DualEncoderAligner(head, head, head, head)
    bert = {k: v for k, v in text.bert.state_dict().items() if "token_type" not in k}
    state = prefixed("img_encoder_q.model.", vision) | prefixed("text_encoder_q.model.", bert)
    places = {"image": "img_encoder_q.global", "text": "text_encoder_q.global"}
    places |= {"patch": "img_encoder_q.local", "word": "text_encoder_q.local"}
    for key, value in aligner.state_dict().items():
        name, _, rest = key.partition(".")
        convolved = name in ("patch", "word") and value.ndim == 2
        state[f"{places[name]}_embed.{rest}"] = value[..., None] if convolved else value
    state["text_encoder_q.model.embeddings.position_ids"] = torch.arange(512)[None]
    state["text_encoder_q.model.encoder.layer.0.crossattention.self.query.weight"] = torch.ones(64, 64)
    state["prototype_layer.weight"] = torch.ones(3, 8)
    torch.save({"state_dict": state}, tmp_path / "mgca.ckpt")
    return tmp_path / "mgca.ckpt", vocab, text, aligner


def test_mgca_whole(mgca, tmp_path, capsys):
    file, vocab, text, aligner = mgca
    assert run_cli("import", f"checkpoint={file}", f"out={tmp_path / 'b'}", f"vocab={vocab}") == 0
    assert "prototype_layer" in capsys.readouterr().out
    made = load(tmp_path / "b")
    for part, own in ((made.text, text), (made.aligner, aligner)):
        assert part.state_dict().keys() == own.state_dict().keys()
        assert all(torch.equal(part.state_dict()[k], v) for k, v in own.state_dict().items())
    assert not made.text.positions
    assert made.inputs.max_tokens == 112
    assert made.meta["data"]["name"] == "mimic_cxr"
    images = made.encode_images([np.zeros((40, 40), np.uint8)] * 2)
    assert made.similarity(images, made.encode_texts(["Lungs clear lungs.", "Effusion."])).shape == (2, 2)
    about = made.meta["import"]
    assert len(about["coverage"]["left_over"]) == len(about["reasons"]) == 3
    assert about["modules"]["prototype_layer"]["left_over"] == 1
    assert about["modules"]["prototype_layer"]["reasons"] == ["prototypes, which only pre-training reads"]


def test_prior_whole(mgca, tmp_path):
    _, vocab, text, _ = mgca
    file = tmp_path / "prior.pth"
    vision = VisionBackbone("resnet18", image_size=32, token_stride=32, architecture={"in_chans": 1})
    aligner = of_sentences(
        {
            "image.weight": torch.ones(64, 512),
            "word.weight": torch.ones(64, 64),
            "image_pool.positional_embedding": torch.ones(50, 512),
            "bank.vectors": torch.ones(5, 64),
        }
    )
    torch.nn.init.normal_(aligner.report_pool.q_proj.weight)
    theirs = {
        "attention.image_query": "local_cross_attention.query1",
        "attention.image_key": "local_cross_attention.key1",
        "attention.image_value": "local_cross_attention.value1",
        "attention.text_query": "local_cross_attention.query2",
        "attention.text_key": "local_cross_attention.key2",
        "attention.text_value": "local_cross_attention.value2",
        "image_pool": "image_encoder.atten_pool",
        "report_pool": "global_text_attention",
        "image": "global_image_projection",
        "patch": "local_image_projection",
        "word": "local_text_projection",
        "bank.vectors": "sentence_bank.embed.weight",
        "log_scale": "logit_scale",
    }
    state = prefixed("image_encoder.encoder.", vision.trunk.state_dict())
    state |= prefixed("text_encoder.encoder.", text.bert.state_dict())
    for key, value in aligner.state_dict().items():
        for ours, name in theirs.items():
            if key == ours or key.startswith(f"{ours}."):
                state[name + key.removeprefix(ours)] = value
                break
    torch.save(state, file)
    assert run_cli("import", f"checkpoint={file}", f"out={tmp_path / 'b'}", f"vocab={vocab}") == 0
    made = load(tmp_path / "b")
    assert all(torch.equal(made.aligner.state_dict()[k], v) for k, v in aligner.state_dict().items())
    assert made.aligner.bank.in_use
    assert made.meta["import"]["coverage"]["left_over"] == []
    images = made.encode_images([np.zeros((40, 40), np.uint8)] * 2)
    assert made.similarity(images, made.encode_texts(["Lungs clear lungs.", "Effusion."])).shape == (2, 2)


def test_without_vocabulary_only_images_and_it_says_so(mgca, tmp_path, capsys):
    assert run_cli("import", f"checkpoint={mgca[0]}", f"out={tmp_path / 'b'}") == 0
    assert "vocab=" in capsys.readouterr().out
    assert set(load(tmp_path / "b").parts) == {"vision"}


def test_a_vocabulary_of_another_length_is_refused(mgca, tmp_path, capsys):
    mgca[1].write_text(mgca[1].read_text() + "more\n")
    assert run_cli("import", f"checkpoint={mgca[0]}", f"out={tmp_path / 'b'}", f"vocab={mgca[1]}") == 2
    assert "9 entries" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_what_is_missing_in_the_image_encoder_is_named(tmp_path, capsys):
    state = trunk("resnet").state_dict()
    del state["layer4.1.bn2.bias"]
    torch.save(state, tmp_path / "nearly.pth")
    assert run_cli("import", f"checkpoint={tmp_path / 'nearly.pth'}", f"out={tmp_path / 'b'}") == 0
    assert "layer4.1.bn2.bias" in capsys.readouterr().out
