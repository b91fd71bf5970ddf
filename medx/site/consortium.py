"""The consortium: which hospitals train together and where, signed by its coordinator; and the plan of one."""

import hashlib
import ipaddress
import json
import re
from collections.abc import Hashable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from medx.aggregation.keys import is_identity, verified
from medx.aggregation.roster import public_key_of
from medx.files import replaced
from medx.hints import nearest
from medx.schema import ConfigError

FILE, SIGNATURE, PINNED = "consortium.json", "consortium.sig", "coordinator.pub"
SHOWN = 100  # characters of a value in an error
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
NAME = "1 to 41 of a-z, 0-9 and -, with a letter or digit first"
Model = TypeVar("Model", bound=BaseModel)


def openssh_line(key: EllipticCurvePublicKey) -> str:
    """A public key as ``flwr supernode register`` reads it: one line, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _identity(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text) or not is_identity(bytes.fromhex(text)):
        raise ValueError("no Ed25519 public key, or one of small order")
    return text


def _node_key(text: str) -> str:
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    # One spelling of a key, so that two hospitals cannot have the same one with two comments.
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1) or openssh_line(key) != text:
        raise ValueError("no P-384 public key in OpenSSH's form without a comment")
    return text


def _host(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.split(".")
        if len(text) > 253 or labels[-1].isdigit() or not all(LABEL.fullmatch(label) for label in labels):
            raise ValueError("neither a host's name nor an address") from None
    return text


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description=NAME)]
Identity = Annotated[str, AfterValidator(_identity), Field(description="64 hex digits of an Ed25519 public key")]
NodeKey = Annotated[str, AfterValidator(_node_key), Field(description="a line ecdsa-sha2-nistp384 ... of a .pub")]
Host = Annotated[str, AfterValidator(_host), Field(description="a name such as medx.example.org, or an IP address")]
Port = Annotated[int, Field(strict=True, ge=1, le=65535, description="1 to 65535")]


class Member(BaseModel):
    """A hospital: its Ed25519 identity (hex) and its P-384 node key (OpenSSH), None while it is not enrolled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    identity: Identity | None = None
    node: NodeKey | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.identity is None) != (self.node is None):
            raise ValueError("one key of two")
        return self


class Consortium(BaseModel):
    """Who trains together; a hospital's number is its place in ``hospitals``.

    ``coordinator`` is the Ed25519 public key (hex) that signs studies and this; certificates end at the start of
    ``expires``, UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    host: Host
    port: Port = 8000
    coordinator: Identity
    hospitals: Annotated[
        tuple[Member, ...],
        Field(
            min_length=1, description="at least one, each with a name and both keys of its own, or null while unknown"
        ),
    ]
    expires: Annotated[date, Field(description="a date such as 2030-12-31")]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct("hospitals", "name", [member.name for member in self.hospitals])
        check_distinct("hospitals", "identity", [member.identity for member in self.hospitals if member.identity])
        check_distinct("hospitals", "node key", [member.node for member in self.hospitals if member.node])
        if self.coordinator in [member.identity for member in self.hospitals]:
            raise ValueError("hospitals: one has the coordinator's identity; accepted: distinct identities")
        return self

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def enrolled(self) -> bool:
        """Whether the keys of all hospitals are known."""
        return all(member.identity for member in self.hospitals)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON (keys sorted, no spaces), 64 hex digits."""
        return hashlib.sha256(self._bound_to("consortium")).hexdigest()

    def number(self, name: str) -> int:
        """The place of a hospital; raises ConfigError where it has none."""
        names = [member.name for member in self.hospitals]
        if name not in names:
            raise ConfigError(f"hospital {name[:SHOWN]!r} is not of consortium {self.name}; {nearest(name, names)}")
        return names.index(name)

    def save(self, folder: Path, signing_key: Ed25519PrivateKey) -> None:
        """Write ``consortium.json`` and ``consortium.sig`` (hex); raises ConfigError unless it is the coordinator's."""
        signer = signing_key.public_key().public_bytes_raw().hex()
        if signer != self.coordinator:
            raise ConfigError(f"signing key {signer}; accepted: the key of coordinator = {self.coordinator}")
        # Both are written before either is put in place.
        with replaced(folder / FILE) as content, replaced(folder / SIGNATURE) as signature:
            content.write_text(self.model_dump_json(indent=1) + "\n")
            signature.write_text(signing_key.sign(self._bound_to("consortium signature")).hex() + "\n")

    @classmethod
    def load(cls, folder: Path, coordinator: str | None = None) -> "Consortium":
        """Read and verify; raises ConfigError.

        The signature is of the key that the file names, which must be ``coordinator``, and the one in the folder's
        ``coordinator.pub`` if it is there.
        """
        found = read_json(cls, folder / FILE)
        pinned = [coordinator] if coordinator else []
        if (folder / PINNED).exists():
            pinned.append(public_key_of(read_text(folder / PINNED)).hex())
        for key in pinned:
            if key != found.coordinator:
                raise ConfigError(
                    f"{folder / FILE}: coordinator = {found.coordinator}; accepted: {key}, which this folder began with"
                )
        signature = read_text(folder / SIGNATURE).strip()
        if not is_signed(found.coordinator, found._bound_to("consortium signature"), signature):
            raise ConfigError(
                f"{folder / SIGNATURE}: no signature by the coordinator of this {FILE}; accepted: both files as the "
                "coordinator sent them"
            )
        return found

    def _bound_to(self, purpose: str) -> bytes:
        return canonical(purpose, self.model_dump(mode="json"))


