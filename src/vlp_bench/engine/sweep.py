"""Many runs from one command: a ledger that outlives its writer, jobs in processes of their own, the verb `sweep`.

Knows neither torch nor what a job does: a job is a command that leaves a file in its directory.
"""

import csv
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vlp_bench.engine.progress import console, counted, duration
from vlp_bench.errors import Interrupted, UserError
from vlp_bench.files import read_json, write_json

#: What a finished run of a verb leaves, last of all.
PRODUCTS = {"pretrain": "run.json", "evaluate": "result.json"}
#: What asks a sweep to end; its jobs are asked in turn.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
#: Exit codes of a job that was asked to end: by itself, or by a signal before it could listen.
ASKED = (Interrupted.exit_code, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT)
#: What a process among others is told of its place; a job is no part of whoever starts it.
PLACES = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
)
#: How an attempt's part of a log begins.
BEGIN = "--- attempt "
#: Seconds between two looks at the jobs.
EVERY = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a command, the directory that is its own, and what it leaves there when it has finished."""

    name: str
    number: int
    overrides: tuple[str, ...]
    directory: Path
    command: tuple[str, ...]
    #: file under `directory`; None: the exit code says it all
    product: str | None = None
    #: GPUs that it needs for itself
    gpus: int = 0
    #: why it cannot be run at all
    refused: str | None = None


class Ledger:
    """The records of a sweep, one JSON file a job, written whole: whoever is killed, they stay readable.

    Args:
        folder: `sweep.json`, `jobs/NAME.json`, `logs/NAME.log` and the locks lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The record of a job."""
        return self.folder / "jobs" / f"{name}.json"

    def lock(self, name: str) -> Path:
        """The file that a job's process holds while it lives."""
        return self.folder / "jobs" / f"{name}.lock"

    def log(self, name: str) -> Path:
        """What a job printed, over all its attempts."""
        return self.folder / "logs" / f"{name}.log"

    def get(self, name: str) -> dict[str, Any]:
        """A job's record; empty if it has none."""
        path = self.path(name)
        return read_json(path, "the record of a job") if path.exists() else {}

    def put(self, name: str, **news: Any) -> dict[str, Any]:
        """Write what is new of a job, and return its record."""
        record = self.get(name) | news
        write_json(self.path(name), record)
        return record

    def enter(self, job: Job) -> None:
        """Note a job that is to be run, keeping what is known of it."""
        record = {"attempts": 0, "state": "waiting"} | self.get(job.name)
        about = {"number": job.number, "overrides": list(job.overrides), "log": str(self.log(job.name))}
        write_json(self.path(job.name), {"name": job.name, **record, **about, "directory": str(job.directory)})

    def records(self) -> list[dict[str, Any]]:
        """All records, in the order of the jobs; what was running when everybody was killed is `interrupted`."""
        found = [read_json(path, "the record of a job") for path in (self.folder / "jobs").glob("*.json")]
        for record in found:
            if record["state"] == "running" and not held(self.lock(record["name"])):
                record["state"] = "interrupted"
        return sorted(found, key=lambda record: (record["number"], record["name"]))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one launcher at a time write.

        Raises:
            UserError: another one does.
        """
        handle = take(self.folder / "launcher.lock")
        if handle is None:
            raise UserError(
                f"{self.folder} is being worked on by another process. `vlp-bench sweep dir={self.folder}` shows it; "
                "hydra.sweep.dir=DIR begins a sweep of its own."
            )
        try:
            yield
        finally:
            os.close(handle)


def command(verb: str, arguments: Sequence[str], directory: Path) -> tuple[str, ...]:
    """What runs a verb in a process of its own, into `directory`."""
    quoted = str(directory.absolute()).replace("'", "\\'")
    return (sys.executable, "-m", "vlp_bench", verb, *arguments, f"hydra.run.dir='{quoted}'")


def take(lock: Path) -> int | None:
    """Lock a file; the open handle, or None where another process holds it. Whoever is killed lets go."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    # somebody may look whether it is held, for a moment
    for pause in (0.01, 0.05, 0.1, None):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if pause is None:
                break
            time.sleep(pause)
        except OSError:
            return handle  # some network file systems know no locks
    os.close(handle)
    return None


def held(lock: Path) -> bool:
    """Whether a living process holds the lock."""
    if not lock.exists() or (handle := take(lock)) is None:
        return lock.exists()
    os.close(handle)
    return False


