"""What a hospital's own kit says of a study: its verdicts, from a log whose chain holds, its policy and its ledger."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medx.dossier.subject import Kit, Subject, Verdict, ledgers_in
from medx.results import ExperimentResult
from medx.schema import ConfigError
from medx.site.audit import Entry, entries
from medx.site.policy import Policy
from medx.site.site_config import SiteConfig

POLICY = "policy.yaml"
RULES = ("approval", "mechanisms", "units", "max_epsilon", "max_delta", "total_epsilon", "noise_sources",
         "secure_aggregation", "minimum_hospitals", "minimum_records")  # fmt: skip


def with_kits(runs: Sequence[Subject], folders: Sequence[Path]) -> list[Subject]:
    """The runs with what these kits say of them; raises MedxError, also for a kit whose log knows none of the runs."""
    found = list(runs)
    for folder in folders:
        site, policy = SiteConfig.load(folder), Policy.load(folder / POLICY)
        logged = list(entries(site.audit))
        known = False
        for place, run in enumerate(found):
            verdicts = tuple(_verdict(site.name, entry) for entry in logged if _is_of(entry, run.result))
            if verdicts:
                known = True
                rules = {name: _shown(getattr(policy, name)) for name in RULES}
                kit = Kit(site.name, verdicts, len(logged), rules)
                ledgers = (*run.ledgers, *ledgers_in(site.ledger, run.result))
                found[place] = replace(run, kits=(*run.kits, kit), ledgers=ledgers)
        if not known:
            raise ConfigError(
                f"--site={folder}: its log has no entry of these runs; accepted: a kit that was asked for one"
            )
    return found


def _is_of(entry: Entry, result: ExperimentResult) -> bool:
    """A study's run has the beginning of the study's digest for its configuration's hash."""
    return bool(result.config_hash) and str(entry.details.get("study", "")).startswith(result.config_hash or "-")


def _verdict(hospital: str, entry: Entry) -> Verdict:
    said = {name: value for name, value in entry.details.items() if name not in ("study", "title", "hospital")}
    return Verdict(
        hospital, entry.time, entry.event, "; ".join(f"{name} {_shown(value)}" for name, value in said.items())
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
