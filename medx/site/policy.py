"""Which studies a hospital admits: its own policy, checked before data is read. What is not allowed is refused.

What a study asks comes from outside: a rule compares it so that NaN, infinity, None and values of another kind fail,
and shows it as one line of plain letters.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Integral, Real
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

import medx
from medx.hints import nearest
from medx.output import plain_text
from medx.schema import MedxError

TEMPLATE = Path(__file__).parent / "templates" / "policy.yaml"
DIGEST = r"[0-9a-f]{64}"
SHOWN = 64  # letters of a value in an error or a table: a digest
WIDTHS = (19, 26, 22, 7)  # of the table's columns, with two spaces between them: 80
LATER = "later"  # what this check leaves to the ledger or to a person

Mechanism = Literal["local_dp", "distributed_dp", "central_dp", "none"]
Hex = Annotated[str, Field(pattern=f"^{DIGEST}$")]
Name = Annotated[str, Field(min_length=1)]
Unit = Literal["record", "patient", "client"]
Source = Literal["system", "seed"]
Listed = Field(strict=False)  # YAML has lists, no tuples
# YAML 1.1 takes 1e-4 for text.
Number = Annotated[
    float,
    BeforeValidator(lambda value: float(value) if isinstance(value, str) else value),
    Field(gt=0, allow_inf_nan=False),
]


class PolicyError(MedxError):
    """A study that the hospital's policy does not admit, or a policy that cannot be used; ``rules`` names why."""

    def __init__(self, text: str, rules: tuple[str, ...] = ("policy",)) -> None:
        super().__init__(text)
        self.rules = rules


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a study asks of this hospital, as the hospital itself works it out.

    ``study`` is its digest, ``epsilon`` that of the unit here over the whole run with every reserved step (None: no
    guarantee), ``num_records`` the hospital's own training records, ``coordinator`` a public key as 64 hex digits, as
    are the ``peers``, the other hospitals.
    """

    study: str
    title: str
    datasets: str
    mechanism: str
    epsilon: float | None
    delta: float | None
    unit: str | None
    noise_source: str
    secure: bool
    num_hospitals: int
    peers: tuple[str, ...]
    assumed_colluders: int
    minimum_survivors: int
    num_rounds: int
    max_abstentions: int | None
    model: str
    version: str
    num_records: int
    coordinator: str


@dataclass(frozen=True)
class Refusal:
    """A rule that a study breaks, and how."""

    rule: str
    text: str


class Policy(BaseModel):
    """A hospital's rules; the template says what each means. An empty list allows nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    approval: Literal["prompt", "listed"] = "prompt"
    studies: Annotated[tuple[Hex, ...], Listed] = ()
    datasets: Annotated[tuple[Name, ...], Listed] = ()
    models: Annotated[tuple[Name, ...], Listed] = ()
    versions: Annotated[tuple[Name, ...], Listed] | None = None
    mechanisms: Annotated[tuple[Mechanism, ...], Listed] = ()
    units: Annotated[tuple[Unit, ...], Listed] = ()
    max_epsilon: Number
    max_delta: Annotated[Number, Field(lt=1)]
    total_epsilon: Number
    noise_sources: Annotated[tuple[Source, ...], Listed] = ("system",)
    secure_aggregation: bool = True
    trusted_server: Hex | None = None
    peers: Annotated[tuple[Hex, ...], Field(strict=False)] | None = None
    assumed_colluders: Annotated[int, Field(ge=0)] = 0
    minimum_hospitals: Annotated[int, Field(ge=1)]
    minimum_survivors: Annotated[int, Field(ge=1)]
    minimum_records: Annotated[int, Field(ge=1)]
    maximum_rounds: Annotated[int, Field(ge=1)]
    maximum_abstentions: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("minimum_hospitals", "minimum_survivors"):
            if self.secure_aggregation and getattr(self, name) < 3:  # a sum of two tells each the other's update
                raise ValueError(f"{name} = {getattr(self, name)}; accepted: at least 3 with secure_aggregation: true")
        if self.studies and self.approval == "prompt":
            raise ValueError("studies has no meaning with approval: prompt; accepted: [], or approval: listed")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a policy; raises PolicyError where it is missing, others may write to it, or it is wrong."""
        try:
            with path.open("rb") as handle:
                mode = os.fstat(handle.fileno()).st_mode & 0o777
                text = handle.read()
        except FileNotFoundError:
            raise PolicyError(f"{path} is missing: nothing is allowed; accepted: a policy made of {TEMPLATE}") from None
        except OSError as error:
            raise PolicyError(f"{path}: {error.strerror}: nothing is allowed; accepted: a file to read") from None
        if mode & 0o022:
            raise PolicyError(f"{path} has mode {mode:o}; accepted: 600 or 644, no other user may write (chmod 600)")
        try:
            return cls.model_validate(_content(text))
        except ValidationError as error:
            raise PolicyError(plain_text(f"{path}: {_fault(error)}")) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise PolicyError(plain_text(f"{path}: {reason}; accepted: YAML as in {TEMPLATE}")) from None


@dataclass(frozen=True)
class _Rule:
    name: str
    holds: bool
    asked: str
    allowed: str
    lead: str = "the study asks for"


def refusals(policy: Policy, asked: Asked) -> list[Refusal]:
    """Every rule that the study breaks; none where it keeps them all."""
    broken = [rule for rule in _rules(policy, asked) if not rule.holds]
    return [Refusal(rule.name, f"{rule.lead} {rule.asked}, accepted: {rule.allowed}") for rule in broken]


def check(policy: Policy, asked: Asked) -> None:
    """Raise PolicyError that names every rule which the study breaks."""
    if broken := refusals(policy, asked):
        text = "; ".join(f"{refusal.rule}: {refusal.text}" for refusal in broken)
        raise PolicyError(f"policy: {text}", tuple(refusal.rule for refusal in broken))


def as_table(policy: Policy, asked: Asked) -> str:
    """Each rule, what is allowed, what the study asks and whether that is ok: plain text, 80 columns."""
    rules = _rules(policy, asked)
    rows = [(rule.name, rule.allowed, rule.asked, "ok" if rule.holds else "refused") for rule in rules]
    epsilon = "no guarantee" if asked.epsilon is None else shown(asked.epsilon)
    rows.append(("total_epsilon", f"at most {shown(policy.total_epsilon)} in all runs", epsilon, LATER))
    by = "a person approves each" if policy.approval == "prompt" else "each that is listed"
    rows.append(("approval", by, "", LATER if policy.approval == "prompt" else "ok"))
    heads = (("study", asked.study), ("title", asked.title), ("coordinator", asked.coordinator))
    lines = [f"{name:<12}{shown(value)}" for name, value in heads] + [""]
    for row in [("rule", "allowed", "the study", ""), *rows]:
        cells = [wrap(cell, width) for cell, width in zip(row, WIDTHS, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(f"{part:<{width}}" for part, width in zip(parts, WIDTHS, strict=True)).rstrip())
    broken = [rule.name for rule in rules if not rule.holds]
    lines += ["", *wrap(f"refused by {', '.join(broken)}" if broken else "no rule refuses it", sum(WIDTHS))]
    return "\n".join(lines) + "\n"


def _rules(policy: Policy, asked: Asked) -> list[_Rule]:
    # One without a guarantee has no epsilon, delta, unit, noise or limit of abstentions, where it is let in.
    bare = _among(asked.mechanism, ("none",)) and "none" in policy.mechanisms and asked.epsilon is None
    prompt = policy.approval == "prompt"
    known = is_digest(asked.study) if prompt else _among(asked.study, policy.studies)
    trusted = (policy.trusted_server,) if policy.trusted_server else ()
    seen = "sums under masks" if asked.secure is True else "single updates"
    return [
        _Rule("studies", known, shown(asked.study), "any digest" if prompt else f"{len(policy.studies)} listed"),
        _one_of("datasets", asked.datasets, policy.datasets),
        _one_of("models", asked.model, policy.models),
        _one_of("versions", asked.version, (medx.__version__,) if policy.versions is None else policy.versions),
        _one_of("mechanisms", asked.mechanism, policy.mechanisms),
        _one_of("units", asked.unit, policy.units, bare and asked.unit is None),
        _at_most("max_epsilon", asked.epsilon, policy.max_epsilon, Real, free=bare, absent="no guarantee"),
        _at_most("max_delta", asked.delta, policy.max_delta, Real, free=bare),
        _one_of("noise_sources", asked.noise_source, policy.noise_sources, bare),
        _Rule(
            "secure_aggregation",
            asked.secure is True or (asked.secure is False and not policy.secure_aggregation),
            seen,
            "only sums under masks" if policy.secure_aggregation else "also single updates",
        ),
        _Rule(
            "trusted_server",
            asked.secure is True or _among(asked.coordinator, trusted),
            "nobody" if asked.secure is True else shown(asked.coordinator),
            policy.trusted_server or "nobody",
            "single updates would go to",
        ),
        _peers(policy, asked),
        _at_least(
            "assumed_colluders", asked.assumed_colluders, policy.assumed_colluders, free=asked.secure is not True
        ),
        _at_least("minimum_hospitals", asked.num_hospitals, policy.minimum_hospitals),
        _at_least("minimum_survivors", asked.minimum_survivors, policy.minimum_survivors),
        _at_least("minimum_records", asked.num_records, policy.minimum_records, "this hospital has"),
        _at_most("maximum_rounds", asked.num_rounds, policy.maximum_rounds, Integral),
        _at_most(
            "maximum_abstentions",
            asked.max_abstentions,
            policy.maximum_abstentions,
            Integral,
            free=bare,
            absent="no limit",
        ),
    ]


def _one_of(name: str, value: object, allowed: tuple[str, ...], free: bool = False) -> _Rule:
    return _Rule(name, free or _among(value, allowed), shown(value), ", ".join(allowed) or "nothing")


def _at_most(name: str, value: Any, most: float, kind: type, *, free: bool = False, absent: str = "none") -> _Rule:
    holds = (free and value is None) or (_is_number(value, kind) and 0 <= value <= most)
    return _Rule(name, bool(holds), absent if value is None else shown(value), f"at most {shown(most)}")


def _peers(policy: Policy, asked: Asked) -> _Rule:
    """The other hospitals, which could all be the coordinator's own: known ones where the policy lists them."""
    peers = asked.peers if isinstance(asked.peers, tuple) else ("",)
    known = all(is_digest(peer) and (policy.peers is None or peer in policy.peers) for peer in peers)
    allowed = "any" if policy.peers is None else f"{len(policy.peers)} known identities"
    return _Rule("peers", known, f"{len(peers)} others", allowed)


