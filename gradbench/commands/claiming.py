"""Checks that no run can pass, or none can fail, told before anything runs: they say nothing of what is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gradbench.errors import UserError
from gradbench.planning.suites import ANY
from gradbench.tables.schema import range_of
from gradbench.vocabulary.status import Status

if TYPE_CHECKING:
    from gradbench.planning.suites import Check


def refuse_hopeless(checks: Iterable[Check], where: str, key: str = "check") -> None:
    """Raise UserError for a check of a metric whose bounds no number reaches or every number does, or of no number.

    A message begins with `where`, and with the key of a suite under which the checks stand.
    """
    for i, check in enumerate(checks):
        if check.metric is None:
            continue
        place = f"{where}: {key}[{i}] {check.name!r}"
        wanted = check.where.get("status", ANY)
        statuses = wanted if isinstance(wanted, list) else [wanted]
        if not any(status == ANY or Status(str(status)).measured for status in statuses):
            told = " or ".join(map(str, statuses))
            raise UserError(f"{place}: where.status: a cell that is {told} has no {check.metric}: no number can pass")
        if check.fitted or check.minus is not None:
            continue
        least, most = range_of(check.metric)
        if check.against is not None:  # a difference of two
            least, most = least - most, most - least
        what = f"{check.metric} - that of {check.against}" if check.against else check.metric
        if check.min is not None and check.min > most:
            raise UserError(f"{place}: min = {check.min:g} is above {most:g}, the largest {what}: no number can pass")
        if check.max is not None and check.max < least:
            raise UserError(f"{place}: max = {check.max:g} is below {least:g}, the smallest {what}: no number can pass")
        idle = [(check.min, least, "min", "below", "smallest"), (check.max, most, "max", "above", "largest")]
        for bound, end, name, side, extreme in idle:
            if bound is not None and (bound < end if name == "min" else bound > end):
                raise UserError(
                    f"{place}: {name} = {bound:g} is {side} {end:g}, the {extreme} {what}: no number can fail"
                )
