"""From Hydra's configuration to a typed Experiment; every mistake ends in one line that names the key."""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from medx.folder import read_config
from medx.schema import CONF, ConfigError, identity_of, option_of

if TYPE_CHECKING:
    from medx.experiment import Experiment
    from medx.tracking.tracker import Tracking

GROUPS = ("dataset", "partition", "model", "trainer", "privacy", "federation", "aggregation", "runtime", "tracking")
# What a run's numbers do not depend on, so that it is known by the same hash wherever and whenever it runs.
WHERE = ("cache", "tracking", "runtime")
NOT_KEPT = ("jobs", "noise")
# Nor where its files lie.
PLACES = (("privacy", "ledger"), ("aggregation", "roster"), ("dataset", "root"), ("dataset", "download"))
NOT_HASHED = ("seed", "resume", "study", "select", "device", *WHERE)
# Nor how a step is computed, within rounding. (Secret draws do depend on it: see draw_key.)
HOW = (("trainer", "gradient_mode"), ("trainer", "micro_batch_size"))
NO_OVERRIDE = "{}: not an override; accepted: key=value, +key=value, ~key; a value with = or blanks in quotes"


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
        return {key: self._identified(key, value) for key, value in self.config.items()}

    @property
    def hash(self) -> str:
        """Sixteen hex digits that name the configuration whatever its seed and wherever it runs."""
        hashed = {
            key: {name: each for name, each in value.items() if (key, name) not in HOW} if key in GROUPS else value
            for key, value in self.what.items()
            if key not in NOT_HASHED
        }
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]

    def _identified(self, key: str, value: Any) -> Any:
        """A group under its component's name and without its paths; anything else as it is."""
        if key not in GROUPS:
            return value
        part = self.tracking if key == "tracking" else getattr(self.experiment, key)
        kept = {name: each for name, each in value.items() if name != "_target_" and (key, name) not in PLACES}
        return {"component": identity_of(type(part)), **kept}


def typed(config: dict[str, Any]) -> Composed:
    """Build every component; raises ConfigError with one line."""
    from medx.experiment import Experiment

    built = {group: build(config, group) for group in GROUPS}
    tracking = built["tracking"] = built["tracking"].settled(Path.cwd())
    scalars = {key: value for key, value in config.items() if key not in (*GROUPS, "resume")}
    parts = {group: part for group, part in built.items() if group != "tracking"}
    experiment: Experiment = construct(Experiment, scalars | parts, "")
    values = {key: held(getattr(experiment, key), key) for key in scalars}
    return Composed(experiment, tracking, values | {group: named(config, group, part) for group, part in built.items()})


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


def config_hash(config: dict[str, Any]) -> str:
    """The hash of the configuration that this one is once it is typed."""
    return typed(config).hash


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


def describe(problem: Any, prefix: str, fields: dict[str, Any], names: list[str], option: str) -> str:
    """One pydantic problem in words: the key, its value, what is accepted."""
    path = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in fields) or str(
        problem["loc"][0] if problem["loc"] else ""
    )
    key = prefix + path
    if problem["type"] == "unexpected_keyword_argument":
        return elsewhere(key, option) or f"{key} is unknown; {nearest(path, names)}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key} is missing"
    return f"{key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def nearest(word: str, choices: list[str]) -> str:
    """A hint with the closest valid names, or all of them where nothing is close."""
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    last = word.rsplit(".", 1)[-1]
    close += [choice for choice in choices if choice.rsplit(".", 1)[-1] == last and choice not in close]
    names = close or sorted(choices)
    return ("did you mean " if close else "accepted: ") + ", ".join(names[:12])


