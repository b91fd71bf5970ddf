"""The tiny stored set of results behind the golden test. ``python -m tests.report.examples`` writes it anew."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medx.privacy.accountants import gaussian_mu
from medx.report.page import Report, build_report, render, write_csv
from medx.report.rows import Run
from medx.report.study import Claim, Grid, Role, Study, job_name
from medx.results import (
    AttackResult,
    ClientEvents,
    ClientResult,
    CurveData,
    DatasetInfo,
    ExperimentResult,
    Interval,
    PrivacyResult,
    RoundRecord,
)

GOLDEN = Path(__file__).parent / "golden"
STUDY = Study(
    name="tiny",
    title="A tiny study",
    question="Is the report stable?",
    seeds=[0, 1],
    claim=Claim(
        dataset="pneumoniamnist", accuracy=0.625, epsilon=9.99, composed_epsilon=17, rounds=5, note="Spent five times."
    ),
    grids=[Grid(role="utility", overrides={"dataset": "pneumoniamnist"})],
)
CLASSES = {"pneumoniamnist": ["normal", "pneumonia"], "retinamnist": ["0", "1", "2"]}
COUNTS = {"pneumoniamnist": [234, 390], "retinamnist": [174, 46, 180]}
TASKS: dict[str, Any] = {"pneumoniamnist": "binary", "retinamnist": "ordinal"}


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line by which ``medx report`` refuses these words."""
    from medx.report.__main__ import main

    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    line = capsys.readouterr().err
    assert code == 2
    assert line.count("\n") == 1, line
    assert line.startswith("medx: ")
    return line


def config_of(dataset: str, epsilon: float | None, seed: int, **changes: Any) -> dict[str, Any]:
    settings = {"mode": "none" if epsilon is None else "local_dp", "model": "scatternet", "aggregation": "plain"}
    settings |= {"strategy": "fedavg", "num_runs": 1, "alpha": None, "rounds": 2, "batch": None, **changes}
    partition = "iid" if settings["alpha"] is None else "dirichlet"
    privacy = {} if epsilon is None else {"epsilon": epsilon, "delta": 1e-5, "num_runs": settings["num_runs"]}
    return {
        "seed": seed,
        "dataset": {"_target_": "medx.dataset.medmnist.MedMNIST", "name": dataset},
        "model": {"_target_": f"medx.model.{settings['model']}.M"},
        "partition": {"_target_": f"medx.partition.{partition}.P"}
        | ({} if settings["alpha"] is None else {"alpha": settings["alpha"]}),
        "privacy": {"_target_": f"medx.privacy.{settings['mode']}.P"} | privacy,
        "aggregation": {"_target_": f"medx.aggregation.{settings['aggregation']}.A"},
        "federation": {
            "_target_": f"medx.federation.{settings['strategy']}.F",
            "num_clients": 2,
            "num_rounds": settings["rounds"],
        },
        "trainer": {"local_steps": 3, "expected_batch_size": settings["batch"]},
    }


