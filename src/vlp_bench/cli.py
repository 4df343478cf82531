"""`vlp-bench <verb> [hydra overrides]`. Imports torch only inside a verb that needs it."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from vlp_bench.errors import Interrupted, UserError

#: verb -> (what it does, module:function that does it)
VERBS = {
    "synthesize": ("write the synthetic chest world in a raw layout", "vlp_bench.engine.data:synthesize"),
    "prepare": ("raw data to prepared data, once", "vlp_bench.engine.data:prepare"),
    "pretrain": ("pre-train a method, leave a bundle", "vlp_bench.engine.pretrain:pretrain"),
    "evaluate": ("evaluate a backbone on a task", "vlp_bench.engine.evaluate:evaluate"),
    "benchmark": ("run a plan of many cells, with its report", "vlp_bench.engine.benchmark:benchmark"),
    "report": ("run folders to one self-contained page", "vlp_bench.engine.tools:report"),
    "compare": ("our cells beside published numbers", "vlp_bench.engine.compare:compare"),
    "import": ("a published checkpoint to a bundle", "vlp_bench.engine.importing:import_checkpoint"),
    "export": ("write a bundle to a folder of its own", "vlp_bench.engine.tools:export"),
    "embed": ("features of new images to a table", "vlp_bench.engine.tools:embed"),
    "doctor": (
        "what is installed, what of a data set is there, what is wrong with it",
        "vlp_bench.engine.doctor:doctor",
    ),
    "sweep": ("what has become of the jobs of a sweep (-m)", "vlp_bench.engine.sweep:sweep"),
    "demo": ("the whole line in minutes, on synthetic data", "vlp_bench.engine.benchmark:demo"),
}
CONFIG_HELP = """vlp-bench config list [GROUP]              groups and their options
vlp-bench config show VERB [overrides]     the composed configuration
vlp-bench config show GROUP/OPTION         one file of the tree
vlp-bench config copy GROUP/OPTION TO      a file to derive yours from
vlp-bench config check [VERB] [overrides]  find wrong targets, keywords, groups, shadowed names (--config-dir DIR too)
"""


def usage() -> str:
    """What `--help` prints."""
    lines = [f"  {verb:<11} {what}" for verb, (what, _) in VERBS.items()]
    lines.append(f"  {'config':<11} list, show, copy and check the configuration")
    return (
        "usage: vlp-bench <verb> [key=value ...]\n"
        "arguments are Hydra overrides; -m sweeps, --cfg job shows the configuration, --config-dir DIR adds yours\n\n"
        + "\n".join(lines)
        + "\n\nstart here: vlp-bench demo, or vlp-bench pretrain trainer=smoke\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        the exit code: 0, or 2 where the user can do something about it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from vlp_bench import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb in ("-sc", "--shell-completion"):
            return complete(arguments)
        if verb == "config":
            return config(rest)
        if verb not in VERBS:
            raise UserError(f"Unknown verb {verb!r}. There are: {', '.join([*VERBS, 'config'])}.")
        return run_verb(verb, rest, [sys.argv[0], *arguments])
    except UserError as error:
        print(f"vlp-bench: {error}", file=sys.stderr)
        return error.exit_code


def run_verb(verb: str, overrides: list[str], whole: list[str]) -> int:
    """Hand a verb to Hydra.

    Lightning starts further ranks by running `sys.argv` again, so the task sees the whole command line, while Hydra's
    parser sees it without the verb.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from vlp_bench import config as tree

    module, name = VERBS[verb][1].split(":")

    failures: list[UserError] = []
    here = os.getpid()

    def task(cfg: DictConfig) -> Any:
        if failures and isinstance(failures[-1], Interrupted):
            return None  # the rest of a sweep is not begun
        sys.argv[:] = whole
        try:
            result = getattr(import_module(module), name)(cfg)
            sys.stdout.flush()
            return _objective(cfg, result)
        except (UserError, HydraException) as error:
            if (known := _user_error(error)) is None:
                raise
            # kept for the end: Hydra would print a traceback, and a sweep would stop at its first failure
            failures.append(known)
            if os.getpid() != here:
                raise known from None  # in a process of some launcher, the list is a copy
            return None
        except BrokenPipeError:
            # the reader of the output has seen enough, as `head` has; nobody is to be told
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None

    task.__module__ = __name__
    task.failures = failures  # type: ignore[attr-defined]  # our launcher adds those of its jobs
    tree.register()
    verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # argparse wants overrides in one piece: options may stand between them on our command line
    ordered = sorted(tree.quoted(overrides), key=lambda a: "=" in a and not a.startswith("-"))
    with _process_state([whole[0], *ordered]):
        try:
            hydra.main(version_base="1.3", config_path=f"pkg://{tree.CONF}", config_name=verb)(task)()
        except Exception as error:
            known = _user_error(error) or (UserError(tree.explain(error)) if isinstance(error, tree.ERRORS) else None)
            # a sweeper that has nothing to choose from says so less well than what failed
            if verbose or not (known or failures):
                raise
            failures += [known] if known and known not in failures else []
    for failure in failures[:-1]:
        print(f"vlp-bench: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]
    return 0


def complete(arguments: list[str]) -> int:
    """What a shell asks for while somebody types: verbs from here, the rest of the line from Hydra."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    typed = words[1] if len(words) > 1 else ""
    if any(a.startswith("query=") for a in arguments):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(verb for verb in [*VERBS, "config"] if verb.startswith(typed)))
            return 0
        if typed not in VERBS:
            return 0
        os.environ["COMP_LINE"] = line.replace(f" {typed}", "", 1)
    return run_verb(typed if typed in VERBS else "pretrain", arguments, [sys.argv[0], *arguments])


def _objective(cfg: Any, result: Any) -> Any:
    """What a sweeper is told of a run that has left `result`, its directory; else `result`."""
    from pathlib import Path

    from vlp_bench.engine.sweep import objective

    if isinstance(result, Path) and "objective" in cfg:
        return objective(result, cfg.objective.metric, cfg.objective.direction)
    return result


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError inside what Hydra wrapped around it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


@contextmanager
def _process_state(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, swallows exceptions unless told not to, and reconfigures logging; undo all three."""
    before, full = sys.argv[:], os.environ.get("HYDRA_FULL_ERROR")
    handlers, level = logging.root.handlers[:], logging.root.level
    sys.argv[:] = argv
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv[:] = before
        for handler in logging.root.handlers:
            if handler not in handlers:
                handler.close()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def config(arguments: list[str]) -> int:
    """`vlp-bench config ...`."""
    actions: dict[str, Callable[[list[str]], int]] = {
        "list": _config_list,
        "show": _config_show,
        "copy": _config_copy,
        "check": _config_check,
    }
    if not arguments or arguments[0] not in actions:
        print(CONFIG_HELP)
        return 0 if not arguments else 2
    return actions[arguments[0]](arguments[1:])


def _config_list(arguments: list[str]) -> int:
    from vlp_bench.config import groups

    found = groups()
    if arguments and arguments[0] not in found:
        raise UserError(f"No configuration group {arguments[0]!r}. There are: {', '.join(found)}.")
    for group in arguments[:1] or found:
        print(f"{group + '=':<13} {'  '.join(found[group])}")
    return 0


def _file(name: str) -> Any:
    from vlp_bench.config import root_dir

    path = root_dir() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"No configuration {name!r}. `vlp-bench config list` shows what there is (GROUP/OPTION).")
    return path


