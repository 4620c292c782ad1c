"""Exit codes of the command."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command came to. Where several hold, the first of PRECEDENCE is returned."""

    OK = 0  # complete, and every check passes
    CHECK_FAILED = 1  # a check failed or had no verdict
    USAGE = 2  # a mistake in the command or the suite
    INCOMPLETE = 3  # planned cells were not measured
    NOTHING = 4  # nothing was selected or nothing was checked
    STORE = 5  # results are damaged or cannot be written
    OUTPUT = 6  # what a command says could not be written, to stdout or to a file that it was told to write
    INTERRUPTED = 130  # by SIGINT
    TERMINATED = 143  # by SIGTERM


# output comes first: what else there was to say did not arrive
PRECEDENCE = (Exit.OUTPUT, Exit.STORE, Exit.USAGE, Exit.INCOMPLETE, Exit.CHECK_FAILED, Exit.NOTHING)


class Ended:
    """What ended in an exit code: it passed where that is 0, and `if` and `assert` of it ask this."""

    code: Exit

    @property
    def passed(self) -> bool:
        """Whether the exit code is 0."""
        return self.code is Exit.OK

    def __bool__(self) -> bool:
        """As `passed`."""
        return self.passed
