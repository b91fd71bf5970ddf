"""What a hospital's own data are for a study: how they are read there, and what it declares of them, signed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, ValidationError

from medx.configuration import build
from medx.dataset import Dataset, DataSplits, InputSpec, Split, Task
from medx.hints import option
from medx.schema import ConfigError, DataError
from medx.site.consortium import Consortium, canonical, is_signed, read_text
from medx.site.site_config import SiteConfig
from medx.site.study import Declaration, Study


class Described(BaseModel):
    """A hospital's declaration, and the form of its images, in which all of a study must agree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    declaration: Declaration
    task: Task
    class_names: tuple[str, ...]
    num_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    phantoms: str | None
    synthetic: bool

    @property
    def form(self) -> dict[str, Any]:
        """All but the declaration."""
        return self.model_dump(mode="json", exclude={"declaration"})

    @property
    def spec(self) -> InputSpec:
        """The shape and task that a model is built for."""
        return InputSpec(self.num_channels, self.image_size, len(self.class_names), self.task, self.phantoms)


def own_dataset(site: SiteConfig, study: Study | None = None, size: int | None = None) -> Dataset:
    """The hospital's data set, at the study's size. Classes are its own: another order would deal its split anew."""
    known = option("dataset", site.dataset_option)
    config = known | site.dataset_values
    wanted: dict[str, Any] = {"size": size}
    if study is not None:
        wanted = {"size": study.image_size, "phantoms": study.phantoms}
    for key, value in wanted.items():
        if key in known and value is not None and (key == "size" or site.dataset_values.get(key) is None):
            config[key] = value
    dataset: Dataset = build({"dataset": config}, "dataset")
    return dataset


def described(name: str, splits: DataSplits) -> Described:
    """What the hospital of this name declares of its data."""
    spec = asdict(splits.spec)
    spec.pop("num_classes")
    return Described(
        declaration=declaration_of(name, splits.train),
        class_names=splits.class_names,
        mean=splits.mean,
        std=splits.std,
        synthetic=splits.synthetic,
        **spec,
    )


def declaration_of(name: str, train: Split) -> Declaration:
    """How many training images and patients there are."""
    if train.patients is None:
        return Declaration(name=name, num_records=len(train))
    _, counts = np.unique(train.patients, return_counts=True)
    return Declaration(name=name, num_records=len(train), num_patients=len(counts), most_images=int(counts.max()))


def check_declared(study: Study, client: int, splits: DataSplits) -> None:
    """Refuse data that are not those that the hospital declared for the study; raises DataError."""
    declared = study.hospitals[client]
    found = described(declared.name, splits)
    if found.declaration != declared:
        raise DataError(
            f"dataset: {found.declaration.num_records} training images of {found.declaration.num_patients} patients; "
            f"accepted: the {declared.num_records} of {declared.num_patients} that this hospital declared for the study"
        )
    asked = {key: getattr(study, key) for key in ("task", "class_names", "num_channels", "image_size", "mean", "std")}
    wrong = [key for key, value in asked.items() if getattr(found, key) != value]
    if wrong:
        raise DataError(f"dataset: {wrong[0]} is {getattr(found, wrong[0])}; accepted in this study: {asked[wrong[0]]}")


def sign_declaration(found: Described, consortium: Consortium, identity: Ed25519PrivateKey) -> str:
    """The text of ``declaration.json``, which goes to the coordinator."""
    content = found.model_dump(mode="json")
    signature = identity.sign(_signed_part(content, consortium)).hex()
    return json.dumps({"described": content, "signature": signature}, indent=1) + "\n"


def read_declarations(folder: Path, consortium: Consortium, names: Sequence[str]) -> list[Described]:
    """The declarations ``NAME.json`` of these hospitals; raises ConfigError where one is missing or does not fit."""
    found = [_read(folder / f"{name}.json", name, consortium) for name in names]
    for each in found[1:]:
        for key, value in each.form.items():
            if value != found[0].form[key]:
                raise ConfigError(
                    f"{folder}: {key} is {found[0].form[key]} at {names[0]} and {value} at {each.declaration.name}; "
                    "accepted: data of one form"
                )
    return found


def _read(path: Path, name: str, consortium: Consortium) -> Described:
    if not path.exists():
        raise ConfigError(f"{path}: not there; accepted: what `medx site declare` wrote at hospital {name}")
    try:
        content = json.loads(read_text(path))
        found, signature = Described.model_validate(content["described"]), str(content["signature"])
    except (ValueError, KeyError, TypeError, ValidationError):
        raise ConfigError(f"{path}: no declaration; accepted: what `medx site declare` wrote") from None
    identity = consortium.hospitals[consortium.number(name)].identity
    signed = identity is not None and is_signed(identity, _signed_part(content["described"], consortium), signature)
    if found.declaration.name != name or not signed:
        raise ConfigError(f"{path}: not signed by hospital {name}; accepted: the file as it made it")
    return found


def _signed_part(content: object, consortium: Consortium) -> bytes:
    return canonical("declaration", [consortium.digest, content])
