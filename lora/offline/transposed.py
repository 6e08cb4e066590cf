"""Turned: which weights of a base are stored as W^T, as by the Conv1D of GPT-2."""

from __future__ import annotations

from minigrad.io import TensorSet


class Turned:
    """Whether weights are stored as W^T, `(d_in, d_out)`.

    The length of a layer's bias tells it. Where it does not, for the weight is square, the nearest
    layers by name whose biases do tell are taken for alike.

    Args:
        base: the tensors of a model.
    """

    def __init__(self, base: TensorSet) -> None:
        self._own: dict[str, bool] = {}
        self._square: set[str] = set()
        self._inside: dict[str, set[bool]] = {}
        for name, info in base.tensors.items():
            if not name.endswith(".weight") or len(info.shape) != 2:
                continue
            rows, columns = info.shape
            bias = f"{name.removesuffix('.weight')}.bias"
            size = base.info(bias).size if bias in base else None
            if rows == columns:
                self._square.add(name)
            elif size in (rows, columns):
                self._own[name] = size == columns
                for module in _above(name):
                    self._inside.setdefault(module, set()).add(size == columns)

    def of(self, name: str, otherwise: bool) -> bool:
        """Whether a weight is turned; `otherwise` if the base does not tell, or both ways."""
        if name in self._own:
            return self._own[name]
        if name not in self._square:
            return otherwise
        near = next((self._inside[m] for m in _above(name) if m in self._inside), set())
        return True in near if len(near) == 1 else otherwise


def _above(name: str) -> list[str]:
    """The modules that a tensor is inside of, from the nearest to the whole model, which is ""."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in reversed(range(len(parts)))]
