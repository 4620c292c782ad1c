"""Suite files: what they mean, and every mistake in one of them is a UserError that names file, key and near miss."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradbench
from gradbench.errors import UserError
from gradbench.estimators.control import Control
from gradbench.estimators.disguises import Kind
from gradbench.planning import files, suites, values
from gradbench.planning.cells import TRAININGS
from gradbench.planning.overrides import Overrides
from gradbench.planning.plans import plan
from gradbench.planning.suites import Suite, parse

pytestmark = pytest.mark.fast

GRID = {"system": "toy_cons", "estimator": "ep"}


class Multiline:
    """What prints in two lines, as modules do."""

    def __repr__(self) -> str:
        return "Multiline(\n)"


def suite(*grids: dict, **rest: object) -> Suite:
    return parse({"name": "x", "about": "", "grid": list(grids), **rest}, "x.toml")


def mistake(content: dict) -> str:
    with pytest.raises(UserError) as caught:
        plan(parse({"name": "x", "about": "", **content}, "x.toml"), "x.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("betta", 0.1, "Did you mean 'beta'"),
        ("foo-bar", 1, "unknown key; known"),
        ("D", 16, 'grid[0].D: unknown key; it is an option of toy_cons: system = { name = "toy_cons", D = 16 }'),
        ("nudge", "positive", 'an option of ep: estimator = { name = "ep", nudge = "positive" }'),
        ("estimator", "aep clip=batch", 'with options it is { name = "aep", clip = "batch" }'),
        ("estimator", ["ep", "aep T2=3"], "grid[0].estimator[1] = 'aep T2=3' is no name; with options it is"),
        ("beta", 0.0, "0.0 is not positive"),
        ("beta", -0.1, "not positive"),
        ("eps", 0.0, "not positive"),
        ("beta", [], "empty"),
        ("seed", [], "empty"),
        ("dtype", [], "empty"),
        ("system", [], "empty"),
        ("estimator", [], "empty"),
        ("beta", [0.1, 0.1], "twice"),
        ("T1", [10, 10.0], "twice"),
        ("dtype", ["float32", "float32"], "twice"),
        ("system", ["toy_cons", "toy_cons"], "grid[0].system: 'toy_cons' stands there twice"),
        ("estimator", [{"name": "ep", "nudge": ["centred", "centred"]}], "twice"),
        ("T1", 2.5, "2.5 is not a whole number"),
        ("T1", 0, "below 1"),
        ("T2", 0, "below 1"),
        ("seed", -1, "below 0"),
        ("seed", 2**63, "above"),
        ("T1", 10**400, "digits"),
        ("beta", 10**400, "digits"),
        ("beta", float("nan"), "not finite"),
        ("beta", float("inf"), "not finite"),
        ("T1", True, "True is not a number"),
        ("damp", "1.0", "'1.0' is not a number"),
        ("damp", {"linspace": [0, 1]}, "[start, stop, n]"),
        ("damp", {"linspace": [0, 1, 1]}, "points"),
        ("damp", {"linspace": [0, 1, 10**9]}, "points"),
        ("damp", {"linspace": [0, 1, 2.5]}, "whole number"),
        ("damp", {"geomspace": [0, 1, 3]}, "linspace"),
        ("beta", {"logspace": [0, 400, 3]}, "exponents"),
        ("T1", {"linspace": [1, 2, 3]}, "1.5 is not a whole number"),
        ("batch", 0, "0 is below 1"),
        ("batch", True, "batch"),
        ("batch", 2**63, "batch"),
        ("dtype", "float23", "Did you mean 'float32'"),
        ("dtype", "bfloat16", "dtype"),
        ("system", 3, "neither a name nor a table"),
        ("system", {"N": 3}, "neither a name nor a table"),
        ("system", gradbench.suite, "grid[0].system: a function is neither a name nor a table with a name"),
        ("damp", Multiline(), "grid[0].damp: a Multiline is not a number"),
        ("estimator", {"name": "ep", "nudge": Multiline()}, "estimator.nudge = a Multiline is not a choice"),
        ("system", {"name": "toy_cons", "D": Multiline()}, "system.D = a Multiline; expected: int"),
        ("estimator", {"name": "ep", "beta": 0.1}, "beta: beta is a coordinate, and no option of estimator 'ep'"),
        ("system", "toy_con", "Did you mean 'toy_cons'"),
        ("system", "Toy_Cons", "Did you mean 'toy_cons'"),
        ("estimator", "eqprop", "known: "),
        ("estimator", {"name": "ep", "nugde": "centred"}, "Did you mean 'nudge'"),
        ("estimator", {"name": "ep", "nudge": "centered"}, "Did you mean 'centred'"),
        ("estimator", {"name": "ep", "nudge": True}, "not a choice"),
        ("system", {"name": "toy_cons", "N": 2.5}, "expected: int"),
        ("system", {"name": "toy_cons", "N": True}, "expected: int"),
        ("system", {"name": "toy_cons", "N": 0}, "no size"),
        ("system", {"name": "cet_real", "patch": 0}, "no size"),
        ("system", {"name": "toy_cons", "bias_std": "1"}, "expected: float"),
        ("system", {"name": "toy_cons", "bias_std": float("nan")}, "not finite"),
        ("system", {"name": "toy_cons", "N": []}, "empty"),
        ("system", {"name": "cet_real", "dataset": "mnist"}, "dataset = 'mnist' is not known"),
        ("system", {"name": "cet", "stride": 4}, "'cet' has no such option; known: "),
        ("system", {"name": "cet_real", "img": 32}, "32 is not a multiple of patch"),
    ],
)
def test_a_mistake_in_a_grid_names_file_key_and_way_out(key: str, value: object, words: str) -> None:
    message = mistake({"grid": [GRID | {key: value}]})
    assert message.startswith("x.toml: grid[0]")
    assert key.partition("-")[0] in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"metrik": "cosine"}, "unknown key. Did you mean 'metric'"),
        ({"metric": "cosin", "min": 0.9}, "Did you mean 'cosine'"),
        ({"metric": "cosine"}, "min or max"),
        ({}, "min or max"),
        ({"metric": "cosine", "min": "0.9"}, "not a number"),
        ({"metric": "cosine", "min": True}, "not a number"),
        ({"metric": "cosine", "min": float("nan")}, "not finite"),
        ({"metric": "cosine", "min": float("-inf")}, "not finite"),
        ({"metric": "cosine", "min": 0, "at": {"T3": "max"}}, "T3"),
        ({"metric": "cosine", "min": 0, "at": {"T2": "biggest"}}, "known: max, min"),
        ({"metric": "cosine", "min": 0, "reduce": {"beta": "mena"}}, "Did you mean 'mean'"),
        ({"status": "setled"}, "Did you mean 'settled'"),
        ({"status": "settled", "metric": "cosine"}, "takes no metric"),
        ({"status": "settled", "where": {"status": "settled"}}, "cannot fail"),
        ({"metric": "cosine", "min": 0, "where": {"status": "setled"}}, "Did you mean 'settled'"),
        ({"metric": "cosine", "min": 0, "where": {"status": []}}, "empty"),
        ({"name": 3, "status": "settled"}, "string"),
    ],
)
def test_a_mistake_in_a_check_names_file_key_and_way_out(check: dict, words: str) -> None:
    message = mistake({"grid": [GRID], "check": [{"name": "c", **check}]})
    assert message.startswith("x.toml: check[0]")
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"gird": []}, "gird: unknown key. Did you mean 'grid'"),
        ({"foo-bar": 1}, "foo-bar: unknown key"),
        ({"grid": []}, "at least one [[grid]]"),
        ({"grid": GRID}, "grid: grids are written [[grid]]"),
        ({"grid": 3}, "at least one [[grid]]"),
        ({"grid": [3]}, "grid[0]"),
        ({"grid": [{"system": "toy_cons"}]}, "grid[0].estimator: missing"),
        ({"check": {"name": "c"}}, "[[check]]"),
        ({"about": 3}, "about"),
        ({"allow_incomplete": 1}, "allow_incomplete"),
        ({"thresholds": {"residuel": 1e-3}}, "Did you mean 'residual'"),
        ({"thresholds": {"residual": -1}}, "residual: -1 is below 0"),
        ({"thresholds": {"residual": True}}, "residual: True is not a number"),
        ({"thresholds": {"residual": float("nan")}}, "not finite"),
        ({"thresholds": {"probes": 0}}, "probes: 0 is below 1"),
        ({"thresholds": {"probes": 2.5}}, "whole number"),
        ({"thresholds": {"live": 1e-8}}, "live takes a table"),
        ({"thresholds": {"live": {"float16": 1e-8}}}, "live takes a table"),
        ({"thresholds": {"live": {"float32": "x"}}}, "live.float32"),
        ({"name": "a/b"}, "name: 'a/b' cannot name a folder of runs: it holds a slash"),
        ({"name": "a\nb"}, "cannot name a folder of runs: it holds a line break"),
        ({"name": ".."}, "cannot name a folder of runs: it begins with a point"),
        ({"name": "latest"}, "cannot name a folder of runs: the word means the run"),
        ({"name": ""}, "cannot name a folder of runs: it is empty"),
        ({"name": 3}, "name: 3 is not a string"),
        ({"T1": 3}, "T1: unknown key; it is a key of grid"),
        ({"grid.T1": 3}, "grid.T1: unknown key; write T1 below [[grid]]"),
        ({"metric": "cosine"}, "metric: unknown key; it is a key of check"),
        ({"check": [{"name": "c", "metric": "cosine", "min": 0.9, "max": 0.1}]}, "min = 0.9 is above max = 0.1"),
        ({"grid": [GRID | {"T1": None}]}, "T1: None is no value: leave it out to take the default"),
    ],
)
def test_a_mistake_at_the_top_names_file_key_and_way_out(content: dict, words: str) -> None:
    message = mistake({"grid": [GRID], **content})
    assert message.startswith("x.toml: ")
    assert words in message


def test_every_mistake_is_told_and_one_of_every_grid_once() -> None:
    lines = mistake({"grid": [GRID | {"betta": 1}, GRID | {"betta": 1, "T1": 0}]}).splitlines()
    assert len(lines) == 2
    assert "betta" in lines[0] + lines[1]
    assert "T1" in lines[0] + lines[1]


@pytest.mark.parametrize("text", [b"a = ", b"\xff\xfe", b"seed = 1" + b"0" * 5000, b"a = 1\na = 2\n"])
def test_a_file_that_is_not_toml_is_a_user_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"x\.toml: not TOML"):
        suites.load(path)
    assert isinstance(files.about(path), str)  # `list` goes on


GOOD = 'about = "x"\n[[grid]]\nsystem = "toy_cons"\nestimator = "ep"\n'


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" * 2 + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("x", "grün ∂F/∂θ 袋", 1).encode("utf-8-sig"),
        b"\xef\xbb\xbf# a comment\n" + GOOD.encode() + b"# no end of line",
    ],
)
def test_a_file_of_another_editor_is_read(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text)
    assert len(plan(suites.load(path)).cells) == 1
    assert files.about(path) in ("x", "grün ∂F/∂θ 袋")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.encode("utf-16"), "it is written in UTF-16, and TOML is UTF-8"),
        (b"\xfe\xff" + GOOD.encode("utf-16-be"), "it is written in UTF-16"),
        (GOOD.encode("utf-16-le"), "zero bytes, as UTF-16 does"),
        (GOOD.encode() + b"\0", "zero bytes"),
        (b"\0" * 100, "zero bytes"),
        (GOOD.replace("x", "gr\u00fcn").encode("latin-1"), "line 1 holds the byte 0xfc, which is not UTF-8"),
        (GOOD.encode() + b"T1 = 3\n# \xe9", "line 6 holds the byte 0xe9"),
        (GOOD.encode() + b"T1 = 3\nT1 = 4\n", "line 6 sets a key that has a value already: T1 = 4"),
        (GOOD.encode() + b"\xef\xbb\xbf[[check]]\n", "line 5 holds a byte order mark"),
        (GOOD.encode() + b"T1 = \n", "line 5, column 6.: T1 ="),
        (b"a = " + b"[" * 5000, "nested too deep"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "nested too deep"),
        (b"a = " + b"{ a = " * 5000, "nested too deep"),
        (b"a = " + b"[" * 150 + b"]" * 150, "more than 100 deep"),
        (b".".join([b"a"] * 5000) + b" = 1", "more than 100 deep"),
        (b"\xef\xbb\xbf = 1", "line 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=words):
        suites.load(path)
    assert files.about(path).startswith("unreadable: ")


@pytest.mark.parametrize("name", ["smok", "suites/smok.toml", "no/such/folder.toml", "x" * 5000, "a\0b", ""])
def test_a_suite_that_does_not_exist_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        files.find(name, files.SUITES, "suite")


def test_a_misspelt_suite_names_the_near_miss() -> None:
    for name in ("smok", "Smoke", "smoke.toml", "smok.toml", "nowhere/smoke.toml"):
        with pytest.raises(UserError, match="Did you mean 'smoke'"):
            files.find(name, files.SUITES, "suite")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d.toml", "suite 'd.toml': expected a TOML file, and this is a folder"),
        ("loop.toml", "this is a symbolic link that leads to nothing"),
        ("pipe.toml", "this is a device or a pipe"),
        ("/dev/null", "suite '/dev/null': expected a TOML file, and this is a device or a pipe"),
        ("d", "this is a folder"),
        ("S", "suite 'S' does not exist. Did you mean 's.toml'?"),
        ("s", "Did you mean 's.toml'?"),
        ("s.TOML", "Did you mean 's.toml'?"),
        ("smoke.toml", "suite 'smoke.toml' does not exist. Did you mean 'smoke'?"),
        ("quick", "suite 'quick' does not exist, but a training of this name does: gradbench.train('quick')"),
        (3, "suite: got an int, expected a path or a name"),
        (None, "suite: got None, expected a path or a name"),
        (b"s.toml", "suite: got a bytes, expected a path or a name"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").touch()
    Path("d.toml").mkdir()
    Path("d").mkdir()
    Path("loop.toml").symlink_to("loop.toml")
    os.mkfifo("pipe.toml")
    with pytest.raises(UserError) as caught:
        files.find(name, files.SUITES, "suite")
    assert words in str(caught.value)


def test_a_shipped_file_is_found_by_a_path_object_too() -> None:
    assert files.find(Path("quick"), files.CONFIGS, "training").stem == "quick"


def test_a_file_that_is_none_of_ours_is_not_told_of_other_files(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        files.find("x.toml", files.SUITES, "suite")
    assert str(caught.value) == "suite 'x.toml' does not exist"


def test_suites_ship_with_the_package_and_one_of_the_working_folder_wins(tmp_path: Path, monkeypatch) -> None:
    here = {path.stem: path.read_bytes() for path in files.SUITES.glob("*.toml")}
    monkeypatch.chdir(tmp_path)
    packaged = files.shipped(files.SUITES)
    assert {name: path.read_bytes() for name, path in packaged.items()} == here
    (tmp_path / "suites" / "a_folder.toml").mkdir(parents=True)
    for name in ("aep", "mine"):
        (tmp_path / "suites" / f"{name}.toml").touch()
    ours = {name: Path("suites") / f"{name}.toml" for name in ("aep", "mine")}
    assert files.shipped(files.SUITES) == packaged | ours
    assert files.find("aep", files.SUITES, "suite") == ours["aep"]


def test_a_folder_of_the_name_of_a_shipped_suite_does_not_hide_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "aep.toml").touch()
    (tmp_path / "aep").mkdir()
    monkeypatch.chdir(tmp_path)
    assert files.find("aep", files.SUITES, "suite") == Path("suites/aep.toml")


def test_every_shipped_suite_plans_and_its_checks_can_have_a_verdict(tmp_path: Path, monkeypatch) -> None:
    shipped = [path.resolve() for path in files.SUITES.glob("*.toml")]
    monkeypatch.chdir(tmp_path)  # a plan names trained weights by their digest and looks no further into them
    for name in ("quick", "fa", "dfa"):
        checkpoint = TRAININGS / name / "20260101-000000-0000" / "checkpoint.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    for path in shipped:
        loaded = suites.load(path)
        few = Overrides.of({"seed": 0}) if path.stem == "million" else None  # all of it takes a minute to plan
        planned = plan(suites.load(path, few) if few else loaded, str(path))
        planned.verify([*loaded.checks(), ("table", loaded.table)], str(path))
        assert planned.cells
        assert loaded.name == path.stem


@pytest.mark.parametrize("path", sorted(files.SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_suite_but_five_that_the_readme_names_checks_its_ruler(path: Path) -> None:
    asked: set[str] = set()
    for check in suites.load(path).check:
        if check.where.get("estimator") == Control.name:
            kinds = check.where["kind"]
            asked |= {kinds} if isinstance(kinds, str) else set(kinds)
    assert asked == (
        set() if path.stem in ("aligned", "atlas", "claims", "field_full", "million") else set(get_args(Kind))
    )


@pytest.mark.parametrize(
    ("key", "written", "values"),
    [
        ("damp", {"linspace": [0, 1, 5]}, (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("beta", {"logspace": [-3, 0, 4]}, (0.001, 0.01, 0.1, 1.0)),
        ("T1", {"linspace": [10, 50, 5]}, (10, 20, 30, 40, 50)),
        ("T2", {"logspace": [0, 2, 3]}, (1, 10, 100)),
        ("T1", 100.0, (100,)),
        ("s", 2, (2.0,)),
        ("s", [-1.0, 0.0], (-1.0, 0.0)),
    ],
)
def test_a_range_is_the_list_that_it_stands_for(key: str, written: object, values: tuple) -> None:
    read = getattr(suite(GRID | {key: written}).grid[0], key)
    assert read == values
    assert [type(v) for v in read] == [type(v) for v in values]


@pytest.mark.parametrize("ends", [(0.0, 2.0, 14), (0.1, 0.7, 7), (-1.0, 1.0, 13), (1e-9, 1e-3, 11), (0, 1e6, 7)])
def test_the_values_of_a_range_have_12_digits(ends: tuple[float, float, int]) -> None:
    start, stop, n = ends
    read = values.expanded({"linspace": [start, stop, n]})
    assert (read[0], read[-1], len(read)) == (start, stop, n)
    for i, value in enumerate(read):
        assert float(f"{value:.12g}") == value
        assert value == pytest.approx(start + (stop - start) * i / (n - 1), rel=1e-11)


def test_whole_numbers_of_a_range_are_exact_and_its_ends_are_as_written() -> None:
    assert values.expanded({"linspace": [1, 10**15 + 1, 3]}) == [1, 5 * 10**14 + 1, 10**15 + 1]
    assert values.expanded({"linspace": [0.1234567890123456, 1, 2]}) == [0.1234567890123456, 1]
    with pytest.raises(ValueError, match="too far from each other"):
        values.expanded({"linspace": [-1e308, 1e308, 3]})


def test_a_label_of_a_range_has_12_digits() -> None:
    drives = {"name": "toy_noncons", "drive_std": {"linspace": [0.0, 2.0, 14]}}
    labels = [cell.labels["system_label"] for cell in plan(suite(GRID | {"system": drives})).cells]
    assert "toy_noncons drive_std=0.153846153846" in labels
    assert max(map(len, labels)) <= len("toy_noncons drive_std=0.153846153846")


def test_a_range_of_the_most_points_takes_no_minute() -> None:
    """Twenty times the points may take twenty times as long, and not four hundred times."""

    def seconds(n: int) -> float:
        start = time.perf_counter()
        assert len(values.once(values.expanded({"linspace": [0.0, 2.0, n]}))) == n
        return time.perf_counter() - start

    seconds(100)
    assert seconds(100_000) < 100 * max(seconds(5000), 1e-3)


@pytest.mark.parametrize("twice", [[1, 1.0], [True, 1], ["a", "a"], [[1], [1]], [{"a": 1}, {"a": 1}], [[], 0.5, []]])
def test_equal_values_stand_there_once(twice: list) -> None:
    with pytest.raises(ValueError, match="stands there twice"):
        values.once([*twice, "b"])
    assert values.once([twice[0], "b", None]) == (twice[0], "b", None)


@given(st.integers(1, 10**6), st.integers(1, 1000), st.integers(2, 20))
def test_an_integer_range_has_its_ends_and_equal_steps(start: int, step: int, n: int) -> None:
    stop = start + step * (n - 1)
    assert tuple(range(start, stop + 1, step)) == suite(GRID | {"T1": {"linspace": [start, stop, n]}}).grid[0].T1


def test_a_range_in_an_option_makes_a_grid_of_it() -> None:
    one = suite(GRID | {"system": {"name": "toy_cons", "N": {"linspace": [2, 8, 4]}, "bias_std": [0, 0.5]}})
    assert len(plan(one).cells) == 8


def test_several_grids_are_their_union() -> None:
    a, b = GRID | {"beta": [0.1, 0.2]}, GRID | {"beta": [0.2, 0.3]}
    assert [c.beta for c in plan(suite(a, b)).cells] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("name", ["toy_cons", "toy_noncons", "cet_energy", "cet_real"])
def test_missing_coordinates_take_the_defaults_of_the_system(name: str) -> None:
    from gradbench.planning import registry

    (cell,) = plan(suite({"system": name, "estimator": "ep"})).cells
    defaults = registry.known_systems()[name].defaults
    assert {k: cell.coordinates[k] for k in defaults} == dict(defaults)
    assert (cell.seed, cell.dtype) == (0, "float32")


def test_thresholds_replace_single_defaults_and_keep_their_types() -> None:
    decided = suite(GRID, thresholds={"growth_steps": 30.0, "live": {"float32": 1e-6}}).decide()
    assert decided.growth_steps == 30
    assert isinstance(decided.growth_steps, int)
    assert decided.live == {"float32": 1e-6, "float64": 1e-12}


def test_overrides_replace_a_key_of_every_grid(write_suite) -> None:
    loaded = suites.load(write_suite('\n[[grid]]\nsystem = "toy_cons"\nestimator = "ep"\n'), {"beta": [0.5]})
    assert [g.beta for g in loaded.grid] == [(0.5,), (0.5,)]


def test_overrides_of_a_file_whose_grids_are_no_tables_are_a_user_error(write_suite) -> None:
    with pytest.raises(UserError, match=r"grid\[0\]"):
        suites.load(write_suite('about = ""\ngrid = [1, 2]', base=""), {"beta": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("beta=0.1,0.2", [0.1, 0.2]),
        ("beta=0.1", 0.1),
        ("T1=10", 10),
        ("dtype=float64", "float64"),
        ("bias_std=1e-05", 1e-5),
        ("estimator=ep,aep", ["ep", "aep"]),
        ("damp={linspace=[0,1,3]}", {"linspace": [0, 1, 3]}),
        ('estimator={name="ep",nudge="positive"}', {"name": "ep", "nudge": "positive"}),
        ("beta=.02", 0.02),
        ("beta=2.e-2", 0.02),
        ("beta=+.5E1", 5.0),
        ("beta=-3.", -3.0),
        ("beta=+3", 3),
        ("beta=.02,0.1,1.", [0.02, 0.1, 1.0]),
        ("T1=1_000", 1000),
        ("T1=0x10", 16),
        ("T1=10,", [10]),
        ("estimator=ep, aep", ["ep", "aep"]),
        ("clip=batch,2", ["batch", 2]),
        ("label='a,b=c'", "a,b=c"),
        ("label=it's", "it's"),
        ("path=runs/my suite (1)/x", "runs/my suite (1)/x"),
        ("beta=1#2", "1#2"),
        ("beta=1]#", "1]#"),
        ("beta=nan0", "nan0"),
        ("beta=1__0", "1__0"),
        ("T=1e5x", "1e5x"),
    ],
)
def test_settings_are_toml_or_bare_words(text: str, value: object) -> None:
    assert values.settings([text], "--set") == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a=1,b=2", {"a": 1, "b": 2}),
        ("a=1,2,b=x,y", {"a": [1, 2], "b": ["x", "y"]}),
        (" a = 1 , b = .5", {"a": 1, "b": 0.5}),
        ('a={x=1,y="b=2"},b=[1,2]', {"a": {"x": 1, "y": "b=2"}, "b": [1, 2]}),
        ("β=1,foo-bar=2", {"β": 1, "foo-bar": 2}),
        ("p=x=1", {"p": "x=1"}),
    ],
)
def test_a_key_after_a_comma_is_a_setting(text: str, read: dict) -> None:
    assert values.settings([text], "--set") == read


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["beta"], "expected KEY=VALUE"),
        ([""], "expected KEY=VALUE"),
        (["a=1,b="], "expected KEY=VALUE"),
        (["a= "], "expected KEY=VALUE"),
        (["T1=1", "T1=2"], "T1 is set twice"),
        (["T1=1,T1=2"], "T1 is set twice"),
        (["T1=02"], "'02' is not a number"),
        (["T1=-00.5"], "'-00.5' is not a number"),
        (["T1=1,000"], "'000' is not a number"),
        (["e={name=ep}"], "this list or table is not TOML"),
    ],
)
def test_settings_name_the_pair_that_is_none(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"--set '{pairs[-1]}': {message}"):
        values.settings(pairs, "--set")


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ("smoke", r"got a str, .*; gradbench\.run takes a suite by its name"),
        (3, "suite: grid: got an int, expected a table of keys, or a list of tables"),
        ([3], r"suite: grid\[0\]: got an int, expected a table of keys"),
    ],
)
def test_a_suite_is_made_of_a_table(grid: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        gradbench.suite(grid)


@pytest.mark.parametrize(
    ("argument", "entry"),
    [("check", {"name": "c", "metric": "cosine", "min": 0.5}), ("table", {"name": "t", "columns": "cosine"})],
)
def test_one_check_and_one_table_need_no_list(argument: str, entry: dict[str, Any]) -> None:
    alone, listed, tuples = (gradbench.suite(GRID, **{argument: given}) for given in (entry, [entry], (entry,)))
    assert alone == listed == tuples
    assert len(getattr(alone, argument)) == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"check": ["cosine > 0.9"]}, r"suite: check\[0\]: got a str, expected a table of keys"),
        ({"check": "cosine > 0.9"}, "suite: check: got a str, expected a table of keys, or a list of tables"),
        ({"check": None}, "suite: check: got None"),
        ({"table": ["cosine"]}, r"suite: table\[0\]: got a str"),
        ({"table": 3}, "suite: table: got an int"),
        ({"thresholds": 3}, "suite: thresholds: got an int, expected a table of keys"),
    ],
)
def test_checks_and_tables_of_a_suite_are_tables(more: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        gradbench.suite(GRID, **more)
