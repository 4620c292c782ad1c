"""Shards of a plan, for clusters that have job arrays and no network between their jobs."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradbench.errors import UserError, spoken
from gradbench.planning.values import shown

if TYPE_CHECKING:
    from gradbench.planning.problems import Problem

MOST = 100_000  # shards of a plan
SHARD = "shard"  # a key of plan.json: which problems a run measures, where it does not measure all of them


@dataclass(frozen=True)
class Shard:
    """One of so many shares of a plan."""

    index: int  # from 1
    of: int

    @classmethod
    def read(cls, given: object) -> Shard:
        """A shard as 2/8. Raises UserError for anything else."""
        parts = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given) if isinstance(given, str) else None
        told = f"{spoken(python='shard', shell='--shard')} = {shown(given)}"
        if parts is None:
            raise UserError(f"{told}: expected i/n, such as 2/8 for the second of eight")
        index, of = map(int, parts.groups())
        if not 1 <= of <= MOST:
            raise UserError(f"{told}: a plan has 1 to {MOST:,} shards")
        if not 1 <= index <= of:
            raise UserError(f"{told}: shards are 1/{of} to {of}/{of}")
        return cls(index, of)

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def to_json(self, problems: Sequence[Problem]) -> dict[str, Any]:
        """What plan.json says of the shard, which has these problems."""
        cells = sum(len(problem.cells) for problem in problems)
        return {"index": self.index, "of": self.of, "cells": cells, "problems": [problem.key for problem in problems]}


def shared_out(problems: Sequence[Problem], shard: Shard) -> list[Problem]:
    """The problems of a shard, in the order of the plan.

    Each problem goes to the shard that has the least cost so far, the most expensive problem first. So all shards cost
    about the same, and every machine shares out alike: nothing enters but the plan.
    """
    loads = [(0, index) for index in range(1, shard.of + 1)]
    ours = set[str]()
    for work, key in sorted(((problem.cost.work, problem.key) for problem in problems), key=lambda p: (-p[0], p[1])):
        load, index = heapq.heappop(loads)
        heapq.heappush(loads, (load + work, index))
        if index == shard.index:
            ours.add(key)
    return [problem for problem in problems if problem.key in ours]
