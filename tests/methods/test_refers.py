import dataclasses
from functools import partial

import numpy as np
import pytest
import slow_refers
import torch
import torch.nn.functional as F
from batches import rows_of
from helpers import write_sentencepiece
from presets import preset, values
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from vlp_bench.data.datamodule import assemble
from vlp_bench.data.tokenization import SentencePieces
from vlp_bench.encoders import bundle
from vlp_bench.encoders.decoders import ReportDecoder
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import build as engine
from vlp_bench.errors import UserError
from vlp_bench.losses import contrastive
from vlp_bench.losses.contrastive import info_nce
from vlp_bench.losses.precision import unit
from vlp_bench.methods import refers
from vlp_bench.methods.refers import REFERS
from vlp_bench.methods.refers_official import PatchGates
from vlp_bench.optim import look_ahead, multiplier
from vlp_bench.types import StudyBatch, Tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "left", "lung", "clear", "effusion", "edema", "heart"]
REPORTS = ["no effusion", "left lung clear no edema", "heart strange clear", "left effusion", "edema"]
#: images of each study: fewer than the three views, as many, and more
IMAGES = [1, 2, 3, 4, 1]
LENGTH = 9


@pytest.fixture
def build(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))

    def vision(kind: str) -> VisionBackbone:
        if kind == "cnn":
            return VisionBackbone("test_resnet", image_size=32, mean=0.0, std=1.0)
        tiny = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
        return VisionBackbone("vit_tiny_patch16_224", image_size=32, mean=0.0, std=1.0, architecture=tiny)

    def method(kind: str = "vit", **changed) -> REFERS:
        torch.manual_seed(0)
        architecture = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 20,
        }
        arguments = {
            "loss_weights": {"report": 1.0, "consistency": 1.0},
            "decoder": {"width": 8, "heads": 2, "feedforward": 20, "layers": 2},
            "max_tokens": 20,
        }
        text = TextBackbone("tiny", vocab=str(tmp_path / "vocab.txt"), architecture=architecture)
        return REFERS(vision(kind), text, **(arguments | changed))

    return method


def tokens(reports: list[str], length: int) -> Tokens:
    ids = torch.zeros(len(reports), length, dtype=torch.long)
    for row, report in zip(ids, reports, strict=True):
        words = [WORDS.index(w) if w in WORDS else 1 for w in report.split()]
        row[: len(words) + 2] = torch.tensor([2, *words, 3])
    word = (torch.arange(length).expand(ids.shape) - 1).where(ids > 3, -1)
    return Tokens(ids, ids != 0, word, word.clamp(max=0))


