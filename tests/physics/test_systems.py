"""What every registered system promises: pure, per-example functions, forces that fit their energies."""

from __future__ import annotations

import pytest
import torch
from live import SYSTEMS, live_field, random_like

from gradbench.conformance.system_checks import FURTHER, NEEDED, Subject, field_findings
from gradbench.data.streams import Streams
from gradbench.planning import registry
from gradbench.systems.base import (
    AbstractDrivenSystem,
    AbstractEnergySystem,
    AbstractForwardSystem,
    AbstractSystem,
    ClosedForms,
)
from gradbench.systems.tokens import patches

pytestmark = pytest.mark.fast

# the numbers of what ships are held tighter than those of everybody's
TIGHT = {
    "examples do not see each other": 0.0,
    "an example does not see the size of its batch": 1e-12,
    "rows are independent": 1e-12,
    "the force is minus the gradient of the energy": 1e-11,
    "the force is the slope of the energy by differences": 1e-7,
    "J v and J^T a are transposes": 1e-11,
    "closed forms equal autograd": 1e-11,
    "the projection and its derivatives agree": 1e-11,
    "the Jacobian is symmetric where there is an energy": 1e-13,
    "several cells at once are each cell by itself": 1e-11,
}


def not_tried(system: AbstractSystem) -> set[str]:
    """The checks that do not apply to a system."""
    driven, forward = isinstance(system, AbstractDrivenSystem), isinstance(system, AbstractForwardSystem)
    return {
        *(() if isinstance(system, ClosedForms) else ("closed forms equal autograd",)),
        *(() if driven else ("only the swirl is antisymmetric",)),
        *(() if system.projects else PROJECTING),
        *(() if driven or isinstance(system, AbstractEnergySystem) else OF_ENERGIES),
        *(("the start is detached from the parameters", "at rest the adjoint is backpropagation") if forward else ()),
    }


OF_ENERGIES = ("the force is minus the gradient of the energy", "the force is the slope of the energy by differences")
PROJECTING = ("the projection and its derivatives agree", "the projection's derivative is its slope")


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_conforms(name: str) -> None:
    subject = Subject.of(live_field(name, s=0.7, batch=3))
    findings = {finding.name: finding for finding in field_findings(subject)}
    system = subject.field.system
    assert list(findings) == [*NEEDED, *FURTHER]
    assert {n for n, finding in findings.items() if finding.result == "none"} == not_tried(system)
    assert [finding for finding in findings.values() if finding.failed] == []
    for check, bound in TIGHT.items():
        finding = findings[check]
        assert finding.result != "pass" or finding.number <= bound, finding
    asymmetry = findings["the Jacobian is symmetric where there is an energy"]
    assert asymmetry.result == ("pass" if system.conservative else "told")
    assert system.conservative or asymmetry.number > 1e-3


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_projection_that_is_not_overridden_is_differentiated_by_autograd(name: str) -> None:
    field = live_field(name)
    if not field.system.projects:
        pytest.skip("it does not project")
    u = field.init_state() + 0.3 * random_like(field.init_state(), seed=1)
    v = random_like(u, seed=4)
    for product in ("project_jvp", "project_vjp"):
        mine, default = getattr(field.system, product), getattr(AbstractSystem, product)
        torch.testing.assert_close(default(field.system, u, v), mine(u, v), rtol=1e-11, atol=1e-12)


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