class Plan(BaseModel):
    """What a person writes of a consortium.

    ``keys`` says who makes the hospitals' keys, ``days`` how long the certificates hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    host: Host
    port: Port = 8000
    hospitals: Annotated[
        tuple[Name, ...], Field(min_length=1, max_length=1000, description=f"1 to 1000 distinct names, each {NAME}")
    ]
    days: Annotated[int, Field(strict=True, ge=1, le=825, description="1 to 825")] = 365
    keys: Annotated[Literal["hospital", "coordinator"], Field(description="hospital, coordinator")] = "coordinator"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct("hospitals", "name", self.hospitals)
        return self


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file; raises ConfigError that names the key."""
    return checked(Plan, read_yaml(path), path)


def canonical(purpose: str, content: object) -> bytes:
    """Canonical JSON behind its purpose, so that what is signed for one is worth nothing for another."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"medx {purpose} v1\x00{text}".encode()


def is_signed(key: str, message: bytes, signature: str) -> bool:
    """Whether an Ed25519 signature (128 hex digits) by a public key (64) holds."""
    return bool(re.fullmatch("[0-9a-f]{128}", signature)) and verified(
        bytes.fromhex(key), message, bytes.fromhex(signature)
    )


def check_distinct(key: str, what: str, values: list[Any] | tuple[Any, ...]) -> None:
    """Raise ValueError, which names a value that is there twice."""
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"{key}: two with {what} {twice[0]!r}; accepted: distinct ones")


def read_text(path: Path) -> str:
    """The text of a file; raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; accepted: a file of `medx site init`") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no text; accepted: a text file in UTF-8") from None


def read_json(model: type[Model], path: Path) -> Model:
    """A checked model in a JSON file; raises ConfigError that names the key."""
    try:
        return model.model_validate_json(read_text(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_refusal(error, model)}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises ConfigError with the line that is none."""
    try:
        return yaml.load(read_text(path), _Once)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {error.problem}; accepted: YAML with one key a line") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a control code, the 40th of a month, brackets without end
        raise ConfigError(f"{path}: no YAML; accepted: YAML with one key a line") from None


class _Once(yaml.SafeLoader):
    """A loader for which a key that is there twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Raises ConstructorError for a second one."""
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def checked(model: type[Model], content: object, path: Path) -> Model:
    """A model of what a file holds; raises ConfigError that names the key."""
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: no keys; accepted: {', '.join(model.model_fields)}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_refusal(error, model)}") from None


def _refusal(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words: the key, its value, what is accepted."""
    fault = error.errors()[0]
    key, text = ".".join(str(part) for part in fault["loc"])[:SHOWN], fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # a check of several keys, which says all; or no JSON
        return text if "accepted:" in text else f"{text}; accepted: the keys {', '.join(model.model_fields)}"
    if fault["type"] == "extra_forbidden":
        return f"{key!r} is unknown; {nearest(key, list(model.model_fields))}"
    accepted = model.model_fields[str(fault["loc"][0])].description
    if fault["type"] == "missing":
        return f"{key} is missing; accepted: {accepted}"
    return f"{key} = {repr(fault['input'])[:SHOWN]}: {text[0].lower()}{text[1:]}; accepted: {accepted}"
