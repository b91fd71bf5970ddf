"""A study: what hospitals are asked to train, as data that the coordinator signs. No code is in it, and no path."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

import medx
from medx.configuration import Composed
from medx.dataset import InputSpec, Task
from medx.federation.setup import Declared, draw_key
from medx.hints import nearest, option, options_of
from medx.privacy.base import PatientImages
from medx.randomness import NUMERICS
from medx.schema import MedxError, option_of
from medx.site.consortium import Consortium, Name, canonical, check_distinct, is_signed

LARGEST = 1 << 20  # bytes of a signed study
Group = Literal["model", "trainer", "privacy", "federation", "aggregation"]
GROUPS: tuple[Group, ...] = ("model", "trainer", "privacy", "federation", "aggregation")
OWN = ("ledger", "budget", "roster")  # of these groups' keys, what each side decides for itself
# What a simulation alone does yet, and what stands for none of it.
ONLY_SIMULATED: dict[str, Any] = {"attack": "none", "baseline": [], "select": None, "threshold": "best"}
PATHS = ("weights",)  # and what would name a file of the hospital's machine
Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
ClassName = Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class StudyError(MedxError):
    """A study that cannot be read, is not the coordinator's, or is not of this consortium or version."""


class Declaration(BaseModel):
    """What a hospital says of its training data: ``most_images`` is the most that one of its patients has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    num_records: Count
    num_patients: Count | None = None
    most_images: Count | None = None


class Study(BaseModel):
    """All that coordinator and hospitals must agree on; a hospital's number is its place in ``hospitals``.

    ``config`` has the option and the values of each group. ``draw_key`` and ``records`` (hex) key draws of the seed,
    which a hospital admits only where its policy does. ``mean`` and ``std`` are one a channel, on the 0..1 scale.
    ``nonce`` tells two runs of one configuration apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["medx study 1"] = "medx study 1"
    title: Annotated[str, Field(max_length=200)]
    nonce: Hex
    version: Annotated[str, Field(max_length=40)]
    numerics: Count
    consortium: Hex
    hospitals: Annotated[tuple[Declaration, ...], Field(min_length=1, max_length=1 << 16)]
    dataset: Annotated[str, Field(max_length=40)]
    task: Task
    class_names: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=200)]
    num_channels: Annotated[int, Field(ge=1, le=4)]
    image_size: Annotated[int, Field(ge=4, le=1024)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    phantoms: Literal["chest", "fundus"] | None
    synthetic: bool
    seed: Annotated[int, Field(ge=0)]
    draw_key: Hex
    records: Hex
    config: dict[Group, dict[str, JsonValue]]

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[Group, dict[str, Any]]) -> dict[Group, dict[str, Any]]:
        if set(config) != set(GROUPS):
            raise ValueError(f"accepted: the groups {', '.join(GROUPS)}")
        for group, values in config.items():
            name = values.get("option")
            if name not in options_of(group):  # of this installation: a study names no class
                raise ValueError(f"{group}={name!r}: {nearest(str(name), options_of(group))}")
            own = [key for key in values if key.startswith("_") or key in OWN]
            own += [key for key in PATHS if values.get(key) is not None]
            if own:
                raise ValueError(f"{group}.{own[0]}: accepted in a study: no path, no class, and no hospital's own key")
        return config

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct("hospitals", "name", [each.name for each in self.hospitals])
        asked = self.config["federation"].get("num_clients")
        if asked != len(self.hospitals):
            raise ValueError(f"federation.num_clients={asked} with {len(self.hospitals)} hospitals")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits: what is approved, and what names the run."""
        return hashlib.sha256(self._signed_part()).hexdigest()

    @property
    def run(self) -> str:
        """The run's id."""
        return self.digest[:32]

    @property
    def spec(self) -> InputSpec:
        """The shape and task that the model is built for."""
        return InputSpec(self.num_channels, self.image_size, len(self.class_names), self.task, self.phantoms)

    @property
    def declared(self) -> Declared:
        """What follows from the declarations; a patient is taken to be at one hospital alone."""
        images: list[PatientImages] = [
            ((number, each.most_images),) for number, each in enumerate(self.hospitals) if each.most_images
        ]
        patients = [each.num_patients for each in self.hospitals if each.num_patients is not None]
        return Declared(
            spec=self.spec,
            num_records=tuple(each.num_records for each in self.hospitals),
            num_patients=tuple(patients) if len(patients) == len(self.hospitals) else None,
            patient_images=tuple(images),
            records=bytes.fromhex(self.records),
            dealt=self.digest,
        )

    def number(self, name: str) -> int:
        """A hospital's number in this study; raises StudyError where it is not asked."""
        names = [each.name for each in self.hospitals]
        if name not in names:
            raise StudyError(f"study {self.digest[:16]}: it does not ask hospital {name}; it asks {', '.join(names)}")
        return names.index(name)

    def signed(self, key: Ed25519PrivateKey) -> str:
        """The study and its signature, as the text that travels."""
        signature = key.sign(self._signed_part()).hex()
        return json.dumps({"study": self.model_dump(mode="json"), "signature": signature}, separators=(",", ":"))

    def _signed_part(self) -> bytes:
        return canonical("study", self.model_dump(mode="json"))


