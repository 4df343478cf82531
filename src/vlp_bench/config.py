"""The configuration tree: where it is, what it offers, whether what you wrote fits. Knows Hydra, never torch."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.vlp_bench_launcher.launcher import VlpBenchLauncher
from vlp_bench.errors import UserError
from vlp_bench.files import digest

CONF = "vlp_bench.conf"
#: What composing raises.
ERRORS = (HydraException, OmegaConfBaseException)
#: Keys that say where and on what a run happens, not what it is.
INCIDENTAL = (
    "hydra",
    "paths",
    "logger",
    "overwrite",
    "resume",
    "experiment",
    "note",
    "run",
    "compute",
    "checkpoint_steps",
    "divergence",
    "gradient_cache",
)
#: Those of them that do not tell two sweeps apart either.
_ELSEWHERE = set(INCIDENTAL) - {"experiment"}
DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "log_every_n_steps")
#: Keys whose value may be a path, which stands for what lies there.
PATHS = ("dir", "raw_dir", "backbone", "weights", "vocab")
#: Keys of a component that the engine reads and its constructor does not take.
ENGINE_KEYS = {"method": {"name", "inputs"}, "task": {"name"}}


class ExtensionPath(SearchPathPlugin):
    """Adds the configuration packages that installed extensions declare (entry point group `vlp_bench.conf`)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append one `pkg://` path an extension."""
        for entry in entry_points(group=CONF):
            search_path.append(f"extension {entry.name}", f"pkg://{entry.value}")


def register() -> None:
    """Make the resolvers and the extensions known to Hydra; may be called again."""
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: sweep_name(_root_), replace=True)
    OmegaConf.register_new_resolver("absolute", lambda path: str(Path(path).absolute()), replace=True)
    OmegaConf.register_new_resolver("recipe", lambda key, *, _root_: recipe(_root_, key), replace=True)
    Plugins.instance().register(ExtensionPath)
    # Hydra's own scan does not look into an editable install
    Plugins.instance().register(VlpBenchLauncher)


def recipe(cfg: DictConfig, key: str) -> Any:
    """What a protocol publishes under `key` for the target and the label fraction: that of the first row that fits.

    `protocol.recipes` lists rows; one fits where the `target` and the `label_fraction` it names are the run's.

    Raises:
        UserError: no row fits, or it does not say.
    """
    name, fraction = cfg.target.name, cfg.label_fraction
    for row in plain(cfg.protocol)["recipes"]:
        if row.get("target", name) == name and abs(row.get("label_fraction", fraction) - fraction) < 1e-9:
            if key in row:
                return row[key]
            raise UserError(f"protocol={cfg.protocol.name} does not say {key} for target={name}.")
    raise UserError(f"protocol={cfg.protocol.name} publishes nothing for target={name} label_fraction={fraction}.")


def run_name(cfg: DictConfig) -> str:
    """The last part of a run's directory: what it is called, and a hash of what it is."""
    return f"{cfg.name}-{digest(identity(cfg), 8)}"


def sweep_name(cfg: DictConfig) -> str:
    """The last part of a sweep's directory: the verb, and a hash of what the command line asks for, in any order."""
    said = [o for o in cfg.hydra.overrides.task if o.lstrip("+~").split(".")[0].split("=")[0] not in _ELSEWHERE]
    said += [
        o for o in cfg.hydra.overrides.hydra if o.lstrip("+").startswith(("hydra.sweeper.params", "hydra/sweeper"))
    ]
    return f"{cfg.verb}-{digest(sorted(said), 8)}"


def identity(cfg: DictConfig, only: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run is, or its sections `only`, as plain values: without paths, devices, loggers; inputs by contents."""
    kept = _by_contents({k: v for k, v in plain(cfg).items() if k not in INCIDENTAL and (only is None or k in only)})
    kept["trainer"] = {k: v for k, v in (kept.get("trainer") or {}).items() if k not in DEVICES}
    return kept


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A configuration, or a section of one, as plain values, without Hydra's own part."""
    if not resolve:
        whole = OmegaConf.to_container(cfg, resolve=False)
        return {k: v for k, v in whole.items() if k != "hydra"}  # type: ignore[union-attr, misc]
    # node by node, not as a copy: a section's interpolations may point outside it
    kept = {str(k): "???" if OmegaConf.is_missing(cfg, k) else cfg[k] for k in cfg if k != "hydra"}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in kept.items()}


