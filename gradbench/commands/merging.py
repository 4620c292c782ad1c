"""`gradbench merge`: the shards of a run put together, with proof that every cell is there once, from one identity."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradbench.commands.archiving import Proof, prove
from gradbench.commands.environment import differences
from gradbench.errors import StoreError, UserError, public, spoken
from gradbench.planning.shards import SHARD
from gradbench.tables import runs
from gradbench.tables.placeholders import skipped_rows
from gradbench.tables.snapshots import Snapshot
from gradbench.tables.store import BEGAN, BOUND, PLAN_SEAL, Run
from gradbench.tables.verifying import verify

MERGED = "merged"  # a key of plan.json: the shards that a run was merged of
SHOWN = 5  # shards that a message names


@public()
def merge(*shards: str | Path, out: str | Path = "results") -> Run:
    """Put the shards of a run together, and prove the result; the merged run, a new one below `out`.

    A shard is named as any run is. Every one is read and verified first. Raises UserError where one is missing, not
    finished, named twice, or of another plan or identity than the others, StoreError where one is damaged; nothing is
    written then.
    """
    return merged([runs.find(str(name), runs.results_folder(out)) for name in shards], runs.results_folder(out))[0]


def merged(shards: Sequence[Run], out: Path) -> tuple[Run, Proof]:
    """The merged run, and its proof. Raises as `merge` does."""
    if not shards:
        raise UserError("merge: name the shards of a run")
    parts = [_finished(run) for run in shards]
    first = parts[0]
    of = _share(first)["of"]
    plan = _whole_plan(first)
    for part in parts[1:]:
        _refuse_other(part, first, plan)
    _refuse_gaps(parts, of, str(plan["suite"]), out)
    _refuse_other_shares(parts, plan)
    told = {f"{_share(p)['index']}/{of}": {"run": p.id, "env": p.env_seal} for p in parts}
    env = {name: value for name, value in first.env.items() if name not in (BEGAN, PLAN_SEAL)}
    env |= {"identity": env["whole"], "shard": None, "command": sys.argv}
    env |= {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    claims = {name: value for name, value in first.claims.items() if name != BOUND}
    folder = out / "runs" / str(plan["suite"])
    run = runs.new(folder, env["identity"])
    run.start(plan | {MERGED: told}, env, claims)
    with run.alone():
        for part in parts:
            for problem in _share(part)["problems"]:
                run.store(problem, part.record(problem))
        run.compact(skipped_rows(plan))
        runs.point(folder, run)
    return run, prove(run)


def _finished(run: Run) -> Snapshot:
    """A shard as it is now. Raises UserError where it is none or goes on, StoreError where it is damaged."""
    snapshot, faults = verify(run, deep=True)
    if snapshot is None or faults:
        raise StoreError("\n".join(f"{fault.name}: {fault.detail}" for fault in faults))
    if SHARD not in snapshot.plan or not snapshot.env.get("shard"):
        way = spoken(python="gradbench.run(..., shard='1/4')", shell="gradbench run SUITE --shard 1/4")
        raise UserError(f"{run.folder}: is no shard; {way} makes one")
    if not snapshot.finished:
        raise UserError(f"{run.folder}: is not finished: {run.standing}")
    return snapshot


def _share(part: Snapshot) -> dict[str, Any]:
    share: dict[str, Any] = part.plan[SHARD]
    return share


def _whole_plan(part: Snapshot) -> dict[str, Any]:
    return {name: value for name, value in part.plan.items() if name != SHARD}


def _refuse_other(part: Snapshot, first: Snapshot, plan: dict[str, Any]) -> None:
    """Raise UserError for a shard of another plan, another identity, or with other checks."""
    between = f"{part.folder} and {first.folder}"
    if _whole_plan(part) != plan:
        raise UserError(
            f"{between}: are shards of two plans: {part.plan['suite']} {part.plan['key']} and {plan['key']}"
        )
    if part.env["whole"] != first.env["whole"]:
        different = differences(part.env, first.env) or ["what no digest sees"]  # type: ignore[arg-type]
        raise UserError(f"{between}: are of two identities: {'; '.join(different)}")
    if _share(part)["of"] != _share(first)["of"]:
        raise UserError(f"{between}: one is of {_share(part)['of']} shards, the other of {_share(first)['of']}")
    claims = [{name: v for name, v in p.claims.items() if name != BOUND} for p in (part, first)]
    if claims[0] != claims[1]:
        raise UserError(f"{between}: have two sets of checks; run one of them again, which writes those of the suite")


def _refuse_gaps(parts: Sequence[Snapshot], of: int, suite: str, out: Path) -> None:
    """Raise UserError unless every shard is there once."""
    there: dict[int, Snapshot] = {}
    for part in parts:
        index = _share(part)["index"]
        if index in there:
            raise UserError(f"{there[index].folder} and {part.folder}: both are shard {index}/{of}; name one of them")
        there[index] = part
    if missing := [f"{index}/{of}" for index in range(1, of + 1) if index not in there]:
        named = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        elsewhere = out != Path("results")
        way = spoken(
            python=f"gradbench.run({suite!r}, shard={missing[0]!r}{f', out={str(out)!r}' if elsewhere else ''})",
            shell=f"gradbench run {suite} --shard {missing[0]}{f' --out {shlex.quote(str(out))}' if elsewhere else ''}",
        )
        raise UserError(f"{len(missing)} of {of} shards are missing: {named}; {way} measures one")


def _refuse_other_shares(parts: Sequence[Snapshot], plan: dict[str, Any]) -> None:
    """Raise UserError or StoreError unless the shards have every problem of the plan once, with a record each."""
    for detail, folder in _faults(parts, set(plan["problems"])):
        raise StoreError(f"{folder}: {detail}")
    for part in parts:
        if missing := set(_share(part)["problems"]) - part.done():
            raise UserError(f"{part.folder}: {len(missing)} of its problems are not measured; {part.command} goes on")


def _faults(parts: Sequence[Snapshot], planned: set[str]) -> Iterator[tuple[str, Path]]:
    owner: dict[str, Snapshot] = {}
    for part in parts:
        share = _share(part)["problems"]
        if foreign := set(share) - planned:
            yield f"its share has {len(foreign)} problems that the plan has not; first {min(foreign)}", part.folder
        if further := part.done() & planned - set(share):
            yield f"it has {len(further)} records that are not of its share; first {min(further)}", part.folder
        for problem in share:
            if problem in owner:
                yield f"the problem {problem} is also in the share of {owner[problem].folder}", part.folder
            owner[problem] = part
    if left := planned - owner.keys():
        yield f"{len(left)} problems are in no share; first {min(left)}", parts[0].folder
