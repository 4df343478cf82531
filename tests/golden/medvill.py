"""MedViLL's vectors, recorded from the authors' code, fed to variant=official and to what it is built from."""

import math
import random
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import Results, Vector, adapter, default_tolerance
from torch import Tensor

from vlp_bench.data.datamodule import assemble
from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.generation import JointWriter, beam_search, greedy
from vlp_bench.encoders.joint import attention_mask, sample_features
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.losses.masked_language import IGNORE, hide_to_write, mask_words, masked_language_loss, writing_loss
from vlp_bench.losses.matching import choose_reports, label_sets_differ, matching_loss
from vlp_bench.methods.medvill_official import JointEncoderOfficial
from vlp_bench.metrics.classification import averaged_scores
from vlp_bench.metrics.labels import published_label_metrics
from vlp_bench.metrics.language import PUBLISHED_WEIGHTS, bleu, bleu_statistics
from vlp_bench.metrics.retrieval import relevance_columns
from vlp_bench.tasks.classification import masked_loss, positive_weight
from vlp_bench.tasks.vqa import AnswerHead, accuracy_columns, answer_loss
from vlp_bench.tasks.words import pair_vector

PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]


def vocabulary(size: int) -> list[str]:
    return [*PIECES, *(f"w{i}" for i in range(len(PIECES), size))]


def scalar(file: Vector, name: str) -> float:
    return file[name].item()


def first_real(count: int, length: int) -> Tensor:
    """A text of `count` word pieces and [SEP] in `length` slots."""
    return (torch.arange(length) <= count)[None]


@adapter(
    "medvill/pretrain_masks",
    component="attention masks of pre-training",
    equation="eq. 14",
    departure="which mask `mixed` drew is read from the file",
)
def pretrain_masks(file: Vector) -> Results:
    results = {}
    for name in file.names("^out_mask"):
        n, t, count, kind = re.fullmatch(r"out_mask_N(\d+)_T(\d+)_n(\d+)_([a-z0-9]+).*", name).groups()
        real = first_real(int(count), int(t) + 1)
        if kind.startswith("mixed"):
            # Which of the two was drawn is recorded only in the mask.
            bi = attention_mask("bi", int(n), real, open_padding=True)[0]
            causal = torch.tensor([not torch.equal(bi, file.tensor(name).bool())])
            mask = attention_mask("mixed", int(n), real, causal=causal, open_padding=True)
        else:
            mask = attention_mask(kind, int(n), real, open_padding=True)
        results[name] = mask[0].to(torch.uint8)
    return results


@adapter(
    "medvill/finetune_masks",
    component="attention masks of fine-tuning",
    departure="here padding is hidden; for `bar` the adapter opens it to the image",
)
def finetune_masks(file: Vector) -> Results:
    """Here padding is hidden, but from the image in `bar`."""
    results = {}
    for name in file.names("^out_mask"):
        kind, n, count = re.fullmatch(r"out_mask_([a-z0-9]+)_N(\d+)_n(\d+)", name).groups()
        front, length = int(n) + 2, len(file[name]) - int(n) - 2
        mask = attention_mask(kind, int(n), first_real(min(int(count), length - 1), length))[0]
        if kind == "bar":
            mask[:front] = True
        results[name] = mask.to(torch.uint8)
    return results


@adapter(
    "medvill/visual_sampling",
    component="subset of the image features",
    equation="section III",
    departure="the permutation of the seed is fed",
)
def visual_sampling(file: Vector) -> Results:
    cells = file.tensor("in_feature_map").flatten(2).transpose(1, 2)
    torch.manual_seed(int(scalar(file, "par_torch_manual_seed")))
    # The permutation is the order of a draw that has its inverse for values.
    draw = torch.randperm(cells.shape[1]).argsort()[None].float()
    features, positions = sample_features(cells, draw, int(scalar(file, "par_num_image_embeds")))
    return {
        "out_randperm": draw[0].argsort(),
        "out_sorted_indices": positions[0],
        "out_sampled_features": features,
        "out_positions": positions,
    }


