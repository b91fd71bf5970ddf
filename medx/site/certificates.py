"""Certificates and node keys: a certificate authority of a consortium's own, and what Flower reads of it.

All keys are ECDSA over P-384; a private file is made once, with mode 0600, and never overwritten.
"""

import ipaddress
import secrets
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from medx.files import created
from medx.schema import ConfigError
from medx.site.consortium import openssh_line

AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.pem", "server.key"
NODE_KEY, NODE, SECRET = "node.key", "node.pub", "exec.secret"
LOCAL = ("localhost", "127.0.0.1")  # by which the coordinator's own programs reach the server
CLOCK = timedelta(days=1)  # by which a hospital's clock may be slow
SOON = 30  # days
USES = ("digital_signature", "key_cert_sign", "crl_sign")


def write_private(path: Path, content: bytes) -> None:
    """Make a file that its owner alone can read; raises ConfigError if it exists."""
    try:
        with created(path, private=True) as aside:
            aside.write_bytes(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists; accepted: a folder without it, a key is never overwritten") from None


def make_secret(folder: Path) -> None:
    """``exec.secret``: 32 random bytes in hex, which a SuperLink or SuperNode shares with its executor."""
    write_private(folder / SECRET, secrets.token_hex(32).encode())  # Flower takes every byte, also a line's end


def make_node_key(folder: Path) -> str:
    """``node.key`` and ``node.pub``, both in OpenSSH's form, which is what Flower reads; gives the public line."""
    key = generate_private_key(SECP384R1())
    write_private(folder / NODE_KEY, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    line = openssh_line(key.public_key())
    (folder / NODE).write_text(line + "\n")
    return line


def make_authority(folder: Path, name: str, expires: date) -> None:
    """``ca.key`` and ``ca.crt``: it signs servers, and no other authority."""
    key = generate_private_key(SECP384R1())
    subject = _subject(f"{name} authority")
    certificate = (
        _begun(subject, key, expires)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_uses("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, SHA384())
    )
    write_private(folder / AUTHORITY_KEY, _pem(key))
    (folder / AUTHORITY).write_bytes(certificate.public_bytes(Encoding.PEM))


def make_server(folder: Path, host: str, expires: date) -> None:
    """``server.key`` and ``server.pem`` for a host, localhost and 127.0.0.1, by the authority in the folder."""
    authority = read_certificate(folder / AUTHORITY)
    signer = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), None)
    assert isinstance(signer, EllipticCurvePrivateKey)
    key = generate_private_key(SECP384R1())
    names = [_name(host), *(_name(local) for local in LOCAL if local != host)]
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _begun(_subject("server"), key, expires)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_uses("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(by, critical=False)
        .sign(signer, SHA384())
    )
    write_private(folder / SERVER_KEY, _pem(key))
    (folder / SERVER).write_bytes(certificate.public_bytes(Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file; raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; accepted: a certificate in PEM") from None
    except ValueError:
        raise ConfigError(f"{path}: no certificate; accepted: a certificate in PEM") from None


def expiry(path: Path) -> datetime:
    """When a certificate ends, UTC; raises ConfigError."""
    return read_certificate(path).not_valid_after_utc


def days_left(path: Path) -> int:
    """Whole days until a certificate ends, negative once it has; raises ConfigError."""
    return (expiry(path) - datetime.now(UTC)).days


def warnings_of(folder: Path) -> list[str]:
    """A line for every certificate in a kit or a coordinator's folder that has ended or soon ends (30 days)."""
    lines = []
    for path in (folder / AUTHORITY, folder / SERVER):
        left = days_left(path) if path.exists() else SOON + 1
        if left <= SOON:
            when = "ended" if left < 0 else f"ends in {left} days,"
            lines.append(f"{path} {when} on {expiry(path):%Y-%m-%d}; accepted: a new one by `medx site init`")
    return lines


def _begun(subject: x509.Name, key: EllipticCurvePrivateKey, expires: date) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK)
        .not_valid_after(datetime.combine(expires, time(), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"MedX {name}")])


def _uses(*allowed: str) -> x509.KeyUsage:
    none = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(**{use: use in allowed for use in (*USES, *none)}, encipher_only=False, decipher_only=False)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