@dataclass
class Machine:
    """What jobs share: GPUs, each of which takes `per_gpu` jobs, and how many may run at once."""

    gpus: Sequence[str] = ()
    per_gpu: int = 1
    #: jobs at once; None: as many as there is room for on the GPUs, one where none is needed
    jobs: int | None = None
    used: Counter[str] = field(default_factory=Counter)

    def room(self, job: Job, running: int) -> list[str] | None:
        """The GPUs that a job would get beside so many running ones; None if it has to wait."""
        if running and running >= (self.jobs or (len(self.gpus) * self.per_gpu if job.gpus else 1)):
            return None
        free = sorted((g for g in self.gpus if self.used[g] < self.per_gpu), key=lambda g: self.used[g])
        return free[: job.gpus] if len(free) >= job.gpus else None

    def threads(self) -> int:
        """Threads for each job, where they share the processors."""
        return max(1, len(os.sched_getaffinity(0)) // (self.jobs or max(1, len(self.gpus) * self.per_gpu)))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asks neither torch nor the driver."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in done.stdout.splitlines() if line.startswith("GPU "))]


def gpus_needed(trainer: Mapping[str, Any] | None, visible: int) -> int:
    """How many of the visible GPUs a job with this section `trainer` takes.

    Raises:
        UserError: it wants more than there are, or several machines.
    """
    if trainer is None:
        return 0
    if int(trainer["num_nodes"]) > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: this launcher starts jobs on its own machine. "
            "Use cluster=slurm (docs/clusters.md)."
        )
    if not visible or trainer["accelerator"] not in ("auto", "gpu", "cuda"):
        return 0  # a run that wants a GPU where there is none says so itself
    devices = trainer["devices"]
    if not isinstance(devices, int) or devices < 0:
        return visible
    if devices > visible:
        raise UserError(f"trainer.devices={devices}: there are {visible} GPUs here.")
    return devices


