"""A run that never ran, whose numbers are easy to follow, and ways to change one thing of it."""

from dataclasses import replace
from typing import Any

from medx.dossier.chapters import make_run
from medx.dossier.subject import Kit, Ledger, Receipt, Subject, Verdict
from medx.results import (
    AggregationResult,
    AttackResult,
    ClientEvents,
    ClientResult,
    CurveData,
    DatasetInfo,
    ExperimentResult,
    Interval,
    Meaning,
    NoiseMeasured,
    PrivacyResult,
    RoundRecord,
    SubgroupResult,
)

FOLDER, BENCHMARK = "medx.dataset.folder.Folder", "medx.dataset.medmnist.MedMNIST"
CONFIG = {
    "seed": 3,
    "dataset": {"_target_": FOLDER},
    "model": {"_target_": "medx.model.scatternet.ScatterNet"},
    "partition": {"_target_": "medx.partition.Iid"},
    "privacy": {"_target_": "medx.privacy.mechanisms.LocalDP", "epsilon": 5.0},
    "aggregation": {"_target_": "medx.aggregation.PlainAggregation"},
    "federation": {"_target_": "medx.federation.strategies.FedAvg", "num_clients": 2, "num_rounds": 2},
    "trainer": {"local_steps": 3},
    "runtime": {"_target_": "medx.runtime.in_process.InProcess"},
}
STATEMENT = "Privacy statement\nWho sees what: the server sees noised models.\nNot covered: test images; timing.\n"


def interval(value: float, width: float = 0.05) -> Interval:
    return Interval(value=value, low=value - width, high=min(1.0, value + width))


def meaning(epsilon: float, found: float = 0.1) -> Meaning:
    rates = {"0.001": found / 4, "0.01": found, "0.1": min(1.0, 4 * found)}
    return Meaning(epsilon=epsilon, mu=1.0, detected=rates, advantage=found, reconstructed={"0.01": found, "0.1": 0.4},
                   curve=[(0.01, found), (1.0, 1.0)])  # fmt: skip


def attack(**changes: Any) -> AttackResult:
    values: dict[str, Any] = {"attack": "canaries", "observer": "server", "claimed": 4.9, "delta": 1e-5, "found": 2.0,
        "shift": 0.9, "error": 0.1, "planned": 1.0, "one_run": 1.0, "ceiling": 3.0, "trials": 400, "seconds": 1.0,
        "against": []}  # fmt: skip
    return AttackResult(**(values | changes))


def noise(*doubts: str) -> NoiseMeasured:
    return NoiseMeasured(
        values=640, size=1.0, tail=0.1, coordinates=0.1, rounds=0.1, hospitals=0.1, doubts=list(doubts)
    )


def group(value: str, rate: float, counts: tuple[int, int] = (20, 20), width: float = 0.05) -> SubgroupResult:
    metrics = {"auc": interval(rate), "balanced_accuracy_at_threshold": interval(rate, width)}
    return SubgroupResult(column="sex", value=value, class_counts=list(counts), metrics=metrics)


def client(number: int, auc: float | None = None) -> ClientResult:
    test = {} if auc is None else {"auc": interval(auc), "balanced_accuracy_at_threshold": interval(auc)}
    return ClientResult(client=number, num_records=50, class_counts=[30, 20], metrics={},
                        test_counts=[20, 10] if test else None, test=test)  # fmt: skip


def events(number: int, records: int = 50) -> ClientEvents:
    return ClientEvents(client=number, num_records=records, sampling_probability=1.0, noise_multiplier=4.5,
                        clip_norm=0.1, steps=6, epsilon=4.9)  # fmt: skip


SECURE = AggregationResult(secure=True, tolerated_colluders={"curious": 2, "lying": 1}, trust_domain="one")


def result() -> ExperimentResult:
    """Two classes, 18 of 20 found, 36 of 40 cleared; own images, simulated hospitals, ``local_dp`` at epsilon 4.9."""
    test = {"sensitivity_at_threshold": 0.9, "specificity_at_threshold": 0.9, "accuracy_at_threshold": 0.9,
            "balanced_accuracy_at_threshold": 0.9, "auc": 0.95, "ece": 0.01}  # fmt: skip
    return ExperimentResult(
        run="ab" * 16,
        status="finished",
        seed=3,
        config_hash="beef" * 4,
        dataset=DatasetInfo(
            name="folder", title="scans of ours", task="binary", content_hash="cafe" * 16, synthetic=False,
            sizes={"train": 100, "validation": 20, "test": 60}, class_names=["clear", "opacity"],
            class_counts={"train": [60, 40], "validation": [12, 8], "test": [40, 20]}, image_size=64, num_channels=1,
        ),
        model={"name": "scatternet", "parameters": 1001},
        test={name: interval(value) for name, value in test.items()},
        threshold=0.4,
        majority_accuracy=2 / 3,
        degenerate=False,
        clients=[client(0), client(1)],
        privacy=PrivacyResult(
            mechanism="local_dp", epsilon=4.9, epsilon_by_accountant={"prv": 4.9, "pld": 4.8}, delta=1e-5,
            target_epsilon=5.0, epsilon_by_group={"1": 4.9, "2": 11.0, "10": 100.0}, epsilon_by_unit={"image": 4.9},
            meaning={"image": meaning(4.9)}, unit="record", noise_source="system", clients=[events(0), events(1)],
            statement=STATEMENT,
        ),
        rounds=[RoundRecord(round=number, epsilon=2.4 * number, clients=2) for number in (1, 2)],
        environment={"git": "0123456789ab", "torch": "2.14.1"},
        config=CONFIG,
    )  # fmt: skip


