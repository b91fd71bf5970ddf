"""Where the model comes from, digest by digest, and what each hospital has on record: ``origin`` and ``sites``."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from medx.dossier.people import hospital
from medx.dossier.record import Rule
from medx.dossier.subject import Ledger, Receipt, Subject
from medx.report.cells import DASH, Row, Table
from medx.report.words import listed
from medx.results import ClientEvents, told_epsilon

GIT = "git"


def _dirty(run: Subject) -> str | None:
    changed = run.result.environment.get(GIT, "").endswith("-dirty")
    return (
        "The code had changes that are in no revision, so it cannot be had again by its revision alone."
        if changed
        else None
    )


def _no_code(run: Subject) -> str | None:
    known = run.result.environment.get(GIT, "not a git checkout") != "not a git checkout"
    return None if known else "The revision of the code is not on record: it ran from no checkout."


def _again(run: Subject) -> str | None:
    if run.result.privacy.noise_source != "system":
        return None
    return (
        "The noise came from the operating system and is gone, so the same model cannot be made again; that is meant."
    )


def _began(run: Subject) -> str | None:
    if run.result.started is None:
        return None
    return f"The run began on {datetime.fromisoformat(run.result.started):%Y-%m-%d %H:%M} UTC, by its machine's clock."


def _when(run: Subject) -> str | None:
    if run.written is None:
        return None
    return (
        f"The run's configuration was written on {run.written}, by the clock of the files; a copy may have changed "
        "that."
    )


def _held_back(run: Subject) -> str | None:
    held = "Digests of the data and of the configuration, and the seed, are in the owner's view alone."
    return None if run.owner else held


ORIGIN: tuple[Rule, ...] = (_began, _when, _dirty, _no_code, _again, _held_back)


def origin_tables(run: Subject) -> Iterator[Table]:
    """Identifiers and digests, then versions."""
    result = run.result
    found: dict[str, Any] = {
        "run": result.run,
        "status": result.status,
        "configuration (hash)": result.config_hash,
        "seed": result.seed,
        "data (SHA-256 over images and labels)": result.dataset.content_hash,
        "data file (MD5)": result.dataset.md5,
        "code (revision)": result.environment.get(GIT),
    } | {f"{name} (SHA-256)": digest for name, digest in run.digests.items()}
    yield Table.of("digests", "Digests", "", _pairs(found))
    versions = {name: value for name, value in result.environment.items() if name != GIT}
    yield Table.of("versions", "Versions and machine", "", _pairs(versions))


def _pairs(found: dict[str, Any]) -> Iterator[Row]:
    for name, value in found.items():
        if value is not None:
            yield Row({"what": name, "value": str(value)}, {"what": name, "value": str(value)})


def _agrees(run: Subject) -> str | None:
    known = [each for each in run.ledgers if each.steps is not None]
    if not known or run.differing():
        return None
    whose = f"{known[0].whose}'s ledger has" if len(known) == 1 else f"the ledgers of {len(known)} hospitals have"
    return f"{whose[0].upper()}{whose[1:]} as many noisy releases of this run on record as its result counts."


def _differs(run: Subject) -> str | None:
    told = [f"{each.whose} has {each.steps} releases on record" for each in run.differing()]
    return f"Ledger and result differ: {', '.join(told)}. Epsilon is of the releases in the table." if told else None


def _others(run: Subject) -> str | None:
    shared = max((each.runs for each in run.ledgers), default=0)
    if shared < 2:
        return None
    return f"A ledger here has {shared} runs: on the same images what they spend adds up, beyond this run's epsilon."


def _no_ledger(run: Subject) -> str | None:
    if not run.owner or not run.private or run.ledgers or run.receipts:
        return None
    return "No ledger is in the run's folder, so nothing here stands beside the result's own count of releases."


def _signed(run: Subject) -> str | None:
    checked = run.receipts and all(each.signed for each in run.receipts)
    return "Every receipt bears its hospital's signature, which was checked here." if checked else None


def _unchecked(run: Subject) -> str | None:
    unknown = [each for each in run.receipts if each.signed is None]
    if not unknown:
        return None
    return "The receipts' signatures were not checked: the consortium's keys are not beside the run."


def _admitted(run: Subject) -> str | None:
    if not run.receipts:
        return None
    return (
        f"{len(run.receipts)} of {run.num_clients} hospitals gave a receipt. A hospital does so of a study that its "
        "own "
        "policy and a person there have admitted; the rules and the refusals are in its own audit log."
    )


def _logged(run: Subject) -> str | None:
    told = [f"{each.hospital} ({each.entries} entries)" for each in run.kits]
    return f"The whole log of {listed(told)} was read, and each entry fits the one before." if told else None


def _refused(run: Subject) -> str | None:
    told = [each.hospital for each in run.kits if any(entry.event == "refused" for entry in each.verdicts)]
    return f"Something of this study was refused by {listed(told)}: see the log." if told else None


def _no_receipt(run: Subject) -> str | None:
    if not run.owner or not run.deployed or run.receipts:
        return None
    return "No hospital's receipt is in the run's folder, so what it has spent is the coordinator's word alone."


SITES: tuple[Rule, ...] = (
    _agrees,
    _differs,
    _others,
    _no_ledger,
    _admitted,
    _signed,
    _unchecked,
    _logged,
    _refused,
    _no_receipt,
)


def site_tables(run: Subject) -> Iterator[Table]:
    """A row a hospital: what was executed there, what its ledger says, what it has signed for."""
    ledgers = {each.client: each for each in run.ledgers}
    receipts = dict(enumerate(run.receipts)) if len(run.receipts) == run.num_clients else {}
    rows = [
        _site(run, each, ledgers.get(each.client), receipts.get(each.client)) for each in run.result.privacy.clients
    ]
    note = (
        "Releases: how often something computed on the hospital's images left it. Drawn: the chance with which each "
        f"{run.unit} was in one. Noise: {_whose_noise(run)}, in units of the most that one {run.unit} can change."
    )
    yield Table.of("sites", "Hospital by hospital", note if run.private else "", rows)
    yield from kit_tables(run)


def _whose_noise(run: Subject) -> str:
    """What the column of noise is: each hospital's own, or the sum's, of which a hospital adds a share or none."""
    if run.result.privacy.mechanism == "local_dp":
        return "its standard deviation"
    return "the standard deviation on the hospitals' sum from which epsilon is computed"


def kit_tables(run: Subject) -> Iterator[Table]:
    """What hospitals' own logs and policies say."""
    logged = [
        {"hospital": each.hospital, "time": each.time, "event": each.event, "said": each.said}
        for kit in run.kits
        for each in kit.verdicts
    ]
    yield Table.of(
        "verdicts", "From the hospitals' own logs", "Times are UTC.", (Row(dict(each), each) for each in logged)
    )
    rules = [{"hospital": kit.hospital} | kit.policy for kit in run.kits]
    rows = (Row(dict(each), {name.replace("_", " "): text for name, text in each.items()}) for each in rules)
    yield Table.of(
        "policies", "What their policies allow", "As they are now; the log says what was admitted when.", rows
    )


