"""From Hydra's configuration to a typed Experiment; every mistake ends in one line that names the key."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from medx.folder import read_config
from medx.hints import describe, nearest, options_of
from medx.schema import GROUPS, ConfigError, identity_of, option_of

if TYPE_CHECKING:
    from medx.experiment import Experiment
    from medx.tracking.tracker import Tracking

# What a run's numbers do not depend on, so that it is known by the same hash wherever and whenever it runs.
WHERE = ("cache", "tracking", "runtime")
NOT_KEPT = ("jobs", "noise")
# Nor where its files lie.
PLACES = (
    *(("dataset", key) for key in ("root", "download", "path", "csv")),
    ("privacy", "ledger"),
    ("aggregation", "roster"),
)
# Groups and keys that came later, and what a run from before had, by which it is known as it was.
LATER = {"personalisation": "medx.personalisation.NoPersonalisation", "threshold": "best"}
NOT_HASHED = ("seed", "resume", "study", "select", "attack", "device", *WHERE)
# Nor how a step is computed, within rounding. (Secret draws do depend on it: see draw_key.)
HOW = (("trainer", "gradient_mode"), ("trainer", "micro_batch_size"))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration of a run as plain dicts and lists.

    Left out are ``jobs``, which is a sweep's, and ``noise``, which the mechanism's own setting follows.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    named = container.items() if isinstance(container, dict) else ()
    return {str(key): value for key, value in named if key not in NOT_KEPT}


@dataclass(frozen=True)
class Composed:
    """A configuration with the components that it describes.

    ``config`` has every value as its component holds it, so that 10, 10.0 and 1e1 are one number, and paths and the
    tracking store are what they were where the program was started.
    """

    experiment: "Experiment"
    tracking: "Tracking"
    config: dict[str, Any]

    @property
    def what(self) -> dict[str, Any]:
        """The configuration without where the run's files lie; components go by the names that they declare."""
        return {
            key: self._identified(key, value)
            for key, value in self.config.items()
            if key not in LATER or (value["_target_"] if key in GROUPS else value) != LATER[key]
        }

    @property
    def hash(self) -> str:
        """Sixteen hex digits that name the configuration whatever its seed and wherever it runs."""
        hashed = {
            key: {name: each for name, each in value.items() if (key, name) not in HOW} if key in GROUPS else value
            for key, value in self.what.items()
            if key not in NOT_HASHED
        }
        if (speeds := self.config["runtime"].get("speeds")) is not None:  # of where it runs the one that moves numbers
            hashed["speeds"] = speeds
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]

    def _identified(self, key: str, value: Any) -> Any:
        """A group under its component's name, without its paths and keys that came later; anything else as it is."""
        if key not in GROUPS:
            return value
        part = self.tracking if key == "tracking" else getattr(self.experiment, key)
        places, own = places_of(key, type(part)), getattr(type(part), "places", ())
        # A component's own may be older than what makes it one: without a file it is known as it was.
        places = tuple(name for name in places if name not in own or value[name] is not None)
        kept = {name: each for name, each in value.items() if name not in places and name != "_target_"}
        before = {name: getattr(type(part), name) for name in getattr(type(part), "added", ())}
        kept = {name: each for name, each in kept.items() if name not in before or each != before[name]}
        return {"component": identity_of(type(part)), **kept}


def places_of(group: str, kind: Any) -> tuple[str, ...]:
    """The keys of a component that only say where files lie."""
    return (*(name for owner, name in PLACES if owner == group), *getattr(kind, "places", ()))


def typed(config: dict[str, Any]) -> Composed:
    """Build every component; raises ConfigError with one line."""
    from medx.experiment import Experiment

    before = {key: {"_target_": value} if key in GROUPS else value for key, value in LATER.items()}
    config = with_hospitals(before | config)
    built = {group: build(config, group) for group in GROUPS}
    tracking = built["tracking"] = built["tracking"].settled(Path.cwd())
    scalars = {key: value for key, value in config.items() if key not in (*GROUPS, "resume")}
    parts = {group: part for group, part in built.items() if group != "tracking"}
    experiment: Experiment = construct(Experiment, scalars | parts, "")
    values = {key: held(getattr(experiment, key), key) for key in scalars}
    return Composed(experiment, tracking, values | {group: named(config, group, part) for group, part in built.items()})


