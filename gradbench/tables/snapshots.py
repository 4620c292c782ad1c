"""A run as it is at one moment, read without writing anything into its folder."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradbench.errors import StoreError
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.schema import TABLES
from gradbench.tables.store import Digests, Run

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from pandas import DataFrame


class Snapshot(Run):
    """A run whose files are read once: the finished tables, or else the tables that its records make now.

    Raises StoreError for a file that is damaged or missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._digests = super().digests
        self._plan, self._env, self._claims = super().plan, super().env, super().claims
        self.tables = {name: super(Snapshot, self).table(name) for name in TABLES} if self.finished else self._made()

    def _made(self) -> dict[str, pa.Table]:
        """The tables that the records make now."""
        try:
            return self.compacted(skipped_rows(self.plan)).tables
        except (KeyError, TypeError) as error:
            raise StoreError(f"{self.folder / 'plan.json'}: damaged: {type(error).__name__}: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the tables are the stored ones, with digests. A run that goes on has none yet."""
        return self._digests is not None

    @property
    def digests(self) -> Digests | None:
        """The digests as they were read."""
        return self._digests

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as it was read."""
        return self._plan

    @property
    def env(self) -> dict[str, Any]:
        """The environment as it was read."""
        return self._env

    @property
    def claims(self) -> dict[str, Any]:
        """Checks and printed tables as they were read."""
        return self._claims

    @cached_property
    def cells(self) -> DataFrame:
        """The `cells` table as a pandas frame, made once."""
        return super().cells

    def table(self, name: str) -> pa.Table:
        """One of the tables as it was read."""
        return self.tables[name]
