"""A run as it is at one moment, read without writing anything into its folder."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradbench.errors import StoreError
from gradbench.tables.disk import read_table, way_out
from gradbench.tables.manifest import Manifest
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.schema import TABLES
from gradbench.tables.store import Run

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
        self._env, self.env_seal = self.sealed("env.json")
        self._manifest = super().manifest
        self._plan, self.plan_seal = self.sealed("plan.json")
        self._claims = super().claims
        self.tables = self._stored() if self.finished else self._made()

    def _stored(self) -> dict[str, pa.Table]:
        """The finished tables. Whether they are those of the manifest is told by who verifies the run."""
        with way_out(f"{self.command} makes it again"):
            return {name: read_table(self.folder / f"{name}.parquet", schema) for name, schema in TABLES.items()}

    def _made(self) -> dict[str, pa.Table]:
        """The tables that the records make now."""
        try:
            return self.compacted(skipped_rows(self.plan)).tables
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StoreError(f"{self.folder / 'plan.json'}: damaged: {type(error).__name__}: {error}") from None

    @property
    def finished(self) -> bool:
        """Whether the tables are the stored ones, with a manifest. A run that goes on has none yet."""
        return self._manifest is not None

    @property
    def manifest(self) -> Manifest | None:
        """The manifest as it was read."""
        return self._manifest

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
