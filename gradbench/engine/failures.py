"""What an exception of a measurement means for the cells that were to be measured."""

from __future__ import annotations

from dataclasses import dataclass

from gradbench.errors import SystemFaultError, UserError
from gradbench.vocabulary.status import Status


class ClusterGoneError(Exception):
    """A scheduler, or every worker of it, is gone: nothing more can be measured there."""


@dataclass(frozen=True)
class Failed:
    """Why a pack has no rows."""

    status: Status
    reason: str
    refused: bool = False  # a mistake of the user, which ends the run
    broken: bool = False  # the process that measured is lost: it ended, or can compute nothing more
    gone: bool = False  # a worker of a cluster is lost, and maybe its host, for which the pack need not be the reason


def failure_of(error: BaseException) -> Failed:
    """What an exception means."""
    from gradbench.engine.packs import does_not_fit  # torch comes with it, and `Failed` is needed before that

    if isinstance(error, UserError) and not isinstance(error, SystemFaultError):
        return Failed(Status.ERROR, str(error), refused=True)
    told = str(error) if isinstance(error, SystemFaultError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return Failed(Status.OOM if does_not_fit(error) else Status.ERROR, told.partition("\n")[0])
