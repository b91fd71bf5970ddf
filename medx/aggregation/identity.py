"""A hospital's long-lived Ed25519 identity: a private key that only its owner can read."""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from medx.schema import ConfigError


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
