"""What to say of a configuration that cannot be: one line with the key, its value and the nearest that is accepted."""

import difflib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medx.schema import CONF, GROUPS

MOST_NAMES = 40
NO_OVERRIDE = (
    "{}: not an override; accepted: key=value, +key=value, ~key; a value with = , ( ) [ ] or blanks in two pairs of "
    "quotes: \"key='a (b)'\""
)


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
    return ("did you mean " if close else "accepted: ") + ", ".join(
        names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], "..."]
    )


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
    if option in owners:  # Hydra composes a sweep over a group first with the group's own default
        return f"{key}: in a sweep over {group} accepted as ++{key}=VALUE, as the default option has no such key"
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
