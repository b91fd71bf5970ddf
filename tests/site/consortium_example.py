"""A consortium of three hospitals, each with images of its own, and the same study as a simulation has it."""

import csv
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Context, Message, RecordDict
from PIL import Image

import medx
from medx.api import composed
from medx.configuration import build, typed
from medx.dataset.phantom import Phantom
from medx.experiment import make_setup
from medx.federation.prepared import prepare
from medx.federation.setup import draw_key
from medx.hints import option
from medx.results import ExperimentResult
from medx.runtime.in_process import InProcessGrid, Turns
from medx.site import kits
from medx.site.answering import Answers
from medx.site.consortium import Consortium, Plan
from medx.site.declaring import described
from medx.site.hospital import Site
from medx.site.policy import TEMPLATE
from medx.site.study import Study, make_study
from medx.site.submitting import signing_key

NAMES = ("north", "south", "west")
RECORDS = 180  # of training, over all
MODEL = ("model=cnn", "model.widths=[4,8]", "model.num_groups=2")
ROUNDS = 5
LOCAL = ("privacy=local_dp", "trainer.expected_batch_size=20", "trainer.local_steps=2")
SECURE = ("privacy=distributed_dp", "aggregation=secure", "trainer.sampling_probability=0.3")
SQUARES = (
    *("model=scatternet", "model.num_phantoms=60", "model.num_components=20", "model.num_views=1"),
    *("trainer=least_squares", "privacy=distributed_dp", "federation.num_rounds=1"),
)
POLICY = {"noise_sources": ["seed", "system"], "approval": "prompt", "minimum_records": 10}


@dataclass(frozen=True)
class Example:
    """The consortium's folder, and a folder of all images for the simulation."""

    folder: Path
    images: Path
    names: tuple[str, ...] = NAMES

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def kit(self, name: str) -> Path:
        return self.folder / "kits" / name

    @property
    def consortium(self) -> Consortium:
        return Consortium.load(self.coordinator)

    def set_policy(self, name: str, **changes: Any) -> None:
        path = self.kit(name) / "policy.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(TEMPLATE.read_text()) | POLICY | changes))
        path.chmod(0o600)


def make_example(
    folder: Path, port: int = 8000, *, names: tuple[str, ...] = NAMES, host: str = "127.0.0.1", **policy: Any
) -> Example:
    """Kits and images of these hospitals below a folder; every policy admits seeded noise, for drawn images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = draw(folder / "images", names)
    kits.init(Plan(name="lungs", host=host, port=port, hospitals=names), folder / "lungs")
    example = Example(folder / "lungs", images, names)
    for number, name in enumerate(names):
        path = example.kit(name) / "site.yaml"
        site = yaml.safe_load(path.read_text())
        site["dataset"] = {"option": "folder", "path": str(images / name)}
        own = {"cache": "cache", "device": "cpu", "node_port": port + 1 + number, "report": "metrics"}
        path.write_text(yaml.safe_dump(site | own))
        example.set_policy(name, **policy)
    return example


def draw(folder: Path, names: tuple[str, ...]) -> Path:
    """Drawn radiographs in a folder for each hospital, and ``all``; labels, hospitals and splits in a CSV."""
    splits = Phantom(kind="chest", size=28, num_train=RECORDS, num_validation=60, num_test=60, seed=0).load()
    rows: dict[str, list[list[str]]] = {where: [] for where in ("all", *names)}
    number = 0
    for split in ("train", "validation", "test"):
        part = getattr(splits, split)
        for image, label in zip(part.images, part.labels, strict=True):
            name, file = names[number % len(names)], f"{number:05d}.png"
            number += 1
            for where in ("all", name):
                (folder / where).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(folder / where / file)
                rows[where].append([file, splits.class_names[int(label)], name, split])
    for where, lines in rows.items():
        with (folder / where / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "label", "hospital", "split"], *lines])
    return folder


def overrides_of(example: Example, *own: str) -> list[str]:
    """What simulation and study are made of."""
    data = ("dataset=folder", f"dataset.path={example.images / 'all'}", "dataset.size=28", "partition=site")
    model = () if any(part.startswith("model=") for part in own) else MODEL
    given = (*data, *model, f"federation.num_rounds={ROUNDS}", "noise=seed", "device=cpu", "tracking=none")
    return [*given, f"cache={example.images.parent / 'cache'}", *own]


def simulated(example: Example, folder: Path, *own: str) -> ExperimentResult:
    """The simulation's result."""
    return medx.run(*overrides_of(example, *own), folder=folder, quiet=True)


def study_of(example: Example, *own: str, rehearsal: bool = True) -> Study:
    """The same as a study, a new one each time; in a rehearsal its seeded draws are the simulation's."""
    study = _worked_out(example.images, example.consortium, tuple(overrides_of(example, *own)), rehearsal)
    return Study.model_validate(study.model_dump(mode="json") | {"nonce": secrets.token_hex(32)})


@cache
def _worked_out(images: Path, consortium: Consortium, overrides: tuple[str, ...], rehearsal: bool) -> Study:
    names = [member.name for member in consortium.hospitals]
    config, _ = composed(overrides, None, Path("."))
    config.pop("resume")
    held = typed(config)
    setup = make_setup(held.experiment, held.config, draw_key(held.what))
    form = option("dataset", "folder") | {"size": 28}
    own = [build({"dataset": form | {"path": str(images / name)}}, "dataset") for name in names]
    found = [described(name, dataset.load()) for name, dataset in zip(names, own, strict=True)]
    declared = prepare(setup).declared
    return make_study(
        *(held, consortium, [each.declaration for each in found], found[0].spec, found[0].class_names),
        mean=found[0].mean,
        std=found[0].std,
        records=declared.records if rehearsal else None,
    )


def signed(example: Example, study: Study) -> str:
    return study.signed(signing_key(example.coordinator))


def approve(example: Example, study: Study, *names: str) -> None:
    """Approve the study at these hospitals, at all of them where none is named."""
    for name in names or example.names:
        Site(example.kit(name)).approvals.decide(study.digest, True, "")


class Wire(InProcessGrid):
    """A network of hospitals in this process, each with its own kit; a study's text goes with every message."""

    def __init__(self, sites: dict[int, Site], text: str, turns: Turns) -> None:
        self.answers = {number: Answers(site) for number, site in sites.items()}
        super().__init__(self.deliver, len(sites), turns)  # type: ignore[arg-type]
        for context in self._contexts.values():
            context.run_config = {"study": text}

    def deliver(self, message: Message, context: Context) -> Message:
        return self.answers[context.node_id - 2].answer(message, context)

    def forget(self, number: int) -> None:
        """What a node loses that restarts."""
        self._contexts[number + 2].state = RecordDict()


@contextmanager
def wired(example: Example, text: str) -> Iterator[Wire]:
    """The hospitals of the example behind a grid."""
    from concurrent.futures import ThreadPoolExecutor

    sites = {number: Site(example.kit(name)) for number, name in enumerate(NAMES)}
    with ThreadPoolExecutor(1) as pool:
        try:
            yield Wire(sites, text, Turns(pool, pool))
        finally:
            for site in sites.values():
                site.close()


def fresh(example: Example, folder: Path) -> Example:
    """A copy of the consortium in which nothing has happened yet."""
    shutil.copytree(example.folder, folder)
    return Example(folder, example.images)
