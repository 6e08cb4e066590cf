"""Matrix products: square, thin, in batches; and the share of the core's peak that one reaches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import BEST, OURS, Contender, Goal, Point, Run, Workload

SQUARE = 64, 100, 128, 256, 333, 512, 1000, 1024, 2048
THIN = (
    (512, 768, 8),
    (512, 8, 768),
    (512, 4096, 16),
    (512, 16, 4096),
    (768, 512, 8),
    (8, 512, 768),
    (1, 4096, 4096),
    (2048, 64, 2048),
)
LAYOUTS = "NN", "NT", "TN"
PEAK = "measured peak"
PEAK_SIZE = 1024


class Case(NamedTuple):
    """A product `(*batch, m, k) @ (*batch, k, n)`.

    A T in the layout says that the operand lies in memory transposed, as W does in x W^T.
    """

    m: int
    k: int
    n: int
    layout: str = "NN"
    dtype: str = "float32"
    batch: tuple[int, ...] = ()

    def operands(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The two arrays, the same for everybody."""
        rng = np.random.default_rng(0)

        def draw(rows: int, columns: int, layout: str) -> NDArray[Any]:
            shape = (columns, rows) if layout == "T" else (rows, columns)
            array = rng.standard_normal((*self.batch, *shape)).astype(self.dtype)
            return np.swapaxes(array, -1, -2) if layout == "T" else array

        return draw(self.m, self.k, self.layout[0]), draw(self.k, self.n, self.layout[1])

    def point(self, label: str) -> Point:
        """The case with its label, its multiplications and additions, and its three matrices."""
        m, k, n = self.m, self.k, self.n
        count = int(np.prod(self.batch))
        size = np.dtype(self.dtype).itemsize
        return Point(label, self, 2.0 * count * m * k * n, size * count * (m * k + k * n + m * n))


def _numpy(case: Case) -> Run:
    x, y = case.operands()
    return lambda: np.matmul(x, y)


def _minigrad(case: Case) -> Run:
    from minigrad.kernels import gemm

    x, y = case.operands()
    return lambda: gemm.matmul(x, y)


def _torch(case: Case) -> Run:
    import torch

    x, y = map(torch.from_numpy, case.operands())
    return lambda: torch.matmul(x, y)


def _peak(case: Case) -> Run:
    """As many multiply-adds as the product has, on registers alone."""
    from tests.benchmarks import peak

    run = peak.multiply_adds(case.dtype, case.m * case.k * case.n)

    def without_a_result() -> None:
        run()

    return without_a_result


CONTENDERS = {
    OURS: Contender(_minigrad),
    "numpy": Contender(_numpy),
    "torch": Contender(_torch, ("torch",)),
}


def _square(dtype: str) -> list[Point]:
    cases = [Case(n, n, n, layout, dtype) for n in SQUARE for layout in LAYOUTS]
    return [case.point(f"{case.n} {case.layout}") for case in cases]


def _products(
    title: str, points: Iterable[Point], each: float | None = None, mean: float | None = None
) -> Workload:
    return Workload(
        title,
        CONTENDERS,
        list(points),
        [Goal(BEST, each, mean)],
        seconds=0.05,
    )


def _thin() -> list[Point]:
    cases = [Case(*shape, layout) for shape in THIN for layout in LAYOUTS]
    return [case.point(f"{case.m} x {case.k} x {case.n} {case.layout}") for case in cases]


def _batched() -> Iterable[Point]:
    for layout in ("NN", "NT"):
        case = Case(128, 64, 128, layout, batch=(8, 12))
        yield case.point(f"(8, 12, 128, 64) @ (8, 12, 64, 128) {layout}")


def _at_peak() -> Iterable[Point]:
    for dtype in ("float32", "float64"):
        yield Case(PEAK_SIZE, PEAK_SIZE, PEAK_SIZE, dtype=dtype).point(dtype)


WORKLOADS = {
    "matmul": _products("float32 product of n x n matrices", _square("float32"), 0.95, 1.03),
    "matmul64": _products("float64 product of n x n matrices", _square("float64"), mean=0.95),
    "thin": _products("float32 product of m x k by k x n", _thin(), 0.95, 1.4),
    "batched": _products("float32 products of stacks of matrices", _batched(), 1.0),
    "peak": Workload(
        f"share of the measured peak that a product of {PEAK_SIZE} x {PEAK_SIZE} reaches",
        {**CONTENDERS, PEAK: Contender(_peak)},
        list(_at_peak()),
        [Goal(PEAK, {"float32": 0.92}, threads=1)],
    ),
}
