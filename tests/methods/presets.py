"""What the presets of a method say."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlp_bench.config import compose_verb, plain


def preset(name: str, *overrides: str) -> DictConfig:
    """The configuration of experiment `name`."""
    return compose_verb("pretrain", [f"experiment={name}", *overrides])


def values(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Its values at dotted keys."""
    whole = OmegaConf.create(plain(cfg))
    found = {key: OmegaConf.select(whole, key, throw_on_missing=True) for key in keys}
    return {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in found.items()}
