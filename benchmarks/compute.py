"""What each switch of the section `compute` is worth: a training step with it, beside one without, in turn.

    python benchmarks/compute.py [--only mgca_vit ...] [--switches bf16 ...] [--device cuda] [--out docs/precision.md]

Sizes are those of step_cost.py, without dropout, which a compiled network draws from other numbers; forward, backward
and AdamW's step. The gain is (without / with), a median over pairs that are timed one after the other in one process;
beside it, how far the loss of the second step moves. `bf16` and `fp16` are no switches but `trainer.precision`, and
stand here to compare.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from omegaconf import OmegaConf
from page import put
from step_cost import CASES, Case, build_case, timed, write_vocabulary

from vlp_bench.config import compose_verb
from vlp_bench.engine import compute
from vlp_bench.engine.progress import bars
from vlp_bench.report.tables import pipe_table

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}
SWITCHES = ("tf32", "channels_last", "sdpa", "fused", "compile")
#: what there is nothing to measure of on a processor
GPU_ALONE = ("tf32", "fp16")
NO_DROPOUT = tuple(f"+text.architecture.{kind}_dropout_prob=0.0" for kind in ("hidden", "attention_probs"))
HEAD = ("case", "switch", "without, s", "gain", "loss moves by")


class Step:
    """A training step of a case, with some switches on.

    Args:
        case: method and sizes.
        vocabulary: path of the word pieces.
        device: `cpu` or `cuda`.
        on: switch -> whether it is on.
        short: floats of autocast; None for float32.
    """

    def __init__(
        self, case: Case, vocabulary: Path, device: str, on: dict[str, bool], short: torch.dtype | None
    ) -> None:
        self.method, self.batch = build_case(case, vocabulary, device)
        self.switches = OmegaConf.merge(compose_verb("pretrain").compute, on)
        compute.apply(self.switches, [self.method])
        self.optimizer = torch.optim.AdamW(self.method.parameters(), lr=1e-5, fused=self.switches.fused or None)
        self.device, self.short = device, short

    def __call__(self) -> torch.Tensor:
        """Forward, backward, step; the loss."""
        torch.manual_seed(0)
        with torch.autocast(self.device, self.short, enabled=self.short is not None):
            terms = self.method.terms(self.batch)
            loss = torch.stack([self.method.weights(0.0)[name] * term for name, term in terms.items()]).sum()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def seconds(self) -> float:
        """Of one step; what switches set for the whole process is set anew before."""
        compute.apply(OmegaConf.merge(self.switches, {"compile": False}), [])
        return timed(self.method, self, self.device)


def measure(case: Case, vocabulary: Path, device: str, switch: str, pairs: int) -> tuple[float, float, float]:
    """Median seconds without the switch, the gain, and by which share the first loss moves."""
    values = {} if switch in SHORT else {switch: True}
    with_it = Step(case, vocabulary, device, values, SHORT.get(switch))
    without = Step(case, vocabulary, device, dict.fromkeys(values, False), None)
    losses = []
    for step in (without, with_it):  # also warms up, and compiles
        step.seconds()
        losses.append(float(step()))
    found = []
    for i in range(pairs):
        pair = {step: step.seconds() for step in ((without, with_it) if i % 2 else (with_it, without))}
        found.append((pair[without], pair[without] / pair[with_it]))
    seconds, gain = (median(column) for column in zip(*found, strict=True))
    return seconds, gain, abs(losses[1] / losses[0] - 1)


def main() -> None:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=["mgca_resnet50", "mgca_vit"])
    parser.add_argument("--switches", nargs="*", choices=(*SHORT, *SWITCHES), default=[*SHORT, *SWITCHES])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="put the table into this page, in the place of the one it has")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    switches = [s for s in options.switches if options.device != "cpu" or s not in GPU_ALONE]
    rows = []
    with tempfile.TemporaryDirectory() as folder, bars() as display:
        vocabulary = write_vocabulary(Path(folder))
        task = display.add_task("switches", total=len(options.only) * len(switches))
        for name in options.only:
            case = replace(CASES[name], overrides=(*CASES[name].overrides, *NO_DROPOUT))
            for switch in switches:
                display.update(task, description=f"{name} {switch}")
                seconds, gain, moved = measure(case, vocabulary, options.device, switch, options.pairs)
                rows.append((f"`{name}`", f"`{switch}`", f"{seconds:.2f}", f"{gain:.2f}", f"{moved:.0e}"))
                display.console.print(*rows[-1])
                display.advance(task)
    print(pipe_table(HEAD, rows))
    if options.out:
        put(options.out, pipe_table(HEAD, rows))


if __name__ == "__main__":
    main()
