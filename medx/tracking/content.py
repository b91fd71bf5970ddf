"""A run in MLflow's terms: its parameters, tags, metrics, times and files. Pure functions, no MLflow."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml

from medx.results import DatasetInfo, ExperimentResult, RoundRecord, RunContext
from medx.schema import option_of
from medx.tracking.record import TrackedRun

PARAM_LENGTH = 6000
NAME_LENGTH = 70  # of what stands before a colon, to be its name and no sentence
EVERY_ROUND = "clients"  # a metric that no round lacks
WITHHELD = "told to the study's owner only, who finds it in result.json and in the log"
RUN_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "aborted": "FAILED",
    "killed": "KILLED",
    "budget_exhausted": "KILLED",
}
HOW_TO_LOAD = """# Load the final model

`{checkpoint}` is in safetensors: tensors and plain JSON, no code. Where MedX is installed:

```python
from pathlib import Path
import torch
from medx.model.export import load_model

model = load_model(Path("{checkpoint}"))  # a torch.nn.Module on the CPU
mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))
inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std  # images: uint8 [n, size, size, channels]
# uint16, of a data set with more than 8 bits: .to(torch.float32) / 65535
probabilities = model.probabilities(model(inputs))  # [n, classes]
```

Classes, in order: {classes}.{threshold}
{note}"""

RECORDS = {"owner": "result.json", "released": "released.json"}
THRESHOLD = (
    " The threshold chosen on validation: the second class from a probability of {:.6g} upwards; epsilon does not "
    "cover the images that it was chosen on."
)


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; lists as JSON. MLflow's limits on keys and lengths are kept."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield re.sub(r"[^\w\-. :/]", "_", name)[:250], text[:PARAM_LENGTH]


def as_markdown(statement: str) -> str:
    """A statement, one sentence or more a line, as a heading and a list that wraps in the UI."""
    title, *lines = statement.splitlines() or [""]
    items = []
    for line in filter(None, lines):
        name, colon, rest = line.partition(": ")
        items.append(f"- **{name}:** {rest}" if colon and len(name) < NAME_LENGTH else f"- {line}")
    return "\n".join([f"### {title}", "", *items])


def run_name(tags: dict[str, str]) -> str:
    """What tells runs apart comes first, as lists cut names off: ``ε=5 seed 0 local_dp scatternet pneumonia``."""
    target = [] if tags["target_epsilon"] == "none" else [f"ε={tags['target_epsilon']}"]
    seed = [f"seed {tags['seed']}"] if "seed" in tags else []
    return " ".join([*target, *seed, tags["privacy"], tags["model"], tags["dataset"].removesuffix("mnist")])


def start_tags(context: RunContext, config: dict[str, Any], environment: dict[str, str]) -> dict[str, str]:
    """What is known about a run before the first round; ``config`` is what may leave of the configuration."""
    target = config["privacy"].get("epsilon")
    tags = {
        "study": config["study"] or "",
        "dataset": context.dataset,
        "model": option_of("model", config["model"]["_target_"]),
        "privacy": option_of("privacy", config["privacy"]["_target_"]),
        "target_epsilon": "none" if target is None else f"{target:g}",
        "synthetic": _flag(context.synthetic),
        "public": _flag(context.public),
        "warning": context.warning or "none",
        "run": context.run,
        "job": context.run,  # what the prepared view asks for
        "status": "running",
        "mlflow.note.content": as_markdown(context.statement),
        "mlflow.source.name": "medx.run",
    }
    if "seed" in config:  # else it may not leave, and no more may the hash, which is of the data's checksum too
        tags |= {"seed": str(config["seed"]), "config_hash": context.config_hash}
    revision = environment.get("git")
    return tags | ({"git_revision": revision, "mlflow.source.git.commit": revision} if revision else {})


def end_tags(result: ExperimentResult) -> dict[str, str]:
    """What only the end tells."""
    told = result.error or ("none" if result.status == "finished" else WITHHELD)
    tags = {
        "status": result.status,
        "synthetic": _flag(result.dataset.synthetic),
        "warning": result.privacy.warning or "none",
        "error": told[:5000],
    }
    tags |= {} if result.degenerate is None else {"degenerate": _flag(result.degenerate)}
    if result.attacks:
        against = (f"{each.observer}: {words}" for each in result.attacks for words in each.against)
        tags["against_claim"] = _listed(against)
    if result.privacy.noise is not None:
        tags["noise_doubts"] = _listed(result.privacy.noise.doubts)
    return tags


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """A round's metrics; undefined ones are absent."""
    counts = ("bytes_up", "bytes_down", "clients", "abstained", "failed")
    values: dict[str, float | None] = dict(record.metrics) | {"epsilon": record.epsilon}
    values |= {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    values |= {name: float(getattr(record, name)) for name in counts}
    return _defined(values)


def final_metrics(result: ExperimentResult) -> dict[str, float]:
    """The result's metrics with their intervals, epsilon by accountant, its meaning, and timing; no undefined ones."""
    values: dict[str, float | None] = {
        "epsilon": result.privacy.epsilon,
        "delta": result.privacy.delta,
        "final/majority_accuracy": result.majority_accuracy,
        "final/threshold": result.threshold,
    }
    values |= {f"epsilon/{name}": value for name, value in result.privacy.epsilon_by_accountant.items()}
    for unit, meaning in result.privacy.meaning.items():
        values |= {f"meaning/{unit}/mu": meaning.mu, f"meaning/{unit}/advantage": meaning.advantage}
        values |= {f"meaning/{unit}/detected_at_{rate}": share for rate, share in meaning.detected.items()}
        values |= {f"meaning/{unit}/reconstructed_from_{prior}": p for prior, p in meaning.reconstructed.items()}
    values |= _attacked(result)
    values |= {f"timing/{name}": value for name, value in result.timing.items()}
    splits = {"test": result.test, "validation": result.validation}
    splits |= {f"baseline/{name}": intervals for name, intervals in result.baselines.items()}
    for split, intervals in splits.items():
        for name, interval in intervals.items():
            key = f"final/{split}/{name}"
            values |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    return _defined(values)


def _attacked(result: ExperimentResult) -> dict[str, float | None]:
    """What attacks found, by observer, and what the noise was like; a released result has neither."""
    values: dict[str, float | None] = {}
    for each in result.attacks:
        figures = {"lower_bound_found": each.found, "claimed": each.claimed, "shift": each.shift,
                   "shift_planned": each.planned, "by_guesses": each.one_run,
                   "by_guesses_ceiling": each.ceiling}  # fmt: skip
        values |= {f"attack/{each.observer}/{name}": value for name, value in figures.items()}
    if (noise := result.privacy.noise) is not None:
        values |= {f"noise/{name}": value for name, value in noise.model_dump(exclude={"doubts"}).items()}
    return values


def times(run: TrackedRun, records: Sequence[RoundRecord]) -> tuple[dict[int, int], int]:
    """When each round ended and the run, by the time that rounds took: the same whenever it is asked for.

    Times are the owner's. Where they may not leave, everything of a run happens when it begins.
    """
    rounds, passed = {}, 0.0
    for record in records:
        passed += record.seconds.get("total", 0.0)
        rounds[record.round] = run.begun + round(1000 * passed)
    ended = run.ended if run.owner_view and run.ended is not None else run.begun
    return rounds, max([ended, *rounds.values()])


def dataset(info: DatasetInfo) -> dict[str, str]:
    """The fields of MLflow's data set. The digest is of the images, or where that may not leave of what is told."""
    told = hashlib.sha256(info.model_dump_json().encode()).hexdigest()
    counts = {f"num_{split}": count for split, count in info.sizes.items()}
    return {
        "name": info.name,
        "digest": (info.content_hash or told)[:12],
        "source_type": "code",
        "source": json.dumps({"tags": {"mlflow.source.name": "medx.run"}}),
        "profile": json.dumps({"num_rows": sum(info.sizes.values()), **counts}),
    }


def _defined(values: dict[str, float | None]) -> dict[str, float]:
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items() if value is not None}