def make_batch(length: int = LENGTH, most: int = max(IMAGES), reports: list[str] = REPORTS) -> StudyBatch:
    image = torch.randint(0, 256, (5, 4, 1, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mask = torch.arange(most) < torch.tensor(IMAGES)[:, None]
    return StudyBatch(
        image=image[:, :most] * mask[..., None, None, None],
        view_mask=mask,
        flipped=torch.zeros_like(mask),
        text=tokens(reports, length),
        labels=torch.full((5, 2), float("nan")),
        study=torch.arange(5),
        study_id=tuple("abcde"),
    )


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


both_variants = pytest.mark.parametrize("variant", ["paper", "official"])
both_encoders = pytest.mark.parametrize("kind", ["vit", "cnn"])


@both_encoders
def test_paper_agrees_with_a_slow_reference(build, kind):
    method = build(kind).double().eval()
    # away from its small initial values, where a slip would not show
    for p in method.decoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch = make_batch()
    got = method.losses(batch)
    with torch.no_grad():
        seen = [method.vision(images[:n]) for images, n in zip(batch.image, IMAGES, strict=True)]
        expected = slow_refers.losses(
            method,
            [list(features.pooled) for features in seen],
            [[list(patches) for patches in features.tokens] for features in seen],
            list(method.text(batch.text).pooled),
            [row[mask].tolist() for row, mask in zip(batch.text.ids, batch.text.mask, strict=True)],
        )
    assert_same(got, expected)


@both_variants
@both_encoders
def test_longer_padding_changes_nothing(build, kind, variant):
    method = build(kind, variant=variant, bidirectional=True).double().eval()
    assert_same(method.losses(make_batch(LENGTH)), method.losses(make_batch(LENGTH + 6)))


@both_variants
@both_encoders
def test_the_order_of_the_studies_changes_nothing(build, kind, variant):
    method = build(kind, variant=variant, bidirectional=True).double().eval()
    batch = make_batch()
    assert_same(method.losses(batch), method.losses(rows_of(batch, [3, 0, 4, 1, 2])))


@both_variants
@both_encoders
def test_a_masked_view_is_an_absent_view(build, kind, variant):
    method = build(kind, variant=variant).double()
    batch = make_batch()
    noise = torch.where(batch.view_mask[..., None, None, None], batch.image, 255 - batch.image)
    for mode in (True, False):
        method.train(mode)
        torch.manual_seed(3)
        expected = method.losses(batch)
        torch.manual_seed(3)
        assert_same(expected, method.losses(dataclasses.replace(batch, image=noise)))
    # the fourth image of a study is not looked at in validation, so that its column may be missing
    assert_same(method.losses(batch), method.losses(make_batch(most=3)))


@both_variants
@both_encoders
@pytest.mark.parametrize("fusion", [True, False])
def test_every_trainable_parameter_has_a_gradient(build, kind, variant, fusion):
    method = build(kind, variant=variant, fusion=fusion, bidirectional=True)
    sum(method.losses(make_batch()).values()).backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in method.parameters())


@both_variants
@both_encoders
def test_bfloat16_is_finite(build, kind, variant):
    method = build(kind, variant=variant)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(make_batch())
        torch.stack(list(terms.values())).sum().backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters())


# Recipes

#: what the presets say, of the paper and of the authors' code
RECIPE = {
    "method.variant": ("paper", "official"),
    "vision.name": ("vit_base_patch16_224", "vit_base_patch16_224.orig_in21k"),
    "vision.weights": ("none", "pretrained"),
    "text.name": ("emilyalsentzer/Bio_ClinicalBERT", "emilyalsentzer/Bio_ClinicalBERT"),
    "text.weights": ("pretrained", "pretrained"),
    "data.batch_size": (32, 2),
    "trainer.max_steps": (300_000, 400_000),
    "trainer.precision": ("16-mixed", "16-mixed"),
    "trainer.gradient_clip_val": (None, 10.0),
    "select": ("val/loss", "last"),
    "optimizer": ({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 3e-3, "momentum": 0.9},) * 2,
    "method.schedule": ("cosine", "cosine"),
    "method.text_lr_scale": (0.1, 0.1),
    "method.weight_decay": (1e-4, 1e-4),
    "method.decay_all": (False, False),
    "method.temperature": (0.1, 0.1),
    "method.loss_weights": ({"report": 1.0, "consistency": 1.0},) * 2,
    "method.views": (3, 3),
    "method.bidirectional": (False, False),
    "method.decoder": ({"width": 1024, "heads": 16, "feedforward": 4096, "layers": 1, "dropout": 0.1},) * 2,
    "method.inputs.sample": ("study", "study"),
    "method.inputs.frontal_only": (False, False),
    "method.inputs.max_tokens": (100, 100),
    "method.inputs.sections": ("findings_impression", "findings_impression"),
    "method.inputs.clean": ("none", "none"),
    "method.inputs.min_tokens": (3, 3),
    "method.inputs.swap": ("words", "substrings"),
    "method.inputs.caption_end": ("kept", "cut"),
    "method.inputs.flip": (0.5, 0.5),
}


@both_variants
def test_the_preset_has_the_recipe(variant):
    cfg = preset(f"refers_{variant}")
    assert values(cfg, RECIPE) == {key: pair[variant == "official"] for key, pair in RECIPE.items()}
    assert round(cfg.method.warmup * cfg.trainer.max_steps) == 10_000


