"""What a method costs beside its networks: one training step, forward and backward, without the optimiser.

    python benchmarks/step_cost.py [--only mgca_resnet50 refers ...] [--pairs 7] [--bf16] [--out docs/performance.md]

Sizes are those at which the authors' code was timed: BERT-base and ResNet-50 or ViT-B/16 from random weights, reports
of about 60 words. Three figures of each case:

    overhead   the step, beside its networks alone: encoders, projection heads, poolings, decoders, output layers. The
               calls that one step makes of them are recorded and repeated with the same inputs and gradients.
    work       the step, beside plain encoders in float32 with reports padded as the authors pad them.
    speed-up   (official step / official encoders, both measured by others) / work

Each is the median over pairs that are timed one after the other.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from page import put
from torch import Tensor, nn

from vlp_bench.config import compose_verb
from vlp_bench.encoders.decoders import ImageDecoder, ReportDecoder, SentenceDecoder
from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.encoders.pooling import AttentionPool
from vlp_bench.encoders.projection import ProjectionHead
from vlp_bench.encoders.study import ViewWeights
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import build
from vlp_bench.engine.progress import bars
from vlp_bench.methods.base import VLPMethod
from vlp_bench.report.tables import pipe_table
from vlp_bench.types import StudyBatch, Tokens

#: networks; attention between image and text, banks and losses are what a method adds to them
DENSE = (
    VisionBackbone,
    TextBackbone,
    ProjectionHead,
    AttentionPool,
    ImageDecoder,
    SentenceDecoder,
    ReportDecoder,
    ViewWeights,
    nn.Sequential,
    nn.Linear,
)
#: their parts that are called otherwise
OUTPUT_LAYERS = ((ReportDecoder, "logits"), (JointEncoder, "predict"), (JointEncoder, "embed"))
VOCABULARY = 28_996


@dataclass(frozen=True)
class Case:
    """A method at the sizes at which its authors' code was timed.

    Args:
        overrides: of `vlp-bench pretrain`.
        batch: studies.
        views: images of a study.
        padded: length to which the authors pad reports.
        official: (step, encoders) of the authors' code, in seconds; None where nobody timed it.
    """

    overrides: tuple[str, ...]
    batch: int
    views: int = 1
    padded: int = 112
    official: tuple[float, float] | None = None


BERT = "text.architecture={hidden_size: 768, num_hidden_layers: %d, num_attention_heads: 12, intermediate_size: 3072}"
RESNET = ("vision=resnet50", BERT % 12)
CASES = {
    "mgca_resnet50": Case(
        ("method=mgca", "vision=resnet50", "vision.upsample_to=299", BERT % 6), 8, official=(5.80, 4.41)
    ),
    "mgca_vit": Case(("method=mgca", "vision=vit_b16", BERT % 6), 8, official=(8.26, 7.83)),
    "refers": Case(("method=refers", "vision=vit_b16", BERT % 12), 4, 3, 100, (12.98, 12.26)),
    "prior_stage1": Case(("method=prior", "method.stage=1", *RESNET), 8, padded=256, official=(10.72, 11.68)),
    "prior_stage2": Case(("method=prior", "method.stage=2", *RESNET), 8, padded=256, official=(9.89, 11.68)),
    "prior_stage3": Case(("method=prior", "method.stage=3", *RESNET), 8, padded=256, official=(17.49, 11.68)),
    "medvill": Case(("method=medvill", "vision.image_size=512", *RESNET), 4, padded=254, official=(14.19, 11.47)),
    "convirt": Case(("method=convirt", *RESNET), 8),
    "gloria": Case(("method=gloria", "vision.upsample_to=299", *RESNET), 8, padded=97),
    "moco": Case(("method=moco", "method.queue=1024", *RESNET), 8),
    "lsp": Case(("method=lsp", *RESNET), 8),
}


def tensors(x: Any) -> Iterator[Tensor]:
    """The float tensors of nested results."""
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
    elif is_dataclass(x):
        for f in fields(x):
            yield from tensors(getattr(x, f.name))
    elif isinstance(x, dict):
        yield from tensors(tuple(x.values()))
    elif isinstance(x, list | tuple):
        for y in x:
            yield from tensors(y)


def leaves(x: Any) -> Any:
    """Arguments cut off from what made them; those that had a gradient get one again."""
    if isinstance(x, Tensor):
        return x.detach().requires_grad_(x.requires_grad)
    return tuple(map(leaves, x)) if isinstance(x, tuple) else x


class Dense:
    """The calls that one step makes of a model's networks, to be repeated by themselves."""

    def __init__(self, model: VLPMethod, step: Callable[[], Tensor]) -> None:
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.depth = 0
        undo: list[tuple[Any, str]] = []
        for module in model.modules():
            names = [name for kind, name in OUTPUT_LAYERS if isinstance(module, kind)]
            if isinstance(module, DENSE) or module is self.bert_layers(model):
                names.append("forward")
            for name in names:
                setattr(module, name, self.recorded(getattr(module, name)))
                undo.append((module, name))
        step().backward()
        for module, name in undo:
            delattr(module, name)
        self.gradients = [[y.grad for y in self.differentiable(out)] for *_, out in self.calls]
        self.calls = [(f, args, kwargs, None) for f, args, kwargs, _ in self.calls]

    @staticmethod
    def bert_layers(model: VLPMethod) -> nn.Module | None:
        """The layers, which a joint encoder calls without the backbone around them."""
        return model.text.bert.encoder if model.text is not None else None

    @staticmethod
    def differentiable(out: Any) -> list[Tensor]:
        """Tensors with a gradient."""
        return [y for y in tensors(out) if y.requires_grad]

    def recorded(self, call: Callable) -> Callable:
        """The same call, remembered unless it is part of another one."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outermost, self.depth = self.depth == 0, self.depth + 1
            out = call(*args, **kwargs)
            self.depth -= 1
            if outermost:
                for y in self.differentiable(out):
                    y.retain_grad()
                # Attention maps are what a method asks for beside the features.
                kwargs.pop("saliency", None)
                self.calls.append((call, leaves(args), kwargs, out))
            return out

        return wrapped

    def __call__(self) -> None:
        """Forward through all of them, then backward."""
        made, given = [], []
        for (call, args, kwargs, _), gradients in zip(self.calls, self.gradients, strict=True):
            out = self.differentiable(call(*map(leaves, args), **kwargs))
            pairs = [(y, g) for y, g in zip(out, gradients, strict=True) if g is not None]
            made += [y for y, _ in pairs]
            given += [g for _, g in pairs]
        torch.autograd.backward(made, given)


def reports(batch: int, special: tuple[int, int, int], length: int | None = None) -> Tokens:
    """Made-up reports of about 60 words in 7 sentences, 72 to 84 word pieces; padded to the longest, or to `length`."""
    cls, sep, pad = special
    rng = np.random.default_rng(0)
    pieces = torch.from_numpy(rng.integers(72, 85, batch))
    size = length or int(pieces.max()) + 2
    place = torch.arange(size).expand(batch, -1)
    inner = (place >= 1) & (place <= pieces[:, None])
    mask = place <= pieces[:, None] + 1
    ids = torch.from_numpy(rng.integers(1000, VOCABULARY, (batch, size))).masked_fill(~mask, pad)
    ids[:, 0] = cls
    ids = ids.masked_fill(mask & ~inner & (place > 0), sep)
    word, sentence = (place - 1) * 3 // 4, (place - 1) // 12
    return Tokens(ids, mask, word.masked_fill(~inner, -1), sentence.masked_fill(~inner, -1), 7)


def write_vocabulary(folder: Path) -> Path:
    """Made-up word pieces, as many as Bio_ClinicalBERT has."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path


