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

from gradbench.commands.environment import describe_environment, warn_of_undigested
from gradbench.commands.progress import StepProgress, StepWatch, say, watching
from gradbench.errors import StoreError, public
from gradbench.planning.plugins import Names
from gradbench.planning.plugins import load as load_plugins
from gradbench.planning.values import check_truth
from gradbench.tables import runs
from gradbench.tables.disk import read_json, read_table, way_out, write_table
from gradbench.tables.schema import CHECKPOINT_OF
from gradbench.tables.store import BEGAN, MADE_BY, as_told
from gradbench.training.config import Config, Optimiser, load
from gradbench.training.log import LOG, rows

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradbench.engine import checkpoint
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
        """The log as a pandas frame.

        Raises StoreError where it is damaged, that of another training, or not the one that the checkpoint holds.
        """
        from gradbench.engine import checkpoint

        log = self.logged()
        try:
            saved = checkpoint.read(self.checkpoint)
        except StoreError:  # there is none, or it cannot be read: it says nothing of the log
            saved = None
        if saved is not None and not _prefix(log, saved["rows"]):
            raise StoreError(f"{self.folder / 'log.parquet'}: its rows are not those that {self.checkpoint.name} holds")
        return log.to_pandas()

    def logged(self) -> pa.Table:
        """The log as it is stored."""
        path = self.folder / "log.parquet"
        with way_out("the same command writes it anew"):
            table = read_table(path, LOG)
            env = read_json(self.folder / "env.json")
            if not isinstance(env, dict):
                raise StoreError(f"{self.folder / 'env.json'}: damaged: it holds no object")
            if BEGAN in env and as_told(table.schema.metadata.get(MADE_BY)) != env:
                raise StoreError(f"{path}: is the log of another training")
        return table

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
        return plots.save(draw_curve(self.log, config, env), self.folder / "curve", inside=self.folder)


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
        content = loaded.model_dump(mode="json")
        run = runs.resumed_or_begun(
            results / "training" / loaded.name,
            env["identity"],
            lambda run: run.start(content, env, name="config.json"),
            say,
            fresh=fresh,
        )
        training = Training(run.folder)
        with run.alone():
            _train(trainer, training, watch)
    return training


def _train(trainer: Trainer, training: Training, watch: StepWatch) -> None:
    from gradbench.engine import checkpoint

    step, log = 0, list[dict[str, Any]]()
    length = trainer.config.length
    if training.checkpoint.exists():
        saved = checkpoint.read(training.checkpoint)
        _refuse_foreign(training, trainer, saved)
        step, log = saved["step"], saved["rows"]
        trainer.state.copy_(saved["state"])
        _write(training, log, saved.get("digest", ""))  # the log may be older than the checkpoint
    progress = StepProgress(weight=length - step, resumed=step, score=_score(log))
    if not log:
        log = _record(trainer, training, 0, log)
    watch(progress)
    for taken in range(step, length):
        trainer.advance(taken)
        log = _record(trainer, training, taken + 1, log)
        progress.advance()
        progress.score = _score(log)
        watch(progress)


def _refuse_foreign(training: Training, trainer: Trainer, saved: checkpoint.Checkpoint) -> None:
    """Raise StoreError for a checkpoint that is not the one from which the log of this training was written.

    A checkpoint is written before its log. So the log may lack the last rows, but with the same rows it names the same
    checkpoint. A log that cannot be read is written anew.
    """
    told = "; begin anew with --fresh"
    there = {name: value.shape for name, value in saved["state"].items()}
    wanted = {name: value.shape for name, value in trainer.state.tensors().items()}
    steps = range(trainer.config.length + 1)
    if there != wanted or saved["seeds"] != list(trainer.config.seeds) or saved["step"] not in steps:
        raise StoreError(f"{training.checkpoint}: is the checkpoint of another training{told}")
    try:
        log = training.logged()
    except StoreError:
        return
    if CHECKPOINT_OF in log.schema.metadata and not _prefix(log, saved["rows"]):
        raise StoreError(f"{training.checkpoint}: is not the checkpoint that the log was written from{told}")


def _prefix(log: pa.Table, rows: list[dict[str, Any]]) -> bool:
    """Whether a log holds these rows, or the first of them."""
    try:
        whole = pa.Table.from_pylist(rows, schema=log.schema)
    except pa.ArrowException:
        return True  # rows that no log can hold say nothing of it
    # as text, in which NaN is equal to NaN
    return repr(log.to_pylist()) == repr(whole.slice(0, len(log)).to_pylist())


def _record(trainer: Trainer, training: Training, step: int, log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log with the rows that are due at a step. Where there are some, a checkpoint and the log are stored."""
    from gradbench.engine import checkpoint

    measured = rows(trainer, step)
    if not measured:
        return log
    log = log + measured
    state = trainer.state.tensors()
    digest = checkpoint.save(training.checkpoint, trainer.config.seeds, step, state, log, inside=training.folder)
    _write(training, log, digest)
    return log


def _write(training: Training, log: list[dict[str, Any]], digest: str) -> None:
    """Write the log, which names the training that it is of and the checkpoint that holds its rows."""
    env = json.dumps(read_json(training.folder / "env.json")).encode()
    metadata = {**(LOG.metadata or {}), MADE_BY: env, CHECKPOINT_OF: digest.encode()}
    table = pa.Table.from_pylist(log, schema=LOG.with_metadata(metadata))
    write_table(training.folder / "log.parquet", table, inside=training.folder)


def _score(log: list[dict[str, Any]]) -> str:
    """The mean over all seeds of the last score in the log, as text."""
    for name in ("test", "train"):
        steps = [row["step"] for row in log if row.get(name) is not None]
        if steps:
            last = [row[name] for row in log if row["step"] == steps[-1]]
            return f"{name} {sum(last) / len(last):.4g}"
    return ""
