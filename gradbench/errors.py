"""Mistakes of the caller. Numerical trouble is never an exception: it is a status in a row."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, TypeVar

SHORT = 3  # letters of a word of which one may be wrong, as in T3 for T2

P = ParamSpec("P")
R = TypeVar("R")


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


def public(elsewhere: Callable[[str], str] = lambda name: "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function: arguments that it does not have raise UserError in place of TypeError.

    `elsewhere` says where an unknown argument belongs, or "" where it belongs nowhere; then the near miss is told.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature(function).bind(*args, **kwargs)
            except TypeError:
                raise UserError(_misfit(function, args, kwargs, elsewhere)) from None
            return function(*args, **kwargs)

        return called

    return decorate


def _misfit(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    elsewhere: Callable[[str], str],
) -> str:
    """What a message says of arguments that a function does not have, or of those that it lacks."""
    name, taken = function.__name__, list(signature(function).parameters.values())[_is_method(function) :]
    args = args[_is_method(function) :]
    named = [p.name for p in taken if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    ordered = [p.name for p in taken if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    for key in kwargs:
        if key not in named:
            return f"{name}: {elsewhere(key) or f'there is no argument {key!r}{near_miss(key, named)}'}"
    if len(args) > len(ordered):
        without = ", ".join(ordered) or "none"
        return f"{name}: {len(args)} given without a name; taken without a name: {without}; known: {', '.join(named)}"
    if twice := [key for key in ordered[: len(args)] if key in kwargs]:
        return f"{name}: {twice[0]} is given twice, first without its name and then with it"
    needed = [p.name for p in taken if p.default is Parameter.empty and p.name in named]
    lacking = [key for key in needed if key not in kwargs and key not in ordered[: len(args)]]
    return f"{name}: missing: {', '.join(lacking)}"


def _is_method(function: Callable[..., object]) -> bool:
    return next(iter(signature(function).parameters), "") == "self"
