"""Products by oneDNN give the bits of `@`, and whatever oneDNN does not take is left to torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gradbench.engine.precision import isolated
from gradbench.systems import products
from gradbench.systems.attention import outer
from gradbench.systems.products import matmul

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of the engine. No trial of another test is known, and in a trial oneDNN is the quicker library."""
    monkeypatch.setattr(products, "_seconds", _shorter)
    products._pays.cache_clear()
    products._ends.cache_clear()
    with isolated():
        yield
    products._pays.cache_clear()
    products._ends.cache_clear()


def _shorter(way: Callable[[], object]) -> float:
    return 2.0 if getattr(way, "func", None) is torch.matmul else 1.0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the products that oneDNN took, trials included."""
    shapes: list[tuple[int, ...]] = []
    by_runs = products._by_runs

    def noted(x: Tensor, W: Tensor) -> Tensor:
        shapes.append((*x.shape, W.shape[-1]))
        return by_runs(x, W)

    monkeypatch.setattr(products, "_by_runs", noted)
    return shapes


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("k", [1, 63, 64, 191, 192, 193, 256, 369, 384, 385, 576, 1024, 1100])
@pytest.mark.parametrize("form", ["rows", "tokens", "transposed x", "transposed W", "part of rows", "columns", "row"])
def test_a_product_has_the_bits_of_torch(k: int, form: str) -> None:
    m, n = 16 * -(-products.LEAST // (16 * 100 * k)), 100
    x, W = {
        "rows": lambda: (draw(m, k), draw(k, n)),
        "tokens": lambda: (draw(m // 16, 16, k), draw(k, n)),
        "transposed x": lambda: (draw(k, m).mT, draw(k, n)),
        "transposed W": lambda: (draw(m, k), draw(n, k).mT),
        "part of rows": lambda: (draw(m, k + 9)[:, :k], draw(k, n)),
        "columns": lambda: (draw(m, k), draw(k, n + 49)[:, 49:]),
        "row": lambda: (draw(1, 1, m // 16, 16, k), draw(k, n)),
    }[form]()
    assert x.numel() * n >= products.LEAST
    assert same_bits(matmul(x, W), x @ W)


@pytest.mark.parametrize(("first", "second"), [((), (3,)), ((3,), (3,)), ((1,), (3,)), ((2, 1), (2, 3))])
def test_so_have_products_of_many_matrices(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    x, W = draw(*first, 1024, 64).mT, draw(*second, 1024, 369)
    assert same_bits(matmul(x, W), x @ W)
    z, credits = draw(*first, 64, 16, 64), draw(*second, 64, 16, 369)
    assert same_bits(outer(z, credits), z.flatten(-3, -2).mT @ credits.flatten(-3, -2))


def test_zeros_infinities_and_nan_have_them() -> None:
    x, W = draw(1024, 256), -draw(256, 64).abs()
    x[0], x[1, 3], x[2, 200], x[3, 5], x[4] = 0, torch.inf, torch.nan, -torch.inf, 1e-42
    W[:2, :2] = 0
    result, expected = matmul(x, W), x @ W
    assert torch.equal(result.isnan(), expected.isnan())
    assert same_bits(result.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5))


@pytest.mark.skipif(
    not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="no oneMKL, or a processor where it may add up in another order",
)
def test_onednn_takes_large_products(calls: list[tuple[int, ...]]) -> None:
    matmul(draw(1024, 64), draw(64, 369))
    assert calls == 2 * [(1024, 64, 369)], "a trial, and the product"
    matmul(draw(1024, 64), draw(64, 369))
    assert len(calls) == 3, "a shape is tried once"


def test_onednn_takes_none_where_it_takes_longer(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_seconds", lambda way: -_shorter(way))
    for _ in range(2):
        assert same_bits(matmul(draw(1024, 64), draw(64, 369)), draw(1024, 64) @ draw(64, 369))
    assert len(calls) == 1, "a trial alone"


def test_small_products_stay_with_torch(calls: list[tuple[int, ...]]) -> None:
    assert same_bits(matmul(draw(16, 64), draw(64, 64)), draw(16, 64) @ draw(64, 64))
    assert not calls


@pytest.mark.parametrize("run", [100, 128])
@pytest.mark.parametrize("shape", [(1024, 369), (64, 16, 369), (1024, 1, 369), (512, 2, 369)])
def test_where_the_bits_differ_torch_multiplies(
    run: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "RUN", run)
    x, W = draw(*shape), draw(369, 64)
    if same_bits(products._by_runs(x, W), x @ W):
        pytest.skip("these are the runs of oneMKL here")
    assert same_bits(matmul(x, W), x @ W)


@pytest.mark.parametrize(
    ("first", "second"),
    [((65536, 1, 64), (64, 1)), ((1, 4096), (4096, 1024)), ((5, 1, 4096), (5, 4096, 1024)), ((2**20, 1), (1, 2))],
)
def test_few_rows_and_few_columns_have_the_bits_of_torch(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    x, W = draw(*first), draw(*second)
    assert same_bits(matmul(x, W), x @ W)


def test_a_trial_holds_few_numbers(calls: list[tuple[int, ...]]) -> None:
    x, W = draw(1, 64).expand(products.MOST // 64, 64), draw(64, 64)
    assert torch.equal(matmul(x, W), x @ W)
    assert not calls


@pytest.mark.parametrize("error", [AttributeError("no such operation"), RuntimeError("not supported")])
def test_without_onednn_torch_multiplies(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(x: Tensor, W: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(products, "_by_runs", refused)
    x, W = draw(1024, 64), draw(64, 369)
    assert same_bits(matmul(x, W), x @ W)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_numbers_stay_with_torch(dtype: torch.dtype, calls: list[tuple[int, ...]]) -> None:
    x, W = draw(1024, 64).to(dtype), draw(64, 369).to(dtype)
    assert torch.equal(matmul(x, W), x @ W)
    assert not calls


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_derivatives_and_lifted_functions_stay_with_torch(
    transform: Callable[..., Callable[..., Tensor]], calls: list[tuple[int, ...]]
) -> None:
    x, W = draw(1024, 64), draw(64, 369)
    lifted = transform is torch.func.vmap
    arguments = (x.expand(2, -1, -1), W.expand(2, -1, -1)) if lifted else (x, W)

    def of(product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return transform(lambda x, W: product(x, W) if lifted else product(x, W).square().sum())(*arguments)

    assert torch.equal(of(matmul), of(torch.matmul))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(matmul(dual, W)).tangent
    assert tangent is not None
    assert torch.equal(tangent, torch.ones_like(x) @ W)
    inside = torch.func.vmap(lambda v: matmul(x, W).sum() * v)(torch.ones(2))
    assert torch.equal(inside, (x @ W).sum().expand(2))
    leaf = W.clone().requires_grad_()
    matmul(x, leaf).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, x.mT @ torch.ones(1024, 369))
    assert not calls
    with torch.no_grad():
        matmul(x, leaf)
    assert calls, "without a derivative a parameter is a matrix like any other"
