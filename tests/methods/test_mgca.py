from functools import partial

import pytest
import slow_mgca
import torch
from batches import rows_of
from presets import preset, values
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses import contrastive
from vlp_bench.losses.contrastive import info_nce
from vlp_bench.losses.local_alignment import attend, clipped_shares, shares, token_contrast
from vlp_bench.losses.precision import unit
from vlp_bench.losses.prototypes import sinkhorn
from vlp_bench.losses.words import word_slots
from vlp_bench.methods import mgca, mgca_official
from vlp_bench.methods.mgca import MGCA, gather_words
from vlp_bench.types import StudyBatch, TextFeatures, Tokens

VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["no", "left", "lung", "clear", "##er", "ef", "##fusion", "pneu", "##mo", "##thorax"],
]
REPORTS = [
    "no effusion",
    "left lung clearer no pneumothorax",
    "lung clear",
    "left effusion lung clear",
    "no pneumothorax",
]
LENGTH = 12


@pytest.fixture
def text_arguments(tmp_path) -> dict:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB))
    architecture = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return {"name": "tiny", "vocab": str(tmp_path / "vocab.txt"), "architecture": architecture}


@pytest.fixture
def build(text_arguments):
    def vision(kind: str) -> VisionBackbone:
        if kind == "cnn":
            return VisionBackbone("resnet10t", image_size=64, mean=0.0, std=1.0)
        tiny = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        return VisionBackbone("vit_tiny_patch16_224", image_size=32, mean=0.0, std=1.0, architecture=tiny)

    def method(kind: str = "vit", **changed) -> MGCA:
        torch.manual_seed(0)
        arguments = {
            "loss_weights": {"instance": 1.0, "token": 1.0, "prototype": 1.0},
            "temperatures": {"instance": 0.07, "token": 0.1, "prototype": 0.2},
            "embed_dim": 8,
            "hidden_dim": 16,
            "prototypes": 6,
            "max_tokens": LENGTH,
        }
        return MGCA(vision(kind), TextBackbone(**text_arguments), **(arguments | changed))

    return method


def tokens(method: MGCA, reports: list[str], length: int) -> Tokens:
    tokenizer = method.text.tokenizer
    pieces = tokenizer.encode([[r] for r in reports])
    ids, word = torch.zeros(len(reports), length, dtype=torch.long), torch.full((len(reports), length), -1)
    for i, (a, b) in enumerate(zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True)):
        kept = min(int(b - a), length - 2)
        ids[i, : kept + 2] = torch.tensor([tokenizer.cls, *pieces.ids[a : a + kept], tokenizer.sep])
        word[i, 1 : kept + 1] = torch.from_numpy(pieces.word[a : a + kept])
    return Tokens(ids, ids != tokenizer.pad, word, (word >= 0).long() - 1)


def make_batch(method: MGCA, reports: list[str] = REPORTS, length: int = LENGTH) -> StudyBatch:
    n, size = len(reports), method.vision.spec.image_size
    generator = torch.Generator().manual_seed(1)
    return StudyBatch(
        image=torch.randint(0, 256, (n, 1, 1, size, size), generator=generator, dtype=torch.uint8),
        view_mask=torch.ones(n, 1, dtype=torch.bool),
        flipped=torch.zeros(n, 1, dtype=torch.bool),
        text=tokens(method, reports, length),
        labels=torch.full((n, 2), float("nan")),
        study=torch.arange(n),
        study_id=tuple(map(str, range(n))),
    )


both_variants = pytest.mark.parametrize("variant", ["paper", "official"])
both_encoders = pytest.mark.parametrize("kind", ["vit", "cnn"])


@both_encoders
@pytest.mark.parametrize("heads", [1, 2])
def test_paper_agrees_with_a_slow_reference(build, kind, heads):
    method = build(kind, heads=heads).double().eval()
    # Only the heads take the statistics of the batch; the encoders must say the same twice.
    method.heads.train()
    batch = make_batch(method)
    got = method.losses(batch)
    with torch.no_grad():
        image, text = method.vision(batch.frontal, saliency=True), method.text(batch.text, saliency=True)
        expected = slow_mgca.losses(method, image, text, VOCAB)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        # The saliency is handed over in float32.
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@both_variants
@both_encoders
def test_longer_padding_changes_nothing(build, kind, variant):
    method = build(kind, variant=variant, max_tokens=20).double()
    short, long = (method.losses(make_batch(method, length=n)) for n in (LENGTH, 20))
    for name in short:
        torch.testing.assert_close(short[name], long[name], rtol=1e-6, atol=1e-9)


@both_variants
@both_encoders
def test_the_order_of_the_samples_changes_nothing(build, kind, variant):
    method = build(kind, variant=variant).double()
    batch = make_batch(method)
    plain, other = method.losses(batch), method.losses(rows_of(batch, [3, 0, 4, 1, 2]))
    for name in plain:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-6, atol=1e-9)


