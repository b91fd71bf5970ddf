"""Mechanisms as their yaml has them, with changes."""

from pathlib import Path
from typing import Any

import yaml
from hydra.utils import instantiate

CONF = Path(__file__).parents[2] / "conf" / "privacy"


def keys_of(option: str) -> dict[str, Any]:
    """The option's own keys, wherever its yaml has them."""
    content: dict[str, Any] = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return content.get("privacy", content)


def configured(option: str, **changes: Any) -> Any:
    noise = {} if option == "none" else {"noise_source": "system"}
    return instantiate(keys_of(option) | noise | changes)
