"""Every partition option composes, builds, and has exactly the fields of its class."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from pydantic import ValidationError

from medx.randomness import numpy_generator

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "partition").glob("[!_]*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_builds(option: str) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+partition={option}"]).partition
    assert config._target_.startswith(f"medx.partition.{option}.")
    partition = instantiate(config)
    fields = {field.name for field in dataclasses.fields(get_class(config._target_))}
    assert fields == set(OmegaConf.to_container(config)) - {"_target_"}
    assert len(partition.split(np.arange(100) % 2, 2, 5, numpy_generator(0))) == 5


def test_unknown_keys_and_bad_values_are_refused() -> None:
    target = get_class("medx.partition.dirichlet.Dirichlet")
    good = {"alpha": 1.0, "min_records": 1, "allow_empty": False}
    target(**good)
    for bad in ({"alhpa": 1.0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"min_records": -1}):
        with pytest.raises(ValidationError):
            target(**(good | bad))