@both_variants
def test_the_image_encoder_of_the_preset(variant):
    small = ["vision.weights=none", *(f"+vision.architecture.{k}" for k in ("depth=1", "embed_dim=16", "num_heads=2"))]
    trunk = engine.vision(preset(f"refers_{variant}", *small).vision).trunk
    block = trunk.blocks[0]
    assert type(block.mlp.act) is (torch.nn.ReLU if variant == "paper" else torch.nn.GELU)
    assert getattr(block.mlp.act, "approximate", "none") == "none"
    assert block.norm1.eps == trunk.norm.eps == 1e-6
    assert [d.p for d in (trunk.pos_drop, block.mlp.drop1, block.mlp.drop2, block.attn.attn_drop)] == [0.1, 0.1, 0.1, 0]
    # the paper starts [CLS] from zero; timm from what is as good as that
    assert trunk.cls_token.abs().max() < 1e-4
    assert trunk.pos_embed.std() > 1e-3


def test_parts_have_the_size_of_the_authors():
    sizes = values(preset("refers_official"), ["method.decoder"])["method.decoder"]
    with torch.device("meta"):
        decoder = ReportDecoder(10_000, 0, 768, **sizes)
        gates = PatchGates(3, 768)
    assert sum(p.numel() for p in decoder.parameters()) == 27_938_576
    assert sum(p.numel() for p in gates.parameters()) == 6_915


# Views


def test_all_images_are_shown_and_one_of_them_again(build):
    method = build().train()
    torch.manual_seed(0)
    mask = torch.tensor([[True, False, True, False]]).expand(400, -1)
    drawn = method.draw_views(mask)
    assert set(drawn.flatten().tolist()) == {0, 2}
    assert {tuple(sorted(set(row))) for row in drawn.tolist()} == {(0, 2)}
    repeated = drawn.sum(1)  # 2 where the first is shown twice, 4 where the other is
    assert 0.35 < (repeated == 2).float().mean() < 0.65


def test_three_of_four_images_are_drawn_without_replacement(build):
    method = build().train()
    torch.manual_seed(0)
    drawn = method.draw_views(torch.ones(400, 4, dtype=torch.bool))
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert torch.bincount(drawn.flatten(), minlength=4).min() > 250


def test_official_draws_with_replacement_so_that_images_can_be_missing(build):
    method = build(variant="official").train()
    torch.manual_seed(0)
    drawn = method.draw_views(torch.ones(2000, 3, dtype=torch.bool))
    distinct = torch.tensor([len(set(row)) for row in drawn.tolist()])
    assert (distinct == 3).float().mean() == pytest.approx(6 / 27, abs=0.04)


@both_variants
def test_validation_takes_the_images_in_order(build, variant):
    method = build(variant=variant).eval()
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [False, True, False, False]])
    assert method.draw_views(mask).tolist() == [[0, 1, 2], [0, 1, 0], [1, 1, 1]]


def test_an_image_is_encoded_once_however_often_it_is_shown(build):
    method, seen = build(), []
    method.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    method.eval().losses(make_batch())
    assert seen == [1 + 2 + 3 + 3 + 1]


# Fusion and recurrent concatenation


def test_weights_of_the_views_sum_to_one_and_gates_do_not(build):
    torch.manual_seed(0)
    pooled, patches = torch.randn(4, 3, 16), torch.randn(4, 3, 5, 16)
    weight = build().studies.weights(pooled)
    assert weight.shape == (4, 3)
    torch.testing.assert_close(weight.sum(1), torch.ones(4))
    gate = build(variant="official").studies.fusion(patches)
    assert gate.shape == (4, 3, 5)
    assert (gate.sum(1) - 1).abs().max() > 0.1
    assert gate.std(dim=2).min() > 0.01


