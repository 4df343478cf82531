"""The verb import: a published checkpoint becomes a bundle."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vlp_bench.checkpoints.layouts import LAYOUTS, Layout, architecture, bert, joined, linear
from vlp_bench.config import root_dir
from vlp_bench.encoders import bundle
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.encoders.weights import load_exactly, read_state_dict
from vlp_bench.engine.data import given
from vlp_bench.errors import UserError

#: Least share of the image encoder's tensors that a checkpoint must fill.
LEAST = 0.95


def import_checkpoint(cfg: DictConfig) -> None:
    """`vlp-bench import checkpoint=FILE out=BUNDLE [layout=NAME] [vocab=PATH]`: a published checkpoint as a bundle.

    The image encoder; with `vocab` and where the layout knows them also text encoder and projection heads.

    Raises:
        UserError: `out` exists, the file is no checkpoint of tensors, its layout is unknown, it fills under 95 % of
            the image encoder, or `vocab` does not belong to the text encoder or the layout has none.
    """
    given(cfg, "checkpoint", "out")
    out, source = Path(cfg.out), Path(cfg.checkpoint)
    if out.exists():
        raise UserError(f"{out} exists; it was left as it is. Give a new folder.")
    state = {k.removeprefix("module."): v for k, v in read_state_dict(source).items()}
    layout = detect(state, cfg.layout, source)
    vision, coverage = image_encoder(state, layout, source)
    parts: dict[str, nn.Module] = {"vision": vision}
    inputs = {}
    texts = bool(layout.texts(state))
    if cfg.vocab is not None:
        if not texts:
            raise UserError(f"vocab={cfg.vocab}: no text encoder is taken from {source} ({layout.name}); leave it out.")
        others, names = text_parts(state, layout, cfg.vocab, source)
        parts |= others
        coverage["taken"] += names
        coverage["renamed"] += names
        coverage["left_over"] = [k for k in coverage["left_over"] if k not in set(names)]
        inputs = {
            "inputs": OmegaConf.to_container(OmegaConf.load(root_dir() / "method" / f"{layout.method}.yaml").inputs)
        }
    reasons = {k: why for k in coverage["left_over"] if (why := layout.reason(k))}
    table = modules(coverage, reasons)
    meta = {
        "method": layout.method,
        "name": f"{layout.method} ({source.name})",
        "variant": "official",
        "data": {"rule": layout.rule} | ({"name": layout.data} if layout.data else {}),
        **inputs,
        "import": {
            "file": source.name,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "layout": layout.name,
            "coverage": coverage,
            "reasons": reasons,
            "modules": table,
        },
    }
    digest = bundle.save(out, parts, meta)
    print(f"{out}: {', '.join(parts)} of {layout.name}, {vision.spec.name} ({digest})")
    show(table)
    if coverage["missing"]:
        print(f"Missing in the image encoder, left as drawn at random: {', '.join(coverage['missing'])}")
    if texts and cfg.vocab is None:
        print("Only the image encoder was imported: for texts give the vocabulary of its BERT, vocab=PATH/vocab.txt.")


def modules(coverage: dict[str, list[str]], reasons: dict[str, str]) -> dict[str, dict[str, Any]]:
    """How many tensors of each top-level module of the checkpoint were taken, renamed, left over, and why.

    What is missing has no name in the checkpoint and counts under `(image encoder)`.
    """
    table: dict[str, dict[str, Any]] = {}
    for what, keys in coverage.items():
        for key in keys:
            module = "(image encoder)" if what == "missing" else key.split(".")[0]
            row = table.setdefault(module, {name: 0 for name in coverage} | {"reasons": []})
            row[what] += 1
            if what == "left_over" and (why := reasons.get(key, "not known here")) not in row["reasons"]:
                row["reasons"].append(why)
    return table


def show(table: dict[str, dict[str, Any]]) -> None:
    """Print the table of `modules`."""
    counts = ("taken", "renamed", "left_over", "missing")
    shown = Table("module", *(c.replace("_", " ") for c in counts), "why left over")
    for module, row in table.items():
        shown.add_row(module, *(str(row[c]) for c in counts), "; ".join(row["reasons"]))
    Console().print(shown)


def detect(state: dict[str, Tensor], name: str | None, source: Path) -> Layout:
    """The layout called `name`, or the one whose sign is among the keys.

    Raises:
        UserError: no such layout, or not exactly one fits.
    """
    known = ", ".join(layout.name for layout in LAYOUTS)
    if name is not None and name not in [layout.name for layout in LAYOUTS]:
        raise UserError(f"layout={name}: no such layout. There are: {known}.")
    fitting = [x for x in LAYOUTS if (x.name == name if name else x.fits(state))]
    if len(fitting) != 1:
        what = " and ".join(x.name for x in fitting) or "none"
        raise UserError(
            f"{source} could be of {what} of the layouts {known}; its keys begin with {', '.join(list(state)[:3])}. "
            "Name one: layout=NAME."
        )
    return fitting[0]


def image_encoder(
    state: dict[str, Tensor], layout: Layout, source: Path
) -> tuple[VisionBackbone, dict[str, list[str]]]:
    """The image encoder and which keys were taken, renamed, left over and missing.

    Raises:
        UserError: the shapes are of no known network, or too little of it is there.
    """
    names = layout.vision(state)
    ours = joined({new: state[old] for old, new in names.items()})
    arguments = architecture(ours, layout.size)
    if not arguments:
        raise UserError(f"{source}: what begins with {layout.prefix!r} is no ResNet or ViT that is known here.")
    vision = VisionBackbone(**arguments, **layout.facts)
    own = vision.trunk.state_dict()
    fits = {k: v for k, v in ours.items() if k in own and v.shape == own[k].shape}
    needed = [k for k in own if not k.endswith("num_batches_tracked")]
    missing = [k for k in needed if k not in fits]
    if len(missing) > (1 - LEAST) * len(needed):
        raise UserError(
            f"{source} fills {1 - len(missing) / len(needed):.0%} of the image encoder of {layout.name}; 95 % is the "
            f"least. Missing or of another shape: {', '.join(missing[:5])}."
        )
    with torch.no_grad():
        vision.trunk.load_state_dict({**own, **fits})
    # Three tensors that became one go by the name of their whole.
    whole = {
        old: new.replace("query.", "qkv.").replace("key.", "qkv.").replace("value.", "qkv.")
        for old, new in names.items()
    }
    taken = [old for old, new in whole.items() if new in fits]
    return vision, {
        "taken": taken,
        "renamed": [old for old in taken if old != whole[old]],
        "left_over": [k for k in state if k not in set(taken)],
        "missing": missing,
    }


def text_parts(
    state: dict[str, Tensor], layout: Layout, vocab: str, source: Path
) -> tuple[dict[str, nn.Module], list[str]]:
    """Text encoder and, where the heads are there, aligner; and the checkpoint's keys that went into them.

    Raises:
        UserError: the vocabulary has another length than the embedding, or a tensor is missing or of another shape.
    """
    names = layout.texts(state)
    ours = {new: state[old] for old, new in names.items()}
    if "embeddings.word_embeddings.weight" not in ours:
        raise UserError(f"{source}: what begins with {layout.text!r} is no BERT. Leave vocab out.")
    sizes = bert(ours)
    text = TextBackbone(vocab=vocab, architecture=sizes, **layout.text_facts)
    if len(text.tokenizer) != sizes["vocab_size"]:
        raise UserError(
            f"vocab={vocab} has {len(text.tokenizer)} entries and the text encoder of {source} has "
            f"{sizes['vocab_size']}. Give the vocab.txt that belongs to it ({layout.text_facts['name']})."
        )
    types = "embeddings.token_type_embeddings.weight"
    kept = {} if layout.text_facts.get("token_types", True) else {types: text.bert.state_dict()[types]}
    load_exactly(text.bert, kept | ours, f"{source} ({layout.text})")
    projections = layout.heads_of(state)
    weights = linear({new: state[old] for old, new in projections.items()})
    aligner = layout.align(weights)
    if aligner is None:
        return {"text": text}, list(names)
    constant = {k: v for k, v in aligner.state_dict().items() if k in ("bank.temperature", "bank.in_use")}
    load_exactly(aligner, constant | weights, f"{source} (projection heads)")
    return {"text": text, "aligner": aligner}, [*names, *projections]
