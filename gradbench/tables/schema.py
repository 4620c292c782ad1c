"""The explicit Arrow schema of the result tables.

`cells` has a row for every planned cell, `params` for every (cell, parameter), `blocks` for every (cell, block of the
state), `budget` for every (cell with a cause, parameter). A record on disk is a table `cells` whose rows carry the
other three tables as nested lists, so that all numbers of a cell are written together or not at all. Numbers that only
some rules or systems know are a fourth list, `extra`, and become columns of float64 behind those of `cells`.
Null: a column does not apply to the cell. NaN: the column applies and its number is undefined, for the reason in the
row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradbench.vocabulary.cause import CAUSES, Cause, column
from gradbench.vocabulary.coordinates import COORDINATES, LATE

CHECKPOINT_OF = b"gradbench.checkpoint"  # a key of the metadata of a log: the digest of the checkpoint with its rows
VERSION = 5
BASELINE_VERSION = 2
# columns, of nested rows too, that came with this version, beside the late coordinates
LATER = frozenset(
    {
        *("reference_open", "reference_gap", "implicit_open", "draws", "variance", "bias_se"),
        *map(column, (Cause.DAMPING, Cause.WEIGHTS, Cause.JACOBIAN, Cause.SIGN, Cause.SCALE)),
        *map(column, (Cause.UNKNOWN, Cause.VARIANCE)),
    }
)
OLDER = {str(VERSION): ("4",), f"baseline {BASELINE_VERSION}": ("baseline 1",)}  # versions that are read, too


@dataclass(frozen=True)
class Column:
    """The declaration of a column. Its ends are those of the mathematical range of its numbers, None where it has none.

    NaN has no place in a range, and is what a number is that is undefined. Where a range has no upper end, inf is a
    number that overflowed.
    """

    type: pa.DataType
    least: float | None = None
    most: float | None = None
    better: Literal["up", "down", "to one"] | None = None  # how a baseline compares it; None: not at all


_S, _I, _B = Column(pa.string()), Column(pa.int64()), Column(pa.bool_())
_F = Column(pa.float64())
_SIZE = Column(pa.float64(), least=0)
_SHARE = Column(pa.float64(), least=0, most=1)
_COSINE = Column(pa.float64(), least=-1, most=1, better="up")
_CORRELATION = Column(pa.float64(), least=-1, most=1)
_ERROR = Column(pa.float64(), least=0, better="down")
_RATIO = Column(pa.float64(), least=0, better="to one")
_COUNT = Column(pa.int64(), least=0)

IDENTITY = {
    "cell": _S,  # content key
    "problem": _S,  # content key of the problem with this cell; null if skipped
    "system": _S,
    "system_options": _S,  # canonical JSON
    "system_label": _S,  # name and options that differ from the defaults
    "estimator": _S,
    "estimator_options": _S,
    "estimator_label": _S,
    **{name: Column({float: _F, int: _I, str: _S}[c.type].type, least=c.least) for name, c in COORDINATES.items()},
    "dataset": _S,
}

OUTCOME = {
    "status": _S,
    "reason": _S,
    "cosine": _COSINE,
    "cosine_mean": _COSINE,
    "cosine_min": _COSINE,
    "cosine_attn": _COSINE,
    "worst": _S,  # parameter with the smallest cosine
    "params_live": _COUNT,  # parameters whose reference is above the floor of liveness; null: nothing was compared
    "params_zero": _COUNT,  # of these, parameters whose estimate is exactly zero: their cosine is 0
    "params_undefined": _COUNT,  # parameters without a cosine
    "norm_ratio": _RATIO,
    "rel_error": _ERROR,
    "sign_agreement": _SHARE,
    "reference_norm": _SIZE,
    "reference_open": _SIZE,  # |g - (1 - J_G^T) a| / |g| of the credit a of backpropagation; null: there is none
    "reference_gap": _SIZE,  # |bptt - implicit| / |bptt|; this and the next are null where nobody asks for `implicit`
    "implicit_open": _SIZE,  # what the solve of the implicit reference leaves of its right side
    "residual": _ERROR,
    "settled_share": _SHARE,
    "force_norm": _SIZE,
    "state_norm": _SIZE,
    "rho": _SIZE,
    "antisymmetry": _SIZE,
    "antisymmetry_se": _SIZE,
    "antisymmetry_swirl": _SIZE,
    "antisymmetry_swirl_se": _SIZE,
    "energy_monotone": _B,
    "cause": _S,  # of an error above the threshold, where the status allows to look for a cause
    "cause_of": _S,  # the parameter whose error has this cause; empty: the whole gradient
    "residual_rate": _SIZE,  # this column and the next eight are null without --certify
    "rho_arnoldi": _SIZE,
    "rightmost": _F,  # null where the system projects
    "spectrum_open": _SIZE,
    "sigma_max": _SIZE,
    "condition": _SIZE,
    "end_states": _COUNT,
    "distance": _SIZE,
    "angle": Column(pa.float64(), least=0, most=180),
    "nudge_residual": _SIZE,
    "clip_share": _SHARE,
    "drift": _SIZE,  # of the state at rest in the nudged phase, over the signal
    "curvature": _SIZE,
    "noise_floor": _SIZE,
    "rho_T2": _SIZE,  # rho^T2: the share of the credit that T2 steps are expected to leave out
    "gamma": _CORRELATION,  # cosine of the state credit, mean over blocks; a clamped layer counts as 0
    "gamma_free": _CORRELATION,  # without the clamped layers
    "gamma_error": _CORRELATION,  # as gamma, of the credit in prediction errors
    "gamma_error_free": _CORRELATION,  # without the clamped layers
    "rho_corr": _CORRELATION,  # correlation of the credit with the effect of perturbations on the cost
    "rho_corr_free": _CORRELATION,
    "state_error": _SIZE,
    "draws": _COUNT,  # of which the estimate is the mean; this column and the next two are null for rules without draws
    "variance": _SIZE,  # E|estimate of a draw - mean|^2 / |reference|^2
    "bias_se": _SIZE,  # standard error of the mean, over |reference|
    "n_force": _COUNT,  # evaluations that the cell needs alone, with the free phase and without the reference
    "n_jvp": _COUNT,
    "n_vjp": _COUNT,
    "seconds": _SIZE,  # of the problem, over the number of its cells
    "peak_memory": _COUNT,  # bytes on the device while the problem ran
}

PARAM = {
    "param": _S,
    "cosine": _COSINE,
    "norm_ratio": _RATIO,
    "rel_error": _ERROR,
    "sign_agreement": _SHARE,
    "reference_norm": _SIZE,
    "reason": _S,  # why the cosine is undefined, or 0 by convention
}

BLOCK = {
    "block": _S,
    "cosine": _COSINE,  # of the displacement with the reference credit, batch mean
    "cosine_error": _CORRELATION,  # of the prediction error
    "norm_ratio": _RATIO,
    "rho_corr": _CORRELATION,
}

BUDGET = {
    "param": _S,  # empty: the whole gradient
    "rel_error": _ERROR,
    **{column(cause): _SIZE for cause in CAUSES},  # |change by this cause| / |reference|; null: not taken apart
}

EXTRA = {
    "column": pa.string(),  # of the table `cells`, where it follows the columns of its schema
    "value": pa.float64(),
}

METADATA = {b"gradbench.schema": str(VERSION).encode()}

COLUMNS = {  # by table
    "cells": {**IDENTITY, **OUTCOME},
    "params": {"cell": _S, **PARAM},
    "blocks": {"cell": _S, **BLOCK},
    "budget": {"cell": _S, **BUDGET},
}
BETTER = {name: column.better for name, column in OUTCOME.items() if column.better is not None}
CELLS, PARAMS, BLOCKS, BUDGETS = (
    pa.schema({name: column.type for name, column in columns.items()}, metadata=METADATA)
    for columns in COLUMNS.values()
)
NESTED = {"params": PARAMS, "blocks": BLOCKS, "budget": BUDGETS}  # tables that a record nests in its rows
TABLES = {"cells": CELLS, **NESTED}
_LISTS = [
    pa.field(name, pa.list_(pa.struct([field for field in rows if field.name != "cell"])))
    for name, rows in NESTED.items()
]
_EXTRA = pa.field("extra", pa.list_(pa.struct(list(EXTRA.items()))))
RECORD = pa.schema([*CELLS, *_LISTS, _EXTRA], metadata=METADATA)


def readable(version: str) -> tuple[str, ...]:
    """The versions of a schema that are read where `version` is written."""
    return (*OLDER[version], version)


def upgraded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of an older version in the columns of `schema`, with its further columns behind them.

    A coordinate that came later has its default, and any other column that came later null, as have fields of nested
    rows. What is missing for another reason stays missing.
    """
    columns = {}
    for field in schema:
        if field.name in table.column_names:
            columns[field.name] = _upgraded(table[field.name], field.type)
        elif field.name in LATER or field.name in LATE:
            value = pa.scalar(LATE.get(field.name), field.type)
            columns[field.name] = pa.chunked_array([pa.repeat(value, table.num_rows)], field.type)
    columns |= {name: table[name] for name in table.column_names if name not in columns}
    metadata = {**table.schema.metadata, **schema.metadata}
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    return pa.table(list(columns.values()), pa.schema(fields, metadata=metadata))


