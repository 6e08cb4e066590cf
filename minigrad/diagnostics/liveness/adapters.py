"""What the instruments know of LoRA adapters: how to tell one, its ranks, and what holds it up.

`minigrad` does not import `lora`. An adapter is known by what it has: two matrices, `lora_a` of
shape (rank, d_in) and `lora_b` of shape (d_out, rank), in a module; or in the `adapters` of one,
where several of them are `active`.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from minigrad.core.tensor import Tensor
from minigrad.diagnostics.liveness.report import AdapterRow, ParameterRow
from minigrad.nn.module import Module, Parameter


class Adapter(Protocol):
    """A module with the two factors of an update of low rank."""

    lora_a: Parameter
    lora_b: Parameter


def is_adapter(module: Module) -> TypeGuard[Adapter]:
    """Whether a module has the matrices of an adapter."""
    factors = (getattr(module, "lora_a", None), getattr(module, "lora_b", None))
    return all(isinstance(factor, Parameter) and factor.ndim == 2 for factor in factors)


class Share:
    """One adapter of a module that has several active, with what they share."""

    def __init__(self, layer: Any, name: str) -> None:
        own = layer.adapters[name]
        self.lora_a, self.lora_b, self.scale, self.dropout = (
            getattr(own, key) for key in ("lora_a", "lora_b", "scale", "dropout")
        )
        self.lora_magnitude = own.lora_magnitude
        self.base_weight, self.bias = layer.base_weight, layer.bias
        self.enabled, self.training = layer.enabled, layer.training
        self.merged = name in layer.merged_adapters


def adapters_in(model: Module) -> list[tuple[str, Adapter]]:
    """The adapters in a model, by name. Of several in a module, those that are active."""
    found: list[tuple[str, Adapter]] = []
    for name, module in model.named_modules():
        if is_adapter(module):
            found.append((name, module))
        elif hasattr(module, "merged_adapters"):
            active: tuple[str, ...] = getattr(module, "active", ())
            prefix = f"{name}." if name else ""
            found += [(f"{prefix}{key}", Share(module, key)) for key in active]
    return found


def trained(adapter: Any) -> list[Parameter]:
    """What trains of an adapter: A, B, and a magnitude if there is one."""
    magnitude = getattr(adapter, "lora_magnitude", None)
    return [adapter.lora_a, adapter.lora_b, *([] if magnitude is None else [magnitude])]


def is_merged(adapter: Any) -> bool:
    """Whether calls use a merged weight, through which no gradient gets to A and B."""
    return bool(getattr(adapter, "merged", False)) and bool(getattr(adapter, "enabled", True))


def hindrance(adapter: Any) -> str | None:
    """What keeps an adapter from training by its own settings, and what to do; None if nothing."""
    if is_merged(adapter):
        return "the adapter is merged: call unmerge() to train it"
    if not getattr(adapter, "enabled", True):
        return "the adapter is disabled: leave the block of lora.disabled()"
    if getattr(adapter, "scale", 1.0) == 0:
        return "the scale of the adapter is 0: assign another to `scale`"
    if getattr(adapter, "training", False) and getattr(adapter, "dropout", 0.0) == 1:
        return "the dropout of the adapter is 1, so A sees nothing but zeros: set a smaller one"
    return None


def ranks(adapter: Adapter) -> tuple[int | None, int | None, int | None]:
    """The numerical ranks of A, B and B A, as `numpy.linalg.matrix_rank` counts.

    Singular values count above max(m, n) eps times the largest one, with the eps of the matrices'
    own dtype. With B = Q R and A^T = P S, the singular values of B A are those of R S^T, which is
    no larger than rank x rank: B A itself is never made. None where a number is not finite.
    """
    a, b = adapter.lora_a, adapter.lora_b
    if not (np.isfinite(a._data).all() and np.isfinite(b._data).all()):
        return None, None, None
    wide, tall = (x._data.astype(np.float64) for x in (a, b))
    core = _triangle(tall) @ _triangle(wide.T).T
    return (
        _rank(wide, a, max(wide.shape)),
        _rank(tall, b, max(tall.shape)),
        _rank(core, a, max(wide.shape[1], tall.shape[0])),
    )


def _triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of matrix = Q R."""
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _rank(matrix: NDArray[np.float64], like: Tensor, longest: int) -> int:
    """How many singular values are more than rounding in the dtype of `like` may leave of 0."""
    values = np.linalg.svd(matrix, compute_uv=False)
    if not values.size:
        return 0
    return int(np.count_nonzero(values > values[0] * longest * np.finfo(like.dtype).eps))


def adapter_row(name: str, adapter: Adapter, a: ParameterRow, b: ParameterRow) -> AdapterRow:
    """What the rows of A and B mean for their adapter."""
    trains, verdict = _verdict(a, b)
    return AdapterRow(name, *ranks(adapter), trains, verdict)


def _verdict(a: ParameterRow, b: ParameterRow) -> tuple[bool, str]:
    if a.state == b.state == "frozen":
        return False, "frozen"
    if a.state == b.state == "live":
        return True, "trains"
    for row in (b, a):
        if not row.trains and row.state != "frozen":
            return False, f"does not train: {row.why}"
    for one, other, names in ((b, a, ("B", "A")), (a, b, ("A", "B"))):
        if one.state == "live" and other.state == "frozen":
            return True, f"trains {names[0]} only: {names[1]} is frozen"
        if one.state == "live":
            return True, f"trains {names[0]} only, and {names[1]} once {names[0]} has moved"
    return True, f"trains later: {(b if b.reason else a).why}"
