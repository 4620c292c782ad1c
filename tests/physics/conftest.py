"""Every test here runs with the floating-point settings of the engine, and long ones are marked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradbench.dynamics import replay
from gradbench.engine.precision import isolated

HERE = Path(__file__).parent
# Files whose tests run for seconds a system: `make test` takes one system of a kind there, `make test-all` every one.
LONG = (
    "batched",
    "budget",
    "claims",
    "credit",
    "deep",
    "diagnostics",
    "estimators",
    "free_state",
    "ladder",
    "reference",
    "solvers",
)


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a loop is a call of its function, as a test needs that counts calls: nothing is recorded."""
    monkeypatch.setattr(replay, "SPENT", math.inf)


def doubles() -> set[str]:
    """The systems that have the kind of one with a smaller state: what they inherit, and whether they project."""
    from live import live_field

    from gradbench.planning import registry
    from gradbench.systems import base

    parts = (
        base.AbstractEnergySystem,
        base.AbstractDrivenSystem,
        base.AbstractForwardSystem,
        base.ClosedForms,
        base.RecordedSteps,
    )
    by_kind: dict[tuple[bool, ...], list[tuple[int, str]]] = {}
    for name, cls in registry.known_systems().items():
        system = live_field(name).system
        kind = (*(issubclass(cls, part) for part in parts), system.projects)
        by_kind.setdefault(kind, []).append((sum(map(math.prod, system.layout.values())), name))
    return {name for alike in by_kind.values() for _, name in sorted(alike)[1:]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of `LONG` files on systems that are doubles as long. pytest hands over the tests of all folders."""
    files = {HERE / f"test_{name}.py" for name in LONG}
    here = [item for item in items if item.path in files and hasattr(item, "callspec")]
    twice = doubles() if here else set()
    for item in here:
        given = item.callspec.params.values()  # type: ignore[attr-defined]
        if any(value in twice for value in given if isinstance(value, str)):
            item.add_marker(pytest.mark.long)
