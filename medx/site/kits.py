"""The folders of a consortium: one for its coordinator and a startup kit a hospital, and how a hospital is enrolled.

A hospital's private keys are made in its kit, by the hospital or, in a rehearsal or where the coordinator is trusted
with them, by the coordinator; either way what is enrolled are the public keys in ``enrolment.json``.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, ValidationError

from medx import __version__
from medx.aggregation.roster import read_identity, write_identity
from medx.files import write_text
from medx.schema import ConfigError
from medx.site.certificates import (
    AUTHORITY,
    AUTHORITY_KEY,
    NODE,
    NODE_KEY,
    SECRET,
    SERVER,
    SERVER_KEY,
    make_authority,
    make_node_key,
    make_secret,
    make_server,
)
from medx.site.consortium import (
    FILE,
    PINNED,
    SHOWN,
    SIGNATURE,
    Consortium,
    Identity,
    Member,
    Name,
    NodeKey,
    Plan,
    canonical,
    is_signed,
    read_json,
)
from medx.site.site_config import FILE as SITE
from medx.site.site_config import SiteConfig

COORDINATOR, KITS, NODES, FLOWER, DECLARED = "coordinator", "kits", "nodes", "flwr", "declarations"
SUMS, ENROLMENT, POLICY = "SHA256SUMS", "enrolment.json", "policy.yaml"
FIRST_NODE_PORT = 9094
HOSPITAL_FILES = {
    "README.md": "README_hospital.md",
    SITE: SITE,
    "medx-node.service": "medx-node.service",
    "medx-site.service": "medx-site.service",
    "compose.yaml": "compose_hospital.yaml",
}
COORDINATOR_FILES = {
    "README.md": "README_coordinator.md",
    "medx-coordinator.service": "medx-coordinator.service",
    "compose.yaml": "compose_coordinator.yaml",
    "door.conf": "door.conf",
}

# What a person changes has no checksum, nor has the consortium, which is signed and comes again.
SUMMED = (
    *(PINNED, "coordinator.pem", AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY, SECRET),
    *(NODE, NODE_KEY, "identity.pem", "identity.pub", ENROLMENT),
    *sorted({*HOSPITAL_FILES, *COORDINATOR_FILES} - {SITE}),
)
TEMPLATES = files("medx.site") / "templates"


class Enrolment(BaseModel):
    """A hospital's public keys, signed by its identity (hex) for one consortium: it has the private key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consortium: Name
    coordinator: Identity
    name: Name
    identity: Identity
    node: NodeKey
    signature: str = ""

    @property
    def signed_part(self) -> bytes:
        """All but the signature."""
        return canonical("enrolment", self.model_dump(mode="json", exclude={"signature"}))


def init(plan: Plan, folder: Path) -> Consortium:
    """Make ``coordinator/`` and ``kits/NAME/`` in a folder that is new or empty; raises ConfigError else."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is in use; accepted: a new or an empty folder")
    coordinator = folder / COORDINATOR
    for made in (coordinator, coordinator / NODES, coordinator / FLOWER, coordinator / DECLARED, folder / KITS):
        made.mkdir(mode=0o700, parents=True)
    key = write_identity(coordinator, COORDINATOR)
    consortium = Consortium(
        name=plan.name,
        host=plan.host,
        port=plan.port,
        coordinator=key.public_key().public_bytes_raw().hex(),
        hospitals=tuple(Member(name=name) for name in plan.hospitals),
        expires=(datetime.now(UTC) + timedelta(days=plan.days + 1)).date(),  # it ends when that day begins
    )
    consortium.save(coordinator, key)
    make_authority(coordinator, plan.name, consortium.expires)
    make_server(coordinator, plan.host, consortium.expires)
    make_secret(coordinator)
    words = _words(plan, consortium)
    _render(coordinator, COORDINATOR_FILES, words)
    write_flower_config(coordinator, consortium)
    ports = (port for port in count(FIRST_NODE_PORT) if port != plan.port)  # all may be on one machine
    kits = [_make_kit(folder, words | {"hospital": name, "node_port": next(ports)}) for name in plan.hospitals]
    if plan.keys == "coordinator":
        consortium = enrol(coordinator, [make_keys(kit) for kit in kits])
        for kit in kits:
            _copy(coordinator, kit, FILE, SIGNATURE)
    for sealed in (coordinator, *kits):
        write_sums(sealed)
    return consortium


def make_keys(kit: Path) -> Path:
    """Make a hospital's node key, identity and secret in its kit; gives ``enrolment.json``, for the coordinator.

    Raises ConfigError where one of them exists.
    """
    name = SiteConfig.load(kit).name
    consortium = Consortium.load(kit)
    consortium.number(name)
    for path in (kit / "identity.pem", kit / NODE_KEY, kit / SECRET):
        if path.exists():
            raise ConfigError(f"{path} exists; accepted: a kit without keys, a key is never overwritten")
    node = make_node_key(kit)
    make_secret(kit)
    identity = write_identity(kit, "identity")
    unsigned = Enrolment(
        consortium=consortium.name,
        coordinator=consortium.coordinator,
        name=name,
        identity=identity.public_key().public_bytes_raw().hex(),
        node=node,
    )
    signature = identity.sign(unsigned.signed_part).hex()
    write_text(kit / ENROLMENT, unsigned.model_copy(update={"signature": signature}).model_dump_json(indent=1) + "\n")
    write_sums(kit)
    return kit / ENROLMENT


def enrol(coordinator_folder: Path, enrolments: Sequence[Path]) -> Consortium:
    """Put hospitals' public keys into the consortium and sign it anew; raises ConfigError, and then changes nothing."""
    key = read_identity(coordinator_folder / f"{COORDINATOR}.pem")
    consortium = Consortium.load(coordinator_folder)
    members = list(consortium.hospitals)
    for path in enrolments:
        member = _checked_enrolment(path, consortium)
        place = consortium.number(member.name)
        if members[place].identity is not None and members[place] != member:
            raise ConfigError(f"{path}: hospital {member.name} is enrolled with other keys; accepted: its first ones")
        members[place] = member
    try:
        enrolled = Consortium.model_validate(consortium.model_dump() | {"hospitals": members})
    except ValidationError as error:  # keys of another
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{', '.join(str(path) for path in enrolments)}: {text}") from None
    enrolled.save(coordinator_folder, key)
    for member in members:
        if member.node is not None:
            write_text(coordinator_folder / NODES / f"{member.name}.pub", member.node + "\n")
    write_sums(coordinator_folder)
    return enrolled


