import dataclasses
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medx.aggregation import PlainAggregation, SecureAggregation
from medx.aggregation.__main__ import main
from medx.aggregation.keys import is_identity
from medx.aggregation.participant import Participant
from medx.aggregation.roster import Roster, make_roster, public_key_of, read_identity, simulated_roster
from medx.schema import ConfigError

from .conftest import parameters

CONF = Path(__file__).parents[2] / "conf" / "aggregation"
ROSTER = ["--run-id", "s1", "--dimension", "9", "--scale", "1024", "--bound", "90", "--rounds", "3"]


def secure(**changes) -> SecureAggregation:
    values = yaml.safe_load((CONF / "secure.yaml").read_text())
    del values["_target_"]
    return SecureAggregation(**(values | changes))


def test_hash_is_pinned_and_covers_every_field(tmp_path: Path) -> None:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32).public_key().public_bytes_raw() for i in range(5)]
    roster = make_roster(parameters(), keys, None, None, "separate")
    assert (roster.threshold, roster.minimum_survivors) == (4, 4)
    assert roster.digest.hex() == "5f130cf7ed8d754aca8a82dc6c570cffbae952e44c8f07b8e2db907ff43ecb64"
    roster.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == roster
    assert Roster.load(tmp_path / "roster.json").digest == roster.digest
    changes = {
        "run_id": "other",
        "dimension": 18,
        "scale": 2.0,
        "bound": 99.0,
        "num_rounds": 2,
        "max_attempts": 4,
        "noise_stddev": 1,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "sampling_probability": 0.5,
        "threshold": 5,
        "minimum_survivors": 5,
        "trust_domain": "one",
        "public_keys": tuple(reversed(roster.public_keys)),
    }
    assert set(changes) == set(Roster.model_fields)
    for name, value in changes.items():
        extra = {"minimum_survivors": 5} if name == "threshold" else {}
        assert Roster(**(roster.model_dump() | extra | {name: value})).digest != roster.digest, name


TWIST = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03"  # an y of order 8, and of one with the other x
MINUS = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc"
SMALL = {"0": "00", "0-": "00" * 31 + "80", "1": "01", "8a": TWIST + "7a", "8b": TWIST + "fa", "8c": MINUS + "05"}
SMALL |= {"8d": MINUS + "85", "2": "ec" + "ff" * 30 + "7f"}
NOT_CANONICAL = {"p": "ed" + "ff" * 30 + "7f", "p+1": "ee" + "ff" * 30 + "7f", "1-": "01" + "00" * 30 + "80"}
NOT_CANONICAL |= {
    "p-": "ed" + "ff" * 31,
    "p+1-": "ee" + "ff" * 31,
    "-1-": "ec" + "ff" * 31,
    "p+3": "f0" + "ff" * 30 + "7f",
}


@pytest.mark.parametrize("key", [k.ljust(64, "0") for k in (SMALL | NOT_CANONICAL | {"no point": "02"}).values()])
def test_an_identity_of_small_order_or_in_another_spelling_is_refused(key: str, tmp_path: Path) -> None:
    """Under a key of order 8 a signature that nobody had to make fits every eighth message, in OpenSSL too."""
    roster, _ = simulated_roster(parameters(), 3)
    text = roster.model_dump_json().replace(roster.public_keys[1], key)
    (tmp_path / "roster.json").write_text(text)
    with pytest.raises(ConfigError, match=r"roster\.json: public_keys\.1 = .*, or one of small order"):
        Roster.load(tmp_path / "roster.json")
    with pytest.raises(ConfigError, match="small order"):
        make_roster(parameters(), [*roster.identities[:2], bytes.fromhex(key)], None, None, "one")
    with pytest.raises(ConfigError, match="accepted: 64 hex digits of an Ed25519 key"):
        public_key_of(key)


def test_the_keys_of_the_standard_and_fresh_ones_are_accepted() -> None:
    # RFC 8032, section 7.1, tests 1 to 3.
    for key in (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    ):
        assert public_key_of(key + "\n").hex() == key
    assert all(is_identity(Ed25519PrivateKey.generate().public_key().public_bytes_raw()) for _ in range(20))


