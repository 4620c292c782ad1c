"""Mistakes of the caller. Numerical trouble is never an exception: it is a status in a row."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, TypeVar

SHORT = 3  # letters of a word of which one may be wrong, as in T3 for T2

P = ParamSpec("P")
R = TypeVar("R")
_from_shell: ContextVar[bool] = ContextVar("from_shell", default=False)


class UserError(Exception):
    """Something asked for does not exist or makes no sense; the message names it and a way out."""


class SystemFaultError(UserError):
    """A system computes what no system may. In a run this is the status of its cells."""


class RuleFaultError(SystemFaultError):
    """The function of a rule raises, or returns what no estimate is. In a run this is the status of its cells."""


class StoreError(Exception):
    """A result folder is damaged or cannot be written."""


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Put the file and the key before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@contextmanager
def from_shell() -> Iterator[None]:
    """What is asked for inside comes from the command line: messages say what to type there."""
    token = _from_shell.set(True)
    try:
        yield
    finally:
        _from_shell.reset(token)


def spoken(*, python: str, shell: str) -> str:
    """The words of a message for who asked: for a call from Python, or for a command line."""
    return shell if _from_shell.get() else python


def near_miss(word: object, known: Iterable[str]) -> str:
    """`. Did you mean 'x'?` where something close is known, else the known words."""
    words = sorted(map(str, known))
    lower = {w.lower(): w for w in words}
    asked = str(word).lower()
    close = difflib.get_close_matches(asked, lower, n=1)
    if not close and len(asked) <= SHORT:
        close = difflib.get_close_matches(asked, [w for w in lower if len(w) == len(asked)], n=2, cutoff=0.5)
    told = " or ".join(repr(lower[w]) for w in sorted(close))
    return f". Did you mean {told}?" if close else f"; known: {', '.join(words)}"


def public(
    elsewhere: Callable[[str], str] = lambda name: "", lacking: Callable[[Collection[str]], str] = lambda given: ""
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function: arguments that it does not have raise UserError in place of TypeError.

    `elsewhere` says where an unknown argument belongs, or "" where it belongs nowhere; then the near miss is told.
    `lacking` says what is missing of the optional arguments, by the names of those that are given, or "" for nothing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        taken = signature(function)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                taken.bind(*args, **kwargs)
            except TypeError:
                raise UserError(_misfit(function, args, kwargs, elsewhere, lacking)) from None
            return function(*args, **kwargs)

        return called

    return decorate


def _misfit(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    elsewhere: Callable[[str], str],
    lacking: Callable[[Collection[str]], str],
) -> str:
    """What a message says of arguments that a function does not have, or of those that it lacks."""
    name, taken = function.__name__, list(signature(function).parameters.values())
    if taken and taken[0].name == "self":
        taken, args = taken[1:], args[1:]
    named = [p.name for p in taken if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    ordered = [p.name for p in taken if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in taken)
    for key in kwargs:
        if key not in named and not takes_any:
            known = near_miss(key, named) if named else ": it takes none"
            return f"{name}: {elsewhere(key) or f'there is no argument {key!r}{known}'}"
    if len(args) > len(ordered):
        without = ", ".join(ordered) or "none"
        known = f"; known: {', '.join(named)}" if named else ""
        return f"{name}: {len(args)} given without a name; taken without a name: {without}{known}"
    if twice := [key for key in ordered[: len(args)] if key in kwargs]:
        return f"{name}: {twice[0]} is given twice, first without its name and then with it"
    needed = [p.name for p in taken if p.default is Parameter.empty and p.name in named]
    given = {*kwargs, *ordered[: len(args)]}
    absent = [*(key for key in needed if key not in given), lacking(given)]
    return f"{name}: missing: {', '.join(filter(None, absent))}"
