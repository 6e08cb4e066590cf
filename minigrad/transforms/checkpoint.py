"""Activation checkpointing: save less in the forward pass, and run a part of it again later.

In the graph, `checkpoint(f, *inputs)` is one node that saves only the inputs. When a gradient
arrives, f runs again and records a graph, and the gradient is backpropagated through this graph.
Split a chain of n layers into sqrt(n) parts: then only about 2 sqrt(n) activations are in memory at
any time (Chen et al., 2016, section 4). The price is one more forward pass.

f may use tensors that are not among its arguments, such as the parameters of a module. In the first
run an observer finds these tensors, so that they get gradients like the inputs. The observer also
finds the random generators that f draws from, so that dropout drops the same elements again.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.grad_mode import mode, no_grad
from minigrad.core.node import Edge, Node
from minigrad.core.observers import Observer, observe
from minigrad.core.op import Op, replay
from minigrad.core.tensor import Tensor, assigned
from minigrad.transforms.forward_mode import running
from minigrad.versions import clock


def checkpoint(f: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return f(*inputs), saving only the inputs; f runs again in the backward pass.

    Gradients also reach the tensors that `f` closes over, such as the parameters of a module.

    The first run records no graph, to save memory. So f can neither register hooks nor call
    `retain_grad` on what it computes, and a derivative that f takes itself through a fused op can
    have other last digits in the second run, which is an error. What else f changes, such as
    the running statistics of a BatchNorm, changes in both runs.

    Args:
        f: a function or module that returns one Tensor, and returns the same result each time. The
            second run draws the same random numbers, with `rng=` or from the default generator.
        inputs: the arguments of `f`, Tensors or not.

    Raises:
        TypeError: if `f` is not a function, or does not return exactly one Tensor.
        RuntimeError: in the backward pass, if the second run gives another result.
    """
    if not callable(f):
        raise TypeError(f"checkpoint: f is a function or a module, not {f!r:.60}")
    if running():
        return _checked(f(*inputs))  # so that its ops get tangents
    watcher = DryRun(mode.grad_enabled)
    with no_grad(), observe(watcher):
        # The inputs get no nodes here, so the observer cannot mistake them for outside tensors.
        result = _checked(f(*map(_constant, inputs)))
    if result.node is not None:  # f returned an outside tensor itself
        watcher.outside[result.node] = result
    used = [*inputs, *watcher.outside.values()]
    edges: list[Edge] = [
        (value.node, argnum, None, value._data)
        for argnum, value in enumerate(used)
        if isinstance(value, Tensor) and value.node is not None
    ]
    differentiable = {argnum for _, argnum, *_ in edges}
    arguments = [v._data if i in differentiable else _constant(v) for i, v in enumerate(inputs)]
    result = Tensor.at(result._data, None)
    if mode.grad_enabled and edges and result.dtype.kind == "f":
        result.node = node = Node.of(CHECKPOINT, edges, result._data)
        node.arguments = _rerun(f, watcher, _fingerprint(result)), arguments
    for observer in mode.observers:  # one of these may be the `DryRun` of an outer checkpoint
        observer.on_call(CHECKPOINT, used, result)
    return result


def _checked(result: Any) -> Tensor:
    """Return the result of a function; raise a TypeError if it is not a Tensor."""
    if not isinstance(result, Tensor):
        raise TypeError(
            f"checkpoint: the function must return one Tensor, not {type(result).__name__}; "
            f"concatenate several results into one"
        )
    return result


def _constant(value: Any) -> Any:
    """Return a Tensor without a node that shares the memory; return other values unchanged."""
    return Tensor.at(value._data, None) if isinstance(value, Tensor) else value


class Draws(Observer):
    """Remembers the state that each random generator had before the first draw from it."""

    def __init__(self) -> None:
        self.states: dict[np.random.Generator, Any] = {}

    def on_random(self, generator: np.random.Generator) -> None:
        """Save the state of a generator before its first draw."""
        self.states.setdefault(generator, generator.bit_generator.state)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Restore all generators after the block, including those of Python and numpy."""
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's
        try:
            with observe(self):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            for generator, state in self.states.items():
                generator.bit_generator.state = state


class DryRun(Draws):
    """Find the outside tensors that a function uses, and the generators that it draws from."""

    is_internal = True

    def __init__(self, recorded: bool) -> None:
        super().__init__()
        # Whether `checkpoint` makes a node for the result; the run itself records nothing.
        self.recorded = recorded
        self._start = next(clock)
        self.outside: dict[Node, Tensor] = {}

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Save the outside tensors among the inputs."""
        for value in inputs:
            node = value.node if isinstance(value, Tensor) else None
            # A newer node belongs to this run: the function computes a derivative.
            if node is not None and node.order < self._start:
                self.outside[node] = value


def _rerun(
    function: Callable[..., Tensor], watcher: DryRun, fingerprint: tuple[Any, ...]
) -> Callable[..., Tensor]:
    """Return a function that computes a result again, from inputs at other nodes of a graph.

    During the run, the generators have their states from the first run; afterwards, their present
    states are restored.
    """
    outside = [(x, {"_data": x._data, "node": n}) for n, x in watcher.outside.items()]

    def run(*inputs: Any) -> Tensor:
        observers = mode.observers
        present = {generator: generator.bit_generator.state for generator in watcher.states}
        for observer in observers:
            observer.on_rerun(True)
        try:
            for generator, state in watcher.states.items():
                generator.bit_generator.state = state
            # A transform by a Module has given its parameters back their own nodes.
            moved = [(x, at) for x, at in outside if any(getattr(x, k) is not at[k] for k in at)]
            used = DryRun(False)
            with assigned(moved), observe(used):
                result = function(*inputs)
        finally:
            for generator, state in present.items():
                generator.bit_generator.state = state
            for observer in observers:
                observer.on_rerun(False)
        found = {*used.outside, getattr(result, "node", None)}
        if not found.issuperset(watcher.outside) or _fingerprint(result) != fingerprint:
            raise RuntimeError(
                "checkpoint: the function gave another result when it was run again, so its "
                "gradient would be wrong; did it use randomness of its own, did something that it "
                "uses change since, or does it take a derivative itself, which can have other last "
                "digits when a graph of it is recorded?"
            )
        return result

    return run


def _fingerprint(result: Tensor) -> tuple[Any, ...]:
    return result.shape, result.dtype, zlib.crc32(np.ascontiguousarray(result._data).data)


def _forward(run: Callable[..., Tensor], arguments: Sequence[Any]) -> Tensor:
    return run(*arguments)


class _Checkpoint(Op[Any]):
    """The op of a checkpoint: it has no VJPs, because its derivative runs the function again."""

    def __init__(self) -> None:
        super().__init__(_forward, cost=0)  # the ops inside count their own FLOPs
        self.name = "checkpoint"
        self.plain = False

    def differentiate(self, node: Node, edges: Sequence[Edge], g: Any) -> list[Any]:
        run, arguments = node.arguments
        parents = {argnum: parent for parent, argnum, *_ in node.edges or ()}
        return replay(run, arguments, parents, [edge[1] for edge in edges], g)

    def input_name(self, argnum: int) -> str:
        return str(argnum)

    def saved_values(self, node: Node, edges: Sequence[Edge]) -> Iterator[tuple[str, Any]]:
        given = node.arguments[1] if node.arguments else ()  # they may have been freed
        saved = dict(enumerate(given)) | {edge[1]: edge[3] for edge in node.edges or ()}
        for argnum, value in saved.items():  # all of them, because the whole function runs again
            yield self.input_name(argnum), value


CHECKPOINT = _Checkpoint()
