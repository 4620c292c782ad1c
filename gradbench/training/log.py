"""The log of a training: a row for every seed at every step that is due. Null: not measured at this step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gradbench.tables.schema import METADATA

if TYPE_CHECKING:
    from gradbench.engine.outcome import Outcome
    from gradbench.training.trainer import Trainer

_S, _F, _I = pa.string(), pa.float64(), pa.int64()

LOG = pa.schema(
    {
        "step": _I,  # number of steps taken
        "seed": _I,
        "lr": _F,  # of the next step
        "skipped": _I,  # steps so far whose gradient was not finite
        "score": _S,  # of train and test: masked_mse, accuracy or cost
        "train": _F,  # mean over the batches since the last row with a value, before each step; NaN if all were skipped
        "grad_norm": _F,  # mean over the same steps, before the clip
        "test": _F,  # on the examples to test on; null where there are none
        "status": _S,  # of a cell: the rule on the fixed batch
        "residual": _F,
        "rho": _F,
        "cosine": _F,
        "cosine_min": _F,
        "cosine_attn": _F,
        "worst": _S,
        "norm_ratio": _F,
        "rel_error": _F,
        "params": pa.list_(pa.struct({"param": _S, "cosine": _F, "norm_ratio": _F, "reference_norm": _F})),
    },
    metadata=METADATA,
)
_FIDELITY = ("status", "residual", "rho", "cosine", "cosine_min", "cosine_attn", "worst", "norm_ratio", "rel_error")


def due(every: int | None, step: int, last: int) -> bool:
    """Whether a measurement that is made `every` so many steps is due: at the last step always. None: never."""
    return every is not None and (step % every == 0 or step == last)


def rows(trainer: Trainer, step: int) -> list[dict[str, Any]]:
    """The rows that are due after `step` steps; none where no measurement is due. Clears the sums that it reads."""
    config, state = trainer.config, trainer.state
    wanted = {n: due(getattr(config, f"{n}_every"), step, config.length) for n in ("log", "eval", "fidelity")}
    if not any(wanted.values()):
        return []
    measured: list[dict[str, Any]] = [
        {"step": step, "seed": seed, "lr": trainer.lr(step), "skipped": skipped, "score": trainer.batches.scored}
        for seed, skipped in zip(config.seeds, state.skipped.tolist(), strict=True)
    ]
    if wanted["log"] and step > 0:
        train, norm = (state.score / state.counted).tolist(), (state.norm / state.counted).tolist()
        state.clear()
        for row, t, n in zip(measured, train, norm, strict=True):
            row |= {"train": t, "grad_norm": n}
    if wanted["eval"] and config.test_batches:
        for row, score in zip(measured, trainer.test(), strict=True):
            row["test"] = score
    if wanted["fidelity"]:
        for row, outcome in zip(measured, trainer.fidelity(), strict=True):
            row |= _fidelity(outcome)
    return measured


def _fidelity(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row()
    columns = {f.name for f in LOG.field("params").type.value_type}
    params = [{k: v for k, v in p.items() if k in columns} for p in row["params"]]
    return {name: row[name] for name in _FIDELITY} | {"params": params}