def test_cls_is_beside_the_patches_in_the_paper_and_added_in_the_code(build):
    torch.manual_seed(0)
    pooled, patches = torch.randn(2, 3, 16), torch.randn(2, 3, 5, 16)
    paper = build().studies.recur(pooled, patches)
    assert torch.equal(paper[..., :16], patches)
    assert torch.equal(paper[..., 16:], pooled[:, :, None].expand(-1, -1, 5, -1))
    official = build(variant="official").studies.recur(pooled, patches)
    assert torch.equal(official, patches + pooled[:, :, None])
    for variant in ("paper", "official"):
        assert torch.equal(build(variant=variant, recurrent=False).studies.recur(pooled, patches), patches)


def test_the_study_is_fused_in_the_paper_and_laid_side_by_side_in_the_code(build):
    torch.manual_seed(0)
    pooled, patches = torch.randn(2, 3, 16), torch.randn(2, 3, 5, 16)
    for arguments in ({"variant": "official"}, {"fusion": False}):
        assert torch.equal(build(**arguments).studies.feature(pooled), pooled.flatten(1))
    paper = build().studies
    expected = paper.weights(pooled).repeat_interleave(16, 1) * pooled.flatten(1)
    torch.testing.assert_close(paper.feature(pooled), expected)
    # view after view, patch after patch
    memory = build(variant="official", fusion=False, recurrent=False).studies.memory(pooled, patches)
    assert torch.equal(memory, torch.cat(list(patches.unbind(1)), 1))


def test_recurrent_needs_a_transformer(build):
    assert build("vit").studies.recurrent is True
    assert build("cnn").studies.recurrent is False
    with pytest.raises(UserError, match=r"method\.recurrent=true needs the \[CLS\].*test_resnet"):
        build("cnn", recurrent=True)


# Losses


def test_only_the_study_looks_for_its_report_in_the_paper(build):
    v, t = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(build().consistency(v, t), info_nce(unit(v), unit(t), 0.1))


def test_the_reports_direction_is_a_number_in_the_code(build):
    v, t = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = build(variant="official").consistency(v, t)
    there, back = info_nce(unit(v), unit(t), 0.1), info_nce(unit(t), unit(v), 0.1)
    torch.testing.assert_close(loss, 0.75 * there + 0.25 * back)
    got, expected = torch.autograd.grad(loss, (v, t)), torch.autograd.grad(0.75 * there, (v, t))
    torch.testing.assert_close(got, expected)


def test_the_paper_compares_all_processes_and_the_code_one(build, monkeypatch):
    # two processes, the other of which has other rows, and twice the words on average
    for module in (refers, contrastive):
        monkeypatch.setattr(module, "gather", lambda x: torch.cat([x, x.roll(1, 1)]))
    v, t = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    paper, official = build(), build(variant="official")
    everywhere = info_nce(unit(v), torch.cat([unit(t), unit(t).roll(1, 1)]), 0.1)
    torch.testing.assert_close(paper.consistency(v, t), everywhere)
    assert paper.across_processes is True
    assert official.across_processes is False


@both_variants
def test_the_temperature_is_a_constant(build, variant):
    method = build(variant=variant)
    assert isinstance(method.temperature, float)
    assert not [n for n, p in method.named_parameters() if p.ndim == 0]


def test_an_unknown_word_is_padding_in_the_code_alone(build):
    batch = make_batch()
    assert (batch.text.ids == 1).sum() == 1
    assert torch.equal(build().words(batch.text), batch.text.ids)
    official = build(variant="official")
    assert torch.equal(official.words(batch.text), batch.text.ids.where(batch.text.ids != 1, 0))
    # it is neither read nor predicted, but the words after it keep their place
    embedded = official.eval().decoder.embed(official.words(batch.text))
    assert embedded[batch.text.ids < 2].abs().max() == 0
    assert embedded[batch.text.ids >= 2].abs().sum(-1).min() > 0