@both_variants
@both_encoders
def test_every_trainable_parameter_has_a_gradient(build, kind, variant):
    method = build(kind, variant=variant)
    sum(method.losses(make_batch(method)).values()).backward()
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@both_variants
@both_encoders
def test_bfloat16_is_finite(build, kind, variant):
    method = build(kind, variant=variant)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(make_batch(method))
        loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@both_variants
def test_weights_carry_no_gradient(build, variant):
    method = build(variant=variant)
    batch = make_batch(method)
    image, text = method.vision(batch.frontal, saliency=True), method.text(batch.text, saliency=True)
    assert not image.saliency.requires_grad
    assert not text.saliency.requires_grad


def test_the_aligner_is_complete_and_registered_once(build):
    method = build()
    assert method.aligner() is method.heads
    names = [n for n in method.state_dict() if "heads" in n]
    assert {n.split(".")[1] for n in names} == {"image", "text", "patch", "word"}
    assert set(method.parts()) == {"vision", "text", "aligner"}
    assert len({id(p) for p in method.parameters()}) == len(list(method.parameters()))
    batch = make_batch(method)
    scores = method.eval().aligner().similarity(method.vision(batch.frontal), method.text(batch.text))
    assert scores.shape == (5, 5)


def test_prototypes_are_of_unit_length_before_use(build):
    method = build()
    method.eval().losses(make_batch(method))
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")  # Lightning, of a list of batches
def test_prototypes_stay_in_the_first_epoch_and_move_in_the_second(build):
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    method = build(optimizer=optimizer, warmup=0.0, decay_all=True)
    before = torch.nn.functional.normalize(method.prototypes.weight.detach().clone(), dim=1)
    seen = []

    class Watched(MGCA):
        def on_train_epoch_end(self) -> None:
            seen.append(torch.nn.functional.normalize(self.prototypes.weight.detach().clone(), dim=1))

    method.__class__ = Watched
    loader = DataLoader([make_batch(method)] * 2, batch_size=None)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_epochs=2, **quiet).fit(method, loader, loader)
    torch.testing.assert_close(seen[0], before)
    assert (seen[1] - before).abs().max() > 1e-4
    assert {"train/top1", "val/top5", "val/loss"} <= method.trainer.logged_metrics.keys()


#: what the presets say, of paper and supplement and of the authors' code
RECIPE = {
    "method.variant": ("paper", "official"),
    "vision.name": ("deit_base_patch16_224", "deit_base_patch16_224"),
    "vision.weights": ("pretrained", "pretrained"),
    "vision.mean": (0.0, 0.5),
    "vision.std": (1.0, 0.5),
    "text.name": ("emilyalsentzer/Bio_ClinicalBERT", "emilyalsentzer/Bio_ClinicalBERT"),
    "text.architecture": ({"num_hidden_layers": 6},) * 2,
    "data.batch_size": (72, 72),  # on each of two devices
    "trainer.max_epochs": (50, 50),
    "trainer.precision": ("16-mixed", "32-true"),
    "trainer.sync_batchnorm": (False, False),
    "trainer.gradient_clip_val": (None, None),
    "select": ("val/loss", "val/loss"),
    "early_stop": ({"monitor": "val/loss", "patience": 5},) * 2,
    "optimizer": ({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 2e-5, "betas": [0.9, 0.999]},) * 2,
    "method.warmup": (0.4, 0.4),
    "method.final_lr": (1e-8 / 2e-5, 1e-8 / 2e-5),
    "method.weight_decay": (0.05, 0.05),
    "method.decay_all": (False, True),
    "method.temperatures": ({"instance": 0.07, "token": 0.1, "prototype": 0.2},) * 2,
    "method.epsilon": (0.05, 0.05),
    "method.sinkhorn_iterations": (3, 3),
    "method.freeze_prototypes_epochs": (1, 1),
    "method.embed_dim": (128, 128),
    "method.hidden_dim": (2048, 2048),
    "method.prototypes": (500, 500),
    "method.loss_weights": ({"instance": 1.0, "token": 1.0, "prototype": 1.0},) * 2,
    "method.inputs.sample": ("image", "image"),
    "method.inputs.frontal_only": (True, True),
    "method.inputs.sections": ("impression_findings", "impression_findings"),
    "method.inputs.clean": ("alphanumeric", "alphanumeric"),
    "method.inputs.special_cases": ("keep", "drop"),
    "method.inputs.fallback": ("none", "none"),
    "method.inputs.marks": ("keep", "keep"),
    "method.inputs.max_tokens": (112, 112),
    "method.inputs.min_tokens": (3, 3),
    "method.inputs.flip": (0.0, 0.0),
}


@both_variants
def test_the_preset_has_the_recipe(variant):
    expected = {key: pair[variant == "official"] for key, pair in RECIPE.items()}
    assert values(preset(f"mgca_{variant}"), RECIPE) == expected


# What the authors' code does otherwise