def build_case(case: Case, vocabulary: Path, device: str) -> tuple[VLPMethod, StudyBatch]:
    """The method, and a batch for it."""
    torch.manual_seed(0)
    cfg = compose_verb("pretrain", [*case.overrides, f"text.vocab={vocabulary}"])
    method = build.method(cfg, train=False).train().to(device)
    tokenizer = build.text(cfg.text).tokenizer
    size, b = cfg.vision.image_size, case.batch
    generator = torch.Generator().manual_seed(0)
    batch = StudyBatch(
        image=torch.randint(0, 256, (b, case.views, 1, size, size), dtype=torch.uint8, generator=generator),
        view_mask=torch.ones(b, case.views, dtype=torch.bool),
        flipped=torch.zeros(b, case.views, dtype=torch.bool),
        text=reports(b, (tokenizer.cls, tokenizer.sep, tokenizer.pad)),
        labels=torch.randint(0, 2, (b, 14), generator=generator).float(),
        study=torch.arange(b),
        study_id=tuple(map(str, range(b))),
    )
    return method, batch.to(device)


def plain_encoders(method: VLPMethod, batch: StudyBatch, case: Case) -> Callable[[], None]:
    """Image and text encoder on what the authors feed them, with gradients that mean nothing."""
    images = batch.image.flatten(0, 1)
    text = method.text
    special = () if text is None else (text.tokenizer.cls, text.tokenizer.sep, text.tokenizer.pad)
    tokens = None if text is None else reports(case.batch, special, case.padded).to(images.device)  # type: ignore[arg-type]
    joint = getattr(method, "joint", None)

    def run() -> None:
        seen = method.vision(images)
        read = []
        if joint is not None:
            # One BERT over both: 180 features, their [CLS] and [SEP], the padded report.
            cells = joint.project(seen.tokens[:, :180])
            embedded = text.bert.embeddings(tokens.ids)  # type: ignore[union-attr]
            both = torch.cat([embedded[:, :1], cells, embedded], 1)
            read = [text.bert.encoder(both).last_hidden_state]  # type: ignore[union-attr]
        elif tokens is not None:
            read = [text(tokens).tokens]  # type: ignore[misc]
        out = [*([] if joint is not None else [seen.pooled, seen.tokens]), *read]
        torch.autograd.backward(out, [torch.ones_like(y) for y in out])

    return run


