"""Reading weights that somebody else wrote: never with pickled code, never half-matched in silence."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlp_bench.errors import UserError

#: Modules that classify ImageNet or pool for it; a backbone has no use for them.
HEADS = ("fc.", "classifier.", "head.", "head_dist.", "pooler.", "cls.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file or a torch checkpoint, by name.

    Args:
        path: the file; of a torch checkpoint, the entry `state_dict` or `model` is taken where there is one.

    Raises:
        UserError: the file is missing, is no checkpoint, or holds pickled objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No weights file {path}. Give the path of a .safetensors, .pt, .pth or .ckpt file.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"{path} cannot be read as a checkpoint of tensors ({reason}). "
            "Pickled objects are refused for safety: save the state dict alone, best as .safetensors."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict. Expected a mapping of parameter names to tensors.")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def timm_efficientnet_keys(state: Mapping[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """Keys of the package EfficientNet-PyTorch (`_blocks.4._expand_conv.weight`) under timm's names.

    Args:
        state: names to tensors; other layouts come back as they are.
        trunk: timm's EfficientNet, whose stages say which of them a block belongs to.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(trunk.blocks) for j, _ in enumerate(stage)]  # type: ignore[union-attr, arg-type]
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanding = {
        **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
        **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
    }
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    renamed = {}
    for key, value in state.items():
        head, *rest = key.split(".")
        if head == "_blocks" and int(rest[0]) < len(blocks):
            expands = f"_blocks.{rest[0]}._expand_conv.weight" in state
            names = (expanding if expands else plain) | squeeze
            renamed[".".join([blocks[int(rest[0])], names.get(rest[1], rest[1]), *rest[2:]])] = value
        else:
            renamed[".".join([outside.get(head, head), *rest])] = value
    return renamed


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str, drop: tuple[str, ...] = ()) -> None:
    """Load `state` into `module`; every key must match in name and shape.

    Args:
        module: receives the tensors.
        state: names to tensors.
        source: where they come from, for the message.
        drop: prefixes of keys to ignore when the module does not have them.

    Raises:
        UserError: keys are missing, left over or of another shape.
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(drop)} if drop else dict(state)
    faults = {
        "missing": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "left over": [k for k in state if k not in own],
        "of another shape": [f"{k} {tuple(v.shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape],
    }
    if any(faults.values()):
        said = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in faults.items() if keys)
        raise UserError(
            f"{source} does not fit {type(module).__name__}: keys {said}. "
            "Check that the architecture (name, widths, image size) is the one it was saved from."
        )
    module.load_state_dict({**own, **state})