def make_result(
    dataset: str, epsilon: float | None, seed: int, auc: float, baselines: bool = False, **changes: Any
) -> ExperimentResult:
    config = config_of(dataset, epsilon, seed, **changes)
    names, counts = CLASSES[dataset], COUNTS[dataset]
    metrics = {
        "auc": auc,
        "accuracy": auc - 0.1,
        "accuracy_at_threshold": auc - 0.06,
        "balanced_accuracy": auc - 0.14,
        "balanced_accuracy_at_threshold": auc - 0.08,
        "ece": 0.04,
        "brier": 0.11,
    }
    if TASKS[dataset] == "binary":
        metrics |= {"sensitivity_at_threshold": auc - 0.03, "specificity_at_threshold": auc - 0.13}
    metrics |= {f"recall_{index}": auc - 0.1 * index for index in range(len(names))}
    intervals = {name: interval(value) for name, value in metrics.items()}
    key = json.dumps(config | {"seed": 0}, sort_keys=True)
    spent = None if epsilon is None else round(0.99 * epsilon, 3)
    slow = 1.0 + 0.5 * (epsilon is not None) + 0.7 * (config["aggregation"]["_target_"].endswith("secure.A"))
    rounds = [
        RoundRecord(
            round=number,
            epsilon=None if spent is None else round(spent * (number / changes.get("rounds", 2)) ** 0.5, 3),
            metrics={"test/auc": round(auc - 0.02 * (changes.get("rounds", 2) - number), 3)},
            seconds={"train": slow, "aggregate": 0.01},
            bytes_up=4000,
            clients=2,
        )
        for number in range(1, changes.get("rounds", 2) + 1)
    ]
    return ExperimentResult(
        run=f"{sum(map(ord, key)) + seed:032x}",
        status="finished",
        seed=seed,
        config_hash=f"{sum(map(ord, key)):016x}",
        dataset=DatasetInfo(
            name=dataset,
            title=dataset,
            task=TASKS[dataset],
            md5=None,
            content_hash="0",
            synthetic=False,
            sizes={"test": sum(counts)},
            class_names=names,
            class_counts={"test": counts},
            image_size=28,
            num_channels=1,
        ),
        model={"name": "scatternet", "parameters": 1001},
        validation={"auc": interval(auc), "loss": interval(1 - auc)},
        test=intervals,
        majority_accuracy=max(counts) / sum(counts),
        degenerate=False,
        curves=CurveData(
            confusion_matrix=[[3 if i == j else 1 for j in range(len(names))] for i in range(len(names))],
            roc={str(index): [[0.0, 0.0], [0.1, auc], [1.0, 1.0]] for index in range(1, len(names))},
            calibration=[{"low": 0.5, "high": 0.6, "count": 9, "confidence": 0.55, "accuracy": 0.6}],
        ),
        clients=[
            ClientResult(client=i, num_records=50, class_counts=[1] * len(names), metrics={"accuracy": auc - 0.02 * i})
            for i in range(2)
        ],
        baselines={name: {k: interval(v - 0.05) for k, v in metrics.items()} for name in ("local_only", "centralized")}
        if baselines
        else {},
        privacy=PrivacyResult(
            mechanism=changes.get("mode", "local_dp" if epsilon else "none"),
            epsilon=spent,
            epsilon_by_accountant={} if spent is None else {"prv": spent},
            delta=None if epsilon is None else 1e-5,
            target_epsilon=epsilon,
            unit=None if epsilon is None else "record",
            clients=[]
            if spent is None
            else [ClientEvents(client=0, num_records=50, sampling_probability=1, clip_norm=0.1, steps=6, epsilon=spent,
                               noise_multiplier=round(6**0.5 / gaussian_mu(spent, 1e-5), 4))],
            statement="Each image is protected.\nTowards everybody.\n" if epsilon else "There is no epsilon.\n",
        ),
        rounds=rounds,
        timing={"total": 12.5},
        started=f"2026-11-0{1 + seed}T09:30:00Z",
        tracking={"run_id": f"{dataset[:1]}{epsilon or 0:g}{seed}"},
        environment={"git": "0123abcd", "medx": "1.2.3", "torch": "2.0"},
        config=config,
    )  # fmt: skip


def attacked(result: ExperimentResult, **changes: Any) -> ExperimentResult:
    """The same, with what two observers of a copy of it found."""
    claimed = result.privacy.epsilon
    mu = None if claimed is None else gaussian_mu(claimed, 1e-5)
    every = [
        AttackResult(
            attack="canaries",
            observer=observer,
            claimed=claimed,
            delta=1e-5,
            found=None if claimed is None else round(share * claimed, 3),
            shift=50.0 if mu is None else round(share * mu + 0.1, 3),
            error=0.1,
            planned=None if mu is None else round(share * mu, 3),
            one_run=3.76 if claimed is None else 0.3 * claimed,
            ceiling=3.76,
            trials=400,
            seconds=2.5,
            against=[],
        ).model_copy(update=changes)
        for observer, share in (("server", 0.9), ("whoever gets the model", 0.5))
    ]
    return result.model_copy(update={"attacks": every})


