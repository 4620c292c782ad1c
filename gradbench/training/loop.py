"""Training into a folder: begun, cut off, gone on with, to the same numbers.

A checkpoint holds the log up to its own step, and `log.parquet` is written from it: whatever is cut off
where, the log has no gap and no row twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gradbench.runner import environment
from gradbench.tables import runs
from gradbench.tables.store import read_json, read_table, write_json, write_table
from gradbench.training.config import Config, load
from gradbench.training.log import LOG, rows

if TYPE_CHECKING:
    from gradbench.training.trainer import Trainer


@dataclass
class Progress:
    """How far a training is, for `progress.told`."""

    weight: int  # steps that this start has to take
    done_weight: int = 0
    kept: int = 0  # steps that an earlier start took
    said: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Steps a second, evaluations included."""
        return self.done_weight / max(time.monotonic() - self.began, 1e-9)

    @property
    def text(self) -> str:
        """Steps, rate and what was last measured."""
        steps = f"step {self.kept + self.done_weight}/{self.kept + self.weight}"
        return f"{steps}  {self.rate:.3g} steps/s  {self.said}" if self.done_weight else f"{steps}  {self.said}"

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.done_weight == self.weight

    @property
    def eta(self) -> float | None:
        """Seconds left, once something is done."""
        return (self.weight - self.done_weight) / self.rate if self.done_weight else None


@dataclass(frozen=True)
class Training:
    """The folder of a training."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Where its parameters are."""
        return self.folder / "checkpoint.pt"

    @property
    def log(self) -> Any:
        """The log as a pandas frame."""
        return read_table(self.folder / "log.parquet", LOG).to_pandas()

    @property
    def last(self) -> str:
        """The last row of every seed, as text."""
        log = self.log
        ends = log[log["step"] == log["step"].max()].dropna(axis="columns", how="all")
        return str(ends.drop(columns="params", errors="ignore").to_string(index=False))

    def draw(self) -> list[Path]:
        """Draw the curve of the log as SVG and PNG; the files."""
        from gradbench import plots
        from gradbench.plots.curve import curve

        config, env = (read_json(self.folder / f"{name}.json") for name in ("config", "env"))
        return plots.save(curve(self.log, config, env), self.folder / "curve")


def train(
    config: str,
    *,
    out: str | Path = "results",
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
    fresh: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> Training:
    """Train what a file says, or go on with it where it was cut off; the folder of the training.

    `overrides` replaces keys of the file. Raises UserError before anything is trained, StoreError where the
    results cannot be read or written.
    """
    loaded = load(config, overrides)
    from gradbench.engine import device as devices
    from gradbench.engine.precision import ieee_float32
    from gradbench.training.trainer import Trainer

    device = devices.resolve(device)
    env = environment(loaded.key, device)
    with ieee_float32():
        trainer = Trainer(loaded, device)  # images that cannot be had are missed before there is a folder
        training = _folder(loaded, env, Path(out) / "training" / loaded.name, fresh)
        _train(trainer, training, env, watch or (lambda progress: None))
    return training


def _folder(config: Config, env: dict[str, Any], folder: Path, fresh: bool) -> Training:
    run = None if fresh else runs.matching(folder, env["identity"])
    if run is None:
        run = runs.new(folder, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{env['identity'][:4]}")
        write_json(run.folder / "config.json", config.model_dump(mode="json"))
        write_json(run.folder / "env.json", env)  # last: a folder without it never started
    return Training(run.folder)


def _train(trainer: Trainer, training: Training, env: dict[str, Any], watch: Callable[[Progress], None]) -> None:
    from gradbench.engine import checkpoint

    step, log = 0, list[dict[str, Any]]()
    length = trainer.config.length
    if training.checkpoint.exists():
        found = checkpoint.read(training.checkpoint)
        step, log = found["step"], found["rows"]
        trainer.state.copy_(found["state"])
        _write(training, log, env)  # the log may be older than the checkpoint
    progress = Progress(length - step, kept=step, said=_said(log))
    if not log:
        log = _keep(trainer, training, 0, log, env)
    watch(progress)
    for taken in range(step, length):
        trainer.advance(taken)
        log = _keep(trainer, training, taken + 1, log, env)
        progress.done_weight += 1
        progress.said = _said(log)
        watch(progress)


def _keep(
    trainer: Trainer, training: Training, step: int, log: list[dict[str, Any]], env: dict[str, Any]
) -> list[dict[str, Any]]:
    """The log with what is due at a step; where there is something, it is stored."""
    from gradbench.engine import checkpoint

    measured = rows(trainer, step)
    if not measured:
        return log
    log = log + measured
    checkpoint.save(training.checkpoint, trainer.config.seeds, step, trainer.state.tensors(), log)
    _write(training, log, env)
    return log


def _write(training: Training, log: list[dict[str, Any]], env: dict[str, Any]) -> None:
    metadata = {**(LOG.metadata or {}), b"gradbench.env": json.dumps(env).encode()}
    write_table(training.folder / "log.parquet", pa.Table.from_pylist(log, schema=LOG.with_metadata(metadata)))


def _said(log: list[dict[str, Any]]) -> str:
    """The last score of all seeds, as a mean."""
    for name in ("test", "train"):
        steps = [row["step"] for row in log if row.get(name) is not None]
        if steps:
            last = [row[name] for row in log if row["step"] == steps[-1]]
            return f"{name} {sum(last) / len(last):.4g}"
    return ""