def read_study(text: object, coordinator: str) -> Study:
    """The study in a signed text; raises StudyError unless it is this coordinator's (Ed25519 key, hex)."""
    if not isinstance(text, str) or len(text) > LARGEST:
        raise StudyError("study: no text of at most 1 MiB; accepted: a file of `medx submit`")
    try:
        content = json.loads(text)
        study, signature = Study.model_validate(content["study"]), str(content["signature"])
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise StudyError(f"study: {place}: {fault['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StudyError("study: no signed study; accepted: a file of `medx submit`") from None
    if not is_signed(coordinator, study._signed_part(), signature):
        raise StudyError(f"study {study.digest[:16]}: not signed by the coordinator; accepted: its signature alone")
    return study


def check_fits(study: Study, consortium: Consortium) -> None:
    """Refuse a study of another consortium, or of a version that computes otherwise; raises StudyError."""
    if study.consortium != consortium.digest:
        raise StudyError(
            f"study {study.digest[:16]}: made for another list of hospitals and keys; accepted: one for consortium "
            f"{consortium.name} {consortium.digest[:16]}"
        )
    if (study.version, study.numerics) != (medx.__version__, NUMERICS):
        raise StudyError(
            f"study {study.digest[:16]}: version: made with MedX {study.version}; accepted: {medx.__version__}, which "
            "is installed here"
        )
    unknown = {each.name for each in study.hospitals} - {each.name for each in consortium.hospitals if each.identity}
    if unknown:
        raise StudyError(f"study {study.digest[:16]}: hospital {min(unknown)} is not enrolled in {consortium.name}")


def make_study(
    composed: Composed,
    consortium: Consortium,
    declarations: Sequence[Declaration],
    spec: InputSpec,
    class_names: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    synthetic: bool = False,
    title: str | None = None,
    records: bytes | None = None,
) -> Study:
    """The study that a configuration describes, for these hospitals; raises StudyError.

    ``records`` is given in a rehearsal, where one person has all records and compares with a simulation.
    """
    personal = composed.experiment.personalisation
    if personal.told is not None:
        raise StudyError(
            f"personalisation={personal.name}: hospitals on machines of their own train the shared model alone so far; "
            "accepted: none"
        )
    for key, accepted in ONLY_SIMULATED.items():
        if (asked := composed.config[key]) != accepted:
            raise StudyError(f"{key}={asked}: so far a simulation alone has it; accepted in a study: leave it out")
    told = canonical("declarations", [each.model_dump(mode="json") for each in declarations])
    groups = {group: _named(group, composed.config[group]) for group in GROUPS}
    dataset = option_of("dataset", composed.config["dataset"]["_target_"])
    try:
        return Study(
            title=title or f"{dataset}: {groups['model']['option']}, {groups['privacy']['option']}",
            nonce=secrets.token_hex(32),
            version=medx.__version__,
            numerics=NUMERICS,
            consortium=consortium.digest,
            hospitals=tuple(declarations),
            dataset=dataset,
            task=spec.task,
            class_names=tuple(class_names),
            num_channels=spec.num_channels,
            image_size=spec.image_size,
            mean=tuple(mean),
            std=tuple(std),
            phantoms=spec.phantoms,
            synthetic=synthetic,
            seed=composed.experiment.seed,
            draw_key=draw_key(composed.what),
            records=(records or hashlib.sha256(told).digest()).hex(),
            config=groups,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise StudyError(f"study: {place}: {fault['msg'].removeprefix('Value error, ')}") from None


def _named(group: Group, values: Mapping[str, Any]) -> dict[str, Any]:
    """A group's option and values; raises StudyError for a component that is no option of this package."""
    name = option_of(group, values["_target_"])
    if option(group, name).get("_target_") != values["_target_"]:
        raise StudyError(
            f"{group}._target_={values['_target_']}: a study is data, hospitals take no class of your own; accepted: "
            f"{', '.join(options_of(group))}"
        )
    return {"option": name, **{key: value for key, value in values.items() if key != "_target_" and key not in OWN}}
