"""A run of a function on its own inputs, and backward passes through the graph of this run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.containers import Leaf, Structure, flatten, rebuild
from minigrad.core.backward import announce, propagate, take
from minigrad.core.forward_mode import ForwardMode, Tangents, carried, running
from minigrad.core.grad_mode import grad_mode, is_grad_enabled, mode
from minigrad.core.node import Node, reachable
from minigrad.core.observers import observe
from minigrad.core.op import identity
from minigrad.core.tensor import Tensor
from minigrad.ops import clone, concatenate, reshape
from minigrad.transforms.function_call import Call, described
from minigrad.versions import clock


class Run:
    """A run of f on inputs at new nodes; in forward mode, if tangents are given."""

    def __init__(self, call: Call, tangents: Sequence[Tangents] | None = None) -> None:
        self.call = call
        self.enabled = is_grad_enabled()
        self.start = next(clock)  # no older node depends on the inputs; walks end here
        if tangents is not None:
            self.forward = ForwardMode(len(tangents[0]))
            pairs = zip(call.leaves, tangents, strict=True)
            self.inputs: list[Tensor] = [self.forward.start(x, vs) for x, vs in pairs]
            with observe(self.forward):
                self.out: Any = call.run(self.inputs)
            return
        self.inputs = []
        with grad_mode(True):
            for x in call.leaves:
                # As the result of an op, f can neither write to it nor freeze it.
                inner = identity(x)
                inner.node = inner.node or Node.of(identity, (), x._data)
                inner.node.forward_only = False  # also if only an outer run sees x
                self.inputs.append(inner)
            self.out = call.run(self.inputs)

    def results(self) -> tuple[list[Tensor], Structure]:
        """Return the leaves of f's result, which must be Tensors, and its structure."""
        leaves: list[Leaf] = []
        role = f"{self.call.name}: the result of f"
        structure = flatten(self.out, role, leaves)
        if not leaves:
            self.checked(self.out)
        return [self.checked(x.value, x.path.removeprefix(role)) for x in leaves], structure

    def checked(self, out: Any, path: str = "") -> Tensor:
        """Return a result of f, after checking that it is a Tensor of floats."""
        if isinstance(out, Tensor) and out.dtype.kind == "f":
            return out
        raise TypeError(
            f"{self.call.name}: f must return a Tensor of floats{path and f' at {path}'}, not "
            f"{described(out)}; compute it from the arguments with minigrad's functions, without "
            f"float(), .item() or numpy, and write a constant as minigrad.tensor(0.0); add several "
            f"values up, or return (value, aux) with has_aux"
        )

    def can_be_differentiated(self, *results: Tensor) -> bool:
        """Return whether something outside may need the derivative of one of `results`."""
        return self._is_in_graph(*results) or carried(*results)

    def _is_in_graph(self, *results: Tensor) -> bool:
        """Return whether one of `results` depends on an older node that requires a gradient."""
        roots = [result.node for result in results if result.node is not None]
        found = reachable(roots, oldest=self.start) if self.enabled else []
        if not found or found[-1].order >= self.start:  # the oldest is the last
            return False
        return any(node.order < self.start and not node.forward_only for node in found)

    def detached(self, value: Any) -> Any:
        """Detach the Tensors in `value`, except those that something outside may differentiate."""
        if isinstance(value, Tensor):
            return value if self.can_be_differentiated(value) else value.detach()
        leaves: list[Leaf] = []
        structure = flatten(value, f"{self.call.name}: aux", leaves)
        found = [self.detached(x) if isinstance(x, Tensor) else x for x, *_ in leaves]
        return rebuild(structure, found, owners=True)

    def pull(
        self,
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        record: bool,
        retain: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return v^T J for each input, summed over `outputs`; with `record`, record the pass."""
        pending: dict[Node, Any] = {}
        for output, cotangent in zip(outputs, cotangents, strict=True):
            if (node := output.node) is not None and node.order > self.start:
                v = cotangent if record else cotangent._data
                for observer in mode.observers:
                    observer.on_backward(output, v)
                pending[node] = pending[node] + v if node in pending else v
        ends: list[Any] = [x.node for x in self.inputs]
        arrived = propagate(
            pending,
            wanted=set(ends),
            oldest=self.start,
            retain_graph=retain or record,
            create_graph=record,
            recorded=is_grad_enabled() and self._is_to_be_recorded(outputs, cotangents),
        )
        announce(arrived, adding=False)
        return tuple(
            take(arrived, end) if end in arrived else Tensor(np.zeros(end.shape, end.dtype))
            for end in ends
        )

    def _is_to_be_recorded(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
        """Return whether a pass on Tensors must record a graph, or only needs tangents."""
        around = running()
        return (
            not around
            or any(forward.is_in_no_grad_of_f() for forward in around)
            or any(v.node is not None and not v.node.forward_only for v in cotangents)
            or self._is_in_graph(*outputs)
        )

    def pushed(self, out: Tensor) -> list[Tensor]:
        """Return copies of the tangents of `out`, one per direction."""
        return [clone(self.detached(v)) for v in self.forward.tangents(out)]

    def rows(self, out: Tensor, record: bool) -> list[Tensor]:
        """Return the Jacobian of `out` with respect to each input, computed row by row."""
        pulled = []
        for i in range(out.size):
            v = np.zeros_like(out._data)
            v.flat[i] = 1
            pulled.append(self.pull([out], [Tensor(v)], record, retain=True))
        jacobians = []
        for k, x in enumerate(self.inputs):
            none = Tensor(np.zeros(0, x.dtype))  # for an output without elements
            row_after_row = concatenate([none, *(reshape(row[k], x.size) for row in pulled)])
            jacobians.append(reshape(row_after_row, out.shape + x.shape))
        return jacobians
