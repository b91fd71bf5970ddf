"""A small cache on disk for the accountants: their answers take seconds and depend on their arguments alone."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medx.preparing import say

logger = logging.getLogger(__name__)
LIBRARIES = ("opacus", "dp-accounting", "numpy", "scipy")
SOURCES = ("accountants.py", "accounting.py", "groups.py")


def cache_folder() -> Path:
    """``$MEDX_CACHE/accounting``, or the same under ``~/.cache/medx``."""
    return Path(os.environ.get("MEDX_CACHE") or Path.home() / ".cache" / "medx") / "accounting"


@cache
def _code() -> dict[str, str]:
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    return {name: version(name) for name in LIBRARIES} | {"medx": hashlib.sha256(sources).hexdigest()}


def cached(name: str, arguments: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """``compute()``, or what it gave before for these arguments, library versions and this very source code.

    Values and arguments are plain JSON. A file that does not hold exactly this question is computed anew.
    """
    question = json.dumps({"name": name, "arguments": arguments, "code": _code()}, sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    try:
        entry = json.loads(path.read_text())
        if entry["question"] == question and entry["digest"] == _digest(question, entry["answer"]):
            return entry["answer"]
        logger.warning("cache file %s is damaged: computing it again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cache file %s cannot be read (%s): computing it again", path, error)
    say("accounting: noise and epsilon")
    answer = compute()
    _write(path, {"question": question, "answer": answer, "digest": _digest(question, answer)})
    return answer


def _digest(question: str, answer: Any) -> str:
    return hashlib.sha256((question + json.dumps(answer)).encode()).hexdigest()


def _write(path: Path, entry: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(entry, file)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("cannot cache %s (%s): the next run computes it again", path, error)
