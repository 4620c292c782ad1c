"""The suites that are run, killed and damaged: toys that take milliseconds."""

from __future__ import annotations

from pathlib import Path

from crash.forking import command
from crash.oracle import Oracle, started

GRID = """
about = "Toys that take milliseconds."

[[grid]]
system = {system}
estimator = {estimator}
damp = 3.0
T1 = 5
T2 = {T2s}
beta = {betas}
seed = {seeds}
batch = 2
"""
TOY = '{ name = "toy_noncons", N = 2, D = 2, heads = 1, out = 2 }'
RULES = '["bptt", "aep", "ep"]'  # one of them is skipped on the toy, so that there are rows without a record
LARGE = 300  # of 8 problems with 10 rows a cell the tables have more pages than one
PLUGIN = """
import torch

import gradbench as gb

CONSTANT = {constant}

crashed = gb.system(
    step=lambda p, x, z, k: torch.tanh(CONSTANT * k.gain * z @ p["W"].T + x["x"]),
    cost=lambda p, x, z: z.square().sum(-1),
    state=lambda p, x: torch.zeros_like(x["x"]),
    params={{"W": torch.eye(3, dtype=torch.float64) * 0.3}},
    data={{"x": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)}},
    knobs={{"gain": 0.5}},
    defaults={{"T1": 5, "T2": 2, "beta": 0.02}},
    name="crashed",
)
"""
PLUGGED = """
about = "A system of a plugin."

[[grid]]
system = {systems}
estimator = ["bptt", "aep"]
"""


def write_suite(
    folder: Path, name: str, problems: int, *, plugin: float | None = None, large: bool = False
) -> list[str]:
    """Write a suite, and the plugin that it uses; the arguments of `run`. A large one has `LARGE` cells a problem."""
    folder.mkdir(parents=True, exist_ok=True)
    if plugin is None:
        T2s, betas = ([1, 2, 3, 4, 5], f"{{ logspace = [-3, 0, {LARGE // 5}] }}") if large else (2, 0.1)
        text = GRID.format(system=TOY, estimator=RULES, seeds=list(range(problems)), T2s=T2s, betas=betas)
    else:
        systems = ", ".join(f'{{ name = "crashed", gain = {0.1 * (i + 1):.1f} }}' for i in range(problems))
        text = PLUGGED.format(systems=f"[{systems}]")
    (folder / f"{name}.toml").write_text(text)
    arguments = ["run", f"{name}.toml", "--device", "cpu"]
    if plugin is not None:
        (folder / f"{name}.py").write_text(PLUGIN.format(constant=plugin))
        arguments += ["--plugin", f"{name}.py"]
    return arguments


def undisturbed(
    folder: Path, name: str, problems: int, *, plugin: float | None = None, large: bool = False
) -> tuple[Oracle, Path]:
    """A run that nothing disturbs: what it holds, and its folder."""
    arguments = write_suite(folder, name, problems, plugin=plugin, large=large)
    ended = command([*arguments, "--out", "oracle"], folder)
    if ended.code:
        raise RuntimeError(f"the undisturbed run ended with {ended.code}: {ended.err}{ended.out}")
    run = started(folder / "oracle", name)[-1]
    return Oracle(run.folder), run.folder