def test_the_paper_contrasts_and_clusters_all_processes_and_the_code_one(build, monkeypatch):
    # two processes, the other of which has other rows
    monkeypatch.setattr(contrastive, "gather", lambda x: torch.cat([x, x.roll(1, 1)]))
    monkeypatch.setattr(mgca, "all_reduce", lambda x: 2 * x + 1)
    v, t, logits = unit(torch.randn(4, 8)), unit(torch.randn(4, 8)), torch.randn(4, 6)
    paper = build()
    everywhere = [info_nce(a, torch.cat([b, b.roll(1, 1)]), 0.07) for a, b in ((v, t), (t, v))]
    torch.testing.assert_close(list(paper.instance_terms(v, t)), everywhere)
    torch.testing.assert_close(paper.codes(logits), sinkhorn(logits, 0.05, 3, lambda x: 2 * x + 1))
    assert paper.across_processes is True
    assert build(variant="official").across_processes is False
    assert build(variant="official", across_processes=True).across_processes is True


def test_official_clips_weights_and_leaves_what_a_vit_patch_attended_as_it_is():
    p, w = unit(torch.randn(2, 7, 8)), unit(torch.randn(2, 5, 8))
    saliency, weight, mask = torch.rand(2, 7), torch.rand(2, 5), torch.tensor([[True] * 5, [True, True] + [False] * 3])
    attended = attend(p, w, 0.1, mask)
    vit, cnn = (mgca_official.contrast_tokens(p, w, s, weight * mask, mask, 0.1) for s in (saliency, None))
    words = token_contrast(w, unit(attend(w, p, 0.1)), clipped_shares(weight * mask), 0.1)
    of_vit = token_contrast(p, attended, clipped_shares(saliency), 0.1)
    of_cnn = token_contrast(p, unit(attended), shares(torch.ones(2, 7)), 0.1)
    torch.testing.assert_close(vit, (*words, *of_vit))
    torch.testing.assert_close(cnn, (*words, *of_cnn))
    # words that there are not weigh nothing, are not attended to, and yet are negatives
    other = torch.where(mask[..., None], w, unit(torch.randn(2, 5, 8)))
    changed = mgca_official.contrast_tokens(p, other, saliency, weight * mask, mask, 0.1)
    assert all(float((a - b).abs()) > 1e-4 for a, b in zip(changed[:2], vit[:2], strict=True))
    torch.testing.assert_close(changed[2:], vit[2:])


def test_official_has_no_positions_types_nor_attention(build):
    method = build(variant="official")
    assert type(method).__name__ == "MGCAOfficial"
    assert not hasattr(method, "word_attention")
    assert method.text.arguments["positions"] is method.text.arguments["token_types"] is False
    ids = method.eval().text.tokenizer.encode([["no left lung"], ["lung left no"]]).ids.reshape(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    index = torch.from_numpy(ids.astype("int64"))
    hidden = method.text(Tokens(index, mask, index, index)).tokens
    torch.testing.assert_close(hidden[0], hidden[1].flip(0))
    with pytest.raises(UserError, match=r"method\.heads=2"):
        build(variant="official", heads=2)


def test_official_shifts_weights_and_loses_the_tail_of_full_reports(build):
    method = build()
    # [CLS] no ef ##fusion [SEP], and [CLS] left lung clear [SEP] that fills its five tokens.
    index = tokens(method, ["no", "left lung clear"], 5)
    saliency = torch.tensor([[0.5, 0.3, 0.2, 0.0, 0.0], [0.1, 0.2, 0.3, 0.15, 0.25]])
    x = torch.arange(1.0, 6).expand(2, 5)[..., None]
    text = TextFeatures(x[:, 0], x, index, saliency)
    assert word_slots(index).tolist() == [[0, 1, 2, -1, -1], [0, 1, 2, 3, 4]]
    paper, official = gather_words(text), mgca_official.gather_words(text, 5)
    torch.testing.assert_close(paper.weight, torch.tensor([[0.3, 0.2, 0, 0], [0.2, 0.3, 0.15, 0.25]]))
    assert paper.vectors[..., 0].tolist() == [[2, 3, 0, 0], [2, 3, 4, 5]]
    torch.testing.assert_close(official.weight, torch.tensor([[0.2, 0, 0, 0], [0.3, 0.15, 0, 0]]))
    assert official.vectors[..., 0].tolist() == [[2, 3, 0, 0], [2, 3, 0, 0]]
    assert official.mask.tolist() == [[True, True, False, False], [True, True, False, False]]
    # The same five tokens are whole where reports may be longer.
    assert mgca_official.gather_words(text, 6).mask.tolist()[1] == [True, True, True, True, False]


def test_official_counts_padding_in_statistics_and_negatives(build):
    method = build(variant="official")
    lengths = []
    method.heads.word.register_forward_hook(lambda module, args, out: lengths.append((len(args), out.shape[1])))
    method.losses(make_batch(method))
    assert lengths == [(1, LENGTH - 1)]


def test_an_unknown_variant_is_refused(build):
    with pytest.raises(UserError, match="paper or official"):
        build(variant="mine")