@adapter(
    "medvill/pretrain_losses",
    component="losses of both objectives",
    equation="MLM, IRM",
    departure="only what is asked for is fed, not all positions",
)
def pretrain_losses(file: Vector) -> Results:
    logits, matches = (file.tensor(n).requires_grad_() for n in ("in_mlm_logits", "in_itm_logits"))
    labels = file.tensor("in_mlm_labels")
    asked = labels != IGNORE
    assert scalar(file, "par_ignore_index") == IGNORE
    mlm = masked_language_loss(logits[asked], labels[asked], asked.sum())
    irm = matching_loss(matches, file.tensor("in_is_aligned").bool())
    gradients = torch.autograd.grad(mlm + irm, (logits, matches))
    return {
        "out_mlm_loss": mlm,
        "out_itm_loss": irm,
        "out_total_loss": mlm + irm,
        "out_grad_mlm_logits": gradients[0],
        "out_grad_itm_logits": gradients[1],
    }


class Recorded(random.Random):
    """Python's generator, drawing in the order of the authors' code."""

    def hidden(self, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        """What `mask_words` takes: one number for each word piece, and a piece where the number asks for one."""
        draws, pieces = [], []
        for _ in range(length):
            draws.append(self.random())
            pieces.append(self.randrange(vocabulary) if draws[-1] < 0.15 and 0.8 <= draws[-1] / 0.15 < 0.9 else 0)
        return torch.tensor([draws], dtype=torch.float64), torch.tensor([pieces])

    def report(self, own: int, labels: Tensor) -> tuple[int, bool]:
        """Row of the report, and whether it is the image's own."""
        swap = self.random() <= 0.5
        differs = label_sets_differ(labels[own][None], labels)
        drawn = self.randint(0, len(labels) - 1) if swap else own
        while swap and not differs[0, drawn]:
            drawn = self.randint(0, len(labels) - 1)
        priority = F.one_hot(torch.tensor([drawn]), len(labels)).float()
        row, aligned = choose_reports(torch.tensor([own]), differs, priority, torch.tensor([swap]))
        return int(row), bool(aligned)


def positives(rows: list[dict]) -> Tensor:
    """Labels of the rows as the store has them: 1 for what is named, nan for the rest."""
    named = [set(re.findall(r"'([^']+)'", row["label"])) for row in rows]
    every = sorted(set().union(*named))
    return torch.tensor([[1.0 if label in names else float("nan") for label in every] for names in named])


@adapter(
    "medvill/random_word",
    compared=("cases",),
    component="hiding of word pieces",
    equation="MLM",
    departure="draws of the seed are fed",
)
def random_word(file: Vector) -> Results:
    cases = []
    for case in file["cases"].tolist():
        ids = torch.tensor([case["tokens_in"]])
        draw, replacement = Recorded(case["python_random_seed"]).hidden(ids.shape[1], case["vocab_len"])
        shown, labels = mask_words(ids, torch.ones_like(ids).bool(), draw, replacement, case["mask_id"])
        cases.append(case | {"tokens_out": shown[0].tolist(), "labels": labels[0].tolist()})
    return {"cases": np.array(cases)}


@adapter(
    "medvill/irm_pair_sampling",
    compared=("samples", "token_sort_ratio"),
    component="choice of reports",
    equation="IRM",
    departure="draws of the seed are fed; of the ratio of two label texts only whether it is 100",
)
def irm_pair_sampling(file: Vector) -> Results:
    rows = file["rows"].tolist()
    labels = positives(rows)
    samples = []
    for sample in file["samples"].tolist():
        row, aligned = Recorded(sample["python_random_seed"]).report(sample["index"], labels)
        image = rows[sample["index"]]["img"]
        samples.append(sample | {"text": rows[row]["text"], "img": image, "is_aligned": int(aligned)})
    of = {row["label"]: labels[i] for i, row in enumerate(rows)}
    # The ratio itself is another library's; it is 100 where the sets are equal.
    ratios = [
        [a, b, ratio if (int(ratio) == 100) != bool(label_sets_differ(of[a][None], of[b][None])) else "wrong"]
        for a, b, ratio in file["token_sort_ratio"].tolist()
    ]
    return {"samples": np.array(samples), "token_sort_ratio": np.asarray(ratios)}


@adapter(
    "medvill/pretrain_samples",
    compared=("samples",),
    component="whole samples of pre-training",
    equation="MLM, IRM",
    departure="draws of the seed are fed; the adapter adds the padding that is not stored here",
)
def pretrain_samples(file: Vector) -> Results:
    size = int(file["vocab_size"])
    tokenizer = Tokenizer(vocabulary(size), lowercase=True)
    datasets, names = file["datasets"].item(), file["dataset_of_case"].item()
    samples = []
    for sample in file["samples"].tolist():
        rows = datasets[names[re.match(r"case(\d+)_", sample["key"])[1]]]
        own, visual, limit = sample["dataset_index"], sample["num_image_embeds"], sample["seq_len"]
        recorded = Recorded(sample["python_random_seed"])
        row, aligned = recorded.report(own, positives(rows))
        pieces = tokenizer.encode([[r["text"]] for r in rows])
        text = assemble(pieces, np.array([row]), tokenizer, limit + 2)
        words = text.mask[:, 1:-1] & (text.ids[:, 1:-1] != tokenizer.sep)
        draw, replacement = recorded.hidden(words.shape[1], size)
        shown, labels = mask_words(text.ids[:, 1:-1], words, draw, replacement, tokenizer.mask)
        missing, front = limit - shown.shape[1], visual + 2 + (sample["mode"] == "noncross")
        real = first_real(shown.shape[1], limit + 1)
        samples.append(
            sample
            | {
                "row_text": rows[own]["text"],
                "row_label": rows[own]["label"],
                "is_aligned": int(aligned),
                "input_ids": [*shown[0].tolist(), tokenizer.sep, *[tokenizer.pad] * missing],
                "txt_labels": F.pad(labels, (front, 1 + missing), value=IGNORE)[0].tolist(),
                "segment": [1] * (limit + 1),
                "cls_tok": [int(text.ids[0, 0])],
                "sep_tok": [int(text.ids[0, -1])],
                "mask_shape": list(attention_mask("bi", visual, real).shape[1:]),
                "expected_sequence_length_in_encoder": front + limit + 1,
            }
        )
    return {"samples": np.array(samples)}


#: names of the authors' parameters, and ours in the BERT and in the joint encoder
BERT = {"enc.txt_embeddings.": "embeddings.", "enc.encoder.": "encoder."}
JOINT = {
    "enc.img_embeddings.img_embeddings.": "project.",
    "enc.pooler.dense.": "pooler.",
    "mlm.predictions.transform.dense.": "transform.0.",
    "mlm.predictions.transform.LayerNorm.": "transform.2.",
    "mlm.predictions.bias": "bias",
    "itm.linear.": "matching.",
}


def renamed(names: list[str], prefixes: dict[str, str]) -> dict[str, str]:
    """Their names to ours, of those under the prefixes."""
    return {n: n.replace(a, b, 1) for n in names for a, b in prefixes.items() if n.startswith(a)}


def joint_model(file: Vector) -> tuple[TextBackbone, JointEncoderOfficial, dict[str, torch.nn.Parameter]]:
    """The model of the file, and its parameters by the authors' names."""
    weights = {n.removeprefix("w."): file.tensor(n) for n in file.names(r"^w\.")}
    words = weights["enc.txt_embeddings.word_embeddings.weight"]
    project = weights["enc.img_embeddings.img_embeddings.weight"]
    positions = len(weights["enc.txt_embeddings.position_embeddings.weight"])
    architecture = {
        "hidden_size": words.shape[1],
        "num_hidden_layers": int(scalar(file, "par_num_layers")),
        "num_attention_heads": int(scalar(file, "par_num_heads")),
        "intermediate_size": len(weights["enc.encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": positions,
        "layer_norm_eps": scalar(file, "par_layer_norm_eps_bert"),
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(vocabulary(len(words))))
        text = TextBackbone("small", vocab=str(Path(folder) / "vocab.txt"), architecture=architecture)
    joint = JointEncoderOfficial(project.shape[1], words.shape[1], positions, len(words))
    text, joint = text.to(words.dtype).eval(), joint.to(words.dtype).eval()
    assert math.isclose(joint.transform[2].eps, scalar(file, "par_layer_norm_eps_mlm_head"), rel_tol=1e-6)
    in_bert, in_joint = renamed(list(weights), BERT), renamed(list(weights), JOINT)
    text.bert.load_state_dict({ours: weights[theirs] for theirs, ours in in_bert.items()})
    joint.load_state_dict({ours: weights[theirs] for theirs, ours in in_joint.items()})
    # Their other copies are the same table; the stub of a CNN is no part of the model.
    for name in weights.keys() - in_bert.keys() - in_joint.keys():
        table = name.partition("img_embeddings.")[2]
        same = words if "decoder" in name else weights.get(f"enc.txt_embeddings.{table}")
        assert "img_encoder" in name or torch.equal(weights[name], same), name
    found = {theirs: text.bert.get_parameter(ours) for theirs, ours in in_bert.items()}
    return text, joint, found | {theirs: joint.get_parameter(ours) for theirs, ours in in_joint.items()}


@adapter(
    "medvill/joint_model_tiny",
    component="joint BERT, heads, losses, gradients",
    equation="MLM, IRM",
    departure="the file's stub of a CNN; the permutation of the seed is fed; the mask is made additive by the adapter",
)
def joint_model_tiny(file: Vector) -> Results:
    text, joint, parameters = joint_model(file)
    stub = {n: file.tensor(f"w.enc.img_encoder.model.c.{n}") for n in ("weight", "bias")}
    cells = F.conv2d(file.tensor("in_image"), **stub, stride=stub["weight"].shape[-1]).flatten(2).transpose(1, 2)
    torch.manual_seed(int(scalar(file, "par_torch_manual_seed_before_forward")))
    draw = torch.randperm(cells.shape[1]).argsort()[None].float()
    count = int(scalar(file, "par_num_image_embeds"))
    features, positions = sample_features(cells, draw, count)
    words = file.tensor("in_input_ids")
    real = words != text.tokenizer.pad
    assert (file["in_cls_tok"] == text.tokenizer.cls).all()
    assert (file["in_sep_tok"] == text.tokenizer.sep).all()
    assert (file["in_segment"] == 1).all()
    labels = file.tensor("in_mlm_labels")[:, count + 2 :]
    assert (file["in_mlm_labels"][:, : count + 2] == IGNORE).all()
    asked = labels != IGNORE
    results = {"out_encoder_input": joint.embed(text, features, positions, words)}
    for kind in (n.removeprefix("in_attn_mask_") for n in file.names("^in_attn_mask_")):
        mask = attention_mask(kind, count, real, open_padding=joint.open_padding)
        assert torch.equal(mask, file.tensor(f"in_attn_mask_{kind}").bool())
        hidden = joint(text, features, positions, words, real, kind)
        matches = joint.match(hidden, count)
        mlm = masked_language_loss(joint.predict(text, hidden[:, count + 2 :][asked]), labels[asked], asked.sum())
        loss = mlm + matching_loss(matches, file.tensor("in_is_aligned").bool())
        wanted = [n.removeprefix(f"out_grad_{kind}.") for n in file.names(rf"^out_grad_{kind}\.")]
        gradients = torch.autograd.grad(loss, [parameters[n] for n in wanted])
        results |= {
            # Theirs is added to the scores, where ours removes them.
            f"out_additive_mask_{kind}": (~mask)[:, None].to(torch.float16) * -10000,
            f"out_sequence_{kind}": hidden,
            f"out_pooled_{kind}": joint.pooler(hidden[:, 0]).tanh(),
            f"out_mlm_logits_{kind}": joint.predict(text, hidden),
            f"out_itm_logits_{kind}": matches,
            f"out_total_loss_{kind}": loss,
        }
        results |= {f"out_grad_{kind}.{n}": g for n, g in zip(wanted, gradients, strict=True)}
    return results


def warmup_linear(x: float, warmup: float) -> float:
    return x / warmup if x < warmup else max((x - 1) / (warmup - 1), 0.0)


@adapter(
    "medvill/bertadam", component="optimiser of fine-tuning", departure="written in the adapter, the package has none"
)
def bertadam(file: Vector) -> Results:
    """The optimiser of fine-tuning, which no library has: Adam without bias correction, clipped by tensor."""
    lr, warmup, total, b1, b2, eps, limit = (
        scalar(file, f"par_{n}") for n in ("lr", "warmup", "t_total", "b1", "b2", "eps", "max_grad_norm_per_tensor")
    )
    results = {"out_warmup_linear": [warmup_linear(i / total, warmup) for i in range(len(file["out_warmup_linear"]))]}
    starts = file.names(r"^in_p\d+_start$")
    for start, decay in zip(starts, file["par_weight_decay"].tolist(), strict=True):
        name = start.removeprefix("in_").removesuffix("_start")
        parameter = file.tensor(start)
        m, v, path = torch.zeros_like(parameter), torch.zeros_like(parameter), []
        for step, gradient in enumerate(file.tensor(f"in_grads_{name}")):
            clipped = gradient * (limit / (gradient.norm() + 1e-6)).clamp(max=1)
            m, v = b1 * m + (1 - b1) * clipped, b2 * v + (1 - b2) * clipped**2
            rate = lr * warmup_linear(step / total, warmup)
            parameter = parameter - rate * (m / (v.sqrt() + eps) + decay * parameter)
            path.append(parameter)
        results[f"out_{name}_after_step"] = torch.stack(path)
    return results


@adapter("medvill/retrieval_metrics", component="retrieval by equal labels", departure="order of ties as published")
def retrieval_metrics(file: Vector) -> Results:
    results: dict[str, object] = {}
    for group in (name.removeprefix("in_scores_") for name in file.names("^in_scores_")):
        cutoffs = sorted({int(n.split("@")[1].split("_")[0]) for n in file.names(f"^out_hit@.*_{group}$")})
        scores, relevant = file[f"in_scores_{group}"], file[f"in_labels_{group}"] == 1
        columns = relevance_columns(scores, relevant, cutoffs, ties="reversed argsort", without="count")
        results[f"out_first_positive_rank0_{group}"] = np.rint(1 / columns["mrr"]).astype(np.int64) - 1
        results[f"out_mrr_{group}"] = columns["mrr"].mean()
        for k in cutoffs:
            results[f"out_hit@{k}_{group}"] = columns[f"hit@{k}"].mean()
            for name in ("recall", "precision"):
                results[f"out_{name}@{k}_rounded3_{group}"] = np.round(columns[f"{name}@{k}"].mean(), 3)
    return results


@adapter(
    "medvill/bleu",
    compared=("sets",),
    component="BLEU of generated reports",
    departure="as published: texts as they are, cut at single blanks, the thirds of BLEU-3 rounded; equal to 1e-12",
)
def corpus_bleu(file: Vector) -> Results:
    weights = {f"bleu{n}": [*w, *[0] * (4 - n)] for n, w in enumerate(PUBLISHED_WEIGHTS, 1)}
    assert file["weights"].item() == weights
    sets = []
    for case in file["sets"].tolist():
        sides = [[text.split(" ") for text in case[side]] for side in ("references", "hypotheses")]
        sums = bleu_statistics(*sides, nltk=True).sum(0)
        got = {f"bleu{n}": float(bleu(sums, w)) for n, w in enumerate(PUBLISHED_WEIGHTS, 1)}
        # What the file has where it agrees: objects are compared for equality.
        sets.append(case | {n: case[n] if math.isclose(v, case[n], abs_tol=1e-12) else v for n, v in got.items()})
    return {"sets": np.array(sets)}


@adapter(
    "medvill/label_metrics",
    component="labels of generated reports",
    departure="as published: 1, 0, -1 and not mentioned are four values",
)
def label_metrics(file: Vector) -> Results:
    scores = published_label_metrics(file["in_hypothesis_labels"], file["in_reference_labels"])
    return {f"out_{name}": value for name, value in scores.items()}


def single_inside(name: str, expected: np.ndarray) -> float | None:
    """1e-6 of the largest entry for the gradient, which the authors' code computed in float32."""
    return 1e-6 * float(np.abs(expected).max()) if "grad" in name else default_tolerance(name, expected)


@adapter(
    "medvill/classification", tolerance=single_inside, component="classification: weighted loss, micro and macro scores"
)
def classification(file: Vector) -> Results:
    count, positives = int(scalar(file, "par_train_len")), file.tensor("in_label_freqs")
    weight = positive_weight((torch.arange(count)[:, None] < positives).float())
    logits = file.tensor("in_logits").requires_grad_()
    loss = masked_loss(logits, file.tensor("in_targets").to(logits.dtype), False, weight)
    scores = averaged_scores(logits.detach().sigmoid(), file["in_targets"])
    names = {"auroc": "roc_auc", "f1": "f1"}
    return {
        "out_pos_weight": weight,
        "out_loss": loss,
        "out_grad_logits": torch.autograd.grad(loss, logits)[0],
        **{f"out_{average}_{names[n]}": scores[f"{n}_{average}"] for n in names for average in ("micro", "macro")},
    }


@adapter(
    "medvill/finetune_samples",
    compared=("cases",),
    component="hiding of word pieces in fine-tuning",
    departure="draws of the seed are fed; a report that is too long is cut, and padded, by the adapter",
)
def finetune_samples(file: Vector) -> Results:
    cases = []
    for case in file["cases"].tolist():
        draws = random.Random(case["python_random_seed"])
        report = [int(piece.removeprefix("w")) for piece in case["tokens_b"]]
        while len(report) > case["max_len_b"]:
            report.pop(0 if draws.random() < 0.5 else -1)
        words, front = torch.tensor([[*report, 2]]), case["len_vis_input"] + 2
        order = list(range(words.shape[1]))
        draws.shuffle(order)
        shown, places, counted = hide_to_write(
            words,
            torch.ones_like(words).bool(),
            torch.tensor([order]).argsort().double(),
            torch.tensor([1 - draws.random()]),
            mask_id=3,
            share=case["mask_prob"],
            most=case["max_pred"],
            end_share=0.5,
        )
        missing = case["max_len_b"] + 1 - words.shape[1]
        asked = counted[0].tolist() + [False] * (case["max_pred"] - counted.shape[1])
        at = places[0].tolist() + [0] * (len(asked) - places.shape[1])
        cases.append(
            case
            | {
                "input_ids": [1, *[4] * case["len_vis_input"], 2, *shown[0].tolist(), *[0] * missing],
                "segment_ids": [*[0] * front, *[1] * words.shape[1], *[0] * missing],
                "masked_ids": [int(words[0, p]) if a else 0 for p, a in zip(at, asked, strict=True)],
                "masked_pos": [front + p if a else 0 for p, a in zip(at, asked, strict=True)],
                "masked_weights": [int(a) for a in asked],
            }
        )
    return {"cases": np.array(cases)}


class Finetuned(JointEncoderOfficial):
    """The authors' model of fine-tuning is another copy, where the image's [SEP] has the position behind its tokens."""

    def language_positions(self, text_tokens: int, device: torch.device | None = None) -> Tensor:
        positions = super().language_positions(text_tokens, device)
        positions[1] = self.separator
        return positions


def finetuned(file: Vector, prefix: str, image_tokens: int) -> tuple[TextBackbone, Finetuned, Tensor]:
    """BERT and joint encoder of a file, and the features of its images; [PAD] [CLS] [SEP] [MASK] [UNK] are 0 to 4."""
    weights = {n.removeprefix(f"w.{prefix}").removeprefix("w."): file.tensor(n) for n in file.names(r"^w\.")}
    words, project = weights["txt_embeddings.word_embeddings.weight"], weights["img_embeddings.img_embeddings.weight"]
    layers = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.layer."))
    positions = len(weights["txt_embeddings.position_embeddings.weight"])
    architecture = {
        "hidden_size": words.shape[1],
        "num_hidden_layers": layers,
        "num_attention_heads": int(scalar(file, "par_num_heads")),
        "intermediate_size": len(weights["encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": positions,
        "layer_norm_eps": 1e-5,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(vocabulary(len(words))))
        text = TextBackbone("small", vocab=str(Path(folder) / "vocab.txt"), architecture=architecture)
    joint = Finetuned(project.shape[1], words.shape[1], positions, len(words))
    joint.separator = image_tokens + 1
    text, joint = text.to(words.dtype).eval(), joint.to(words.dtype).eval()
    here = {
        "txt_embeddings.": "embeddings.",
        "encoder.": "encoder.",
    }
    text.bert.load_state_dict({ours: weights[theirs] for theirs, ours in renamed(list(weights), here).items()})
    ours = joint.state_dict()
    for ours_name, theirs in {
        "project": "img_embeddings.img_embeddings",
        "transform.0": "cls.predictions.transform.dense",
        "transform.2": "cls.predictions.transform.LayerNorm",
        "pooler": "pooler.dense",
    }.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in weights:
                ours[f"{ours_name}.{kind}"] = weights[f"{theirs}.{kind}"]
    ours["bias"] = weights.get("cls.predictions.bias", ours["bias"])
    joint.load_state_dict(ours)
    assert torch.equal(weights.get("cls.predictions.decoder.weight", words), words)
    stub = {n: weights[f"img_encoder.c.{n}"] for n in ("weight", "bias")}
    cells = F.conv2d(file.tensor("in_image"), **stub, stride=stub["weight"].shape[-1]).flatten(2).transpose(1, 2)
    assert cells.shape[1] == image_tokens
    return text, joint, cells


def last_states(file: Vector, kind: str) -> tuple[TextBackbone, Finetuned, Tensor]:
    count = int(scalar(file, "par_len_vis_input"))
    text, joint, cells = finetuned(file, "", count)
    words = file.tensor("in_input_ids")[:, count + 2 :]
    real = words != text.tokenizer.pad
    mask = attention_mask(kind, count, real)
    assert torch.equal(mask, file.tensor("in_attn_mask").bool())
    joint.open_padding = False
    places = torch.arange(count).expand(len(words), -1)
    return text, joint, joint(text, cells, places, words, real, kind)


@adapter(
    "medvill/finetune_report_loss",
    component="loss of writing in fine-tuning",
    departure="the file's stub of a CNN; the position of [SEP] and the layer norms' epsilon are set by the adapter",
)
def finetune_report_loss(file: Vector) -> Results:
    text, joint, hidden = last_states(file, "s2s")
    places, counted = file.tensor("in_masked_pos"), file.tensor("in_masked_weights").bool()
    asked = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
    arguments = (joint.predict(text, asked), file.tensor("in_masked_ids"), counted)
    return {
        "out_masked_lm_loss_drop0": writing_loss(*arguments),
        "out_masked_lm_loss_drop034": writing_loss(*arguments, scalar(file, "par_drop_worst_ratio")),
    }


@adapter(
    "medvill/decode",
    component="decoding, greedy and with beams",
    departure="the file's stub of a CNN; as published: true words are read in greedy decoding, positions are 0 and 1",
)
def decode(file: Vector) -> Results:
    count = file["in_input_ids"].shape[1] - 2
    text, joint, cells = finetuned(file, "bert.", count)
    true, tokenizer = file.tensor("in_gt_token"), text.tokenizer
    end, pad, longest = int(scalar(file, "par_eos_id")), tokenizer.pad, true.shape[1]
    assert tokenizer.mask == int(scalar(file, "par_mask_id"))
    with torch.no_grad():
        writer = JointWriter(joint, text, cells, pair_positions=True)
        steps: list[Tensor] = []
        plain = writer.step
        writer.step = lambda last: steps.append(plain(last)) or steps[-1]
        words, scores = greedy(writer, end, pad, longest, reference=true, to_the_end=True)
        logits = torch.stack(steps, 1)
        kept = true != pad
        loss = F.cross_entropy(logits[kept], true[kept])
        writer = JointWriter(joint, text, cells, pair_positions=True)
        found = beam_search(writer, 1, int(scalar(file, "par_beam")), end, pad, longest, to_the_end=True)
    assert scalar(file, "par_length_penalty") == 0

    def filled(values: Tensor, like: str) -> Tensor:
        out = torch.zeros(file[like].shape, dtype=values.dtype)
        out[:, : values.shape[1]] = values
        return out

    return {
        "out_greedy_ids": words,
        "out_greedy_scores": scores,
        "out_logits": logits,
        "out_masked_lm_loss": loss,
        "out_perplexity": loss.exp(),
        "out_beam3_pred_seq": filled(found.report, "out_beam3_pred_seq"),
        "out_beam3_scores": filled(found.scores, "out_beam3_scores"),
        "out_beam3_wids": filled(found.words, "out_beam3_wids"),
        "out_beam3_ptrs": filled(found.parents, "out_beam3_ptrs"),
    }


@adapter(
    "medvill/finetune_vqa_loss",
    component="answers: loss and accuracy",
    departure="the file's stub of a CNN; the position of [SEP] and the layer norms' epsilon are set by the adapter",
)
def finetune_vqa_loss(file: Vector) -> Results:
    _, joint, hidden = last_states(file, "bi")
    first, last = (file.tensor(f"w.ans_classifier.{n}.weight") for n in (0, 2))
    head = AnswerHead(first.shape[1], len(first), len(last)).to(hidden.dtype)
    head.load_state_dict({n: file.tensor(f"w.ans_classifier.{n}") for n in head.state_dict()})
    answers = file.tensor("in_answer_targets", hidden.dtype)
    logits = head(pair_vector(joint, hidden, int(scalar(file, "par_len_vis_input")), "product"))
    hits = answers.gather(1, logits.argmax(1, keepdim=True))[:, 0].numpy()
    kinds = np.array(["closed", "open"])[file["in_answer_type"]]
    accuracy = {name: np.nanmean(column) for name, column in accuracy_columns(hits, kinds).items()}
    return {
        "out_vqa_loss": answer_loss(logits, answers, binary=True),
        "out_vqa_acc": accuracy["accuracy"],
        "out_closed_acc": accuracy.get("accuracy/closed", np.nan),
        "out_open_acc": accuracy.get("accuracy/open", np.nan),
    }
