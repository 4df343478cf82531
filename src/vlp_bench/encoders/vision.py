"""One vision backbone for every ResNet, DenseNet, EfficientNet and ViT that timm knows."""

import dataclasses
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vlp_bench.encoders.chunks import InChunks
from vlp_bench.encoders.weights import HEADS, load_exactly, read_state_dict, timm_efficientnet_keys
from vlp_bench.errors import UserError
from vlp_bench.types import BackboneSpec, ImageFeatures


def attention_rows(attention: Any, x: Float[Tensor, "B N D"], rows: slice) -> Float[Tensor, "B heads rows N"]:
    """Softmaxed attention of the query tokens `rows` in a timm attention layer, from its (normalised) input."""
    b, n, _ = x.shape
    q, k, _ = attention.qkv(x).reshape(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)  # 3 of B heads N d
    q, k = attention.q_norm(q[:, :, rows]), attention.k_norm(k)
    return ((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1)


class VisionBackbone(InChunks):
    """A timm network that gives pooled features, tokens and, when asked, a pyramid and the saliency of its patches.

    Args:
        name: timm's model name.
        image_size: side of the square input, in pixels.
        weights: `none`, `pretrained` (timm's hub weights) or the path of a local file of timm's own keys.
        mean: grey level mean of pixels in [0, 1], one number or one per channel; None takes timm's for the name.
        std: the same for the standard deviation.
        token_stride: stride of the feature map whose cells are a CNN's tokens (16: third stage, as MGCA and GLoRIA).
        upsample_to: side to which the input is enlarged (bilinear, corners aligned) before a CNN sees it; MGCA and
            GLoRIA use 299 for ResNet-50 (MGCA supplement A.2).
        architecture: further arguments of `timm.create_model`, such as patch_size, depth, drop_path_rate.

    Raises:
        UserError: an unknown name, weights that cannot be had or do not fit.
    """

    trunk: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        token_stride: int = 16,
        upsample_to: int | None = None,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        extra = dict(architecture or {})
        self.is_vit = name.startswith(("vit_", "deit_"))
        self.trunk = self._create(name, weights, extra | ({"img_size": image_size} if self.is_vit else {}))
        defaults = self.trunk.pretrained_cfg
        channels = extra.get("in_chans", 3)
        mean, std = _per_channel(mean, defaults.get("mean"), channels), _per_channel(std, defaults.get("std"), channels)
        self.arguments = {
            "name": name,
            "image_size": image_size,
            "weights": "none",
            "mean": mean,
            "std": std,
            "token_stride": token_stride,
            "upsample_to": upsample_to,
            "architecture": extra,
        }
        self.upsample_to = upsample_to
        if self.is_vit:
            width, patch = self.trunk.embed_dim, self.trunk.patch_embed.patch_size[0]
            widths, strides = [width] * 4, [patch // 4, patch // 2, patch, patch * 2]
            pooled = width
        else:
            info = self.trunk.feature_info[1:]
            widths, strides = [i["num_chs"] for i in info], [i["reduction"] for i in info]
            pooled = self.trunk.num_features
        self.spec = BackboneSpec(
            name, pooled, widths[-1], tuple(widths), tuple(strides), image_size, channels, tuple(mean), tuple(std)
        )
        if not self.is_vit:
            self.set_token_stride(token_stride)
            self.lay_out(channels_last=True)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def set_token_stride(self, stride: int) -> None:
        """Make the cells of the feature map of this stride the tokens of a CNN.

        Raises:
            UserError: the network has no such map.
        """
        strides = self.spec.pyramid_strides
        if stride not in strides:
            raise UserError(
                f"vision.token_stride={stride}: {self.spec.name} has feature maps of strides {list(strides)}."
            )
        self.token_stage = strides.index(stride)
        self.spec = dataclasses.replace(self.spec, token_dim=self.spec.pyramid_channels[self.token_stage])
        self.arguments["token_stride"] = stride

    def lay_out(self, channels_last: bool) -> None:
        """Keep the maps of a CNN channels last, in which convolutions are fastest, or first; a ViT has none."""
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if not self.is_vit:
            self.trunk.to(memory_format=self.layout)

    @property
    def stem_channels(self) -> int | None:
        """Channels of the map before the pyramid; None for a ViT, which has none."""
        return None if self.is_vit else int(self.trunk.feature_info[0]["num_chs"])

    @staticmethod
    def _create(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
        if not timm.is_model(name.split(".")[0]):
            near = ", ".join(get_close_matches(name, timm.list_models(), 4)) or "see timm.list_models()"
            raise UserError(f"vision.name={name}: timm has no such model. Near it: {near}.")
        try:
            trunk = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0, **arguments)
        except (OSError, RuntimeError, ValueError) as error:
            if weights != "pretrained":
                raise
            raise UserError(
                f"The pretrained weights of {name} are not in the local cache and the model hub cannot be reached "
                f"({type(error).__name__}). Download them elsewhere and give vision.weights=PATH, or use "
                "vision.weights=none."
            ) from error
        if weights not in ("none", "pretrained"):
            load_exactly(trunk, timm_efficientnet_keys(read_state_dict(weights), trunk), weights, drop=HEADS)
        return trunk

    @torch.no_grad()
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        training = self.training
        size = self.spec.image_size
        image = self.mean.new_zeros((1, 1, size, size))
        found = self.eval()(image).grid
        self.train(training)
        return found

    def normalise(self, image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B _ H W"]:
        """uint8 grey levels to the network's input; floats are taken as normalised already."""
        if image.dtype == torch.uint8:
            image = (image / 255.0 - self.mean) / self.std
        return image.expand(-1, self.spec.in_channels, -1, -1)

    def forward(
        self,
        image: Float[Tensor, "B C H W"] | UInt8[Tensor, "B C H W"],
        *,
        pyramid: bool = False,
        saliency: bool = False,
    ) -> ImageFeatures:
        """Encode B images.

        Args:
            image: uint8 grey (1 channel, 0 to 255) or float already normalised.
            pyramid: also return four maps from fine to coarse (for a ViT, resized from its last tokens), and a CNN's
                map before them.
            saliency: also return the attention of [CLS] on the patches, where the network has a [CLS].
        """
        x = self.normalise(image)
        return self._vit(x, pyramid, saliency) if self.is_vit else self._cnn(x, pyramid)

    def _cnn(self, x: Float[Tensor, "B C H W"], pyramid: bool) -> ImageFeatures:
        if self.upsample_to:
            x = F.interpolate(x, size=(self.upsample_to, self.upsample_to), mode="bilinear", align_corners=True)
        last, maps = self.trunk.forward_intermediates(x.contiguous(memory_format=self.layout))
        cells = maps[1:][self.token_stage]
        return ImageFeatures(
            pooled=last.mean((2, 3)),
            tokens=cells.flatten(2).transpose(1, 2),
            grid=(cells.shape[2], cells.shape[3]),
            pyramid=tuple(maps[1:]) if pyramid else (),
            stem=maps[0] if pyramid else None,
        )

    def _vit(self, x: Float[Tensor, "B C H W"], pyramid: bool, saliency: bool) -> ImageFeatures:
        trunk = self.trunk
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
        for block in trunk.blocks[:-1]:
            x = block(x)
        last, prefix = trunk.blocks[-1], trunk.num_prefix_tokens
        weights = None
        if saliency:
            with torch.no_grad():
                weights = attention_rows(last.attn, last.norm1(x), slice(0, 1))[:, :, 0, prefix:].float().mean(1)
        x = trunk.norm(last(x))
        grid = trunk.patch_embed.grid_size
        tokens = x[:, prefix:]
        return ImageFeatures(x[:, 0], tokens, grid, weights, self._vit_pyramid(tokens, grid) if pyramid else ())

    @staticmethod
    def _vit_pyramid(tokens: Float[Tensor, "B P D"], grid: tuple[int, int]) -> tuple[Tensor, ...]:
        cells = tokens.transpose(1, 2).unflatten(2, grid)
        resize = [F.interpolate(cells, scale_factor=s, mode="bilinear", align_corners=False) for s in (4.0, 2.0)]
        return (*resize, cells, F.avg_pool2d(cells, 2, ceil_mode=True))

    def layers(self) -> list[nn.Module]:
        """Modules from the input to the output, for layer-wise decay and partial freezing."""
        children = [m for m in self.trunk.children() if any(True for _ in m.parameters())]
        return [part for m in children for part in (m if isinstance(m, nn.Sequential) else [m])]


def _per_channel(value: float | list[float] | None, default: Any, channels: int) -> list[float]:
    chosen = value if value is not None else (default if default is not None else 0.5)
    values = [float(v) for v in chosen] if isinstance(chosen, list | tuple) else [float(chosen)]
    return values * channels if len(values) == 1 else values[:channels]