def test_a_word_sees_those_before_it_alone(build):
    decoder = build().double().eval().decoder
    torch.manual_seed(0)
    memory = torch.randn(5, 6, decoder.arguments["memory"], dtype=torch.float64)
    text = make_batch().text
    changed = text.ids.clone()
    changed[:, 2] = WORDS.index("heart")
    one, other = decoder(memory, text.ids, text.mask), decoder(memory, changed, text.mask)
    assert torch.equal(one[:, :2], other[:, :2])
    assert (one[0, 2] - other[0, 2]).abs().max() > 1e-6


def test_output_and_words_share_their_weights(build):
    decoder = build().decoder
    assert decoder.words.weight[0].abs().max() == 0
    assert [n for n, p in decoder.named_parameters() if p.shape == decoder.words.weight.shape] == ["words.weight"]
    # padding is never predicted, yet the softmax pushes its row, which thereby leaves zero
    F.cross_entropy(decoder.logits(torch.ones(1, 8)), torch.tensor([5])).backward()
    assert decoder.words.weight.grad[0].abs().max() > 0


def test_the_report_is_also_read_from_its_end(build):
    one, both = (build(bidirectional=b).double().eval() for b in (False, True))
    both.load_state_dict(one.state_dict(), strict=False)
    both.decoder.backward_layers.load_state_dict(one.decoder.layers.state_dict())
    batch = make_batch()
    turned = [" ".join(report.split()[::-1]) for report in REPORTS]
    swapped = tokens(turned, LENGTH)
    # the same layers then read the report with [SEP] first and [CLS] last
    ids = swapped.ids.where(swapped.ids != 2, -1).where(swapped.ids != 3, 2)
    ids = ids.where(ids != -1, 3)
    pooled, patches = one.encode_views(batch)
    memory = one.studies.memory(pooled, patches)
    there, back = both.report_terms(memory, batch.text.ids, batch.text.mask)
    torch.testing.assert_close(there, one.report_term(memory, batch.text.ids, batch.text.mask))
    torch.testing.assert_close(back, one.report_term(memory, ids, swapped.mask))
    torch.testing.assert_close(both.losses(batch)["report"], there + back)


# Optimiser


def rates(method: REFERS, group_of: str = "lr_scale") -> dict[str, float]:
    names = {id(p): n for n, p in method.named_parameters()}
    return {names[id(p)]: g.get(group_of, 1.0) for g in method.parameter_groups() for p in g["params"]}


@both_variants
def test_groups_hold_every_parameter_once(build, variant):
    method = build(variant=variant)
    held = [id(p) for g in method.parameter_groups() for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters())


@both_variants
def test_the_text_side_learns_slower(build, variant):
    slow = {n for n, rate in rates(build(variant=variant)).items() if rate == 0.1}
    parts = {".".join(n.split(".")[:2]) if n.startswith("studies") else n.split(".")[0] for n in slow}
    assert parts == ({"text", "studies.text", "decoder"} if variant == "paper" else {"text", "studies.text"})


def test_norms_do_not_decay_but_for_berts_in_the_code(build):
    for variant in ("paper", "official"):
        decayed = {n for n, decay in rates(build(variant=variant), "weight_decay").items() if decay > 0}
        assert not [n for n in decayed if n.endswith("bias")]
        assert {"vision.trunk.pos_embed", "vision.trunk.cls_token", "decoder.words.weight"} <= decayed
        norms = {n for n in decayed if "norm" in n.lower()}
        expected = {n for n, _ in build().named_parameters() if n.endswith("LayerNorm.weight")}
        assert norms == (expected if variant == "official" else set())


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")  # Lightning, of a list of batches
@both_variants
def test_rates_in_training(build, variant):
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    method = build(variant=variant, optimizer=optimizer, warmup=0.5, schedule="linear")
    used: list[set[float]] = []

    class Watched(type(method)):
        def on_train_batch_start(self, batch, batch_idx) -> None:
            used.append({round(g["lr"], 6) for g in self.optimizers().param_groups})

    method.__class__ = Watched
    loader = DataLoader([make_batch()] * 8, batch_size=None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet).fit(method, loader, loader)
    peak = [multiplier(step, 8, 4, schedule="linear") for step in range(8)]
    assert used == [{round(0.5 * m, 6), round(0.05 * m, 6)} for m in peak]
    assert used[0] == {0.0}
    slow = [s for s in method.optimizers().state.values() if "slow" in s]
    assert len(slow) == (len(list(method.parameters())) if variant == "official" else 0)
    assert {"train/loss/report", "val/loss/consistency", "val/top1"} <= method.trainer.logged_metrics.keys()


