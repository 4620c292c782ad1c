"""Every test here runs with the floating-point settings of the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradbench.engine.precision import isolated


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with isolated():
        yield
