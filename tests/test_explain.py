"""`gradbench explain`: from a run and a cell to a cause in words."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradbench
from gradbench import cli
from gradbench.commands.explaining import Explanation, choose, explain, picture
from gradbench.commands.telling import tell
from gradbench.diagnostics.metrics import compare
from gradbench.dynamics.meter import Meter
from gradbench.plots.look import COLOURS
from gradbench.tables.runs import find
from gradbench.tables.store import Run

SUITE = """
about = "one good cell and some bad ones"
[[grid]]
system = { name = "toy_noncons", drive_std = 1.0 }
estimator = ["bptt", "ep", "aep", { name = "control", kind = "flipped" }]
damp = 3.0
T1 = 200
T2 = [2, 60]
batch = 2
[[grid]]
system = { name = "toy_noncons", drive_std = 1.0 }
estimator = "aep"
damp = 3.0
T1 = 4
T2 = 60
batch = 2
[[grid]]
system = "cet_energy"
estimator = "ep"
damp = 0.0
T1 = 200
batch = 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "why.toml").write_text(SUITE)
    gradbench.run(str(folder / "why.toml"), out=folder / "results", device="cpu")
    return find("latest", folder / "results")


@pytest.fixture
def command(run: Run, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli._code(["explain", str(run.folder), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def key(run: Run, **where: Any) -> str:
    rows = run.cells
    for name, value in where.items():
        rows = rows[rows[name] == value]
    (found,) = rows["cell"]
    return str(found)


@pytest.mark.parametrize(
    ("where", "cause", "remedy"),
    [
        ({"estimator": "ep", "T2": 60, "system": "toy_noncons"}, "asymmetry", r"\w+ in place of ep "),
        ({"estimator": "aep", "T1": 200, "T2": 2}, "truncation", "T2 >= "),
        ({"estimator": "aep", "T1": 200, "T2": 60}, "none", None),
        ({"estimator": "bptt"}, "none", None),
    ],
)
def test_a_cell_is_explained(command: Any, run: Run, where: dict[str, Any], cause: str, remedy: str | None) -> None:
    code, out, _ = command(key(run, **where)[:8])
    assert code == 0
    assert f"\ncause: {cause}" in out
    assert re.search(f"\nremedy: {remedy}", out) if remedy else "remedy" not in out


def test_every_part_is_told_as_soon_as_it_is_known(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = choose(run, key(run, estimator="aep", T1=200, T2=2), {}, None)
    meter, steps = Meter(), list[tuple[int, str]]()
    seen: list[Explanation] = []

    def watch(known: Explanation) -> None:
        seen.append(known)
        steps.append((meter.launched, tell(known, 60)))

    with meter.stage(10**9), meter.counting():
        whole = explain(run, row, watch)
    assert whole is seen[-1]
    assert [known.complete for known in seen] == [False] * (len(seen) - 1) + [True]
    certificate, *climbing, judged, _ = seen
    assert certificate.ladder is None
    rungs = [len(known.ladder.rungs) for known in climbing if known.ladder]
    assert whole.ladder is not None
    assert rungs == [*range(1, len(whole.ladder.rungs) + 1), len(whole.ladder.rungs)]
    assert judged.arbiter is not None
    assert judged.remedy is None
    # the first rung is there when most of the relaxations that the last one needs have not begun
    first, last = steps[1][0], steps[len(whole.ladder.rungs)][0]
    assert 0 < first < last
    assert "as run" not in steps[1][1]
    assert [n for n, _ in steps] == sorted(n for n, _ in steps)
    texts = [text for _, text in steps]
    assert all(f"{later}\n".startswith(f"{text}\n") for text, later in itertools.pairwise(texts))
    assert max(map(len, texts[-1].splitlines())) <= 60
    put = cli._teller(60)
    for known in seen:
        put(known)
    assert capsys.readouterr().out == f"{texts[-1]}\n"


def test_a_watch_changes_nothing_and_may_stop_the_climb_at_the_first_rung(run: Run) -> None:
    (row,) = choose(run, key(run, estimator="ep", T2=60, system="toy_noncons"), {}, None)
    plain = explain(run, row)
    watched = explain(run, row, lambda known: None)
    assert plain.ladder is not None
    assert watched.ladder is not None
    assert (plain.remedy, plain.arbiter) == (watched.remedy, watched.arbiter)
    for a, b in zip(plain.ladder.rungs, watched.ladder.rungs, strict=True):
        assert (a.name, a.cause) == (b.name, b.cause)
        for n, g in a.gradient.items():  # where a product finds its numbers in memory changes its last digit
            torch.testing.assert_close(b.gradient[n], g, rtol=1e-9, atol=1e-12 * float(g.abs().max()))
    stopped: list[Explanation] = []

    def stop(known: Explanation) -> None:
        stopped.append(known)
        if known.ladder is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(run, row, stop)
    assert stopped[-1].ladder is not None
    assert len(stopped[-1].ladder.rungs) == 1
    assert "as_run" not in vars(stopped[-1].relaxed)  # what the last rung is measured at


def test_what_is_measured_anew_is_what_was_recorded(command: Any, run: Run) -> None:
    _, out, _ = command(key(run, estimator="ep", T2=60, system="toy_noncons"))
    recorded, here = (
        next(line for line in out.splitlines() if line.startswith(f"  {w}:")) for w in ("recorded", "here")
    )
    told, again = (line.replace(",", "").split()[1:] for line in (recorded, here))
    assert len(told) == len(again)
    for then, now in zip(told, again, strict=True):  # rows of a run share products, whose sums may have another order
        assert then == now or float(then) == pytest.approx(float(now), rel=2e-5)


def test_the_reference_is_judged_by_differences(command: Any, run: Run) -> None:
    _, out, _ = command(key(run, estimator="bptt"))
    assert "reference: central differences of the cost along a random direction give" in out


def test_a_phase_that_diverged_has_a_certificate_and_no_ladder(command: Any, run: Run) -> None:
    code, out, _ = command(key(run, system="cet_energy"))
    assert code == 0
    assert "the free phase left every bound" in out
    assert "ladder" not in out


@pytest.mark.fast
def test_a_control_is_never_among_the_worst(run: Run) -> None:
    cells = run.cells
    assert cells.loc[cells["cosine_min"].idxmin(), "estimator"] == "control"
    rules = cells[cells["status"] == "settled"]["estimator"]
    assert len(choose(run, None, {}, len(cells))) == (rules != "control").sum() < len(rules)


def test_cells_are_chosen_by_key_by_coordinates_or_as_the_worst(command: Any, run: Run) -> None:
    code, out, err = command("--worst", "2", "--where", "estimator=ep,aep")
    assert code == 0
    assert out.count("\ncause: ") == 2
    assert "2 of 2" in err
    cells = run.cells
    measured = cells[(cells["status"] == "settled") & cells["estimator"].isin(["ep", "aep"])]
    assert out.startswith(measured.sort_values("cosine_min")["cell"].iloc[0])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "cells of"),
        (["zzz"], "cell 'zzz' is not among the measured cells"),
        (["--where", "betta=1.0"], "Did you mean 'beta'?"),
        (["--where", "beta"], "--where 'beta': expected KEY=VALUE"),
        (["--where", "seed=7"], "no measured cell"),
        (["--worst", "0"], "--worst 0: expected a number of cells, 1 or more"),
    ],
)
def test_a_mistake_is_one_line(command: Any, arguments: list[str], words: str) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert not out
    assert words in err


def test_a_figure_has_four_panels_with_what_was_found(command: Any, run: Run, tmp_path: Path) -> None:
    where = key(run, estimator="ep", T2=60, system="toy_noncons")
    code, out, _ = command(where, "--figure", str(tmp_path / "new" / "why.png"))
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "new" / "why.png")
    assert (tmp_path / "new" / "why.png").read_bytes().startswith(b"\x89PNG")
    command(where, "--figure", str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {"new", f"{where}.png", f"{where}.svg"}

    (row,) = choose(run, where, {}, None)
    explanation = explain(run, row)
    figure = picture(explanation)
    assert figure is not None
    causes, eigenvalues, depths, updates = figure.axes
    assert explanation.ladder is not None
    sizes = {str(c): max(v, 1e-8) for c, v in explanation.ladder.sizes.items()}
    words = [label.get_text() for label in causes.get_yticklabels()]
    assert {w: bar.get_width() for w, bar in zip(words, causes.patches, strict=True)} == pytest.approx(sizes)
    points = np.concatenate([c.get_offsets() for c in eigenvalues.collections])
    assert len(points) == 256
    assert np.hypot(*points.T).max() == pytest.approx(explanation.certificate.rho, rel=1e-6)
    (naive,) = (line for line in depths.lines if line.get_color() == COLOURS["ep"])
    linearised = compare(explanation.ladder["linearised"].gradient, explanation.ladder.reference, 0.0).whole.cosine
    at_T2 = dict(zip(*naive.get_data(), strict=True))[60]
    assert at_T2 == pytest.approx(1 - linearised, rel=1e-6)
    assert len([line for line in updates.lines if len(line.get_xdata()) == 60]) == 6  # three entries, two rules


def test_what_diverged_has_no_figure_and_says_so(command: Any, run: Run, tmp_path: Path) -> None:
    code, _, err = command(key(run, system="cet_energy"), "--figure", str(tmp_path / "x.svg"))
    assert code == 0
    assert "no figure, since the free phase diverged" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("path", "words"), [("a.pdf", "a .png, a .svg or a folder"), ("a.png", "name a folder")])
def test_a_figure_that_cannot_be_is_refused_before_anything_is_measured(command: Any, path: str, words: str) -> None:
    code, out, err = command("--worst", "2", "--figure", path)
    assert code == 2
    assert not out
    assert words in err


def test_every_file_is_only_read(command: Any, run: Run) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}

    before = files()
    command(key(run, estimator="bptt"))
    assert files() == before
