"""A hospital's ``site.yaml``: its images, its device, and where its records lie."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from medx.hints import nearest, options_of
from medx.site.consortium import Name, Port, checked, read_yaml

FILE = "site.yaml"
FOLDERS = ("cache", "ledger", "audit", "approvals", "state")


def _option(dataset: dict[str, Any]) -> dict[str, Any]:
    options = options_of("dataset")
    if dataset.get("option") not in options:
        raise ValueError(
            f"option {dataset.get('option')!r} is no dataset; {nearest(str(dataset.get('option')), options)}"
        )
    return dataset


Dataset = Annotated[
    dict[str, Any], AfterValidator(_option), Field(description="option: an option of dataset, and that option's keys")
]
Place = Annotated[Path, Field(description="a path; one that is relative begins at the kit")]


class SiteConfig(BaseModel):
    """What a hospital sets on its own machine.

    ``dataset`` has the key ``option`` and that option's own keys; ``node_port`` is where this machine's node and
    executor talk; ``report`` is what may be returned of the hospital's validation and test images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    dataset: Dataset
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$", description="auto, cpu, cuda, cuda:1")]
    cache: Place
    ledger: Place
    audit: Place
    approvals: Place
    state: Place
    node_port: Port
    report: Annotated[Literal["none", "metrics"], Field(description="none, metrics")]

    @classmethod
    def load(cls, kit: Path) -> "SiteConfig":
        """Read ``site.yaml`` of a kit, with paths from the kit; raises ConfigError that names the key."""
        path = kit / FILE
        site = checked(cls, read_yaml(path), path)
        places = {key: _from(kit, getattr(site, key)) for key in FOLDERS}
        dataset = dict(site.dataset)
        if isinstance(dataset.get("path"), str):
            dataset["path"] = str(_from(kit, Path(dataset["path"])))
        return site.model_copy(update=places | {"dataset": dataset})

    @property
    def dataset_option(self) -> str:
        """The option of the group dataset."""
        return str(self.dataset["option"])

    @property
    def dataset_values(self) -> dict[str, Any]:
        """What the hospital sets of the option's keys."""
        return {key: value for key, value in self.dataset.items() if key != "option"}


def _from(kit: Path, path: Path) -> Path:
    return kit.absolute() / os.path.expanduser(path)  # unlike Path's, it raises nothing where there is no home