def keys_of(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested configuration."""
    for key, value in config.items():
        if str(key).startswith("_"):
            continue
        yield prefix + str(key)
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def options_of(group: str) -> list[str]:
    """The options of a group: its yaml files, less those that are only shared parts."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def explain(error: Exception, overrides: list[str]) -> str:
    """Hydra's own errors in one line, with the nearest valid names."""
    text = " ".join(" ".join(chain_of(error)).split())
    removed = [part[1:] for part in overrides if part[:1] == "~" and part[1:] in GROUPS]
    if removed:
        return f"~{removed[0]}: every run needs this group; accepted: {', '.join(options_of(removed[0]))}"
    explanations: dict[str, Callable[[re.Match[str]], str]] = {
        r"Could not override '([\w.@/+~]+)'": lambda found: unknown_key(found[1].lstrip("+~"), overrides),
        r"Key '([\w.]+)' is not in struct": lambda found: unknown_key(found[1], overrides),
        r"Could not (?:find|load) '?(\w+)/([\w-]*)(?![\w/-])": lambda found: unknown_option(found[1], found[2]),
        r"Ambiguous value for argument '([^']+)'": lambda found: (
            f"{found[1]}: several values; add -m at the end to run a job for each, or write a list as [a,b]"
        ),
        r"Error parsing override '(.*?)' ": lambda found: NO_OVERRIDE.format(found[1]),
        r"NoViableAltException: (.*?) \^": lambda found: NO_OVERRIDE.format(found[1]),
        r"Config group override must be": lambda found: not_an_option(overrides),
    }
    for pattern, explanation in explanations.items():
        if match := re.search(pattern, text):
            return explanation(match)
    return re.split(r" full_key:| Config search path:", text)[0]


def not_an_option(overrides: list[str]) -> str:
    """What to say where a group was given anything else than the name of an option."""
    given = [part.split("=", 1) for part in overrides if "=" in part]
    return "; ".join(unknown_option(key, name) for key, name in given if key in GROUPS and name not in options_of(key))


def unknown_key(key: str, overrides: list[str]) -> str:
    """What to say of a key that the chosen options do not have."""
    group = key.partition(".")[0]
    chosen = listed_choices(CONF / "config.yaml") | choices_of(overrides)
    return elsewhere(key, chosen.get(group, "")) or f"{key} is unknown; {nearest(key, known_keys(overrides))}"


def elsewhere(key: str, option: str) -> str | None:
    """What to say of a key that ``option`` of its group lacks and others have; None where no option has it."""
    group = key.partition(".")[0]
    owners = [name for name in options_of(group) if key in keys_of_option(group, name)]
    if not owners:
        return None
    return (
        f"{key} has no meaning with {group}={option}; it needs {', '.join(f'{group}={name}' for name in owners)}; "
        f"accepted with {group}={option}: {', '.join(keys_of_option(group, option)) or 'no key'}"
    )


def unknown_option(group: str, name: str) -> str:
    """What to say of an option that a group does not have."""
    others = [other for other in GROUPS if name in options_of(other)]
    hint = f" (there is {others[0]}={name})" if others else ""
    return f"{group}={name} is unknown{hint}; {nearest(name, options_of(group))}"


def chain_of(error: BaseException) -> Iterator[str]:
    """The messages of an error and of what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield str(current)
        current = current.__cause__ or current.__context__


def choices_of(overrides: list[str]) -> dict[str, str]:
    """The options that a command line chooses, by group, also by an experiment; of a sweep over options the first."""
    pairs = (part.lstrip("+").split("=", 1) for part in overrides if "=" in part)
    first = {key: value.split(",")[0] for key, value in pairs}
    chosen = {key: value for key, value in first.items() if key in GROUPS}
    return listed_choices(CONF / "experiment" / f"{first.get('experiment')}.yaml") | chosen


def listed_choices(path: Path) -> dict[str, str]:
    """The options that a file's defaults list chooses, by group; none where there is no such file."""
    content = yaml.safe_load(path.read_text()) if path.exists() else {}
    pairs = [pair for entry in content.get("defaults", []) if isinstance(entry, dict) for pair in entry.items()]
    chosen = {key.removeprefix("override ").removeprefix("/"): str(name) for key, name in pairs}
    return {group: name for group, name in chosen.items() if group in GROUPS}


def known_keys(overrides: list[str]) -> list[str]:
    """Keys that the chosen options have, for hints; groups of the command line are honoured."""
    chosen = choices_of(overrides)
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())
    keys = [key for key in keys_of({k: v for k, v in defaults.items() if k not in ("defaults", "hydra")})]
    for group in GROUPS:
        names = [chosen[group]] if group in chosen else options_of(group)
        keys += [group, *(key for name in names for key in keys_of_option(group, name))]
    return sorted(set(keys))


@cache
def keys_of_option(group: str, name: str) -> tuple[str, ...]:
    """The dotted keys that one option of a group has."""
    return tuple(f"{group}.{key}" for key in keys_of(option(group, name)))


def option(group: str, name: str) -> dict[str, Any]:
    """One option's own yaml with the shared parts that it lists."""
    path = CONF / group / f"{name}.yaml"
    if not path.exists():
        return {}
    content = yaml.safe_load(path.read_text()) or {}
    merged: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            merged |= option(group, entry.lstrip("/").rsplit("/", 1)[-1])
    # An option that sets other groups too has them side by side.
    own: dict[str, Any] = content[group] if isinstance(content.get(group), dict) else content
    return merged | own


def resumed_config(folder: Path, current: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of the run to resume; refuses an override that differs from it, and shows where.

    Where it runs and where it is recorded may change, when an override says so.
    """
    _, _, saved = read_config(folder)
    groups = {override.lstrip("+~").split("=", 1)[0].partition(".")[0].partition("@")[0] for override in overrides}
    current = {  # what is compared, as its component holds it
        key: named(current, key, build(current, key)) if key in GROUPS and key in groups else value
        for key, value in current.items()
    }
    now, then = dict(flat(current)), dict(flat(saved))
    differences = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        name = "privacy.noise_source" if name == "noise" else name
        group = name.partition(".")[0]
        if name in ("resume", "experiment") or group.startswith("hydra"):
            continue
        if group in WHERE:
            saved[group] = current[group]
            continue
        if (place := tuple(name.split("."))) in PLACES:
            saved[place[0]][place[1]] = current[place[0]][place[1]]
            continue
        for key in sorted(set(now) | set(then)):
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
