"""Write a page for every rule and every system. `make docs` runs this; a test holds the pages to the registry."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from gradbench.estimators.base import AbstractEstimator
from gradbench.planning import registry
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    AbstractSystem,
    ClosedForms,
)

ROOT = Path(__file__).parents[1]
AT = {"T1": 100, "T2": 20}  # where the cost of a rule is told
FIGURE = "[rules_by_system](../../results/gallery/field/rules_by_system.png)"


def pages() -> dict[Path, str]:
    """The content of every page, by path below docs/."""
    told = {Path("rules") / f"{name}.md": _rule(cls) for name, cls in registry.known_estimators().items()}
    return told | {Path("systems") / f"{name}.md": _system(cls) for name, cls in registry.known_systems().items()}


def _rule(cls: type[AbstractEstimator]) -> str:
    rule = cls()
    skipped: dict[str, list[str]] = {}
    for name, system in registry.known_systems().items():
        if reason := rule.skip(system):
            skipped.setdefault(reason.replace(name, "it"), []).append(f"`{name}`")
    rows = [
        ("exact where", rule.claim.prose(rule.uses)),
        ("error in β", f"β^{rule.claim.order}" if rule.claim.order else "none is claimed"),
        ("coordinates", ", ".join(sorted(rule.uses)) or "none"),
        ("options", _options(cls)),
        (f"cost after T1 = {AT['T1']} free steps" + f", T2 = {AT['T2']}" * ("T2" in rule.uses), _cost(rule)),
        ("source", rule.source),
        *((f"not on {', '.join(names)}", reason) for reason, names in skipped.items()),
    ]
    where = f"How faithful it is on every system, and at which cost: {FIGURE} of suite `field`."
    return _page(cls, rows, where)


def _cost(rule: AbstractEstimator) -> str:
    count = rule.phase.count(AT["T1"], AT["T2"] if "T2" in rule.uses else None)
    parts = {"forces": count.force, "products J v": count.jvp, "products Jᵀ a": count.vjp}
    told = ", ".join(f"{n} {what}" for what, n in parts.items() if n) or "nothing"
    return ("at least " if count.partial else "") + told


def _system(cls: type[AbstractSystem]) -> str:
    kinds = {
        AbstractForwardSystem: "a forward pass, with an energy of prediction errors",
        AbstractEnergySystem: "F = -dE/ds",
        AbstractDrivenSystem: "F = -dE/ds + swirl; the swirl alone may be no gradient",
        AbstractSystem: "no energy",
    }
    rows = [
        ("energy", next(told for kind, told in kinds.items() if issubclass(cls, kind))),
        ("derivatives", "in closed form" if issubclass(cls, ClosedForms) else "by autograd"),
        ("projects its state", "yes" if cls.projects.fget(cls()) else "no"),  # type: ignore[attr-defined]
        ("complex states", f"no: {cls.real_only}" if cls.real_only else "yes"),
        ("coordinates", ", ".join(sorted(cls.uses)) or "none"),
        ("defaults", ", ".join(f"{k} = {v:g}" for k, v in cls.defaults.items())),
        ("options", _options(cls)),
        ("parameters", ", ".join(f"{n} {_shape(shape)}" for n, shape in cls().shapes.items())),
        ("state", ", ".join(f"{n} {_shape(shape)}" for n, shape in cls().layout.items())),
        ("source", cls.source),
    ]
    where = f"Which rule follows BPTT on it, and at which cost: {FIGURE} of suite `field`, where the suite has it."
    return _page(cls, rows, where)


def _options(cls: Any) -> str:
    return ", ".join(f"`{f.name}` = {f.default!r}" for f in fields(cls)) or "none"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _page(cls: Any, rows: list[tuple[str, str]], where: str) -> str:
    text = registry.definition(cls)
    table = "".join(f"| {name} | {told.replace('|', chr(92) + '|')} |\n" for name, told in rows)
    return f"# {cls.name}\n\n```text\n{text}\n```\n\n| | |\n|---|---|\n{table}\n{where}\n"


def main() -> None:
    """Write all pages, and take away those of names that are gone."""
    told = pages()
    for folder in {path.parent for path in told}:
        (ROOT / "docs" / folder).mkdir(exist_ok=True)
        for old in (ROOT / "docs" / folder).glob("*.md"):
            if folder / old.name not in told:
                old.unlink()
    for path, content in told.items():
        (ROOT / "docs" / path).write_text(content)


if __name__ == "__main__":
    main()