def interval(value: float) -> Interval:
    return Interval(value=round(value, 3), low=round(value - 0.02, 3), high=round(value + 0.01, 3))


def make_all() -> list[tuple[tuple[Role, ...], ExperimentResult]]:
    pneumonia, retina = "pneumoniamnist", "retinamnist"
    both: tuple[Role, ...] = ("utility", "skew")
    return [
        (("utility",), make_result(pneumonia, 1.0, 0, 0.90)),
        (("utility",), make_result(pneumonia, 1.0, 1, 0.92)),
        (both, attacked(make_result(pneumonia, 10.0, 0, 0.95))),
        (both, make_result(pneumonia, 10.0, 1, 0.96)),
        (("utility",), make_result(pneumonia, 10.0, 0, 0.97, mode="distributed_dp", aggregation="secure")),
        (("utility",), make_result(pneumonia, 10.0, 1, 0.98, mode="distributed_dp", aggregation="secure")),
        (("utility",), attacked(make_result(pneumonia, None, 0, 0.985))),
        (("utility",), make_result(retina, 10.0, 0, 0.72)),
        (("convergence",), make_result(pneumonia, 10.0, 0, 0.91, rounds=5)),
        (("skew",), make_result(pneumonia, 10.0, 0, 0.88, alpha=0.1)),
        (("step_overhead",), make_result(pneumonia, 10.0, 0, 0.8, model="cnn", batch=64)),
        (("step_overhead",), make_result(pneumonia, None, 0, 0.8, model="cnn", batch=64)),
        (("sum_overhead",), make_result(pneumonia, None, 0, 0.8, batch=8)),
        (("sum_overhead",), make_result(pneumonia, None, 0, 0.8, batch=8, aggregation="secure")),
        (("skew",), make_result(pneumonia, 10.0, 0, 0.89, alpha=0.1, strategy="fedadam")),
        (("selection",), make_result(pneumonia, 10.0, 0, 0.94, num_runs=2, batch=32)),
        (("selection",), make_result(pneumonia, 10.0, 0, 0.93, num_runs=2, batch=16)),
        (("baselines",), make_result(pneumonia, 10.0, 0, 0.94, baselines=True)),
    ]


def load_runs() -> list[Run]:
    """The stored results."""
    lines = [json.loads(line) for line in (GOLDEN / "results.jsonl").read_text().splitlines()]
    results = [ExperimentResult.model_validate(line["result"]) for line in lines]
    return [
        Run(index, job_name(result.config), tuple(line["roles"]), result)
        for index, (line, result) in enumerate(zip(lines, results, strict=True), start=1)
    ]


def changed(runs: list[Run], number: int, metric: str, value: float) -> list[Run]:
    """The same runs, with one test metric of one of them replaced."""
    result = runs[number - 1].result.model_copy(deep=True)
    result.test[metric] = Interval(value=value)
    return [*runs[: number - 1], replace(runs[number - 1], result=result), *runs[number:]]


def tiny_report(runs: list[Run], draw: bool = False) -> Report:
    return build_report(STUDY, "make report STUDY=tiny", runs, ["one job: not run"], draw=draw)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    lines = [
        json.dumps({"roles": roles, "result": result.model_dump(mode="json", exclude_defaults=True)})
        for roles, result in make_all()
    ]
    (GOLDEN / "results.jsonl").write_text("\n".join(lines) + "\n")
    report = tiny_report(load_runs(), draw=True)
    (GOLDEN / "report.md").write_text(render(report, "report.md.j2"))
    write_csv(report.frame, GOLDEN / "results.csv")


if __name__ == "__main__":
    main()
