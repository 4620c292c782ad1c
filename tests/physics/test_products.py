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
def settings() -> Iterator[None]:
    """Of the engine; and no trial of another test is known."""
    products._agrees.cache_clear()
    products._ends.cache_clear()
    with isolated():
        yield
    products._agrees.cache_clear()
    products._ends.cache_clear()


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
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()), reason="torch without both"
)
def test_onednn_takes_large_products(calls: list[tuple[int, ...]]) -> None:
    matmul(draw(1024, 64), draw(64, 369))
    assert calls == 2 * [(1024, 64, 369)], "a trial, and the product"
    matmul(draw(1024, 64), draw(64, 369))
    assert len(calls) == 3, "a shape is tried once"


def test_small_products_stay_with_torch(calls: list[tuple[int, ...]]) -> None:
    assert same_bits(matmul(draw(16, 64), draw(64, 64)), draw(16, 64) @ draw(64, 64))
    assert not calls


@pytest.mark.parametrize("run", [100, 128])
def test_where_the_bits_differ_torch_multiplies(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "RUN", run)
    x, W = draw(1024, 369), draw(369, 64)
    assert not same_bits(products._by_runs(x, W), x @ W), "the runs are not those of oneMKL"
    assert same_bits(matmul(x, W), x @ W)


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
    leaf = W.clone().requires_grad_()
    matmul(x, leaf).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, x.mT @ torch.ones(1024, 369))
    assert not calls
    with torch.no_grad():
        matmul(x, leaf)
    assert calls, "without a derivative a parameter is a matrix like any other"
