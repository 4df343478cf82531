"""The verb import: a published checkpoint becomes a bundle."""

import hashlib
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from vlp_bench.checkpoints.layouts import LAYOUTS, Layout, architecture, joined
from vlp_bench.encoders import bundle
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.encoders.weights import read_state_dict
from vlp_bench.engine.data import given
from vlp_bench.errors import UserError

#: Least share of the image encoder's tensors that a checkpoint must fill.
LEAST = 0.95


def import_checkpoint(cfg: DictConfig) -> None:
    """`vlp-bench import checkpoint=FILE out=BUNDLE [layout=NAME]`: the image encoder of a published checkpoint.

    Raises:
        UserError: `out` exists, the file is no checkpoint of tensors, its layout is unknown, or it fills under 95 %
            of the image encoder.
    """
    given(cfg, "checkpoint", "out")
    out, source = Path(cfg.out), Path(cfg.checkpoint)
    if out.exists():
        raise UserError(f"{out} exists; it was left as it is. Give a new folder.")
    state = {k.removeprefix("module."): v for k, v in read_state_dict(source).items()}
    layout = detect(state, cfg.layout, source)
    vision, coverage = image_encoder(state, layout, source)
    meta = {
        "method": layout.method,
        "name": f"{layout.method} ({source.name})",
        "variant": "official",
        "data": {"rule": layout.rule},
        "import": {
            "file": source.name,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "layout": layout.name,
            "coverage": coverage,
        },
    }
    digest = bundle.save(out, {"vision": vision}, meta)
    print(f"{out}: image encoder of {layout.name}, {vision.spec.name} ({digest})")
    print(", ".join(f"{len(keys)} {what.replace('_', ' ')}" for what, keys in coverage.items()))


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
