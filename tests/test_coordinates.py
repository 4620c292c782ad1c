"""A coordinate is declared once: what follows from the declaration, and that nothing else needs to be touched."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import gradbench
from gradbench.planning.selection import IDENTITY
from gradbench.planning.suites import Grid
from gradbench.tables.schema import CELLS
from gradbench.training.config import Config
from gradbench.vocabulary.coordinates import COORDINATES, Knobs, Point

PACKAGE = Path(gradbench.__file__).parent
FIELD = """    T1: int | None = _declared("""
GAIN = '    gain: float | None = _declared("$g$", "gain of the well", type=float, positive=True, optional=True)\n'
KNOB = "    eps: Tensor  # step size\n"
SYSTEM = '''
"""A well whose depth is a coordinate of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gradbench.systems.base import AbstractEnergySystem
from gradbench.systems.toy import AbstractToy


@final
@dataclass(frozen=True)
class Gained(AbstractToy, AbstractEnergySystem):
    """E = g/2 |z|^2 - <b, z>."""

    name = "gained"
    source = "a test"
    uses = AbstractToy.uses | {"gain"}
    defaults = {**AbstractToy.defaults, "gain": 1.0}

    @property
    def shapes(self):
        return {"b": (self.D,)}

    def energy(self, theta, x, context, s, knobs):
        z = self.split(s)["z"]
        return (0.5 * knobs.gain * z.square() - context["input"] * z).sum((-2, -1))
'''
SUITE = """
about = "A grid over the new coordinate."
[[grid]]
system = { name = "gained", N = 2, D = 4, out = 2, drive_std = 1.0 }
estimator = ["bptt", "ep"]
gain = [1.0, 2.0]
T1 = [50, 100]
T2 = 20
beta = 0.01
batch = 2
dtype = "float64"
[[check]]
name = "the largest gain"
where = { gain = 2.0, estimator = "ep" }
at = { gain = "max" }
metric = "cosine_min"
min = 0.9
"""
USE = """
import sys
import gradbench as gb
from gradbench.cli import app
run = gb.run("gain.toml", out="out", device="cpu")
cells = run.cells
assert sorted(cells["gain"].unique()) == [1.0, 2.0], cells["gain"]
assert set(cells["status"]) == {"settled"}, cells["status"]
at = dict(T1=100, T2=20, beta=0.01, dtype="float64", batch=2)
at["system_options"] = {"N": 2, "D": 4, "out": 2, "drive_std": 1.0}
m = gb.measure("gained", "ep", gain=2.0, **at)
row = cells[(cells["gain"] == 2.0) & (cells["T1"] == 100) & (cells["estimator"] == "ep")].iloc[0]
assert (m.row["gain"], m.row["cell"]) == (2.0, row["cell"]), m.row
assert abs(m.cosine - row["cosine"]) < 1e-12, (m.cosine, row["cosine"])
assert gb.measure("gained", "ep", gain=1.0, **at).row["state_norm"] > 1.5 * m.row["state_norm"]
assert gb.measure("toy_cons", "ep", T1=20).row["gain"] is None
other = gb.run("gain.toml", out="out", device="cpu", overrides={"gain": 3})
assert set(other.cells["gain"]) == {3.0}
for arguments in (
    ["check", run.id, "--out", "out"],
    ["plot", run.id, "--out", "out", "--figure", "cosine_vs_gain"],
    ["explain", run.id, "--out", "out", "--where", "gain=2.0", "--where", "T1=100", "--where", "estimator=ep"],
):
    assert not app(arguments, standalone_mode=False), arguments
assert (run.folder / "plots" / "cosine_vs_gain.png").exists()
assert "gain and T1 vary between the places" in run.report().read_text()
try:
    gb.measure("gained", "ep", gain=-1.0)
except gb.errors.UserError as error:
    assert "gain = -1.0 is not positive" in str(error), error
"""


def test_everything_is_made_from_the_declaration() -> None:
    assert [f.name for f in fields(Point)] == [c.attribute for c in COORDINATES.values()]
    assert set(COORDINATES) <= set(Grid.model_fields)
    assert set(COORDINATES) - {"seed"} <= set(Config.model_fields)
    assert set(COORDINATES) <= set(CELLS.names)
    assert set(COORDINATES) <= set(IDENTITY)
    assert set(COORDINATES) <= set(inspect.signature(gradbench.measure).parameters)
    assert set(Knobs._fields) <= {c.attribute for c in COORDINATES.values()}


def test_a_new_coordinate_touches_one_file(tmp_path: Path) -> None:
    """From a suite to tables, checks, figures, `explain`, `--set` and `measure`, in a package with one line more."""
    shutil.copytree(PACKAGE, tmp_path / "gradbench", ignore=shutil.ignore_patterns("__pycache__"))
    declared = tmp_path / "gradbench" / "vocabulary" / "coordinates.py"
    source = declared.read_text()
    assert source.count(FIELD) == source.count(KNOB) == 1
    declared.write_text(source.replace(FIELD, GAIN + FIELD).replace(KNOB, KNOB + "    gain: Tensor\n"))
    (tmp_path / "gradbench" / "systems" / "gained.py").write_text(SYSTEM)
    (tmp_path / "gain.toml").write_text(SUITE)
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gain=2" in done.stdout


def test_a_value_out_of_range_is_told_alike_everywhere() -> None:
    with pytest.raises(ValueError, match="-1 is below 1"):
        COORDINATES["T1"].check(-1)
    with pytest.raises(ValueError, match=r"0\.0 is not positive"):
        COORDINATES["beta"].check(0.0)
    with pytest.raises(ValueError, match="'float16' is not a choice"):
        COORDINATES["dtype"].check("float16")


def test_an_unknown_argument_of_measure_is_named_with_the_near_miss() -> None:
    with pytest.raises(gradbench.errors.UserError, match=r"no argument 'betta'. Did you mean 'beta'\?"):
        gradbench.measure("toy_cons", "ep", betta=0.1)
