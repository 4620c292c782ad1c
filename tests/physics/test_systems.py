"""What every registered system promises: pure, per-example functions, forces that fit their energies."""

from __future__ import annotations

import math

import pytest
import torch
from live import SYSTEMS, live_field, random_like

from gradbench.data.streams import Streams
from gradbench.dynamics.field import Field
from gradbench.dynamics.linear import Linear
from gradbench.planning import registry
from gradbench.systems.base import AbstractDrivenSystem, AbstractEnergySystem, AbstractSystem, ClosedForms, descent
from gradbench.systems.tokens import patches

pytestmark = pytest.mark.fast


class OpenField(Field):
    """A field that leaves every derivative to autograd, as for a system that only says what its force is."""

    closed = None


def states(field: Field, *rows: int) -> torch.Tensor:
    s = field.init_state()
    return s + 0.3 * random_like(s.expand(*rows, *s.shape), seed=1)


def slope(field: Field, s: torch.Tensor) -> torch.Tensor:
    """-dE/ds by autograd."""
    system = field.system
    assert isinstance(system, AbstractEnergySystem | AbstractDrivenSystem)
    return descent(system.energy, field.theta, field.x, field.context, s, field.knobs).detach()


@pytest.mark.parametrize("name", SYSTEMS)
def test_closed_force_is_minus_the_energy_gradient_plus_the_swirl(name: str) -> None:
    field = live_field(name, s=0.7, damp=0.4)
    s = states(field, 3)
    swirl = field.swirl(s) if isinstance(field.system, AbstractDrivenSystem) else 0
    torch.testing.assert_close(field.force(s), slope(field, s) + swirl, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_gradient_agrees_with_central_differences(name: str) -> None:
    field, h = live_field(name, s=0.7, damp=0.4), 1e-5
    s = states(field)
    v = random_like(s, seed=2)
    energy = lambda s: field.system.energy(field.theta, field.x, field.context, s, field.knobs)  # noqa: E731
    numeric = (energy(s + h * v) - energy(s - h * v)).sum() / (2 * h)
    assert float(numeric) == pytest.approx(-float((slope(field, s) * v).sum()), rel=1e-7)


@pytest.mark.parametrize("name", SYSTEMS)
def test_rows_are_independent(name: str) -> None:
    field = live_field(name)
    s = states(field, 2, 3)
    one_by_one = torch.stack([torch.stack([field.force(r) for r in row]) for row in s])
    torch.testing.assert_close(field.force(s), one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.cost(s)[1, 2], field.cost(s[1, 2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_examples_are_independent(name: str) -> None:
    field = live_field(name, batch=3)
    s = states(field)
    moved = s.clone()
    moved[1] += 1
    difference = (field.force(moved) - field.force(s)).abs().amax(-1)
    assert difference[1] > 0
    assert difference[[0, 2]].max() == 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_vjp_is_the_transpose_of_jvp(name: str) -> None:
    field = live_field(name)
    s = states(field)
    v, a = random_like(s, seed=3), random_like(s, seed=4)
    for linear in (field.at(s), field.swirl_at(s), field.step_at(s)):
        assert float((a * linear.jvp(v)).sum()) == pytest.approx(float((linear.vjp(a) * v).sum()), rel=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_jvp_agrees_with_central_differences(name: str) -> None:
    field, h = live_field(name), 1e-6
    s = states(field)
    v = random_like(s, seed=3)
    numeric = (field.force(s + h * v) - field.force(s - h * v)) / (2 * h)
    torch.testing.assert_close(field.at(s).jvp(v), numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SYSTEMS)
def test_jacobian_is_symmetric_exactly_where_the_system_says_so(name: str) -> None:
    field = live_field(name)
    s = states(field)
    v = random_like(s, seed=3)
    linear = field.at(s)
    asymmetry = float(linear.antisym(v).norm() / linear.jvp(v).norm())
    assert asymmetry < 1e-13 if field.system.conservative else asymmetry > 1e-3


@pytest.mark.parametrize("name", SYSTEMS)
def test_only_the_swirl_is_antisymmetric(name: str) -> None:
    field = live_field(name)
    s = states(field)
    v = random_like(s, seed=3)
    torch.testing.assert_close(field.swirl_at(s).antisym(v), field.at(s).antisym(v), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_pull_agrees_with_central_differences(name: str) -> None:
    field, h = live_field(name), 1e-6
    s = states(field)
    a = random_like(s, seed=5)
    pulled = field.pull(s, a)
    for parameter, value in field.theta.items():
        d = random_like(value, seed=6)

        def moved(step: float, parameter: str = parameter, d: torch.Tensor = d) -> torch.Tensor:
            theta = field.theta | {parameter: field.theta[parameter] + step * d}
            return (a * Field(field.system, theta, field.x, field.knobs).force(s)).sum()

        numeric = float((moved(h) - moved(-h)) / (2 * h))
        assert float((pulled[parameter] * d).sum()) == pytest.approx(numeric, rel=1e-6, abs=1e-7), parameter


@pytest.mark.parametrize("name", [n for n in SYSTEMS if issubclass(registry.known_systems()[n], ClosedForms)])
def test_closed_forms_equal_autograd(name: str) -> None:
    """Jacobian products of force and swirl, and the pull, also for more rows of credits than of states."""
    field = live_field(name, s=0.7, damp=0.4)
    s = states(field, 3)
    credits = random_like(s.expand(2, *s.shape), seed=4)
    for at, function in ((field.at, field.force), (field.swirl_at, field.swirl)):
        closed, recorded = at(s), Linear(function, s)
        for a in credits:
            torch.testing.assert_close(closed.jvp(a), recorded.jvp(a), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(closed.vjp(a), recorded.vjp(a), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(closed.vjp(credits), torch.stack([closed.vjp(a) for a in credits]))
    pulled = field.pull(s, credits)
    plain = OpenField(field.system, field.theta, field.x, field.knobs)
    torch.testing.assert_close(field.cost_slope(s), plain.cost_slope(s), rtol=1e-12, atol=1e-13)
    for parameter, expected in plain.pull(s, credits).items():
        assert pulled[parameter].shape == (2, 3, *field.theta[parameter].shape)
        torch.testing.assert_close(pulled[parameter], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_derivative_of_the_projection_equals_autograd(name: str) -> None:
    field = live_field(name)
    u = states(field, 2)
    v = random_like(u, seed=4)
    recorded = Linear(field.project, u) if field.system.projects else None
    expected = recorded.jvp(v) if recorded else v
    torch.testing.assert_close(field.project_jvp(u, v), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(AbstractSystem.project_jvp(field.system, u, v), expected, rtol=1e-11, atol=1e-12)
    expected = recorded.vjp(v) if recorded else v
    torch.testing.assert_close(field.project_vjp(u, v), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(AbstractSystem.project_vjp(field.system, u, v), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_start_is_detached_and_shapes_are_declared(name: str) -> None:
    field = live_field(name)
    assert not field.init_state().requires_grad
    assert field.init_state().shape == (2, sum(math.prod(shape) for shape in field.system.layout.values()))
    assert {n: tuple(p.shape) for n, p in field.theta.items()} == field.system.shapes
    assert {n: tuple(v.shape) for n, v in field.x.items()}.items() <= field.system.data_shapes(2).items()


@pytest.mark.parametrize("name", SYSTEMS)
def test_sizes_are_read_back_from_parameters_and_data(name: str) -> None:
    field = live_field(name)
    found = field.system.sizes(field.theta, field.x)
    assert found
    for option, value in found.items():
        assert value == getattr(field.system, option) or (option, value) == ("dataset", "given")


@pytest.mark.parametrize("name", SYSTEMS)
def test_draws_do_not_depend_on_dtype_or_on_each_other(name: str) -> None:
    double, single = live_field(name), live_field(name, dtype="float32")
    for n, value in double.theta.items():
        torch.testing.assert_close(single.theta[n], value.float(), rtol=0, atol=0)
    torch.manual_seed(123)  # the global generator plays no part
    again = live_field(name)
    assert all(torch.equal(again.x[n], double.x[n]) for n in double.x)
    more = registry.system(name).sample(Streams(0), 5)
    assert all(torch.isfinite(v).all() for v in more.values() if v.is_floating_point())


@pytest.mark.parametrize("name", SYSTEMS)
def test_seeds_differ(name: str) -> None:
    assert any(
        not torch.equal(a, b)
        for a, b in zip(live_field(name, seed=0).theta.values(), live_field(name, seed=1).theta.values(), strict=True)
    )


def test_masks_hide_the_asked_share_of_whole_patches() -> None:
    system = registry.system("cet_real", {"mask_ratio": 0.25})
    mask = system.sample(Streams(0), 7)["mask"]
    patches = mask.unflatten(-1, (4, 7)).unflatten(-3, (4, 7))
    assert torch.equal(patches.amin((-3, -1)), patches.amax((-3, -1)))
    assert torch.equal(mask.mean((-3, -2, -1)), torch.full((7,), 0.25, dtype=mask.dtype))


def test_patches_equal_a_convolution_with_stride_patch() -> None:
    field = live_field("cet_real")
    system, x = field.system, field.x["x"]
    cut = patches(x, system.patch)  # type: ignore[attr-defined]
    ours = cut @ field.theta["Wenc"].flatten(1).mT
    conv = torch.nn.functional.conv2d(x, field.theta["Wenc"], stride=14).flatten(2).mT
    torch.testing.assert_close(ours, conv, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(system._image(cut), x, rtol=0, atol=0)  # type: ignore[attr-defined]