def _by_contents(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {k: _by_contents(v, k) for k, v in node.items() if k != "num_workers"}
    return contents(node) if key in PATHS and isinstance(node, str) else node


def contents(path: str) -> str:
    """What names the contents of a path: a fingerprint of ours, a hash of the file; the text itself if it is none."""
    place = Path(path)
    for name, key in (("manifest.json", "fingerprint"), ("bundle/bundle.json", "hash"), ("bundle.json", "hash")):
        try:
            return str(json.loads((place / name).read_text())[key])
        except (OSError, ValueError, KeyError):
            continue
    file = place / "metadata.csv" if place.is_dir() else place
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else path


def quoted(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments, with the value of `key=value` quoted for Hydra where its grammar could not read it.

    The shell takes the quotes of `target.where="source == 'nih'"`, and what is left is no value to Hydra.
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-") or value[:1] in tuple("[{\"'") or "${" in value:
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        escaped = value.replace('"', '\\"')
        return f'{key}="{escaped}"'
    return argument


def compose_verb(verb: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> DictConfig:
    """The configuration of a verb, from Python.

    Raises:
        UserError: an unknown group, option or key.
    """
    register()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    searched = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            return compose(verb, [*quoted(overrides), *searched])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    finally:
        if running is not None:
            GlobalHydra.instance().initialize(running)


def explain(error: BaseException) -> str:
    """Hydra's complaint in a line or two, with what to do."""
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException | HydraException):
        text.append(str(cause).splitlines()[0].strip())
    options = [line for line in text if line and "search path" not in line and not line.startswith("provider=")]
    known = "" if "Available options" not in str(error) else " vlp-bench config list shows what there is."
    return (" ".join(options[:8]).rstrip(".") + "." + known).replace("set HYDRA_FULL_ERROR=1", "").strip()


def groups() -> dict[str, list[str]]:
    """Every shipped group with its options."""
    root = root_dir()
    found = {d.name: sorted(f.stem for f in d.glob("[!_]*.yaml")) for d in sorted(root.iterdir()) if d.is_dir()}
    return {k: v for k, v in found.items() if v and k not in ("run", "paths")}


def root_dir() -> Path:
    """Where the shipped tree lies."""
    from importlib.resources import files

    return Path(str(files(CONF)))


def verbs() -> list[str]:
    """The verbs that have a primary configuration."""
    return sorted(f.stem for f in root_dir().glob("*.yaml"))


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))


def check(cfg: DictConfig) -> list[str]:
    """What is wrong with a composed configuration, without building anything: targets, keywords, missing values."""
    faults = []
    for path, node in targets(plain(cfg, resolve=False)):
        name = node["_target_"]
        try:
            name = OmegaConf.select(cfg, f"{path}._target_" if path else "_target_")
            target = get_object(name)
        except Exception as error:
            faults.append(
                f"{path}._target_: {name} cannot be imported ({error}). Is the module spelt right, and on "
                "the path? `python -m vlp_bench` adds the current directory, an installed package is found anyway."
            )
            continue
        faults += _keyword_faults(path, node, target)
    return faults


def _keyword_faults(path: str, node: dict[str, Any], target: Any) -> list[str]:
    parameters = dict(inspect.signature(target).parameters)
    if inspect.isclass(target):
        # a class whose constructor hands **kwargs on takes what its bases take
        for kind in target.__mro__:
            own = dict(inspect.signature(vars(kind)["__init__"]).parameters) if "__init__" in vars(kind) else {}
            parameters |= own
            if own and not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    elif any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    given = {k for k in node if not k.startswith("_")} - ENGINE_KEYS.get(path, set())
    return [f"{path}.{key}: {node['_target_']} takes no such argument." for key in sorted(given - set(parameters))]


def shadowed(config_dir: Path) -> list[str]:
    """Files of a user's tree that are never read because a shipped file has their name."""
    root = root_dir()
    files = [f.relative_to(config_dir) for f in sorted(config_dir.rglob("*.yaml"))]
    return [
        f"{config_dir / f} is never read: a shipped {f.parent.name or 'configuration'} has that name. "
        f"Rename it, and derive from the shipped one with `defaults: [{f.stem}]`."
        for f in files
        if (root / f).is_file()
    ]


# where another launcher runs a job in a process of its own, this module is imported and nobody calls `register`
register()
