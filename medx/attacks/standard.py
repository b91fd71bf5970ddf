"""``attack=standard``: after a run, what attacks get on a copy of it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medx.attacks.audit import audit, unit_of
from medx.federation.prepared import Prepared
from medx.output import say
from medx.results import AttackResult
from medx.schema import ConfigError

MOST = 400  # canaries


def refuse(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, before anything is trained, where the run cannot be attacked."""
    try:
        unit_of(config)
    except ConfigError as error:
        raise ConfigError(f"attack=standard: {error}") from None


def attacked(config: Mapping[str, Any], prepared: Prepared, folder: Path) -> list[AttackResult]:
    """Audit the configuration on a copy of the run's data; nothing of it stays but what is returned.

    It runs on ledgers of its own: its releases never leave this folder, which is gone at the end.
    """
    say("attacking a copy of the run")
    count = min(MOST, len(prepared.splits.train) // 2)
    if unit_of(config) == "client":
        count = int(config["federation"]["num_clients"])
    elif prepared.features is not None:
        count = min(count, prepared.inputs["train"].shape[1:].numel())
    with TemporaryDirectory(prefix="attack-", dir=folder) as place:
        found = audit(config, Path(place), canaries=count, seeds=[int(config["seed"])])
    return [finding.result() for finding in found]
