"""How a cell is measured again: the arguments of a call in Python, as source code."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Literal

from gradbench.planning import registry

Kind = Literal["system", "estimator"]


def argument(kind: Kind, name: str, options: str) -> dict[str, str] | None:
    """The name of a system or a rule as Python writes it, and the keyword with its options, empty where it needs none.

    `options` is JSON, as in the tables. Options that are the defaults are left out. None where the item was made from
    functions of a caller: then no name means it.
    """
    given = json.loads(options)
    if registry.DIGEST in given:
        return None
    cls = registry.meant(f"{kind}s", name, None)
    defaults = {f.name: f.default for f in fields(cls)} if cls is not None else {}
    changed = {k: v for k, v in given.items() if k not in defaults or v != defaults[k]}
    return {"name": repr(name), "options": f"{kind}_options={changed!r}" if changed else ""}
