"""Every option composes and builds, its keys are its class's fields, and mistakes are explained."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from medx.configuration import build, plain, resumed_config, typed
from medx.federation.setup import draw_key
from medx.hints import options_of
from medx.job import cache_at
from medx.privacy.accounting import cache_folder
from medx.schema import CONF, GROUPS, CheckpointError, ConfigError, class_of, identity_of, option_of

OPTIONS = [(group, option) for group in GROUPS for option in options_of(group)]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    return plain(compose("config", list(overrides)))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_builds_and_its_keys_are_the_fields(group: str, option: str) -> None:
    config = composed(f"{group}={option}")
    assert typed(typed(config).config).config == typed(config).config, "what is saved is what a resume builds again"
    component = build(config, group)
    fields = dataclasses.fields(component)
    assert set(config[group]) - {"_target_"} == {field.name for field in fields}
    added = getattr(component, "added", ())
    for field in fields:
        if field.name in added:
            moved = (group, field.name) == ("dataset", "patients")  # unknown before; now the yaml looks for them
            assert moved or field.default == config[group][field.name], "a key that came later is what was before"
            continue
        unset = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert unset, f"{group}.{field.name} has a default outside its yaml"


def test_what_changes_what_noise_is_added_to_has_a_stream_of_its_own(tmp_path: Path) -> None:
    def key(*overrides: str) -> str:
        return draw_key(typed(composed("privacy=distributed_dp", *overrides)).what)

    assert key() == key(f"privacy.ledger={tmp_path}", f"dataset.root={tmp_path}", f"aggregation.roster={tmp_path}")
    folders = [
        typed(composed("dataset=folder", f"dataset.path={tmp_path / name}", f"dataset.csv={name}")) for name in "ab"
    ]
    assert len({(each.hash, draw_key(each.what)) for each in folders}) == 1, (
        "a folder may be moved; its content is told"
    )
    others = (
        *("aggregation.minimum_survivors=5", "aggregation.threshold=3", "aggregation.scale=1000"),
        *("aggregation.update_bound=32", "privacy.clip_norm=1", "trainer.learning_rate=2", "dataset=retinamnist"),
    )
    keys = {key(), *(key(other) for other in others), key("aggregation=plain", "privacy.trusted_aggregator=true")}
    assert len(keys) == 2 + len(others)


def test_components_go_by_the_names_that_they_declare() -> None:
    for group, option in OPTIONS:
        kind = type(build(composed(f"{group}={option}"), group))
        name = identity_of(kind)
        assert name in (f"{group}/{option}", "dataset/medmnist", "trainer/local_training")
        assert name != f"{group}/{option}" or class_of(name) is kind
    for wrong in ("model/nothing", "model/../privacy/none", "os.system", "model/_base", "privacy/"):
        with pytest.raises(ConfigError, match="no component of this version"):
            class_of(wrong)
    known = typed(composed())
    assert "medx." not in json.dumps(known.what)
    assert known.what["privacy"]["component"] == "privacy/local_dp"

    class Derived(type(known.experiment.model)):  # type: ignore[misc]
        pass

    assert identity_of(Derived) == f"{__name__}.{Derived.__qualname__}", "another class is another component"


def test_an_option_is_known_by_its_class_and_an_older_path_by_its_module():
    assert option_of("privacy", "medx.privacy.mechanisms.NoPrivacy") == "none"
    assert option_of("privacy", "medx.privacy.local_dp.LocalDP") == "local_dp"  # where it lay in 0.6.0
    assert option_of("dataset", "medx.dataset.medmnist.MedMNIST") == "medmnist"  # shared by a dozen options
    assert option_of("model", "mine.parts.tiny.Tiny") == "tiny"


def test_how_a_step_is_computed_is_in_the_draws_and_not_in_the_hash() -> None:
    one = typed(composed("model=cnn", "device=cpu"))
    for other in ("trainer.gradient_mode=hooks", "trainer.micro_batch_size=7"):
        two = typed(composed("model=cnn", "device=cpu", other))
        assert one.hash == two.hash
        assert draw_key(one.what) != draw_key(two.what), "its last bits differ, and so must its noise"
    assert typed(composed("model=cnn", "device=auto")).hash == one.hash


def test_the_environment_names_the_tracking_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert composed()["tracking"]["uri"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert typed(composed()).config["tracking"]["uri"] == "http://mlflow:5000"
    assert composed("tracking.uri=null")["tracking"]["uri"] is None


def test_calibrations_go_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDX_CACHE", raising=False)
    with cache_at(tmp_path):
        assert cache_folder() == tmp_path / "accounting"
    assert "MEDX_CACHE" not in os.environ


@pytest.mark.parametrize("experiment", options_of("experiment"))
def test_experiment_builds(experiment: str) -> None:
    config = composed(f"experiment={experiment}")
    assert typed(config).experiment.study  # a preset can set keys of config.yaml itself


def test_a_key_that_is_no_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model.width is unknown; did you mean widths"):
        build(composed("model=cnn", "+model.width=3"), "model")


def test_the_hash_leaves_out_the_seed_and_where_a_run_happens(tmp_path: Path) -> None:
    plain_hash = typed(composed()).hash
    assert typed(composed("seed=7", "runtime=ray", "tracking=none", f"cache={tmp_path}")).hash == plain_hash
    assert typed(composed("privacy.epsilon=9.99")).hash != plain_hash
    assert typed(composed("trainer.local_steps=5")).hash != plain_hash


def test_a_key_that_came_later_moves_no_hash_of_before() -> None:
    now = composed("model=cnn")
    before = {key: value for key, value in now.items() if key not in ("threshold", "personalisation")}
    other = typed(composed("model=cnn", "threshold=prior"))
    assert typed(before).what == typed(now).what
    assert typed(before).hash == typed(now).hash != other.hash
    assert draw_key(other.what) == draw_key(typed(now).what), "what is trained is the same"
    with pytest.raises(ConfigError, match=r"^threshold='bset': input should be 'best' or 'prior'"):
        typed(composed("threshold=bset"))


SPELT = [
    ("privacy.epsilon=10", "privacy.epsilon=10.0", "privacy.epsilon=1e1", "privacy.epsilon='10'"),
    ("trainer.expected_batch_size=20", "trainer.expected_batch_size=20.0", "trainer.expected_batch_size=2e1"),
    ("federation.fraction_clients=1.0", "federation.fraction_clients=1"),
    ("baseline=local_only", "baseline=[local_only]"),
    ("seed=1", "seed=1.0"),
]


@pytest.mark.parametrize("spellings", SPELT)
def test_one_value_spelt_differently_is_one_configuration(spellings: tuple[str, ...], tmp_path: Path) -> None:
    once, *others = [typed(composed(spelt)) for spelt in spellings]
    for other in others:
        assert (other.hash, draw_key(other.what)) == (once.hash, draw_key(once.what))
        assert json.dumps(other.config) == json.dumps(once.config)
    save(tmp_path, spellings[0])
    for spelt in spellings:
        assert resumed_config(tmp_path, composed(spelt), [spelt]) == once.config


def test_where_files_lie_is_fixed_at_the_start_and_is_no_part_of_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("privacy.ledger=ledgers", "dataset.root=data", "cache=c", "tracking.uri=sqlite:///t.db")
    plain_hash = typed(composed()).hash
    monkeypatch.chdir(tmp_path)
    found = typed(composed(*given))
    assert found.hash == plain_hash
    assert draw_key(found.what) == draw_key(typed(composed()).what)
    places = [found.config[group][key] for group, key in (("privacy", "ledger"), ("dataset", "root"))]
    assert [*places, found.config["cache"]] == [str(tmp_path / name) for name in ("ledgers", "data", "c")]
    assert found.config["tracking"]["uri"] == f"sqlite:///{tmp_path}/t.db"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert typed(found.config).config == found.config
    assert typed(composed("model=resnet18")).what["model"]["weights"] is None  # as before a file was a place
    known = ("model=resnet18", "model.weights=w", f"model.sha256={'0' * 64}", "model.licence=MIT")
    assert typed(composed(*known, "model.trained_on=[x]")).hash != typed(composed("model=resnet18")).hash


def save(folder: Path, *overrides: str) -> dict[str, Any]:
    """What a run with these overrides leaves in its folder's config.json."""
    known = typed(composed(*overrides))
    (folder / "config.json").write_text(json.dumps({"run": "0" * 32, "config_hash": known.hash, **known.config}))
    return known.config