def test_a_copy_is_checked_like_the_first_and_has_a_hash_of_its_own() -> None:
    roster, _ = simulated_roster(parameters(), 5)
    with pytest.raises(ValueError, match="threshold = 2; accepted: 3 to 5"):
        roster.model_copy(update={"threshold": 2})
    with pytest.raises(ValueError, match="num_rounds"):
        parameters().model_copy(update={"num_rounds": -1})
    changed = roster.model_copy(update={"clip_norm": 2.0})
    assert changed.digest != roster.digest
    assert changed.model_copy(update={"clip_norm": None}) == roster
    assert changed.model_copy(update={"clip_norm": None}).digest == roster.digest


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", b"", b"[" * 100_000, b'{"noise_stddev": 1' + b"0" * 400 + b"}", b'{"run_id": "\\ud800"}'],
    ids=["no text", "empty", "deep", "large", "surrogate"],
)
def test_a_file_that_is_no_roster_is_refused_in_one_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "roster.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"roster\.json") as caught:
        Roster.load(tmp_path / "roster.json")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("n", "threshold", "minimum", "text"),
    [
        (5, 2, None, "threshold = 2; accepted: 3 to 5 for 5 clients"),
        (5, 6, None, "threshold = 6"),
        (5, None, 3, "minimum_survivors = 3; accepted: 4 to 5"),
        (20, None, 21, "minimum_survivors = 21; accepted: 14 to 20"),
        (2, None, None, "2 clients; accepted: at least 3"),
    ],
)
def test_thresholds_that_are_refused(n: int, threshold: int | None, minimum: int | None, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        simulated_roster(parameters(), n, threshold, minimum)


def test_a_majority_is_allowed_and_costs_the_colluders_beside_a_lying_server() -> None:
    roster, _ = simulated_roster(parameters(), 5, 3)
    assert (roster.minimum_survivors, roster.tolerated_colluders) == (3, {"curious": 1, "lying": 0})


def test_ring_bound_and_colluders() -> None:
    with pytest.raises(ConfigError, match=r"2\^31"):
        simulated_roster(parameters(noise_stddev=2**27), 5)
    roster, identities = simulated_roster(parameters(), 20)
    assert roster.trust_domain == "one"
    assert roster.tolerated_colluders == {"curious": 12, "lying": 7}
    assert Participant(roster, 19, identities[19]).number == 19
    three, _ = simulated_roster(parameters(), 3)  # two colluders subtract their own parts from the sum of three
    assert three.tolerated_colluders == {"curious": 1, "lying": 1}
    whole, _ = simulated_roster(parameters(), 5, None, 5)  # with nobody missing the masks are the bound
    assert whole.tolerated_colluders == {"curious": 3, "lying": 2}


def test_command_makes_identities_and_a_roster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("north", "south", "west"):
        assert main(["identity", "--name", name, "--folder", str(tmp_path / "keys")]) == 0
    private = tmp_path / "keys" / "north.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    publics = [
        argument
        for name in ("north", "south", "west")
        for argument in ("--public-key", str(tmp_path / f"keys/{name}.pub"))
    ]
    path = tmp_path / "roster.json"
    assert main(["roster", "--output", str(path), *ROSTER, *publics]) == 0
    roster = Roster.load(path)
    assert roster.trust_domain == "separate"
    assert Participant(roster, 0, read_identity(private)).number == 0
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    assert roster.digest.hex() in capsys.readouterr().out
    assert main(["identity", "--name", "north", "--folder", str(tmp_path / "keys")]) == 2
    assert "never overwritten" in capsys.readouterr().err
    private.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 644; accepted: 600"):
        read_identity(private)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clients", "5"], "--folder"),
        (["--public-key", "none.pub"], "none.pub"),
        (["--clients", "5", "--folder", "k", "--threshold", "2"], "threshold = 2"),
        (["--clients", "5", "--folder", "k", "--bound", "1e9"], "2^31"),
        (["--clients", "5", "--folder", "k", "--sampling-probability", "2"], "--sampling-probability"),
    ],
)
def test_command_refuses_in_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["roster", "--output", "roster.json", *ROSTER, *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not Path("roster.json").exists()


def test_yaml_keys_are_the_fields() -> None:
    for name, cls in (("plain", PlainAggregation), ("secure", SecureAggregation)):
        values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        assert values.pop("_target_") == f"{cls.__module__}.{cls.__name__}"
        assert set(values) == {field.name for field in dataclasses.fields(cls)}
        cls(**values)


def test_component_refusals(tmp_path: Path) -> None:
    secure().check_strategy("fedavg")
    PlainAggregation(minimum_survivors=None).check_strategy("krum")
    for strategy in ("fedmedian", "fedtrimmedavg", "krum"):
        with pytest.raises(ConfigError, match=f"federation={strategy}"):
            secure().check_strategy(strategy)
    assert (secure().survivors_for(5), secure(minimum_survivors=5).survivors_for(5)) == (4, 5)
    assert secure().scale_for(5, 90.0, 6.5) == 2.0**21
    assert secure(scale=8.0).scale_for(5, 90.0, 6.5) == 8.0
    with pytest.raises(ConfigError, match="roster=null"):
        secure().pinned(parameters(), 5)
    roster, _ = secure().enrolled(parameters(), 5)
    roster.save(tmp_path / "r.json")
    assert secure(roster=tmp_path / "r.json").pinned(parameters(), 5) == roster
    with pytest.raises(
        ConfigError, match=r"dimension = 17 where this run has 18, clip_norm = None where this run has 1\.0"
    ):
        secure(roster=tmp_path / "r.json").pinned(parameters(clip_norm=1.0, dimension=18), 5)
    with pytest.raises(ConfigError, match="5 public keys for 4 clients"):
        secure(roster=tmp_path / "r.json").pinned(parameters(), 4)
    with pytest.raises(ConfigError, match="no such file; accepted: what this makes: python -m medx"):
        secure(roster=tmp_path / "none.json").pinned(parameters(), 5)
