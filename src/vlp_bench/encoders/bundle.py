"""Bundles: the encoders that pre-training leaves behind, in files that anyone can read.

A bundle is a folder with `bundle.json` (method, variant, inputs, provenance, names of the parts), and for each part
`<part>.safetensors` and `<part>.json` (class, arguments, facts such as widths, image size, mean and std); the text
part brings its `vocab.txt`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from vlp_bench.data.datamodule import Inputs, assemble
from vlp_bench.data.decode import read_gray, reason
from vlp_bench.data.images import center_crop, to_square
from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.encoders.weights import load_exactly, read_state_dict
from vlp_bench.errors import UserError
from vlp_bench.files import read_json, whole
from vlp_bench.types import ImageFeatures, TextFeatures

SCHEMA = 1


@contextmanager
def on_device(*modules: nn.Module) -> Iterator[str]:
    """The modules on the device at hand, whose name this gives; afterwards they are on the CPU again."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        for module in modules:
            module.to(device)
        yield device
    finally:
        for module in modules:
            module.to("cpu")


def stored_size(image_size: int) -> int:
    """Side at which images are stored for a network that reads `image_size`: 256 for 224 (MGCA supplement A.1)."""
    return -(-image_size * 8 // 7)


@dataclass
class Encoders:
    """Pre-trained encoders with the preprocessing that belongs to them.

    `parts` holds `vision` and, where the method has them, `text`, `aligner`, `decoder`, `joint`; `meta` is what
    bundle.json says; `hash` changes with any weight.
    """

    parts: dict[str, nn.Module]
    meta: dict[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        for part in self.parts.values():
            part.eval().requires_grad_(False)
        self.hash = self.hash or weights_hash(self.parts)

    @property
    def name(self) -> str:
        """What they are called, in tables and messages."""
        return str(self.meta.get("name", "this backbone"))

    @property
    def vision(self) -> VisionBackbone:
        """The image encoder."""
        return self.parts["vision"]  # type: ignore[return-value]

    @property
    def text(self) -> TextBackbone | None:
        """The text encoder, if there is one."""
        return self.parts.get("text")  # type: ignore[return-value]

    @property
    def aligner(self) -> Aligner | None:
        """What compares images and texts, if the method does."""
        return self.parts.get("aligner")  # type: ignore[return-value]

    @property
    def joint(self) -> JointEncoder | None:
        """What reads image and text together, if the method does."""
        return self.parts.get("joint")  # type: ignore[return-value]

    @property
    def compares(self) -> bool:
        """Whether images can be scored against texts."""
        return self.text is not None and (self.aligner is not None or self.joint is not None)

    @property
    def inputs(self) -> Inputs:
        """The text form and image rules of pre-training."""
        return Inputs(**self.meta.get("inputs", {}))

    def _rule(self, name: str, otherwise: str) -> str:
        return str(self.meta.get("data", {}).get(name, otherwise))

    def prepare_images(self, images: Sequence[str | Path | np.ndarray]) -> Tensor:
        """Files or grey uint8 arrays (H, W) to uint8 (N, 1, S, S), by the rule of pre-training.

        Raises:
            UserError: a file is missing or no image.
        """
        size = self.vision.spec.image_size
        out = []
        for image in images:
            if not isinstance(image, np.ndarray):
                try:
                    image, _ = read_gray(Path(image), stored_size(size), self._rule("window", "voi"))
                except (OSError, ValueError) as error:
                    raise UserError(f"{image} cannot be read as an image: {reason(error)}.") from error
            square, _ = to_square(image, stored_size(size), self._rule("rule", "resize_and_pad"))
            out.append(center_crop(square, size))
        return torch.from_numpy(np.stack(out)[:, None])

    @torch.inference_mode()
    def encode_images(self, images: Sequence[str | Path | np.ndarray], saliency: bool = False) -> ImageFeatures:
        """Features of N images given as files or grey arrays."""
        return self.vision(self.prepare_images(images), saliency=saliency)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of N texts, cleaned and cut into sentences as in pre-training; a text of one word keeps it.

        Raises:
            UserError: the bundle has no text encoder.
        """
        if self.text is None:
            raise UserError(f"{self.meta.get('name', 'This encoder')} has no text encoder.")
        inputs = self.inputs
        cut = inputs.form.cut
        pieces = self.text.tokenizer.encode([cut(t) or cut(t, shortest=1) for t in texts])
        return self.text(assemble(pieces, np.arange(len(texts)), self.text.tokenizer, inputs.max_tokens))

    @torch.inference_mode()
    def similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "Ni Nt"]:
        """Score of every image with every text.

        Raises:
            UserError: the method does not compare images and texts.
        """
        if self.aligner is not None:
            return self.aligner.similarity(images, texts)
        if self.joint is not None and self.text is not None:
            # Each pair goes through all layers: on the device at hand, as for images.
            with on_device(self.joint, self.text) as device:
                return self.joint.similarity(self.text, images.to(device), texts.to(device)).cpu()
        raise UserError(f"{self.meta.get('name', 'This encoder')} cannot compare images and texts (no aligner).")

    @torch.inference_mode()
    def token_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B T P"] | None:
        """Score of every patch of image b with each token of text b, 0 for what is no word; None without such scores.

        A cosine where the method aligns words with patches, attention where it reads both together.
        """
        if self.aligner is not None:
            return self.aligner.token_similarity(images, texts)
        if self.joint is not None and self.text is not None:
            return self.joint.token_similarity(self.text, images, texts)
        return None

    @torch.inference_mode()
    def local_similarity(self, images: ImageFeatures, texts: TextFeatures) -> Float[Tensor, "B P"] | None:
        """Score of every patch of image b with text b; None where the method has no such scores."""
        if self.aligner is not None:
            return self.aligner.local_similarity(images, texts)
        each = self.token_similarity(images, texts)
        if each is None:
            return None
        return each.sum(1) / (texts.index.word >= 0).sum(1, keepdim=True).clamp(min=1)


def weights_hash(parts: Mapping[str, nn.Module]) -> str:
    """Twelve hex digits over the weights of all parts."""
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for key, value in sorted(part.state_dict().items()):
            total.update(f"{name}.{key}".encode())
            total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


def save(path: Path, parts: Mapping[str, nn.Module], meta: Mapping[str, Any]) -> str:
    """Write a bundle, whole or not at all; return the hash of its weights."""
    digest = weights_hash(parts)
    with whole(Path(path)) as folder:
        folder.mkdir()
        for name, part in parts.items():
            state = {k: v.detach().cpu().contiguous() for k, v in part.state_dict().items()}
            save_file(state, folder / f"{name}.safetensors")
            kind = type(part)
            facts: dict[str, Any] = {
                "class": f"{kind.__module__}:{kind.__qualname__}",
                "arguments": part.arguments,
            }
            if isinstance(part, VisionBackbone):
                facts["spec"] = dataclasses.asdict(part.spec)
            if isinstance(part, TextBackbone):
                facts["width"] = part.width
                (folder / f"{name}.vocab.txt").write_text("\n".join(part.tokenizer.vocab) + "\n", "utf-8")
            (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        about = {"schema": SCHEMA, **meta, "parts": sorted(parts), "hash": digest}
        (folder / "bundle.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
    return digest


def load(path: str | Path, trust: Sequence[str] = ()) -> Encoders:
    """Load a bundle, given as its folder or as the run directory that holds it.

    Args:
        path: the folder.
        trust: packages other than vlp_bench whose classes may be built from it.

    Raises:
        UserError: no bundle, one of another version, a class of a package that is not trusted, weights that do not
            fit.
    """
    folder = Path(path)
    folder = folder / "bundle" if (folder / "bundle").is_dir() else folder
    if not (folder / "bundle.json").is_file():
        raise UserError(
            f"No bundle at {path}. Expected a run directory of pretrain, or a folder with bundle.json; "
            "an unfinished run has none yet."
        )
    meta = read_json(folder / "bundle.json", "a bundle")
    if meta.get("schema") != SCHEMA:
        raise UserError(f"{folder} was written by another version (schema {meta.get('schema')}, here {SCHEMA}).")
    parts = {name: _load_part(folder, name, ("vlp_bench", *trust)) for name in meta["parts"]}
    return Encoders(parts, meta, meta["hash"])


def _load_part(folder: Path, name: str, trusted: tuple[str, ...]) -> nn.Module:
    facts = read_json(folder / f"{name}.json", "a part of a bundle")
    module, _, kind = facts["class"].partition(":")
    if module.split(".")[0] not in trusted:
        raise UserError(
            f"{folder / f'{name}.json'} asks for {facts['class']}, of a package that is not trusted. "
            f"If you know it, name it: trust=[{module.split('.')[0]}]."
        )
    arguments = dict(facts["arguments"])
    if (folder / f"{name}.vocab.txt").exists():
        arguments["vocab"] = str(folder / f"{name}.vocab.txt")
    made = getattr(import_module(module), kind, None)
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise UserError(f"{folder / f'{name}.json'} asks for {facts['class']}, which is no module class.")
    part = made(**arguments)
    load_exactly(part, read_state_dict(folder / f"{name}.safetensors"), str(folder / f"{name}.safetensors"))
    return part
