"""`hydra/launcher=vlp_bench`: every job of `-m` is a fresh process, in a ledger (`vlp_bench.engine.sweep`)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

#: Hydra's own settings that are the sweep's business, not a job's.
OURS = ("hydra.mode", "hydra.sweep", "hydra.sweeper", "hydra.launcher", "hydra.run", "hydra/sweeper", "hydra/launcher")


class VlpBenchLauncher(Launcher):
    """Runs jobs on this machine.

    Args:
        jobs: processes at once; None: as many as the GPUs have room for, one at a time without any.
        per_gpu: jobs that share a GPU.
        retries: further attempts after a crash.
    """

    def __init__(self, jobs: int | None = None, per_gpu: int = 1, retries: int = 1) -> None:
        self.jobs, self.per_gpu, self.retries = jobs, per_gpu, retries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra, once."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; the value of each is its objective, None if it has failed.

        What failed is added to the list `failures` of the task function, which the command line shows at the end.

        Raises:
            UserError: the sweep cannot be begun.
            Interrupted: a signal asked for the end.
        """
        from vlp_bench.engine import sweep
        from vlp_bench.files import write_json

        setup_globals()
        self._check()
        folder = Path(str(self.config.hydra.sweep.dir))
        machine = sweep.Machine(sweep.visible_gpus(), self.per_gpu, self.jobs)
        configs = [self._config(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        jobs = [
            self._job(tuple(overrides), cfg, len(machine.gpus))
            for overrides, cfg in zip(job_overrides, configs, strict=True)
        ]
        ledger = sweep.Ledger(folder)
        command = " ".join(["vlp-bench", self.config.verb, "-m", *self.config.hydra.overrides.task])
        write_json(folder / "sweep.json", {"schema": 1, "verb": self.config.verb, "command": command})
        wanted = self.config.get("objective") or {"metric": None, "direction": "minimize"}
        runner = sweep.Runner(
            ledger,
            machine,
            self.retries,
            value=lambda directory: sweep.objective(directory, wanted["metric"], wanted["direction"]),
            again=bool(self.config.get("overwrite")),
        )
        records = runner.run(jobs)
        faults = [sweep.summary(folder, records), self._unmeasured(records)]
        getattr(self.task, "failures", []).extend(fault for fault in faults if fault)
        return [_returned(job, cfg, record) for job, cfg, record in zip(jobs, configs, records, strict=True)]

    @property
    def _searches(self) -> bool:
        """Whether what to run next is chosen by what has been measured."""
        return not str(self.config.hydra.sweeper["_target_"]).endswith(".BasicSweeper")

    def _check(self) -> None:
        """A search must not choose by what the result is measured on."""
        from vlp_bench.errors import UserError

        if self._searches and self.config.get("split") == "test":
            raise UserError("A search must not choose by the test split. Add split=val, then test what it found.")

    def _unmeasured(self, records: Sequence[dict[str, Any]]) -> Exception | None:
        from vlp_bench.errors import UserError

        blind = [r["directory"] for r in records if r["state"] == "done" and r.get("value") is None]
        if not (blind and self._searches):
            return None
        return UserError(f"objective.metric={self.config.objective.metric}: {blind[0]} has no such value to choose by.")

    def _config(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config

    def _job(self, overrides: tuple[str, ...], config: DictConfig, visible: int) -> Any:
        """What is to be run for a configuration; one whose directory cannot be named has the reason."""
        from vlp_bench.engine.sweep import PRODUCTS, Job, command, gpus_needed
        from vlp_bench.errors import UserError
        from vlp_bench.files import digest

        number = config.hydra.job.num
        try:
            directory = Path(os.path.normpath(os.path.join(config.hydra.sweep.dir, config.hydra.sweep.subdir)))
            gpus = gpus_needed(config.get("trainer"), visible)
        except (UserError, OmegaConfBaseException) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            name = f"{config.verb}-{digest(sorted(overrides), 8)}"
            return Job(name, number, overrides, Path(), (), refused=reason)
        asked = command(config.verb, [*self._options(), *overrides], directory)
        return Job(directory.name, number, overrides, directory, asked, PRODUCTS.get(config.verb), gpus)

    def _options(self) -> list[str]:
        """What the command line says beside the task's overrides, for each job."""
        hydra = self.config.hydra
        options = []
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                options += ["--config-dir", source.path]
        if hydra.job.config_name != self.config.verb:
            options += ["--config-name", hydra.job.config_name]
        return options + [o for o in hydra.overrides.hydra if not o.lstrip("+~").startswith(OURS)]


def _returned(job: Any, config: DictConfig, record: dict[str, Any]) -> JobReturn:
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    done = JobReturn(
        overrides=list(job.overrides),
        cfg=own,
        hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
        working_dir=str(job.directory),
        task_name=config.hydra.job.name,
        # a failed one, too: a sweeper would raise at the first
        status=JobStatus.COMPLETED,
    )
    done.return_value = record.get("value")
    return done
