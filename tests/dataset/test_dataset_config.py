"""There is an option for every data set, and it builds."""

from pathlib import Path
from typing import get_args

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from medx.dataset.folder import Folder
from medx.dataset.medmnist import TASKS, MedMNIST, Name, medmnist_info
from medx.dataset.phantom import Phantom

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "dataset").glob("[!_]*.yaml"))


def test_there_is_an_option_for_every_single_label_2d_set() -> None:
    offered = {name for name, info in medmnist_info().items() if info["task"] in TASKS and "3d" not in name}
    assert set(OPTIONS) == {*get_args(Name), "phantom", "folder"} == offered | {"phantom", "folder"}


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_builds(option: str) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+dataset={option}"]).dataset
    dataset = instantiate(config, _convert_="all")
    if isinstance(dataset, MedMNIST):
        assert dataset.name == option
        assert (dataset.size, dataset.md5) == (28, None)
    else:
        assert isinstance(dataset, (Phantom, Folder))


def test_facts_exist_for_every_set_and_size() -> None:
    for name in get_args(Name):
        info = medmnist_info()[name]
        for suffix in ("", "_64", "_128", "_224"):
            assert info[f"url{suffix}"].startswith("https://")
            assert len(info[f"MD5{suffix}"]) == 32
        assert list(info["label"]) == [str(i) for i in range(len(info["label"]))]