def _upgraded(column: pa.ChunkedArray, to: pa.DataType) -> pa.ChunkedArray:
    """A column with rows nested in it, with the fields of these rows that came later; any other as it is."""
    if column.type == to or not pa.types.is_list(to) or not pa.types.is_struct(to.value_type):
        return column
    rows = column.combine_chunks()
    inner = rows.flatten()
    there, wanted = {f.name for f in inner.type}, {f.name for f in to.value_type}
    if there - wanted or wanted - there - LATER:
        return column
    parts = [inner.field(f.name) if f.name in there else pa.nulls(len(inner), f.type) for f in to.value_type]
    whole = pa.StructArray.from_arrays(parts, fields=list(to.value_type))
    lengths = pc.fill_null(pc.list_value_length(rows), 0)
    ends = np.concatenate([[0], np.cumsum(lengths.to_numpy())]).astype(np.int32)
    nested = pa.ListArray.from_arrays(pa.array(ends), whole, type=to, mask=rows.is_null() if rows.null_count else None)
    return pa.chunked_array([nested])


def range_of(metric: str) -> tuple[float, float]:
    """The smallest and the largest number that a metric can be; of true and false 0 and 1."""
    declared = OUTCOME[metric]
    least, most = (0, 1) if declared.type == pa.bool_() else (declared.least, declared.most)
    return -math.inf if least is None else least, math.inf if most is None else most
