"""Sums as a person runs them: plain against secure, with a pinned roster, and what result and statement say."""

import json
import shlex
import sqlite3

import pytest

from medx.aggregation.__main__ import main
from medx.aggregation.roster import Roster
from tests.program import TINY, call

SUMMED = ("privacy=distributed_dp", "privacy.delta=1e-3", "trainer.sampling_probability=0.5", "federation.num_rounds=3")
KEPT = tuple(part for part in TINY if not part.startswith(("trainer.", "federation.num_rounds")))
BASE = (*KEPT, "trainer.expected_batch_size=null")


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    ran = call(tmp_path_factory.mktemp("secure"), *SUMMED, base=BASE)
    assert ran.code == 0, ran.err
    return ran.result


def metrics(result):
    return {name: interval.value for name, interval in result.test.items()}


def test_plain_and_secure_runs_end_in_the_same_metrics_under_the_same_noise(secure, tmp_path, monkeypatch):
    trusted = ("aggregation=plain", "privacy.trusted_aggregator=true")
    plain = call(tmp_path / "plain", *SUMMED, *trusted, base=BASE).result
    assert metrics(plain) != metrics(secure)  # how updates are summed is one of the things that key the noise
    monkeypatch.setattr("medx.job.draw_key", lambda config: "one for both")
    pair = [call(tmp_path / f"same{i}", *SUMMED, *how, base=BASE).result for i, how in enumerate(((), trusted))]
    assert metrics(pair[0]) == metrics(pair[1])
    assert plain.privacy.aggregation.model_dump(exclude_none=True) == {"secure": False}
    assert "the server (trusted)" in plain.privacy.epsilon_by_observer
    local = ("privacy=local_dp", "privacy.delta=1e-3", "federation.num_rounds=1")  # later rounds have other noise
    pair = [call(tmp_path / f"local {name}", *local, f"aggregation={name}").result for name in ("secure", "plain")]
    assert metrics(pair[0]) == pytest.approx(metrics(pair[1]), abs=1e-3)
    assert "holds towards everybody" in pair[0].privacy.statement


def test_the_result_says_what_the_protocol_stands_against(secure):
    aggregation = secure.privacy.aggregation
    assert (aggregation.num_clients, aggregation.threshold, aggregation.minimum_survivors) == (3, 3, 3)
    assert aggregation.tolerated_colluders == {"curious": 1, "lying": 1}
    assert aggregation.trust_domain == "one"
    assert len(bytes.fromhex(aggregation.roster_hash)) == 32
    text = secure.privacy.statement
    colluders = "with up to 1 colluding hospital, and from one that lies with up to 1"
    for said in (aggregation.roster_hash, "One trust domain", colluders, "beyond that, colluders can have", "X25519"):
        assert said in text
    assert len(secure.privacy.epsilon_by_observer) == 4
    assert secure.privacy.epsilon == pytest.approx(secure.rounds[-1].epsilon)


def test_a_pinned_roster_is_asked_for_made_and_used(tmp_path, capsys):
    path = tmp_path / "keys" / "roster.json"
    given = (*SUMMED, f"aggregation.roster={path}")
    refusal = call(tmp_path / "first", *given, base=BASE).refusal
    assert f"aggregation.roster={path}: no such file; accepted: what this makes: python -m medx.aggregation" in refusal
    assert main(command(refusal)) == 0
    result = call(tmp_path / "second", *given, base=BASE).result
    roster = Roster.load(path)
    assert result.privacy.aggregation.roster_hash == roster.digest.hex()
    changed = call(tmp_path / "third", *given, "privacy.clip_norm=0.2", base=BASE).refusal
    for name in ("run_id", "clip_norm = 0.1 where this run has 0.2"):
        assert name in changed
    assert main(command(changed)) == 0  # of the same identities, so "separate" now: public keys were given
    again = call(tmp_path / "fourth", *given, "privacy.clip_norm=0.2", base=BASE).result
    assert Roster.load(path).trust_domain == "separate"
    assert again.privacy.aggregation.trust_domain == "one"  # one process held them all, whatever the roster says
    (path.parent / "client1.pem").unlink()
    missing = call(tmp_path / "fifth", *given, "privacy.clip_norm=0.2", base=BASE).refusal
    assert "no identity of client 1" in missing
    capsys.readouterr()


def command(refusal: str) -> list[str]:
    """The arguments of the command that a refusal names."""
    return shlex.split(refusal.partition("what this makes: python -m medx.aggregation ")[2])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("aggregation=plain",), "aggregation=plain: privacy=distributed_dp hides a record behind the sum's noise"),
        (("federation.num_clients=2",), "federation.num_clients=2: aggregation=secure takes at least 3"),
        (("federation=krum", "federation.num_malicious_clients=0"), "aggregation=secure with federation=krum"),
        (("federation=fedmedian", "aggregation=plain", "privacy.trusted_aggregator=true"), "federation=fedmedian"),
        (("aggregation.threshold=2",), "aggregation.threshold=2"),
        (("privacy=central_dp", "privacy.delta=1e-2", "baseline=local_only"), "baseline=local_only"),
    ],
)
def test_refusals_name_the_key(tmp_path, overrides, text):
    kept = () if overrides[0].startswith("privacy=") else SUMMED
    assert text in call(tmp_path, *kept, *overrides, base=BASE).refusal


def test_a_baseline_of_shared_noise_takes_the_same_steps(tmp_path):
    """One client alone adds all of the noise itself, with the server's momentum: the same run with one hospital."""
    ran = call(tmp_path, *SUMMED, "baseline=centralized", base=BASE)
    assert ran.code == 0, ran.err
    assert ran.result.baselines["centralized"]["auc"].value is not None
    (ledger,) = (ran.folder / "baselines").rglob("*.sqlite")
    with sqlite3.connect(ledger) as database:
        assert database.execute("SELECT sum(steps) FROM rounds").fetchone() == (3,)


def test_central_dp_runs_and_resumes(tmp_path):
    given = (
        "privacy=central_dp",
        "privacy.delta=1e-2",
        "privacy.target_quantile=0.5",
        "federation.fraction_clients=0.7",
    )
    given += ("federation.num_clients=6", "trainer.local_steps=2", "federation.num_rounds=4")
    whole = call(tmp_path / "whole", *given, base=BASE)
    assert whole.code == 0, whole.err
    text = whole.result.privacy.statement
    assert "one hospital with all its records" in text
    assert "(Andrew et al. 2021), estimated with noise" in text
    result = json.loads((whole.folder / "result.json").read_text())["privacy"]
    assert (result["unit"], result["clients"][0]["steps"]) == ("client", 4)