def write_flower_config(coordinator_folder: Path, consortium: Consortium) -> None:
    """Write ``flwr/config.toml``, for FLWR_HOME; again where the folder has moved: Flower wants absolute paths."""
    certificate = json.dumps(str((coordinator_folder / AUTHORITY).absolute()), ensure_ascii=False)
    lines = (
        '[superlink]\ndefault = "medx"\n',
        f'[superlink.medx]\naddress = "127.0.0.1:{consortium.port}"\nroot-certificates = {certificate}\n',
    )
    write_text(coordinator_folder / FLOWER / "config.toml", "\n".join(lines))


def write_sums(folder: Path) -> None:
    """``SHA256SUMS`` of the folder's files that nobody changes by hand, as ``sha256sum -c`` reads it."""
    paths = [folder / name for name in SUMMED if (folder / name).exists()]
    paths += (folder / NODES).glob("*.pub")
    sums = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def _checked_enrolment(path: Path, consortium: Consortium) -> Member:
    found = read_json(Enrolment, path)
    for key, expected in (("consortium", consortium.name), ("coordinator", consortium.coordinator)):
        if getattr(found, key) != expected:
            raise ConfigError(f"{path}: {key} = {getattr(found, key)[:SHOWN]}; accepted: {expected}")
    if not is_signed(found.identity, found.signed_part, found.signature):
        raise ConfigError(f"{path}: no signature by its identity; accepted: a file of `medx site keys` as it was made")
    return Member(name=found.name, identity=found.identity, node=found.node)


def _words(plan: Plan, consortium: Consortium) -> dict[str, Any]:
    """What the templates name. They need no escapes: names, host and port are checked."""
    return {
        "consortium": consortium,
        "keys": plan.keys,
        "medx": __version__,
        "flower": version("flwr"),
        "door_port": 8443 if plan.port != 8443 else 8444,  # it shares the SuperLink's network
    }


def _make_kit(folder: Path, words: Mapping[str, Any]) -> Path:
    kit = folder / KITS / words["hospital"]
    kit.mkdir(mode=0o700)
    _copy(folder / COORDINATOR, kit, FILE, SIGNATURE, PINNED, AUTHORITY)
    _render(kit, HOSPITAL_FILES, words)
    policy = TEMPLATES / POLICY
    if policy.is_file():
        (kit / POLICY).write_text(policy.read_text(encoding="utf-8"))
    return kit


def _render(folder: Path, names: Mapping[str, str], words: Mapping[str, Any]) -> None:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    for name, template in names.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        (folder / name).write_text(environment.from_string(text).render(words), encoding="utf-8")


def _copy(source: Path, target: Path, *names: str) -> None:
    for name in names:
        shutil.copyfile(source / name, target / name)