def _at_least(name: str, value: Any, least: int, lead: str = "the study asks for", *, free: bool = False) -> _Rule:
    holds = free or (_is_number(value, Integral) and value >= least)
    return _Rule(name, bool(holds), shown(value), f"at least {least}", lead)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _among(value: object, allowed: Sequence[str]) -> bool:
    return isinstance(value, str) and value in allowed


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 as 64 lowercase hex digits."""
    return isinstance(value, str) and re.fullmatch(DIGEST, value) is not None


def shown(value: object) -> str:
    """A value from outside as one line of plain letters, of bounded length."""
    try:
        text = str(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "a number of too many digits"
    text = plain_text(text.removesuffix(".0") if isinstance(value, float) else text)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _content(text: bytes) -> dict[str, Any]:
    """The keys of a policy's YAML; a key that stands twice is an error, as YAML would take the last."""
    node = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("no keys: nothing is allowed")
    keys = [str(key.value) for key, _ in node.value]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]} stands twice")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _fault(error: ValidationError) -> str:
    """The first fault: the key, its value, what is accepted; an unknown key before one that is missing."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key} is unknown; {nearest(key, list(Policy.model_fields))}"
    if fault["type"] == "missing":
        return f"{key} is missing; accepted: a value as in {TEMPLATE}"
    text = re.sub(r"^\w+ should (be )?", "", fault["msg"].removeprefix("Value error, ")).replace("tuple", "list")
    return f"{key} = {shown(fault['input'])}; accepted: {text}" if key else text