def test_resume_takes_the_saved_configuration_and_refuses_another(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resumed_config(tmp_path, composed(), [])
    saved = save(tmp_path, "seed=3", "privacy.epsilon=4", "tracking=none")
    assert resumed_config(tmp_path, composed(), ["resume=x"]) == saved
    assert resumed_config(tmp_path, composed("privacy.epsilon=4"), ["privacy.epsilon=4"]) == saved
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: 4\.0 in the run, 5\.0 now"):
        resumed_config(tmp_path, composed("privacy.epsilon=5"), ["privacy.epsilon=5"])
    with pytest.raises(ConfigError, match=r"privacy\._target_: .*LocalDP.* in the run, .*NoPrivacy.* now"):
        resumed_config(tmp_path, composed("privacy=none"), ["privacy=none"])


def test_resume_may_go_on_elsewhere(tmp_path: Path) -> None:
    saved = save(tmp_path, "tracking=none")
    moved = resumed_config(tmp_path, composed("runtime=ray"), ["runtime=ray"])
    assert moved["runtime"]["_target_"].endswith("Ray")
    assert moved["tracking"] == saved["tracking"]


def test_studies_ask_for_noise_of_the_seed_and_nothing_else_does(tmp_path: Path) -> None:
    for mechanism in ("local_dp", "distributed_dp", "central_dp"):
        assert composed(f"privacy={mechanism}")["privacy"]["noise_source"] == "system"
        assert composed(f"privacy={mechanism}", "noise=seed")["privacy"]["noise_source"] == "seed"
    for preset in sorted((CONF / "experiment").rglob("*.yaml")):
        name = preset.relative_to(CONF / "experiment").with_suffix("")
        assert composed(f"experiment={name}")["privacy"]["noise_source"] == "seed", name
    assert "noise_source" not in composed("experiment=demo", "privacy=none")["privacy"]
    assert composed("experiment=demo", "privacy.noise_source=system")["privacy"]["noise_source"] == "system"
    (tmp_path / "config.json").write_text(json.dumps({"run": "0" * 32, "config_hash": "0" * 16, **composed()}))
    with pytest.raises(ConfigError, match=r"privacy.noise_source: 'system' in the run, 'seed' now"):
        resumed_config(tmp_path, composed("noise=seed"), ["noise=seed"])