def subject(changes: dict[str, Any] | None = None) -> Subject:
    """The run with these changes: values by path into the result, or with a point in front by the subject's field."""
    made = result().model_copy(deep=True)
    made.config = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    own: dict[str, Any] = {}
    for path, value in (changes or {}).items():
        if path.startswith("."):
            own[path[1:]] = value
            continue
        *places, last = path.split(".")
        found: Any = made
        for place in places:
            found = found[place] if isinstance(found, dict) else getattr(found, place)
        if isinstance(found, dict):
            found[last] = value
        else:
            setattr(found, last, value)
    return replace(Subject(1, "example", made, {"result.json": "d1" * 32}, "2031-01-02 03:04 UTC"), **own)


Changes = dict[str, Any]
NONE: Changes = {"privacy.epsilon": None, "privacy.mechanism": "none", "privacy.noise_source": None}
DRAWN: Changes = {"dataset.synthetic": True}
DEPLOYED: Changes = {"config.runtime": "deployment"}
SITE: Changes = {"config.partition": {"_target_": "medx.partition.Site"}}
SEEDED: Changes = {"privacy.noise_source": "seed"}
RELEASED: Changes = {"view": "released", "test": {}, "dataset.class_counts": {}}
AGAINST: Changes = {"attacks": [attack(against=["more was found than claimed"])]}
TRIED: Changes = {"attacks": [attack()]}
PATIENTS: Changes = {
    "privacy.patient_images": 3,
    "privacy.meaning": {"image": meaning(4.9), "patient": meaning(20.0, 0.8)},
}
MULTI: Changes = {"dataset.task": "multilabel"}
THREE: Changes = {
    "dataset.task": "multiclass", "threshold": None, "dataset.class_names": ["a", "b", "c"],
    "curves": {"confusion_matrix": [[9, 1, 0], [2, 8, 0], [3, 2, 0]]},
}  # fmt: skip
LEDGERS: Changes = {".ledgers": (Ledger(0, 6, 1), Ledger(1, 6, 1))}
OFF_BY_ONE: Changes = {".ledgers": (Ledger(0, 6, 1), Ledger(1, 7, 1))}
RECEIPTS: Changes = {".receipts": (Receipt("north", 6, 4.9, True), Receipt("south", 6, 4.9, True))}
FORGED: Changes = {".receipts": (Receipt("north", 6, 4.9, True), Receipt("south", 6, 4.9, False))}
UNCHECKED: Changes = {".receipts": (Receipt("north", 6, 4.9, None), Receipt("south", 6, 4.9, None))}
ADMITTED: Changes = {".kits": (Kit("north", (Verdict("north", "2031", "admitted", "epsilon 4.9"),), 7, {}),)}
REFUSED: Changes = {".kits": (Kit("north", (Verdict("north", "2031", "refused", "why max_epsilon"),), 7, {}),)}
WEIGHTS: Changes = {
    "privacy.statement": "Privacy statement\nPublic weights: a net, declared to be trained on others.\n"
}
TWO_GROUPS: Changes = {"subgroups": [group("f", 0.6), group("m", 0.9)]}
ALIKE: Changes = {"subgroups": [group("f", 0.89), group("m", 0.9)]}
BASE: Changes = {}
SILENT: Changes = {"test.sensitivity_at_threshold": interval(0.0), "test.specificity_at_threshold": interval(1.0)}


def ready(changes: Changes) -> Subject:
    """The run with these changes, its curves as a record."""
    made = subject(changes)
    if isinstance(made.result.curves, dict):
        made.result.curves = CurveData(**made.result.curves)
    return made


def sentences(*changes: Changes) -> str:
    made = make_run(ready({key: value for part in changes for key, value in part.items()}))
    every = [*made.answer, *made.first, *(each for chapter in made.chapters for each in chapter.sentences)]
    return " ".join(each.text for each in every)