def _listed(words: Iterable[str]) -> str:
    return "; ".join(words)[:5000] or "none"


def _flag(value: bool) -> str:
    return "true" if value else "false"


@cache
def installed_packages() -> list[str]:
    """``name==version`` of all packages; a tenth of a second to find out."""
    return sorted({f"{each.metadata['Name']}=={each.version}" for each in distributions()}, key=str.lower)


def texts(result: ExperimentResult) -> dict[str, str]:
    """The files of a result that are text, by name; ``released.json`` is all that there is of a released one."""
    described = [f"{name}: {value}" for name, value in result.environment.items()]
    found = {
        RECORDS[result.view]: result.model_dump_json(indent=1),
        "statement.txt": result.privacy.statement,
        "config.yaml": yaml.safe_dump(result.config, sort_keys=False),
        "environment.txt": "\n".join([*described, "", *installed_packages()]) + "\n",
    }
    if result.checkpoint is not None:
        note = "\nThe images were synthetic: the model knows nothing of patients.\n" if result.dataset.synthetic else ""
        note += f"\nNoise from a seed: {result.privacy.warning}.\n" if result.privacy.warning else ""
        threshold = "" if result.threshold is None else THRESHOLD.format(result.threshold)
        found["how_to_load.md"] = HOW_TO_LOAD.format(
            checkpoint=Path(result.checkpoint).name,
            classes=", ".join(result.dataset.class_names),
            threshold=threshold,
            note=note,
        )
    return found
