"""The roster: who takes part in a run and under which public parameters; pinned before it and hashed.

Each participant has a long-lived Ed25519 identity, in a file that only its owner can read.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medx.aggregation.keys import is_identity
from medx.aggregation.ring import HALF_RING, check_ring_bound
from medx.schema import ConfigError

TrustDomain = Literal["one", "separate"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_CLIENTS = 1 << 16
SHOWN = 200  # characters of a value in an error


def default_threshold(num_clients: int) -> int:
    """``floor(2 n / 3) + 1``, the default: it tolerates some colluders beside a server that lies; a majority none."""
    return 2 * num_clients // 3 + 1


def default_survivors(num_clients: int, threshold: int | None = None) -> int:
    """As few survivors as the threshold allows: a sum of fewer than three tells two clients each other's update."""
    return max(threshold or default_threshold(num_clients), 3)


def flag(name: str) -> str:
    """A parameter on the command line: ``--rounds`` for ``num_rounds``."""
    return "--" + name.removeprefix("num_").replace("_", "-")


class Parameters(BaseModel):
    """The public parameters of a run; their descriptions are the command line's help too.

    ``noise_stddev`` is new in every attempt. Multiplier, clip norm and probability are None where training is not
    private.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: Annotated[str, Field(min_length=1, max_length=1024, description="name of the run; never use one twice")]
    dimension: Annotated[int, Field(ge=1, lt=2**31, description="words in the masked vector: parameters plus metrics")]
    scale: Annotated[Positive, Field(description="grid units to one unit of the update")]
    bound: Annotated[Positive, Field(description="largest coordinate of one client's update, in units of the update")]
    num_rounds: Annotated[int, Field(ge=1, lt=2**31, description="rounds in the run")]
    max_attempts: Annotated[int, Field(ge=1, lt=2**31, description="how often a round may be tried (default: 3)")] = 3
    noise_stddev: Annotated[int, Field(ge=0, lt=HALF_RING, description="one client's noise in grid units (default: 0)")]
    noise_multiplier: Annotated[Positive | None, Field(description="sigma of the sum's noise, for the record")]
    clip_norm: Annotated[Positive | None, Field(description="clip norm of a record, for the record")]
    sampling_probability: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None, Field(description="Poisson sampling probability q, for the record")
    ]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, checked like any other: pydantic's own would check nothing."""
        return type(self)(**(self.model_dump() | dict(update or {})))


