"""Forward mode: compute tangents together with values, from the inputs of f to its result.

A tangent is the derivative of a value in a direction v: for inputs x + t v, it is d/dt at t = 0.
After each op, the tangent of its result is computed from the tangents of its inputs. Nothing is
saved for a backward pass, so the memory does not grow with the depth of f.

Ops need no JVP for forward mode, and few have one (`Op.jvp`). There are four kinds of ops:

- elementwise: the VJP multiplies the gradient of each element by a number; a tangent is multiplied
  by the same number. So the VJP is applied to the tangent.
- linear: such an op is its own derivative. So it is called on the tangent, without its bias.
- fused and replayed: such an op has a composition that it replaces. So the composition runs, op by
  op.
- any other: its VJP is u -> J^T u. Because <J^T u, v> = <u, J v>, the product J v is the derivative
  of <J^T u, v> with respect to u. So the VJP is recorded as a function of u, and v is
  backpropagated through this record (Townsend, 2017, does this for the whole of f).

Tangents are stored by node. If inputs have tangents, but require no gradient, the result gets a
node without edges, which is `forward_only`. If a gradient is required too, for example because f
itself computes a gradient, the graph is recorded as usual. The ops of its backward pass get
tangents like all other ops.

Runs may be nested. Each run has its own tangents. It computes them with ops that the outer runs
see, so the outer runs get derivatives of its tangents. A run does not see the ops with which outer
runs compute their tangents.

A tangent can also be differentiated in reverse mode. This is possible if the op depends on
something outside of f that requires a gradient: a weight, or an input or a direction of this run.
Then tangents are computed with Tensors and recorded. In all other cases they are computed with
arrays, which is faster.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.backward import fit_to_input, propagate
from minigrad.core.codegen import FLOAT32, SequenceInputs, array_of, shape, without_vjp
from minigrad.core.grad_mode import grad_mode, mode, observed
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.op import VJP, Op, identity
from minigrad.core.tensor import NUMBERS, Tensor, as_array
from minigrad.versions import clock

Tangents = list[Tensor | None]  # the tangents of one value, one per direction; None means zero


class _Known(NamedTuple):
    """The facts that a run knows about a node."""

    tangents: Tangents | None  # None if the node does not depend on the inputs of the run
    from_outside: bool  # whether the node depends on an outer node that requires a gradient


class ForwardMode(Observer):
    """The run of a function in forward mode, in one direction or several at once."""

    is_internal = True

    def __init__(self, directions: int) -> None:
        self._directions = directions
        self._start = next(clock)
        self._enabled = mode.grad_enabled
        self._no_grad_blocks = mode.no_grad_blocks
        self._known: WeakKeyDictionary[Node, _Known] = WeakKeyDictionary()

    def start(self, x: Tensor, tangents: Tangents) -> Tensor:
        """Return x at a new node, which is linked to x and has one tangent per direction."""
        inner = identity(x)
        given = [x, *(v for v in tangents if v is not None)]
        from_outside = self._enabled and any(each.node is not None for each in given)
        self._known[_give_node(identity, inner)] = _Known(tangents, from_outside)
        return inner

    def _find(self, node: Node) -> _Known | None:
        """Return what is known about a node; an error if another thread has called its op."""
        known = self._known.get(node)
        if known is None and node.order > self._start:
            for edge in node.edges or ():
                parent = self._known.get(edge[0])
                if parent is not None and parent.tangents is not None:
                    raise RuntimeError(
                        f"forward mode has not seen the call of `{node.name}`, because another "
                        f"thread made it; call it in the thread that differentiates"
                    )
        return known

    def _of(self, result: Tensor) -> Tangents | None:
        """Return the tangents of a result, or None if it does not depend on an input."""
        known = None if result.node is None else self._find(result.node)
        return None if known is None else known.tangents

    def tangents(self, result: Tensor) -> list[Tensor]:
        """Return the tangents of a result, one per direction."""
        tangents = self._of(result) or [None] * self._directions
        zeros = np.zeros_like
        return [Tensor(observed(zeros, result._data)) if v is None else v for v in tangents]

    def has_tangent(self, tensor: Tensor) -> bool:
        """Return whether results of `tensor` get tangents now: whether it depends on an input."""
        return self.is_running() and self._of(tensor) is not None

    def is_running(self) -> bool:
        """Return whether ops that are called now get tangents."""
        return mode.grad_enabled or not self.is_in_no_grad_of_f()

    def is_in_no_grad_of_f(self) -> bool:
        """Return whether f itself has entered a `no_grad` block, where only grad mode counts."""
        return mode.no_grad_blocks != self._no_grad_blocks

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Compute the tangents of the result of an op."""
        if not isinstance(result, Tensor) or result.dtype.kind != "f" or not self.is_running():
            return
        moving: dict[int, Tangents] = {}
        from_outside = False
        for i, x in enumerate(inputs):
            node = x.node if isinstance(x, Tensor) else None
            if node is None:
                continue
            known = self._find(node)
            if known is None:
                from_outside |= node.order < self._start and not node.forward_only
                continue
            from_outside |= known.from_outside
            if known.tangents is not None:
                moving[i] = known.tangents
        from_outside &= self._enabled
        if moving:
            before = grad_enabled, observers = mode.state
            around: tuple[Observer, ...] = ()
            needed = grad_enabled and self.is_in_no_grad_of_f()
            if len(observers) > 1:
                around = tuple(o for o in observers if not self._is_inside(o))
                runs = (o for o in around if isinstance(o, ForwardMode))
                needed |= grad_enabled and any(forward.is_in_no_grad_of_f() for forward in runs)
            mode.state = (from_outside or needed, around)
            try:
                tangents = self._push(op, inputs, result, moving)
            except Exception as error:
                error.add_note(f"raised while forward mode computed the derivative of `{op.name}`")
                raise
            finally:
                mode.state = before
            self._known[_give_node(op, result)] = _Known(tangents, from_outside)
        elif from_outside and result.node is not None:
            self._known[result.node] = _Known(None, True)

    def _is_inside(self, observer: Observer) -> bool:
        """Return whether an observer is this run, or a run inside it."""
        return isinstance(observer, ForwardMode) and observer._start >= self._start

    def _push(
        self, op: Op[Any], inputs: Sequence[Any], result: Tensor, moving: Mapping[int, Tangents]
    ) -> Tangents:
        """Return the tangents of a result; `moving` has the tangents of the inputs."""
        vjps = op.vjp_of
        if op.takes_sequence:
            vjps = dict.fromkeys(range(len(inputs)), vjps[0])
        missing = [op.input_name(i) for i in moving if i not in vjps]
        if missing:
            raise without_vjp(op, missing)
        direct = op.elementwise or op.own_jvp is not None
        if op.replayed and not (direct and _is_unwatched()):
            with observe(self):
                composed = op.compose(*_converted(op, inputs, vjps, result.dtype))
                if composed.dtype != result.dtype:
                    composed = composed.astype(result.dtype)
            return self._of(composed) or [None] * self._directions
        derivative = _Derivative(op, inputs, result, vjps)
        return [
            derivative.along({i: vs[k] for i, vs in moving.items()})
            for k in range(self._directions)
        ]


