"""What plugins may register, seen as an installed distribution is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gradbench.errors import UserError
from gradbench.planning import registry

RULE = '''
from dataclasses import dataclass
from gradbench.estimators.base import AbstractEstimator
from gradbench.estimators.reverse import ReversePhase, Bptt


@dataclass(frozen=True)
class Mine(Bptt):
    """The reference under another name."""
    name = "mine"


@dataclass(frozen=True)
class Ep(Bptt):
    """A rule with the name of another one."""
    name = "ep"


class Half(AbstractEstimator):
    """A rule that is not finished."""
    name = "half"


class Other:
    """No rule at all."""


def function():
    """No class at all."""
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Install a distribution whose entry point names something of its module."""

    def install(name: str, module: str = "myplug") -> None:
        (tmp_path / "myplug.py").write_text(RULE)
        info = tmp_path / "myplug-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myplug\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gradbench.estimators]\nx = {module}:{name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._registered.cache_clear()

    yield install
    monkeypatch.undo()
    registry._registered.cache_clear()


def test_a_plugin_is_known_by_its_name(plugin: object) -> None:
    plugin("Mine")  # type: ignore[operator]
    assert "mine" in registry.known_estimators()
    assert registry.estimator("mine").claim.exact is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Ep", r"'myplug:Ep' of gradbench.estimators has the name 'ep', which gradbench.estimators.ep.Ep has already"),
        ("function", r"'myplug:function' of gradbench.estimators is <function function.*expected: a class derived"),
        ("Other", r"is the class Other; expected: a class derived from AbstractEstimator"),
        ("Half", r"'myplug:Half' of gradbench.estimators does not define phase, read"),
        ("Nothing", r"'myplug:Nothing' of gradbench.estimators cannot be loaded"),
    ],
)
def test_what_cannot_be_registered_is_named_with_the_way_out(plugin: object, name: str, message: str) -> None:
    plugin(name)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        registry.known_estimators()


def test_a_module_that_is_not_there_is_named(plugin: object) -> None:
    plugin("X", module="nowhere")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"plugin 'nowhere:X' of gradbench.estimators cannot be loaded"):
        registry.known_estimators()