class Roster(Parameters):
    """Parameters and identities. Client i signs with ``public_keys[i]`` (Ed25519, 64 hex digits).

    ``trust_domain`` is "one" in a simulation, where all roles share a process and nothing is hidden from anybody.
    """

    public_keys: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...]
    threshold: int
    minimum_survivors: int
    trust_domain: TrustDomain

    @model_validator(mode="after")
    def _check(self) -> Self:
        n, smallest = self.num_clients, self.num_clients // 2 + 1  # below a majority, two sets could both be confirmed
        if n < 3:
            raise ValueError(f"public_keys: {n} clients; accepted: at least 3")
        if n > MAX_CLIENTS:
            raise ValueError(f"public_keys: {n} clients; accepted: at most {MAX_CLIENTS}")
        if len(set(self.public_keys)) != n:
            raise ValueError("public_keys: two clients with one key; accepted: distinct keys")
        weak = [number for number, key in enumerate(self.identities) if not is_identity(key)]
        if weak:
            raise ValueError(
                f"public_keys.{weak[0]} = {self.public_keys[weak[0]]}: no Ed25519 public key, or one of small order; "
                "accepted: a key of `medx.aggregation identity`"
            )
        if not smallest <= self.threshold <= n:
            raise ValueError(f"threshold = {self.threshold}; accepted: {smallest} to {n} for {n} clients")
        least = max(self.threshold, 3)
        if not least <= self.minimum_survivors <= n:
            raise ValueError(f"minimum_survivors = {self.minimum_survivors}; accepted: {least} to {n}")
        return self

    @property
    def num_clients(self) -> int:
        """How many clients, n."""
        return len(self.public_keys)

    @property
    def total_noise(self) -> float:
        """Standard deviation of the sum's noise in grid units when everybody survives."""
        return self.noise_stddev * math.sqrt(self.num_clients)

    @property
    def opened_once(self) -> bool:
        """Whether a round is opened at most once: two sums without new noise differ in one client's exact words."""
        return self.noise_stddev == 0

    @property
    def tolerated_colluders(self) -> dict[str, int]:
        """Clients that may collude with a server that follows the protocol, and with one that lies.

        t - 1 of them open no mask. A lying server can tell two survivor sets to two groups of honest clients; with
        2 t - n colluders or more both sets reach t signatures, so beside it the bound is 2 t - n - 1 (Bonawitz et al.
        2017, theorem 6.5). Beside either, two honest clients must be left in the smallest sum: colluders subtract
        their own parts, and have the part of the only other one.
        """
        hidden = self.minimum_survivors - 2
        beside_a_liar = 2 * self.threshold - self.num_clients - 1
        return {"curious": min(self.threshold - 1, hidden), "lying": min(beside_a_liar, hidden)}

    @cached_property
    def identities(self) -> tuple[bytes, ...]:
        """The public keys as 32 bytes each."""
        return tuple(bytes.fromhex(key) for key in self.public_keys)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON (keys sorted, no spaces, shortest floats), 32 bytes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"medx roster v1\x00" + text.encode()).digest()

    def check(self) -> None:
        """Prove the ring bound; raises ConfigError."""
        check_ring_bound(self.scale, self.num_clients, self.bound, self.total_noise)

    def save(self, path: Path) -> None:
        """Write JSON that a person can read."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Roster":
        """Read and check a roster; raises ConfigError that names the file and the field."""
        try:
            roster = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"roster {path}: {error.strerror}; accepted: a file of `medx.aggregation roster`"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"roster {path}: no text; accepted: a file of `medx.aggregation roster`") from None
        except ValidationError as error:
            raise ConfigError(f"roster {path}: {_first(error)}") from None
        roster.check()
        return roster


def make_roster(
    parameters: Parameters,
    public_keys: Sequence[bytes],
    threshold: int | None,
    minimum_survivors: int | None,
    trust_domain: TrustDomain,
) -> Roster:
    """A checked roster; None means the smallest threshold, and as few survivors as it allows. ConfigError else."""
    threshold = default_threshold(len(public_keys)) if threshold is None else threshold
    try:
        roster = Roster(
            **parameters.model_dump(),
            public_keys=tuple(key.hex() for key in public_keys),
            threshold=threshold,
            minimum_survivors=max(threshold, 3) if minimum_survivors is None else minimum_survivors,
            trust_domain=trust_domain,
        )
    except ValidationError as error:
        raise ConfigError(f"aggregation: {_first(error)}") from None
    roster.check()
    return roster


def simulated_roster(
    parameters: Parameters, num_clients: int, threshold: int | None = None, minimum_survivors: int | None = None
) -> tuple[Roster, tuple[Ed25519PrivateKey, ...]]:
    """A roster with fresh identities for a simulation, marked as one trust domain, and the identities."""
    identities = tuple(Ed25519PrivateKey.generate() for _ in range(num_clients))
    keys = [identity.public_key().public_bytes_raw() for identity in identities]
    return make_roster(parameters, keys, threshold, minimum_survivors, "one"), identities


def public_key_of(text: str) -> bytes:
    """32 bytes from hex; raises ConfigError unless they are an Ed25519 public key, and not one of small order."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if not is_identity(key):
        raise ConfigError(f"public key {text.strip()[:70]!r}; accepted: 64 hex digits of an Ed25519 key")
    return key


def write_identity(folder: Path, name: str, identity: Ed25519PrivateKey | None = None) -> Ed25519PrivateKey:
    """Make an identity: ``NAME.pem`` (PKCS 8, mode 0600) and ``NAME.pub`` (hex). ConfigError if it exists."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = identity or Ed25519PrivateKey.generate()
    path = folder / f"{name}.pem"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists; accepted: a new name, an identity is never overwritten") from None
    with os.fdopen(handle, "wb") as file:
        file.write(identity.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix(".pub").write_text(identity.public_key().public_bytes_raw().hex() + "\n")
    return identity


def read_identity(path: Path) -> Ed25519PrivateKey:
    """The private key of ``write_identity``; ConfigError if it is none or others may read it."""
    try:
        mode = path.stat().st_mode & 0o777
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"identity {path}; accepted: a .pem of `medx.aggregation identity`") from None
    if mode & 0o077:
        raise ConfigError(f"identity {path} has mode {mode:o}; accepted: 600, readable by its owner alone")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"identity {path} is a {type(key).__name__}; accepted: an Ed25519 private key")
    return key


def find_identities(folder: Path, public_keys: tuple[bytes, ...]) -> tuple[Ed25519PrivateKey, ...]:
    """The private keys of these public ones among the ``.pem`` files of a folder; ConfigError if one is missing."""
    found = {}
    for path in sorted(folder.glob("*.pem")):
        identity = read_identity(path)
        found[identity.public_key().public_bytes_raw()] = identity
    missing = [number for number, key in enumerate(public_keys) if key not in found]
    if missing:
        raise ConfigError(
            f"aggregation.roster: no identity of client {missing[0]} in {folder}; accepted: its .pem file"
        )
    return tuple(found[key] for key in public_keys)


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    text = fault["msg"].removeprefix("Value error, ")
    value = repr(fault["input"])
    return f"{place}: {text}, got {value[:SHOWN]}" if place else text
