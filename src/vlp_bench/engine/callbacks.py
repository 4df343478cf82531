"""What Hydra calls between composing and running, where a launcher or a sweeper of somebody else needs it."""

import os
import warnings
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write


class Tasks(Callback):
    """Tells torch, and so Lightning, a task's place among those that submitit started, where SLURM does not say it."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in each task."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1 and "LOCAL_RANK" not in os.environ and "SLURM_NTASKS" not in os.environ:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


class Study(Callback):
    """Lets a stored search of Optuna go on: `n_trials` are finished ones in all, and what was running is run first."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the sweeper is made."""
        # the sweeper needs an Optuna that is made for SQLAlchemy 1.4, which would tell users to prepare for 2.0
        os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
        import optuna
        from optuna.trial import TrialState

        about = config.hydra.sweeper
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        known = [s.study_name for s in optuna.get_all_study_summaries(about.storage)]
        if about.study_name not in known:
            return
        study = optuna.load_study(about.study_name, about.storage)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            with warnings.catch_warnings():
                # experimental in the Optuna that the sweeper needs, and as it is in all later ones
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.enqueue_trial(trial.params)
        with read_write(about):
            about.n_trials = max(0, about.n_trials - len(study.get_trials(states=(TrialState.COMPLETE,))))
