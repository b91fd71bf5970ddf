"""From a study to the job that one side has of it: both work the plan out by themselves, and read no data for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from medx.aggregation import SecureAggregation
from medx.aggregation.roster import Parameters, Roster, make_roster
from medx.configuration import build
from medx.federation.checkpoint import ServerState
from medx.federation.setup import Job, Setup, make_job
from medx.federation.sums import with_sums
from medx.hints import option
from medx.machine import resolve_device
from medx.site.consortium import Consortium
from medx.site.study import GROUPS, OWN, Study


class Place(BaseModel):
    """What one side adds to a study: its device and folders, and a hospital its ledger and total budget (epsilon)."""

    model_config = ConfigDict(frozen=True)

    device: str
    cache: Path
    folder: Path
    ledger: Path | None = None
    budget: float | None = None


def configured(study: Study, place: Place) -> dict[str, Any]:
    """The study's groups with this installation's classes, and this side's own keys."""
    own = {"ledger": place.ledger and str(place.ledger), "budget": place.budget, "roster": None}
    config: dict[str, Any] = {}
    for group in GROUPS:
        values = dict(study.config[group])
        known = option(group, str(values.pop("option")))
        config[group] = values | {key: own[key] for key in OWN if key in known} | {"_target_": known["_target_"]}
    return config


def job_of(
    study: Study,
    consortium: Consortium,
    place: Place,
    *,
    dataset: Any = None,
    identity: tuple[int, bytes] | None = None,
    reached: ServerState | None = None,
) -> Job:
    """The job of a hospital, with its number and raw identity, or of the server; raises MedxError.

    Both work the plan out by themselves, from the study and what stands in it of the data. None is read here.
    """
    config = configured(study, place)
    built = {group: build(config, group) for group in GROUPS}
    setup = Setup(
        seed=study.seed,
        device=resolve_device(place.device),
        dataset=dataset,
        partition=build({"partition": option("partition", "iid")}, "partition"),  # nothing is dealt
        cache=place.cache,
        data_key=study.digest,
        draw_key=study.draw_key,
        **built,
    )
    features = setup.model.features(study.spec)
    setup.trainer.check(len(study.class_names), images=features is None, several=study.task == "multilabel")
    setup.aggregation.check_strategy(str(study.config["federation"]["option"]))
    job = replace(make_job(setup, study.declared, study.run, place.folder, reached), touches_all=True)

    def enrol(parameters: Parameters) -> tuple[Roster, dict[int, bytes]]:
        assert isinstance(setup.aggregation, SecureAggregation)
        members = [consortium.hospitals[consortium.number(each.name)] for each in study.hospitals]
        keys = [bytes.fromhex(str(member.identity)) for member in members]  # all have one: see check_fits
        named = parameters.model_copy(update={"run_id": study.run})  # the same identities sign in many runs
        summed = setup.aggregation
        roster = make_roster(named, keys, summed.threshold, summed.minimum_survivors, "separate")
        return roster, {} if identity is None else {identity[0]: identity[1]}

    return with_sums(job, enrol)
