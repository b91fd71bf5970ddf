"""From Hydra's configuration to a typed Experiment; every mistake ends in one line that names the key."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from medx.schema import CheckpointError, ConfigError

GROUPS = ("dataset", "partition", "model", "trainer", "privacy", "federation", "aggregation", "runtime", "tracking")
# What a run's numbers do not depend on, so that it is known by the same hash wherever and whenever it runs.
NOT_HASHED = ("seed", "resume", "study", "cache", "tracking", "runtime")
CONF = Path(__file__).parent.parent / "conf"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def config_hash(config: dict[str, Any]) -> str:
    """Sixteen hex digits that name a configuration whatever its seed; with the seed they name a run."""
    hashed = {key: value for key, value in config.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def build(config: dict[str, Any], key: str) -> Any:
    """The component that ``config[key]`` describes; raises ConfigError naming ``key.field`` and what it may be."""
    fields = dict(config[key])
    target = get_class(fields.pop("_target_"))
    return construct(target, fields, key + ".")


def construct(target: Any, fields: dict[str, Any], prefix: str) -> Any:
    """Call ``target`` with the fields; pydantic's errors become one line each."""
    try:
        return target(**fields)
    except ValidationError as error:
        problems = [describe(problem, prefix, fields) for problem in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def describe(problem: Any, prefix: str, fields: dict[str, Any]) -> str:
    """One pydantic problem in words: the key, its value, what is accepted."""
    path = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in fields) or str(
        problem["loc"][0] if problem["loc"] else ""
    )
    key = prefix + path
    if problem["type"] == "unexpected_keyword_argument":
        return f"{key} is unknown here"
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
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        key = match[1].lstrip("+~")
        return f"{key} is unknown; {nearest(key, known_keys(overrides))}"
    if match := re.search(r"Key '([\w.]+)' is not in struct", text):
        return f"{match[1]} is unknown; {nearest(match[1], known_keys(overrides))}"
    if match := re.search(r"In '[^']+': Could not find '(\w+)/([\w-]+)'", text) or re.search(
        r"Could not find '(\w+)/([\w-]+)'", text
    ):
        group, option = match[1], match[2]
        return f"{group}={option} is unknown; {nearest(option, options_of(group))}"
    if match := re.search(r"Could not load '?(\w+)/([\w-]+)", text):
        return f"{match[1]}={match[2]} is unknown; {nearest(match[2], options_of(match[1]))}"
    return text.split(" full_key:")[0]


def chain_of(error: BaseException) -> Iterator[str]:
    """The messages of an error and of what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield str(current)
        current = current.__cause__ or current.__context__


def known_keys(overrides: list[str]) -> list[str]:
    """Keys that the chosen options have, for hints; groups of the command line are honoured."""
    chosen = dict(part.lstrip("+").split("=", 1) for part in overrides if "=" in part)
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())
    keys = [key for key in keys_of({k: v for k, v in defaults.items() if k not in ("defaults", "hydra")})]
    for group in GROUPS:
        names = [chosen[group].split(",")[0]] if group in chosen else options_of(group)
        keys += [group, *(f"{group}.{key}" for name in names for key in keys_of(option(group, name)))]
    return sorted(set(keys))


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
    return merged | content


def resumed_config(folder: Path, current: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration of the run to resume; refuses an override that differs from it, and shows where."""
    saved_path = folder / "config.json"
    if not saved_path.exists():
        raise CheckpointError(f"resume={folder}: no config.json there; give the output folder of a run")
    saved: dict[str, Any] = json.loads(saved_path.read_text())
    now, then = dict(flat(current)), dict(flat(saved))
    differences = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        if name in ("resume", "experiment") or name.startswith(("hydra", "tracking")):
            continue
        for key in sorted(set(now) | set(then)):
            if (key == name or key.startswith(name + ".")) and now.get(key) != then.get(key):
                differences.append(f"{key}: {then.get(key)!r} in the run, {now.get(key)!r} now")
    if differences:
        raise ConfigError(f"resume={folder}: the configuration changed; " + "; ".join(differences[:8]))
    return saved | {"tracking": current["tracking"]}


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