def _site(run: Subject, events: ClientEvents, ledger: Ledger | None, receipt: Receipt | None) -> Row:
    data: dict[str, Any] = events.model_dump()
    cells = {"hospital": hospital(run, events.client), "training images": f"{events.num_records:,}"}
    if events.num_patients is not None:
        cells["patients"] = f"{events.num_patients:,}"
    cells |= {"releases" if run.private else "steps": str(events.steps)}
    if run.private:
        cells |= {"drawn": _short(events.sampling_probability), "noise": _short(events.noise_multiplier),
                  "epsilon": DASH if events.epsilon is None else told_epsilon(events.epsilon)}  # fmt: skip
    if any(each.client is not None for each in run.ledgers):
        steps = None if ledger is None else ledger.steps
        data |= {"ledger_steps": steps, "ledger_runs": None if ledger is None else ledger.runs}
        cells |= {
            "in its ledger": DASH if steps is None else str(steps),
            "runs there": DASH if ledger is None else str(ledger.runs),
        }
    if receipt is not None:
        data |= {"receipt_steps": receipt.steps, "receipt_epsilon": receipt.epsilon, "receipt_signed": receipt.signed}
        state = {True: "holds", False: "DOES NOT HOLD", None: "not checked"}[receipt.signed]
        cells |= {"signed for": str(receipt.steps), "signature": state}
    return Row(data, cells)


def _short(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
