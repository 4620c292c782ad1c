"""`gradbench compare` and `gradbench.compare`: two runs cell by cell."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradbench.errors import UserError, public, spoken
from gradbench.tables import runs
from gradbench.tables.comparing import Comparison, compared
from gradbench.tables.store import Run
from gradbench.tables.verifying import trusted

if TYPE_CHECKING:
    from collections.abc import Mapping


@public()
def compare(
    a: Run | str | Path,
    b: Run | str | Path,
    metrics: Collection[str] | None = None,
    *,
    across: Mapping[str, Any] | None = None,
    out: str | Path = "results",
) -> Comparison:
    """Compare run b with run a, cell by cell: runs, folders, or names as `gradbench check` takes them.

    `across` leaves a coordinate or an option out of the key and pairs its two values, as in
    `{"estimator": ["ep", "aep"]}`. Raises UserError for what is no run or no metric, StoreError for a damaged run.
    """
    if isinstance(metrics, str):
        raise UserError(f"metrics: got {metrics!r}, expected a list of names, as in [{metrics!r}]")
    first, second = (trusted(r if isinstance(r, Run) else runs.find(str(r), Path(out))) for r in (a, b))
    try:
        return compared(first, second, metrics, None if across is None else _pair(across))
    except UserError as error:
        raise UserError(spoken(python=str(error).replace("--across", "across"), shell=str(error))) from None


def _pair(across: Mapping[str, Any]) -> tuple[str, Any, Any]:
    example = spoken(python="across={'estimator': ['ep', 'aep']}", shell="--across estimator=ep,aep")
    if len(across) != 1:
        raise UserError(f"across: got {len(across)} names, expected one with two values, as in {example}")
    ((name, values),) = across.items()
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise UserError(f"across {name}: got {values!r}, expected two values, as in {example}")
    return name, values[0], values[1]
