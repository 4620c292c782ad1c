"""Suites that several tests run, and how the rows of two runs are compared."""

from __future__ import annotations

import pandas as pd

COST_OF_TIME = ["seconds", "peak_memory"]

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

# statuses settled, unsettled and skipped, two systems, four seeds
GATED = """
about = "A gate is tried on it."

[[grid]]
system = [
  { name = "toy_cons", N = 2, D = 4, out = 2, drive_std = 1.0 },
  { name = "toy_noncons", N = 2, D = 4, heads = 2, out = 2, drive_std = 1.0 },
]
estimator = ["bptt", "ep", "aep", "tbptt"]
damp = 3.0
T1 = [20, 200]
T2 = [4, 60]
beta = 0.1
seed = [0, 1, 2, 3]
dtype = "float64"
batch = 2

[[check]]
name = "aep follows BPTT"
where = { estimator = "aep", T1 = 200, T2 = 60, status = "settled" }
metric = "cosine_min"
min = 0.9
"""


def assert_same_rows(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Cells of two runs are equal bit for bit, but for what depends on the time."""
    pd.testing.assert_frame_equal(
        a.drop(columns=COST_OF_TIME).reset_index(drop=True),
        b.drop(columns=COST_OF_TIME).reset_index(drop=True),
        check_dtype=False,  # a column with a null is of floats
        check_exact=True,
    )
