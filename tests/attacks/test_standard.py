"""attack=standard: what it tells, and that it leaves the run as it is."""

import numpy as np
import pytest

import medx
from medx import job
from medx.schema import ConfigError

QUICK = (
    "dataset=phantom", "dataset.size=16", "dataset.num_train=300", "model=scatternet", "model.basis=none",
    "federation.num_clients=3", "federation.num_rounds=2", "tracking=none",
)  # fmt: skip


def test_attacks_stand_beside_the_claim_and_change_nothing_of_the_run(tmp_path) -> None:
    plain, attacked = (
        medx.run(*QUICK, "privacy=local_dp", f"attack={attack}", folder=tmp_path / attack, quiet=True)
        for attack in ("none", "standard")
    )
    assert plain.attacks == []
    assert [each.observer for each in attacked.attacks] == ["server", "whoever gets the model"]
    for each in attacked.attacks:
        assert each.claimed == pytest.approx(attacked.privacy.epsilon)
        assert each.against == []
        assert 0 < each.found < each.claimed
    assert attacked.released().attacks == []
    assert (plain.config_hash, plain.test, plain.privacy) == (attacked.config_hash, attacked.test, attacked.privacy)
    assert [each.metrics for each in plain.rounds] == [each.metrics for each in attacked.rounds]
    states = [dict(medx.load_model(tmp_path / attack).state_dict()) for attack in ("none", "standard")]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    left = {path.name for path in (tmp_path / "standard").iterdir()}
    assert left == {path.name for path in (tmp_path / "none").iterdir()}


def test_without_privacy_every_record_shows(tmp_path) -> None:
    result = medx.run(*QUICK, "privacy=none", "attack=standard", folder=tmp_path, quiet=True)
    assert {each.claimed for each in result.attacks} == {None}
    assert min(each.shift for each in result.attacks) > 10
    assert "claimed nothing" in result.attacks[0].line()


def test_what_cannot_be_attacked_is_refused_before_anything_is_trained(tmp_path) -> None:
    patients = ("dataset=pneumoniamnist", "privacy.unit=patient", "tracking=none", "attack=standard")
    with pytest.raises(ConfigError, match=r"attack=standard: privacy.unit=patient: canaries are images"):
        medx.run(*patients, folder=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_stands_where_its_attacks_come_to_no_end(tmp_path, monkeypatch, caplog) -> None:
    def fails(*args: object) -> None:
        raise ConfigError("canaries=400: too few features")

    monkeypatch.setattr(job, "attacked", fails)
    result = medx.run(*QUICK, "privacy=local_dp", "attack=standard", folder=tmp_path, quiet=True)
    assert result.status == "finished"
    assert result.attacks == []
    assert medx.load_result(tmp_path).test == result.test
    assert "attack=standard came to no end: canaries=400: too few features" in caplog.text