@dataclass
class Running:
    """A job that is being run: by a process of ours, or by one that a killed launcher has left (`process` None)."""

    job: Job
    gpus: list[str]
    process: subprocess.Popen[bytes] | None
    pid: int | None
    since: float

    def signal(self, number: int, group: bool = False) -> None:
        """Send it a signal, or all of its processes one."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.pid, number)


class Runner:
    """Runs jobs until each is done, has failed for good, or everything is asked to end.

    A job's process is a session of its own and holds the job's lock: it outlives a killed launcher, and the next one
    waits for it. A crash is tried again; exit code 2 (the user can do something) and 143 (asked to end) are not.

    Args:
        ledger: the sweep.
        machine: what there is room for.
        retries: further attempts after a crash.
        value: the objective of a finished job, from its directory.
        again: run jobs although their directory holds what a finished one leaves (`overwrite=true`).
    """

    def __init__(
        self,
        ledger: Ledger,
        machine: Machine,
        retries: int = 1,
        value: Callable[[Path], float | None] = lambda directory: None,
        again: bool = False,
    ) -> None:
        self.ledger, self.machine, self.retries, self.value, self.again = ledger, machine, retries, value, again
        self.running: list[Running] = []
        self.asked = 0

    def run(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run what is not done yet; the record of each job, in order. Two jobs of one name are one.

        Raises:
            UserError: another launcher is at work, or two jobs share a name but no directory.
            Interrupted: a signal asked for the end; the jobs have been asked, too, and have ended.
        """
        distinct = {job.name: job for job in jobs}
        for job in jobs:
            if distinct[job.name].directory != job.directory:
                raise UserError(f"hydra.sweep.subdir calls two jobs {job.name}. Let it end in what tells them apart.")
        with self.ledger.alone(), self._listening(), counted(f"sweep {self.ledger.folder.name}") as report:
            waiting = deque(self._enter(list(distinct.values())))
            tries = Counter({job.name: 1 + self.retries for job in waiting})
            self._adopt(waiting)
            while (waiting and not self.asked) or self.running:
                self._start(waiting, tries)
                time.sleep(EVERY)
                for running in [r for r in self.running if self._ended(r)]:
                    if self._close(running)["state"] == "waiting":
                        waiting.append(running.job)
                report(len(distinct) - len(waiting) - len(self.running), len(distinct))
        if self.asked:
            raise Interrupted(f"Interrupted; the same command goes on ({self.ledger.folder}).")
        return [self.ledger.get(job.name) for job in jobs]

    def _enter(self, jobs: list[Job]) -> list[Job]:
        """Write every job down; those that are to be run."""
        done = [self.ledger.get(job.name).get("state") == "done" for job in jobs]
        if self.again and all(done):
            done = [False] * len(jobs)  # the whole sweep is wanted once more
        left = []
        for job, was in zip(jobs, done, strict=True):
            self.ledger.enter(job)
            if job.refused is not None:
                self.ledger.put(job.name, state="refused", reason=job.refused)
            elif was if self.again or job.product is None else (job.directory / job.product).exists():
                self.ledger.put(job.name, state="done", reason=None, value=self.value(job.directory))
            else:
                left.append(job)
                if not held(self.ledger.lock(job.name)):
                    self.ledger.put(job.name, state="waiting", reason=None)
        return left

    def _adopt(self, waiting: deque[Job]) -> None:
        """Take over what a killed launcher has left running."""
        for job in list(waiting):
            if held(self.ledger.lock(job.name)):
                record = self.ledger.put(job.name, state="running")
                gpus = record.get("gpus") or []
                self.machine.used.update(gpus)
                since = record.get("started") or time.time()
                self.running.append(Running(job, gpus, None, record.get("pid"), since))
                waiting.remove(job)
                console.print(f"{job.name}: still running, waited for", soft_wrap=True)

    def _start(self, waiting: deque[Job], tries: Counter[str]) -> None:
        while waiting and not self.asked:
            gpus = self.machine.room(waiting[0], len(self.running))
            if gpus is None:
                return
            job = waiting.popleft()
            tries[job.name] -= 1
            self.running.append(self._begin(job, gpus, tries[job.name]))

    def _begin(self, job: Job, gpus: list[str], left: int) -> Running:
        ledger = self.ledger
        handle = take(ledger.lock(job.name))
        if handle is None:
            raise UserError(f"{ledger.lock(job.name)} is held by a process that this sweep does not know.")
        started, attempts = time.time(), ledger.get(job.name)["attempts"] + 1
        # before the process: whoever finds the lock held knows on what
        about = {"gpus": gpus, "attempts": attempts, "tries_left": left, "started": started, "ended": None}
        ledger.put(job.name, state="running", pid=None, exit_code=None, reason=None, **about)
        log = ledger.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as out:
                out.write(f"{BEGIN}{attempts}: {shlex.join(job.command)}\n".encode())
                out.flush()
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self._environment(job, gpus),
                    start_new_session=True,
                    pass_fds=(handle,),
                )
        finally:
            os.close(handle)  # the process has it
        ledger.put(job.name, pid=process.pid)
        self.machine.used.update(gpus)
        return Running(job, gpus, process, process.pid, started)

    def _environment(self, job: Job, gpus: list[str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in (*PLACES, "HYDRA_FULL_ERROR")}
        kept["VLP_BENCH_SWEEP"] = self.ledger.folder.name
        if gpus:
            kept["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if (self.machine.jobs or len(gpus)) > 1:
            kept.setdefault("OMP_NUM_THREADS", str(self.machine.threads()))
        return kept

    def _ended(self, running: Running) -> bool:
        if running.process is not None:
            return running.process.poll() is not None
        return not held(self.ledger.lock(running.job.name))

    def _close(self, running: Running) -> dict[str, Any]:
        """Note how a job ended; `waiting` is to be run again."""
        self.running.remove(running)
        self.machine.used.subtract(running.gpus)
        job, ledger = running.job, self.ledger
        code = running.process.returncode if running.process is not None else None
        if code:
            running.signal(signal.SIGKILL, group=True)  # ranks that wait for one that is gone
        product = job.directory / job.product if job.product else None
        # of a process that is not ours, what it left is all that is known
        left = product is None or (product.exists() and product.stat().st_mtime >= running.since - 1)
        record = ledger.get(job.name)
        reason, value = None, None
        if left and not code:
            state, value = "done", self.value(job.directory)
        elif code == UserError.exit_code:
            state, reason = "refused", last_words(ledger.log(job.name))
        elif code in ASKED or self.asked:
            state, reason = "interrupted", "asked to end"
        else:
            state = "waiting" if record["tries_left"] else "failed"
            said = last_words(ledger.log(job.name))
            how = f"ended without {job.product}" if not code else f"exit code {code}"
            reason = f"{signal.Signals(-code).name if code and code < 0 else how}: {said}"
        took = duration(time.time() - running.since)
        shown = f", {value:.4g}" if value is not None else ""
        again = " (tried again)" if state == "waiting" else ""
        console.print(f"{job.name}: {reason or state}{again}, {took}{shown}", soft_wrap=True, highlight=False)
        return ledger.put(job.name, state=state, exit_code=code, ended=time.time(), reason=reason, value=value)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def heard(number: int, _: Any) -> None:
            self.asked += 1
            hard = self.asked > 1 and number == signal.SIGINT
            os.write(2, b"\nkilling the jobs\n" if hard else b"\nending: the jobs finish their step\n")
            for running in self.running:
                running.signal(signal.SIGKILL if hard else signal.SIGTERM, group=hard)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_words(log: Path) -> str:
    """What a job said last in its last attempt, in a line: the message to the user if there is one."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    begin = max((i for i, line in enumerate(lines) if line.startswith(BEGIN)), default=-1)
    told = [line for line in lines[begin + 1 :] if line.startswith("vlp-bench: ")]
    return (told or lines[begin + 1 :] or ["it printed nothing"])[-1].removeprefix("vlp-bench: ")[:400]


def summary(folder: Path, records: Sequence[Mapping[str, Any]]) -> UserError | None:
    """What there is to say of jobs that are not done, with their logs; None if all are."""
    bad = {r["name"]: r for r in records if r["state"] != "done"}
    if not bad:
        return None
    lines = [f"{len(bad)} of {len({r['name'] for r in records})} jobs are not done; the same command tries them again."]
    lines += [f"  {r['state']} {name}: {r['reason']} ({r['log']})" for name, r in bad.items()]
    return UserError("\n".join([*lines, f"vlp-bench sweep dir={folder} shows all."]))


def objective(directory: Path, metric: str | None, direction: str) -> float | None:
    """What a sweeper chooses by, of a finished run; None where the run has no such number.

    Args:
        directory: of the run.
        metric: a metric of `result.json`, None for the task's primary one; or a column of `metrics.csv`, of whose
            values the best counts.
        direction: minimize | maximize.
    """
    if (directory / "result.json").exists():
        result = read_json(directory / "result.json", "a result")
        value = result["metrics"].get(metric or result["primary"], {}).get("value")
        return None if value is None else float(value)
    curve = directory / "metrics.csv"
    if metric is None or not curve.exists():
        return None
    with curve.open(newline="") as file:
        values = [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
    return (min if direction == "minimize" else max)(values, default=None)


def sweep(cfg: DictConfig) -> None:
    """`vlp-bench sweep [dir=DIR]`: what has become of each job; of a folder of sweeps, which there are.

    Raises:
        UserError: there is no sweep in `dir`.
    """
    folder = Path(cfg.dir)
    if (folder / "sweep.json").exists():
        _show(folder)
        return
    below = sorted(path.parent for path in folder.glob("*/sweep.json"))
    if not below:
        raise UserError(f"No sweep in {folder}. Give dir=DIR; `-m` says at its end which it is.")
    for found in below:
        print(f"{found}: {_totals(Ledger(found), Ledger(found).records())}")
        print(f"  {read_json(found / 'sweep.json', 'a sweep')['command']}")


def _show(folder: Path) -> None:
    ledger = Ledger(folder)
    about, records = read_json(folder / "sweep.json", "a sweep"), ledger.records()
    varied = _varied(records)
    table = Table("job", *varied, "state", "attempts", "took", "value", "log", title=about["command"])
    for r in records:
        values = dict(o.partition("=")[::2] for o in r["overrides"])
        started, ended = r.get("started"), r.get("ended")
        took = duration((ended or time.time()) - started) if started and (ended or r["state"] == "running") else ""
        value = "" if r.get("value") is None else f"{r['value']:.4g}"
        cells = [values.get(key, "") for key in varied]
        table.add_row(r["name"], *cells, r["state"], str(r["attempts"]), took, value, r["log"])
    out = Console()
    # to a file or a pipe, a line a job
    (out if out.is_terminal else Console(width=400)).print(table)
    for r in records:
        if r.get("reason"):
            print(f"{r['name']}: {r['reason']}")
    print(_totals(ledger, records))


def _totals(ledger: Ledger, records: Sequence[Mapping[str, Any]]) -> str:
    totals = Counter(r["state"] for r in records)
    live = "being worked on" if held(ledger.folder / "launcher.lock") else "nobody works on it"
    return f"{len(records)} jobs: {', '.join(f'{n} {state}' for state, n in totals.items())}; {live}"


def _varied(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which jobs differ."""
    values: dict[str, set[str]] = {}
    for record in records:
        for key, _, value in (o.partition("=") for o in record["overrides"]):
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]
