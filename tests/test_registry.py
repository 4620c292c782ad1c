"""What plugins and a session may register; a plugin is seen as an installed distribution is."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final, get_type_hints

import pytest

import gradbench
from gradbench.errors import UserError
from gradbench.estimators.base import AbstractEstimator, Role
from gradbench.estimators.bptt import Bptt
from gradbench.planning import registry
from gradbench.planning.problems import rule_of
from gradbench.systems.base import AbstractSystem

pytestmark = pytest.mark.fast

RULE = '''
from dataclasses import dataclass
from gradbench.estimators.base import AbstractEstimator
from gradbench.estimators.bptt import Bptt
from gradbench.estimators.phases.reverse import ReversePhase


@dataclass(frozen=True)
class Mine(Bptt):
    """The reference under another name."""
    name = "mine"


@dataclass(frozen=True)
class Ep(Bptt):
    """A rule with the name of another one."""
    name = "ep"


class Half(AbstractEstimator):
    """A rule that is not finished."""
    name = "half"


class Other:
    """No rule at all."""


def function():
    """No class at all."""
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Install a distribution whose entry point names something of its module."""

    def install(name: str, module: str = "myplug") -> None:
        (tmp_path / "myplug.py").write_text(RULE)
        info = tmp_path / "myplug-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myplug\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gradbench.estimators]\nx = {module}:{name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._registered.cache_clear()

    yield install
    monkeypatch.undo()
    registry._registered.cache_clear()


def test_a_plugin_is_known_by_its_name(plugin: object) -> None:
    plugin("Mine")  # type: ignore[operator]
    assert "mine" in registry.known_estimators()
    assert registry.estimator("mine").claim.exact is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Ep", r"'myplug:Ep' of gradbench.estimators has the name 'ep', which gradbench.estimators.ep.Ep has already"),
        ("function", r"'myplug:function' of gradbench.estimators is <function function.*expected: a class derived"),
        ("Other", r"is the class Other; expected: a class derived from AbstractEstimator"),
        ("Half", r"'myplug:Half' of gradbench.estimators does not define phase, read"),
        ("Nothing", r"'myplug:Nothing' of gradbench.estimators cannot be loaded"),
    ],
)
def test_what_cannot_be_registered_is_named_with_the_way_out(plugin: object, name: str, message: str) -> None:
    plugin(name)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        registry.known_estimators()


def test_a_module_that_is_not_there_is_named(plugin: object) -> None:
    plugin("X", module="nowhere")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"plugin 'nowhere:X' of gradbench.estimators cannot be loaded"):
        registry.known_estimators()


@final
@dataclass(frozen=True)
class Made(Bptt):
    """A rule that is made of functions, as far as the registry can tell."""

    name = "made"
    digest: str = "d1"
    k: int = 3


@dataclass(frozen=True)
class MadeAnew(Made):
    digest: str = "d2"


@dataclass(frozen=True)
class Impostor(Bptt):
    name = "ep"


@dataclass(frozen=True)
class Plain(Bptt):
    name = "plain"


@pytest.fixture
def session() -> Iterator[None]:
    with registry.scope():
        yield


@pytest.mark.usefixtures("session")
def test_what_is_handed_over_is_found_by_name_and_digest_and_has_no_name() -> None:
    assert registry.written(["ep", {"name": Made, "k": [1, 2]}, Made(k=5)]) == [
        "ep",
        {"name": "made", "digest": "d1", "k": [1, 2]},
        {"name": "made", "digest": "d1", "k": 5},
    ]
    registry.hand_over(MadeAnew)
    for digest, cls in (("d1", Made), ("d2", MadeAnew)):
        assert type(registry.estimator("made", {"digest": digest, "k": 4})) is cls
        assert registry.label("made", f'{{"digest": "{digest}", "k": 4}}', "estimator") == "made k=4"
    assert "made" not in registry.known_estimators()
    with pytest.raises(UserError, match=r"'made' is not registered in this session with digest d3"):
        registry.estimator("made", {"digest": "d3"})


@pytest.mark.usefixtures("session")
def test_what_is_registered_has_a_name_which_its_origin_may_define_anew() -> None:
    registry.register(Made, "one.py")
    assert registry.known_estimators()["made"] is Made
    assert type(rule_of("made", '{"k": 4}')) is Made
    registry.register(MadeAnew, "one.py")
    assert type(rule_of("made", '{"k": 4}')) is MadeAnew
    assert type(registry.estimator("made", {"digest": "d1"})) is Made
    registry.register(Plain)
    assert registry.written(Plain()) == {"name": "plain"}
    with pytest.raises(UserError, match=r"'made' is defined by one.py and by two.py; one needs another name"):
        registry.register(Made, "two.py")
    with pytest.raises(UserError, match=r"register: the name 'ep' is taken by gradbench.estimators.ep.Ep.*'aep'"):
        registry.register(Impostor)
    with pytest.raises(UserError, match=r"register: the name 'toy_cons' is that of a system; choose another one"):
        registry.register(type("Impostor", (Plain,), {"name": "toy_cons"}))
    with pytest.raises(UserError, match=r"is neither a system nor an estimator"):
        registry.register(dict)  # type: ignore[arg-type]


