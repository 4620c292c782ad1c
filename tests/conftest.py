"""What all tests share: one thread for tiny tensors, and suites of toy problems that take milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# before torch is imported, here or in a process that a test starts: on tiny tensors threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = """
about = "Two toys, three seeds: six problems in milliseconds."

[[grid]]
system = [{ name = "toy_cons", N = 2, D = 4, out = 2 }, { name = "toy_noncons", N = 2, D = 4, heads = 2, out = 2 }]
estimator = ["bptt", "ep", "aep"]
damp = 3.0
T1 = [5, 10]
T2 = [2, 4]
beta = 0.1
seed = [0, 1, 2]
batch = 2
"""


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Write a suite file: `text` after the tiny suite, or in its place."""

    def write(text: str = "", name: str = "tiny", base: str = TINY) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(base + text)
        return path

    return write