def test_lookahead_goes_on_from_its_state():
    def steps(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            p.grad = p.detach().clone()
            optimizer.step()

    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        p = torch.nn.Parameter(torch.tensor([4.0, -2.0]))
        return p, look_ahead(torch.optim.SGD([p], lr=0.1))

    through, optimizer = start()
    steps(through, optimizer, 5)
    # four of five plain steps are kept, the fifth ends halfway between the start and where it was
    torch.testing.assert_close(through.detach(), torch.tensor([4.0, -2.0]) * (1 + 0.9**5) / 2)
    steps(through, optimizer, 6)
    broken, optimizer = start()
    steps(broken, optimizer, 7)
    resumed, again = start()
    resumed.data.copy_(broken.data)
    again.load_state_dict(optimizer.state_dict())
    steps(resumed, again, 4)
    torch.testing.assert_close(resumed, through)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match=r"method\.schedule=step: expected cosine or linear"):
        multiplier(1, 10, 2, schedule="step")


# What is left behind


@both_variants
@both_encoders
def test_the_bundle_rebuilds_every_part(build, kind, variant, tmp_path):
    method = build(kind, variant=variant, bidirectional=True).eval()
    assert set(method.parts()) == {"vision", "text", "aligner", "decoder"}
    bundle.save(tmp_path / "bundle", method.parts(), {"name": "refers"})
    loaded = bundle.load(tmp_path / "bundle")
    batch = make_batch()
    with torch.no_grad():
        image, text = method.vision(batch.frontal), method.text(batch.text)
        expected = method.aligner().similarity(image, text)
        torch.testing.assert_close(loaded.similarity(loaded.vision(batch.frontal), loaded.text(batch.text)), expected)
        pooled, patches = method.encode_views(batch)
        memory = loaded.aligner.memory(pooled, patches)
        written = loaded.parts["decoder"](memory, batch.text.ids, batch.text.mask, from_end=True)
    assert expected.shape == (5, 5)
    assert expected.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(written, method.decoder(memory, batch.text.ids, batch.text.mask, from_end=True))


@both_variants
def test_one_image_is_a_study_of_that_image_alone(build, variant):
    method = build(variant=variant).eval()
    image = method.vision(make_batch().frontal)
    pooled = image.pooled[:, None].expand(-1, 3, -1)
    expected = F.normalize(method.studies.feature(pooled), dim=-1)
    torch.testing.assert_close(method.aligner().embed_images(image), expected)


def test_a_decoder_that_cannot_be_built_is_refused(build):
    with pytest.raises(UserError, match=r"method\.decoder\.width=10 is no multiple of method\.decoder\.heads=4"):
        build(decoder={"width": 10, "heads": 4})


def test_the_decoder_reads_its_own_pieces_where_it_has_some(build, tmp_path):
    model = str(write_sentencepiece(tmp_path / "m.model", REPORTS, 40))
    method, batch = build(sentencepiece=model), make_batch()
    pieces = SentencePieces(model)
    assert method.decoder.words.num_embeddings == len(pieces)
    assert method.decoder.pad == pieces.pad
    caption = assemble(pieces.encode([[r] for r in REPORTS]), np.arange(len(REPORTS)), pieces, 20)
    with torch.no_grad():
        terms = method.eval().losses(dataclasses.replace(batch, caption=caption))
        other = method.losses(
            dataclasses.replace(batch, caption=dataclasses.replace(caption, ids=caption.ids.clamp(max=5)))
        )
    assert torch.isfinite(terms["report"])
    assert terms["report"] != other["report"]
    assert terms["consistency"] == other["consistency"]