def timed(model: nn.Module, run: Callable[[], Any], device: str) -> float:
    """Seconds of one run, gradients cleared before; of the processor's time where one thread works."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    model.zero_grad(set_to_none=True)
    wait()
    started = clock()
    run()
    wait()
    return clock() - started


def measure(case: Case, vocabulary: Path, device: str, pairs: int, short: bool) -> tuple[float, float, float]:
    """Median seconds of the step, and medians of overhead and work; `short` runs the step in bfloat16."""
    method, batch = build_case(case, vocabulary, device)

    def cast() -> AbstractContextManager:
        return torch.autocast(device, torch.bfloat16) if short else nullcontext()

    def loss() -> Tensor:
        with cast():
            terms = method.losses(batch)
            return torch.stack([method.weights(0.0)[name] * term for name, term in terms.items()]).sum()

    dense = Dense(method, loss)

    def replay() -> None:
        with cast():
            dense()

    runs = [lambda: loss().backward(), replay, plain_encoders(method, batch, case)]
    found = []
    for i in range(pairs + 1):
        # Neighbours in time, in turn the one and the other first.
        order = (0, 1, 2) if i % 2 else (1, 0, 2)
        seconds = {j: timed(method, runs[j], device) for j in order}
        found.append((seconds[0], seconds[0] / seconds[1], seconds[0] / seconds[2]))
    step, overhead, work = (median(column) for column in zip(*found[1:], strict=True))
    return step, overhead, work


def main() -> None:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="the step in bfloat16 (plain encoders stay in float32)")
    parser.add_argument("--out", type=Path, help="put the table into this page, in the place of the one it has")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = ("case", "step, s", "overhead", "work", "speed-up")
    rows = []
    with tempfile.TemporaryDirectory() as folder, bars() as display:
        vocabulary = write_vocabulary(Path(folder))
        task = display.add_task("cases", total=len(options.only))
        for name in options.only:
            display.update(task, description=name)
            case = CASES[name]
            step, overhead, work = measure(case, vocabulary, options.device, options.pairs, options.bf16)
            faster = f"{case.official[0] / case.official[1] / work:.2f}" if case.official else "-"
            rows.append((f"`{name}`", f"{step:.2f}", f"{overhead:.3f}", f"{work:.3f}", faster))
            display.console.print(*rows[-1])
            display.advance(task)
    print(pipe_table(head, rows))
    if options.out:
        put(options.out, pipe_table(head, rows))


if __name__ == "__main__":
    main()