@pytest.mark.usefixtures("session")
def test_a_class_that_the_session_did_not_register_is_no_entry_of_a_grid() -> None:
    with pytest.raises(UserError, match=r"the class Plain has no name here; give it one with gradbench.register"):
        registry.written([Plain])


@pytest.mark.usefixtures("session")
def test_a_cell_of_what_was_defined_anew_says_so() -> None:
    registry.register(MadeAnew)
    with pytest.raises(UserError, match=r"'made' is defined otherwise now: digest d2, not d1"):
        registry.estimator("made", {"digest": "d1"})


def test_a_role_is_asked_of_the_estimator_and_a_plugin_that_is_not_here_is_a_rule() -> None:
    roles = {name: registry.role(name) for name in gradbench.estimators()}
    assert {name for name, role in roles.items() if role is not Role.RULE} == {"bptt", "control"}
    assert registry.role("a plugin of another machine") is Role.RULE


PACKAGE = Path(gradbench.__file__).parent
SHELF = {"estimators": registry._of_package("estimators", AbstractEstimator)} | {
    "systems": registry._of_package("systems", AbstractSystem)
}


@pytest.mark.parametrize(("kind", "most"), [("estimators", 60), ("systems", 150)])
def test_a_rule_and_a_system_have_a_file_of_their_name_that_is_read_at_a_glance(kind: str, most: int) -> None:
    files = {name: Path(inspect.getfile(cls)).relative_to(PACKAGE).as_posix() for name, cls in SHELF[kind].items()}
    assert files == {name: f"{kind}/{name}.py" for name in files}
    lengths = {path: len((PACKAGE / path).read_text().splitlines()) for path in files.values()}
    assert {path: length for path, length in lengths.items() if length > most} == {}


NUMBERS = [
    pytest.param(cls, f.name, hints[f.name], id=f"{cls.name} {f.name}")
    for of_kind in SHELF.values()
    for cls in of_kind.values()
    for hints in [get_type_hints(cls)]
    for f in fields(cls)
    if hints[f.name] in (int, float)
]


@pytest.mark.parametrize(("cls", "option", "kind"), NUMBERS)
def test_every_number_among_the_options_has_a_range_by_name_and_in_python(cls: Any, option: str, kind: type) -> None:
    """Without one, `every = 0` of aep_refreshed was aep, and `eta = -0.1` of rbp a number all the same."""
    (span,) = (f.metadata for f in fields(cls) if f.name == option)
    wrong = {-1} | {value for end, value in span.items() if end == "above"}
    wrong |= {value - 1 for end, value in span.items() if end == "least"}
    wrong |= {value + 1 for end, value in span.items() if end == "most"}
    wrong |= {0, 2**31} if kind is int else {math.inf, math.nan}
    by_name = registry.system if issubclass(cls, AbstractSystem) else registry.estimator
    for value in wrong:
        with pytest.raises(UserError, match=option):
            cls(**{option: kind(value)})
        with pytest.raises(UserError, match=option):
            by_name(cls.name, {option: kind(value)})


def concrete(path: Path) -> tuple[set[str], set[str]]:
    """The rules and systems that a file of the package names, and the files of others that it imports."""
    names = {name for of_kind in SHELF.values() for name in of_kind}
    modules = {f"gradbench.{kind}.{name}" for kind, of_kind in SHELF.items() for name in of_kind}
    nodes = list(ast.walk(ast.parse(path.read_text())))
    written = {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in names}
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module in modules}
    return written - ({path.stem} if path.parent.name in SHELF else set()), imported


def test_nothing_but_its_own_file_and_the_choice_of_its_colour_names_a_concrete_rule_or_system() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): concrete(path) for path in PACKAGE.rglob("*.py")}
    # the coordinates name the reference, which is one of them, and `control` is a role, too
    assert {path for path, (written, _) in found.items() if written} == {
        *("plots/look.py", "plots/explained.py", "vocabulary/coordinates.py", "estimators/base.py")
    }
    assert found["estimators/base.py"][0] == {Role.CONTROL}
    # the checks compare with known answers, and the message of a rule that makes matrices names one that makes none
    assert {path for path, (_, imported) in found.items() if imported} == {
        *("estimators/reference.py", "conformance/rule_checks.py", "conformance/system_checks.py"),
        "estimators/ift_dense.py",
    }
