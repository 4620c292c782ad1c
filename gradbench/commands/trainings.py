"""`gradbench train`: a training in its folder, which the same command resumes where it was cut off.

A resumed training ends at the numbers of one that was never cut off: a checkpoint holds the log up to its step, and
`log.parquet` is written from the checkpoint, so that the log has no gap and no row twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gradbench.commands.environment import Environment, describe_environment, warn_of_undigested
from gradbench.commands.progress import StepProgress, StepWatch, watching
from gradbench.errors import public
from gradbench.planning.plugins import Names
from gradbench.planning.plugins import load as load_plugins
from gradbench.planning.values import check_truth
from gradbench.tables import runs
from gradbench.tables.disk import read_json, read_table, write_json, write_table
from gradbench.training.config import Config, Optimiser, load
from gradbench.training.log import LOG, rows

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.estimators.base import AbstractEstimator
    from gradbench.systems.base import AbstractSystem
    from gradbench.training.trainer import Trainer


@dataclass(frozen=True)
class Training:
    """The folder of a training."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The file of the trained parameters."""
        return self.folder / "checkpoint.pt"

    @property
    def log(self) -> DataFrame:
        """The log as a pandas frame."""
        return read_table(self.folder / "log.parquet", LOG).to_pandas()

    @property
    def last(self) -> str:
        """The last row of every seed, as text."""
        log = self.log
        ends = log[log["step"] == log["step"].max()].dropna(axis="columns", how="all")
        return str(ends.drop(columns="params", errors="ignore").to_string(index=False))

    def draw(self) -> list[Path]:
        """Draw the curve of the log as SVG and PNG; the paths of both files."""
        from gradbench import plots
        from gradbench.plots.curve import draw_curve

        config, env = (read_json(self.folder / f"{name}.json") for name in ("config", "env"))
        return plots.save(draw_curve(self.log, config, env), self.folder / "curve")


def _of_file(name: str) -> str:
    """Where a key of a training file belongs in a call of `train`."""
    if name in Optimiser.model_fields:
        return f"{name!r} goes into overrides={{'optimiser': {{{name!r}: ...}}}}"
    return f"{name!r} goes into overrides={{{name!r}: ...}}" if name in Config.model_fields else ""


@public(_of_file)
def train(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "results",
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    fresh: bool = False,
    plugins: Names = (),
    watch: StepWatch | None = None,
) -> Training:
    """Train what a file says, or resume a training of it that was cut off; the folder of the training.

    `config` is a path, the name of a shipped file, or a table of what a file holds; its name is "session" by default.
    `overrides` replaces keys. Both may hold systems and rules of the session. A system that `gradbench.system` made is
    trained on its own data from its own parameters, so that seeds differ in the order of the examples alone. `plugins`
    are files and modules whose systems and rules get their names first. `watch` is called with the progress after every
    step. Raises UserError before anything is trained, StoreError where the results cannot be read or written.
    """
    watch, results = watching(watch), runs.results_folder(out)
    check_truth("fresh", fresh)
    named = load_plugins(plugins)
    loaded = load(config, overrides)
    from gradbench.engine import device as devices
    from gradbench.engine.precision import isolated
    from gradbench.training.trainer import Trainer

    device = devices.resolve(device)
    parts: list[AbstractSystem | AbstractEstimator] = [loaded.build_system(), loaded.build_rule()]
    env = describe_environment(loaded.key, device, parts, named, test=True)
    warn_of_undigested(env)
    with isolated(cores=None):
        trainer = Trainer(loaded, device)  # before there is a folder: raises where the images cannot be had
        training = _folder(loaded, env, results / "training" / loaded.name, fresh)
        _train(trainer, training, env, watch)
    return training


def _folder(config: Config, env: Environment, folder: Path, fresh: bool) -> Training:
    """The training to resume, else a new one."""
    run = None if fresh else runs.matching(folder, env["identity"])
    if run is None:
        run = runs.new(folder, env["identity"])
        write_json(run.folder / "config.json", config.model_dump(mode="json"))
        write_json(run.folder / "env.json", env)  # last: a folder without it never started
    return Training(run.folder)


def _train(trainer: Trainer, training: Training, env: Environment, watch: StepWatch) -> None:
    from gradbench.engine import checkpoint

    step, log = 0, list[dict[str, Any]]()
    length = trainer.config.length
    if training.checkpoint.exists():
        saved = checkpoint.read(training.checkpoint)
        step, log = saved["step"], saved["rows"]
        trainer.state.copy_(saved["state"])
        _write(training, log, env)  # the log may be older than the checkpoint
    progress = StepProgress(weight=length - step, resumed=step, score=_score(log))
    if not log:
        log = _record(trainer, training, 0, log, env)
    watch(progress)
    for taken in range(step, length):
        trainer.advance(taken)
        log = _record(trainer, training, taken + 1, log, env)
        progress.advance()
        progress.score = _score(log)
        watch(progress)


def _record(
    trainer: Trainer, training: Training, step: int, log: list[dict[str, Any]], env: Environment
) -> list[dict[str, Any]]:
    """The log with the rows that are due at a step. Where there are some, a checkpoint and the log are stored."""
    from gradbench.engine import checkpoint

    measured = rows(trainer, step)
    if not measured:
        return log
    log = log + measured
    checkpoint.save(training.checkpoint, trainer.config.seeds, step, trainer.state.tensors(), log)
    _write(training, log, env)
    return log


def _write(training: Training, log: list[dict[str, Any]], env: Environment) -> None:
    metadata = {**(LOG.metadata or {}), b"gradbench.env": json.dumps(env).encode()}
    write_table(training.folder / "log.parquet", pa.Table.from_pylist(log, schema=LOG.with_metadata(metadata)))


def _score(log: list[dict[str, Any]]) -> str:
    """The mean over all seeds of the last score in the log, as text."""
    for name in ("test", "train"):
        steps = [row["step"] for row in log if row.get(name) is not None]
        if steps:
            last = [row[name] for row in log if row["step"] == steps[-1]]
            return f"{name} {sum(last) / len(last):.4g}"
    return ""