def _config_show(arguments: list[str]) -> int:
    if not arguments:
        raise UserError("config show needs VERB or GROUP/OPTION.")
    if "/" in arguments[0]:
        print(_file(arguments[0]).read_text("utf-8"))
        return 0
    from omegaconf import OmegaConf

    from vlp_bench.config import compose_verb

    print(OmegaConf.to_yaml(compose_verb(*_verb_and_overrides(arguments))))
    return 0


def _config_copy(arguments: list[str]) -> int:
    from pathlib import Path

    if len(arguments) != 2:
        raise UserError("config copy needs GROUP/OPTION and where to put it.")
    source, to = _file(arguments[0]), Path(arguments[1])
    to = to / arguments[0].split("/")[0] / source.name if to.suffix != ".yaml" else to
    if to.exists():
        raise UserError(f"{to} exists; it was left as it is.")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(source.read_text("utf-8"), "utf-8")
    print(f"{to}  (give it a name of its own: a shipped name wins over yours)")
    return 0


def _config_check(arguments: list[str]) -> int:
    from vlp_bench.config import check, compose_verb, shadowed

    config_dir = _take_config_dir(arguments)
    verb, overrides = _verb_and_overrides(arguments or ["pretrain"])
    faults = shadowed(config_dir) if config_dir else []
    faults += check(compose_verb(verb, overrides, config_dir))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"config check {verb}: {f'{len(faults)} faults' if faults else 'no fault found'}")
    return 2 if faults else 0


def _verb_and_overrides(arguments: list[str]) -> tuple[str, list[str]]:
    verb = arguments[0] if "=" not in arguments[0] else "pretrain"
    if verb not in VERBS:
        raise UserError(f"Unknown verb {verb!r}. There are: {', '.join(VERBS)}.")
    return verb, [a for a in arguments if "=" in a]


def _take_config_dir(arguments: list[str]) -> Any:
    from pathlib import Path

    for i, argument in enumerate(arguments):
        if argument == "--config-dir" and i + 1 < len(arguments):
            folder = Path(arguments[i + 1])
            del arguments[i : i + 2]
            if not folder.is_dir():
                raise UserError(f"--config-dir {folder}: no such directory.")
            return folder
    return None
