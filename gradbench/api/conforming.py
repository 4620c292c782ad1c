"""Whether a system or a rule is what it says: `gradbench.conform(item)`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isabstract, isclass
from typing import Any

from gradbench.conformance import rule_checks, system_checks
from gradbench.conformance.findings import Conformance, raised
from gradbench.data.given import article
from gradbench.engine.precision import isolated
from gradbench.errors import UserError, public
from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import registry, values
from gradbench.systems.base import AbstractSystem

Item = AbstractSystem | AbstractEstimator


@public()
def conform(item: object, *, on: object = None, batch: int = 4, seed: int = 0) -> Conformance:
    """Try a system or a rule as everything that ships is tried.

    `item` is a name, a name with options ("aep clip=batch"), a table of name and options, a class derived from
    `AbstractSystem` or `AbstractEstimator`, or what `gradbench.system` and `gradbench.estimator` made. A system is
    tried in float64 at its default coordinates, on `batch` examples drawn from `seed`; a rule on linear systems whose
    gradient is known and on the two toys, or `on` a system of the caller, as a rule needs that is written for states of
    several tensors. A fault of the item is a finding, whatever it raises. Raises UserError for an item that is not
    known, for a batch or a seed that is no number, and for a system that comes to no rest.
    """
    for argument, value, least in (("batch", batch, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{argument} = {value!r}: expected a whole number, {least} or more")
    made = _made(item)
    place = None if on is None else _made(on)
    if place is not None and not (isinstance(made, AbstractEstimator) and isinstance(place, AbstractSystem)):
        raise UserError("conform: on: a rule is tried on a system; expected conform(RULE, on=SYSTEM)")
    name = str(getattr(made, "name", type(made).__name__))
    with isolated():
        import torch

        with torch.random.fork_rng(devices=[]):
            if isinstance(made, AbstractSystem):
                findings = tuple(system_checks.system_findings(made, min(batch, made.held or batch), seed))
                return Conformance(name, "system", findings)
            places = rule_checks.places(batch, seed)
            if isinstance(place, AbstractSystem):
                places = [rule_checks.place_of(place, min(batch, place.held or batch), seed)]
            return Conformance(name, "estimator", tuple(rule_checks.rule_findings(made, places)))


def _made(item: object) -> Item:
    """The system or the rule that an item means. Raises UserError where it means none."""
    if isinstance(item, Item):
        return item
    if isclass(item) and issubclass(item, Item):
        if isabstract(item):
            raise UserError(f"conform: {item.__name__} does not define {', '.join(sorted(item.__abstractmethods__))}")
        try:
            return item()
        except UserError:
            raise
        except Exception as error:  # a class may raise anything
            raise UserError(f"conform: {item.__name__}() {raised(error)}; hand over one with its options") from error
    if isinstance(item, str):
        known = [*registry.known_systems(), *registry.known_estimators()]
        name, options = registry.labelled(item, known)
        return _named(name, values.settings(options, f"conform: {item!r}: option"))
    if isinstance(item, Mapping) and isinstance(item.get("name"), str):
        entry: dict[str, Any] = dict(registry.written(item))  # type: ignore[call-overload]
        return _named(str(entry.pop("name")), entry)
    raise UserError(f"conform: got {article(item)}, expected a system or an estimator, by name, as a class or as it is")


def _named(name: str, options: Mapping[str, Any]) -> Item:
    systems, estimators = registry.known_systems(), registry.known_estimators()
    if name in systems and name in estimators:
        raise UserError(f"conform: {name!r} is a system and an estimator; hand over the one that is meant")
    if name in systems or registry.DIGEST in options:
        return registry.system(name, options, "conform")
    if name not in estimators:
        raise UserError(
            f"conform: {name!r} is neither a system nor an estimator{registry.near_name(name, [*systems, *estimators])}"
        )
    return registry.estimator(name, options, "conform")