def with_hospitals(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with as many clients as the data have hospitals, where the partition follows them."""
    partition, federation = build(config, "partition"), config.get("federation")
    if not hasattr(partition, "num_clients") or not isinstance(federation, dict):
        return config
    count = partition.num_clients(build(config, "dataset"))
    return config if count is None else config | {"federation": federation | {"num_clients": count}}


def named(config: dict[str, Any], group: str, part: object) -> dict[str, Any]:
    """A group as its component holds it, under the name of the class; as configured where that is no dataclass."""
    fields: dict[str, Any] = held(part, group) if dataclasses.is_dataclass(part) else config[group]
    return {"_target_": config[group]["_target_"], **fields}


def held(value: Any, key: str) -> Any:
    """A component's value as JSON has it; raises ConfigError where it is nothing that a configuration can name."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: held(getattr(value, name), f"{key}.{name}") for name in names}
    if isinstance(value, dict):
        return {str(name): held(each, f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [held(each, key) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ConfigError(f"{key}={value!r}: accepted in a configuration: text, numbers, lists and dictionaries of them")


def build(config: dict[str, Any], key: str) -> Any:
    """The component that ``config[key]`` describes; raises ConfigError naming ``key.field`` and what it may be."""
    if not isinstance(config.get(key), dict):
        raise ConfigError(f"{key}={config.get(key)!r}: {nearest(str(config.get(key)), options_of(key))}")
    fields = dict(config[key])
    name = fields.pop("_target_", None)
    target = locate(str(name))
    if not isinstance(target, type):
        raise ConfigError(f"{key}._target_={name}: no class of that name; accepted: a component's class")
    return construct(target, fields, key + ".")


def construct(target: Any, fields: dict[str, Any], prefix: str) -> Any:
    """Call ``target`` with the fields; pydantic's errors become one line each."""
    try:
        return target(**fields)
    except ValidationError as error:
        names = [field.name for field in dataclasses.fields(target)]
        option = option_of(prefix.rstrip("."), f"{target.__module__}.{target.__name__}")
        problems = [describe(problem, prefix, fields, names, option) for problem in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def refuse_lists(overrides: Sequence[str]) -> None:
    """Raise ConfigError where a group is given a list of options: Hydra would lay one over the other."""
    for part in overrides:
        group, _, value = part.partition("=")
        if group in GROUPS and value.startswith("["):
            raise ConfigError(f"{part}: a group takes one option, or with -m several by commas, without brackets")


def resumed_config(folder: Path, current: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of the run to resume; refuses an override that differs from it, and shows where.

    Where it runs and where it is recorded may change, when an override says so.
    """
    _, _, saved = read_config(folder)
    groups = {override.lstrip("+~").split("=", 1)[0].partition(".")[0].partition("@")[0] for override in overrides}
    current = with_hospitals(current)
    current = {  # what is compared, as its component holds it
        key: named(current, key, build(current, key)) if key in GROUPS and key in groups else value
        for key, value in current.items()
    }
    now, then = dict(flat(current)), dict(flat(saved))
    kinds = {group: locate(str(current[group].get("_target_"))) for group in GROUPS if group in groups}
    places = {f"{group}.{name}" for group, kind in kinds.items() for name in places_of(group, kind)}
    differences = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        name = "privacy.noise_source" if name == "noise" else name
        group = name.partition(".")[0]
        if name in ("resume", "experiment") or group.startswith("hydra"):
            continue
        if group in WHERE and name != "runtime.speeds":
            speeds = saved["runtime"].get("speeds") if group == "runtime" else None
            saved[group] = current[group] | ({} if speeds is None else {"speeds": speeds})  # a part of what is run
            continue
        if name in places:
            key = name.removeprefix(f"{group}.")
            saved[group][key] = current[group][key]
            continue
        for key in sorted((set(now) | set(then)) - places):
            if (key == name or key.startswith(name + ".")) and listed(now.get(key)) != listed(then.get(key)):
                differences.append(f"{key}: {then.get(key)!r} in the run, {now.get(key)!r} now")
    if differences:
        raise ConfigError(f"resume={folder}: the configuration changed; " + "; ".join(differences[:8]))
    return saved


def listed(value: object) -> object:
    """``baseline=local_only`` is saved as a list of one, and null as an empty one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
