"""What ends up in a log or a traceback: the ``repr`` of what holds a secret shows none."""

import dataclasses
from pathlib import Path
from typing import Any

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.integer_noise import NoiseStream
from medx.aggregation.messages import Unmask
from medx.aggregation.participant import Participant
from medx.aggregation.roster import simulated_roster
from tests.aggregation.conftest import MODEL, Script, parameters

from .sum_examples import DIMENSION, forget, make, site_of

SEED = 918_273_645


def shown(secret: bytes | str | int, *objects: Any) -> bool:
    """Whether the text of any object shows the secret, as bytes or as hex digits."""
    text = "\n".join(f"{thing!r} {thing!s}" for thing in objects)
    if isinstance(secret, bytes):
        return repr(secret)[2:-1] in text or secret.hex() in text
    return str(secret) in text


def secrets_in(thing: Any) -> list[bytes]:
    """All bytes of 32 or more that a dataclass holds."""
    held = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    many = [value for entry in held if isinstance(entry, dict) for value in entry.values()]
    return [value for value in (*held, *many) if isinstance(value, bytes) and len(value) >= 32]


class Parties:
    """What a script of the protocol needs, of three clients."""

    def __init__(self) -> None:
        self.roster, self.identities = simulated_roster(parameters(dimension=DIMENSION), 3)
        self.clients = [Participant(self.roster, i, self.identities[i]) for i in range(3)]


def test_no_stage_of_the_protocol_shows_a_secret() -> None:
    parties = Parties()
    flow = Script(parties, Coordinator(parties.roster, 0, 0, MODEL))  # type: ignore[arg-type]
    flow.shares()
    client = parties.clients[0]
    public = {client.state.keys_message, MODEL}
    secrets = [secret for secret in secrets_in(client.state) if secret not in public]
    assert len(secrets) >= 5  # the seed, its mask key, and what it shares with its peers
    identity = parties.identities[0].private_bytes_raw()
    for secret in [*secrets, identity]:
        assert not shown(secret, client.state, client, parties.roster, flow.server, client.context)
    key = bytes(range(32))
    share = b"\x00" + key
    assert not shown(share, Unmask(0, MODEL, {1: share}, {2: share}))
    assert not shown(key, NoiseStream(key))


def test_no_part_of_a_job_shows_an_identity_a_seed_or_a_record(tmp_path: Path) -> None:
    job = make(tmp_path, seed=SEED)
    site = site_of(job)
    local = site.hospital(0)
    objects = (job, job.setup, job.plan, job.sums, site, site.prepared, local)
    try:
        for identity in job.sums.identities.values():  # type: ignore[attr-defined]
            assert not shown(identity, *objects)
        assert not shown(SEED, job.setup, job.plan, site, site.prepared, local)  # a roster is named by it
        assert not any(word in repr(thing) for thing in objects for word in ("tensor(", "array("))
    finally:
        forget(job)