def running() -> list[ForwardMode]:
    """Return the runs that compute tangents for the ops that are called now."""
    return [o for o in mode.observers if isinstance(o, ForwardMode) and o.is_running()]


def _is_unwatched() -> bool:
    """Return whether no outer run and no observer needs to see the ops that are called now.

    Then tangents are computed with arrays, as gradients are in an ordinary backward pass.
    """
    return not mode.observers and not mode.grad_enabled


def _give_node(op: Op[Any], result: Tensor) -> Node:
    """Give a result a node if it has none; remove edges to inputs that require no gradient."""
    node = result.node
    if node is None:
        node = result.node = Node.of(op, (), result._data)
        node.forward_only = True
    elif node.edges and all(edge[0].forward_only for edge in node.edges):
        node.edges = node.arguments = ()
        node.forward_only = True
    return node


class _Derivative:
    """The derivative of one call of an op."""

    def __init__(
        self, op: Op[Any], inputs: Sequence[Any], result: Tensor, vjps: Mapping[int, VJP]
    ) -> None:
        self._op, self._result, self._vjps = op, result, vjps
        self._inputs = inputs
        self._unwatched = _is_unwatched()
        values = _converted(op, inputs, vjps, result.dtype)
        if self._unwatched:
            values = [x._data if isinstance(x, Tensor) else x for x in values]
        # One value for each parameter of the op.
        self._values: list[Any] = values
        if isinstance(inputs, SequenceInputs):
            self._values = [values, *inputs.options]
        self._slots = [*self._values, result._data if self._unwatched else result, None]
        self._transposed: tuple[Tensor, dict[int, Tensor]] | None = None

    def along(self, tangents: Mapping[int, Tensor | None]) -> Tensor | None:
        """Return the derivative along the tangents of some inputs; None means zero."""
        own = self._op.own_jvp if self._unwatched else None
        if own is None:
            terms = [*self._terms(tangents)]
        else:
            moves = [None if v is None else v._data for v in map(tangents.get, self._vjps)]
            is_moving = any(v is not None for v in moves)
            terms = [own.derivative(moves, *self._saved(own))] if is_moving else []
        if not terms:
            return None
        total = functools.reduce(operator.add, terms)
        found = np.shape(total)
        if found != self._result.shape:
            raise self._wrong_shape(found)
        if isinstance(total, Tensor):
            same = total.dtype == self._result.dtype
            return total if same else total.astype(self._result.dtype)
        return Tensor.at(np.asarray(total, self._result.dtype), None)

    def _terms(self, tangents: Mapping[int, Tensor | None]) -> Iterator[Any]:
        """List arrays or Tensors whose sum is the derivative: none if it is zero."""
        op = self._op
        transposed: dict[int, Any] = {}
        for i, tangent in tangents.items():
            if tangent is None:
                continue
            v: Any = tangent._data if self._unwatched else tangent
            if op.elementwise:
                if v.shape != self._result.shape:
                    spread = np.broadcast_to if self._unwatched else Tensor.broadcast_to
                    try:
                        v = spread(v, self._result.shape)
                    except ValueError as error:
                        raise self._wrong_shape(v.shape) from error
                yield from self._pulled_back(v, [i])
            elif not op.takes_sequence and op.parameters[i] in op.linear:
                without_bias = [
                    None if j in op.vjp_of and not op.is_required(j) else value
                    for j, value in enumerate(self._values)
                ]
                without_bias[i] = v
                yield self._called(without_bias)
            else:
                transposed[i] = v
        if transposed and op.takes_sequence and op.linear:
            elements, *options = self._values
            zeros = [np.zeros(x.shape, self._result.dtype) for x in elements]
            given = [transposed.get(i, zero) for i, zero in enumerate(zeros)]
            yield self._called([given, *options])
        elif transposed:
            yield from self._by_transposition(transposed)

    def _wrong_shape(self, shape: tuple[int, ...]) -> ValueError:
        return ValueError(
            f"the derivative of `{self._op.name}` in a direction has shape {shape}, and its result "
            f"{self._result.shape}; correct its JVP, or its VJPs and whether it is marked as "
            f"elementwise or linear"
        )

    def _called(self, values: Sequence[Any]) -> Any:
        """Call the op with a value for each of its parameters."""
        args, options = self._op.passed(values)
        return self._op(*args, **options)

    def _pulled_back(self, g: Any, argnums: Sequence[int]) -> list[Any]:
        """Run the VJPs of some inputs on a gradient of the result; return their results."""
        if not self._op.plain:
            return self._op.run_joint_vjp(g, argnums, self._saved(self._vjps[argnums[0]]))
        return [self._vjps[i].derivative(g, *self._saved(self._vjps[i], i)) for i in argnums]

    def _saved(self, derivative: VJP, argnum: int | None = None) -> list[Any]:
        """Return the arguments of a derivative that come after the gradient or the tangents."""
        slots = self._slots
        slots[-1] = argnum
        return [
            shape(array_of(slots[slot])) if shape_only else slots[slot]
            for slot, shape_only in derivative.slots
        ]

    def _by_transposition(self, tangents: Mapping[int, Any]) -> list[Any]:
        """Return J v: record the VJPs u^T J as functions of u, and differentiate them by u."""
        if self._transposed is None:
            self._transposed = self._record_vjps()
        u, products = self._transposed
        pending: dict[Node, Any] = {}
        for i, v in tangents.items():
            node = products[i].node
            if node is not None:
                pending[node] = pending[node] + v if node in pending else v
        assert u.node is not None
        arrived = propagate(
            pending,
            wanted={u.node},
            oldest=u.node.order,
            retain_graph=True,
            create_graph=not self._unwatched,
            recorded=mode.grad_enabled,
        )
        if not arrived and any(product._data.any() for product in products.values()):
            raise RuntimeError(
                f"the VJP of `{self._op.name}` does not pass on what it computes from g, so "
                f"forward mode cannot use it; write it in ops, without .data or numpy"
            )
        return list(arrived.values())

    def _record_vjps(self) -> tuple[Tensor, dict[int, Tensor]]:
        """Return a tensor u, and u^T J for each input with a node.

        u is not 0, because a VJP may skip its work where a gradient is 0.
        """
        op = self._op
        nodes = [x.node if isinstance(x, Tensor) else None for x in self._inputs]
        argnums = [i for i in self._vjps if nodes[i] is not None]
        u = Tensor(np.ones_like(self._result._data), requires_grad=True)
        with grad_mode(True):
            products: dict[int, Tensor] = {}
            for i, product in zip(argnums, self._pulled_back(u, argnums), strict=True):
                node = nodes[i]
                assert node is not None
                products[i] = fit_to_input(product, node, op, i, create_graph=True)
        return u, products


def _converted(
    op: Op[Any], inputs: Sequence[Any], argnums: Iterable[int], dtype: np.dtype[Any]
) -> list[Any]:
    """Return the inputs of a call, converted to the dtype in which the op computed."""
    if op.floats and dtype == np.float16:
        dtype = FLOAT32
    values = list(inputs)
    for i in argnums:
        x = values[i]
        if isinstance(x, Tensor):
            if x._data.dtype is not dtype and "dtype" not in op.parameters:
                values[i] = x.astype(dtype)
        elif x is not None and x.__class__ not in NUMBERS:
            array = as_array(x, dtype)
            values[i] = array if array.ndim else array.item()
    return values
