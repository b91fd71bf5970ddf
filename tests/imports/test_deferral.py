"""Packages that imports leave out: what was named works when it is used, and a run uses none of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from medx.imports.deferral import deferred
from medx.privacy.accountants import Release, prv

PACKAGE = """
import sys

class Base:
    word = "base"

def double(number):
    return 2 * number

def shout(function):
    return lambda: function().upper()

_private = "private"
table = {"a": 1}
loaded = sys.modules[__name__]
"""

USER = """
import heavy.inner.deep
import heavy
from heavy import inner
from heavy.inner import Base, double, shout, table, _private

Alias = heavy.inner.Base | None
Turned = None | heavy.inner.Base
word = Base.word

@heavy.inner.shout
def hello():
    return "hello"

def holds(value):
    return isinstance(value, (int, Base))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    inner = tmp_path / "heavy" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("")
    (inner / "__init__.py").write_text(PACKAGE)
    (inner / "deep.py").write_text("depth = 3\n")
    (tmp_path / "user.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def imported_user() -> ModuleType:
    with deferred(("heavy",)):
        import user  # type: ignore[import-not-found]  # written by the fixture
    assert not [name for name in sys.modules if name.startswith("heavy")]
    return user  # type: ignore[no-any-return]


def test_what_was_named_works_when_it_is_used(package: Path) -> None:
    user = imported_user()
    assert not user.holds("text")
    assert user.holds(3)
    assert "heavy" not in sys.modules  # to ask did not load it: nothing can be an instance yet
    assert user.double(4) == 8
    assert "heavy.inner" in sys.modules
    assert user.hello() == "HELLO"
    assert user.heavy.inner.deep.depth == 3
    assert (user.word, user.table["a"], user._private) == ("base", 1, "private")
    assert not hasattr(user.inner, "absent")

    import heavy.inner  # type: ignore[import-not-found]

    assert user.holds(heavy.inner.Base())
    assert not user.holds("text")
    assert heavy.inner.loaded is sys.modules["heavy.inner"]


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("class found(Base): pass", "Base"),
        ("found = Base.word == 'base'", True),
        ("found = bool(Base)", True),
        ("found = table['a']", 1),
    ],
)
def test_a_use_that_cannot_wait_ends_the_deferral(package: Path, use: str, expected: object) -> None:
    (package / "derived.py").write_text(f"from heavy.inner import Base, table\n{use}\n")
    with deferred(("heavy",)):
        import heavy.inner
        from derived import found  # type: ignore[import-not-found]

        assert sys.modules["heavy.inner"].Base is heavy.inner.Base
    assert (found.__mro__[1].__name__ if isinstance(found, type) else found) == expected


def test_a_class_is_known_by_the_package_that_it_was_taken_from_and_by_its_own(package: Path) -> None:
    shell = package / "heavy" / "shell"
    shell.mkdir()
    (shell / "__init__.py").write_text("from heavy.inner import Base\n")
    (package / "heavy_user.py").write_text("from heavy.shell import Base\n")
    with deferred(("heavy.inner", "heavy.shell")):
        from heavy_user import Base  # type: ignore[import-not-found]
    assert not isinstance(3, Base)
    assert "heavy.inner" not in sys.modules

    import heavy.inner

    assert "heavy.shell" not in sys.modules
    assert isinstance(heavy.inner.Base(), Base)


def test_a_package_that_nobody_imported_by_name_is_there_all_the_same(package: Path) -> None:
    (package / "light.py").write_text("import heavy\ndef word(): return heavy.inner.Base.word\n")
    with deferred(("heavy.inner",)):
        import heavy
        import light  # type: ignore[import-not-found]
    assert "heavy.inner" not in sys.modules
    assert light.word() == "base"
    assert heavy.inner is sys.modules["heavy.inner"]


def test_what_is_not_installed_is_missed_at_its_import(package: Path) -> None:
    with deferred(("heavy", "heavier")):
        with pytest.raises(ModuleNotFoundError, match="heavier"):
            import heavier  # type: ignore[import-not-found]  # noqa: F401
        import user
    assert user.double(2) == 4


def test_a_stand_in_holds_what_the_real_thing_holds(package: Path) -> None:
    user = imported_user()
    assert ("a" in user.table, 1 in user.table, list(user.table), len(user.table)) == (True, False, ["a"], 1)
    assert f"{user.table}" == "{'a': 1}"
    user.Base.word = "changed"
    assert sys.modules["heavy.inner"].Base.word == "changed"


def test_what_is_there_already_is_not_deferred(package: Path) -> None:
    import heavy.inner

    there = sys.modules["heavy.inner"]
    with deferred(("heavy",)):
        import user
    assert sys.modules["heavy.inner"] is there
    assert user.double is there.double
    assert user.Base is heavy.inner.Base


def test_an_error_on_the_way_leaves_nothing_behind(package: Path) -> None:
    before = list(sys.meta_path)
    (package / "broken.py").write_text("import heavy.inner\n1 / 0\n")
    with pytest.raises(ZeroDivisionError), deferred(("heavy",)):
        import broken  # type: ignore[import-not-found]  # noqa: F401
    assert sys.meta_path == before
    assert not [name for name in sys.modules if name.startswith("heavy")]


LIBRARIES = """
import sys
from medx.imports.deferral import UNUSED
from medx.imports import quickly

with quickly():
    import medx.job
    import medx.trainer.module
print([name for name in UNUSED if name in sys.modules])

import torch, torchmetrics, torchvision
from medx.privacy.accountants import Release, prv
print(prv((Release(0.01, 1.0, 200),), 1e-5))
metric = torchmetrics.Accuracy("binary")
metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
figure, axes = metric.plot()
print(type(figure).__module__, torchvision.ops.nms.__name__)
import opacus.optimizers.optimizer as of, torch.distributed.tensor as real
print(isinstance(torch.ones(1), of.DTensor), issubclass(of.DTensor._found(), real.DTensor))
"""


def test_the_libraries_of_a_run_are_whole_without_what_they_name() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True)
    loaded, epsilon, *drawn, instance = done.stdout.splitlines()
    assert loaded == "[]"
    assert float(epsilon) == prv((Release(0.01, 1.0, 200),), 1e-5)
    assert drawn == ["matplotlib.figure nms"]
    assert instance == "False True"
