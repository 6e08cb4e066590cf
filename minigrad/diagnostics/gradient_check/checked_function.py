"""The function whose gradient is checked: its operands, its values and its gradients.

All methods accept the operands as a list of float arrays, so that any operand can be perturbed.
They return all results as one vector, whatever f returns, and a gradient as one array per operand.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import shown
from minigrad.containers import Leaf, Structure, flatten, rebuild
from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.tolerances import FLOAT32, FLOAT64, finfo, is_float
from minigrad.errors import op_error
from minigrad.transforms.checkpoint import Draws

Array = NDArray[Any]
Vector = NDArray[np.float64]
Gradients = list[Vector]
ArraysAt = Callable[[Sequence[Array]], Gradients]  # computes arrays from the operands
Arrays = Sequence[Array]
Foreign = Sequence[Any]  # arrays of a framework
# Computes a gradient or None by each operand, given cotangents and whether to record the pass.
Pull = Callable[[Foreign, bool], Foreign]

CHECKERS = "gradcheck", "check_vjp"  # the functions that users call
RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"


class NoGradient(Exception):  # noqa: N818  # a finding, which the checker reports
    """Raised if what a function returns cannot be a gradient, whatever its numbers are."""

    def __init__(self, operand: str, reason: str) -> None:
        super().__init__(f"{operand}: {reason}")
        self.operand, self.reason = operand, reason


class CheckedFunction(ABC):
    """A function of float arrays, whose gradients are to be checked.

    f itself is a function of arrays of a framework; `Any` is used for their type. A subclass for
    each kind of function calls f, and gets gradients (all in the file functions). Frameworks that
    record a graph, such as minigrad and PyTorch, share the code for this.

    Attributes:
        checker: the function that the user called, for messages.
        framework: the framework of f, for messages.
        layout: the name of another memory layout for a cotangent, and the function that makes it.
        apart_from: the arrays with which no gradient may share memory: "gradients" of other
            operands, "operands" and "cotangents".
        selects: whether a gradient by only some of the operands can be computed.
        needs_graph: whether f differentiates by its inputs itself, as for a gradient penalty.
        given_as: the form of the inputs when f is called, for messages.
        name: the name of the function.
        names: the names of the operands.
        operands: the inputs and parameters of floats, in their original dtypes.
        shapes: the shapes of the results, once they are known.
        others: how many tensors that are not operands f depends on and require a gradient.
        unreached: possible reasons why an operand has no gradient, by its name.
        nondet_tol: the allowed difference between two calls, relative to the largest number.
        unsteady: whether two calls may differ by more than the order of a sum can explain.
    """

    checker: ClassVar[str] = "gradcheck"
    framework: ClassVar[str]
    layout: ClassVar[tuple[str, Callable[[Array], Array]] | None] = None
    apart_from: ClassVar[Sequence[str]] = ()
    selects: bool = False
    needs_graph: bool = False
    given_as: ClassVar[str] = ""

    def __init__(self, f: Callable[..., Any]) -> None:
        if not callable(f):
            raise self.error(f"f must be a function or a Module, not {shown(f)}")
        if isinstance(f, type):
            how = f"{f.__name__}.apply" if hasattr(f, "apply") else "an instance of it"
            raise self.error(f"f is the class {f.__name__}; pass {how}")
        self.name: str = getattr(f, "__name__", type(f).__name__)
        self.shapes: list[tuple[int, ...]] = []
        self.others = 0
        self.unreached: dict[str, str] = {}
        self.nondet_tol, self.unsteady = 0.0, False

    def take(self, arrays: Mapping[str, Array], inputs: Foreign) -> None:
        """Store inputs and parameters by name, as arrays; those of floats are the operands."""
        self._arrays = dict(arrays)
        self._before = {name: x.copy() for name, x in arrays.items()}
        self.names = [name for name, x in arrays.items() if is_float(x.dtype)]
        self.operands = [self._arrays[name] for name in self.names]
        self._given: Foreign = self.operands  # the operands, as arrays of the framework
        if not self.operands:
            raise self.error(
                f"no input contains floats of {self.framework}, with respect to which to "
                f"differentiate; they are {kinds_of(inputs)}; convert them to such floats first"
            )

    def error(self, message: str, kind: type[Exception] = TypeError) -> Exception:
        """Return an exception with the name of the checker in its message."""
        return op_error(kind, self.checker, message)

    def outline(self, operands: Arrays) -> np.dtype[Any]:
        """Call f where a gradient is required, and note the shapes of its results.

        Return the dtype in which f computes; if there are several, the least exact one.

        Raises:
            TypeError: if the operands have more digits than the inputs, but f or its gradient is
                computed with fewer.
        """
        with self._findings():
            results, pull = self._pulled_back(operands, range(len(operands)))
            gradients = pull(self._seeds([np.ones(x.shape) for x in results], results), False)
        dtype = tolerances.least_exact(x.dtype for x in (*map(self._to_numpy, results), *operands))
        if self.widened(operands) and not self._keeps_digits(results, gradients):
            raise self.error(f"{self.name} does not compute with the digits of float64")
        dtype = self.dtype_inside(operands, dtype)
        self.shapes = [tuple(x.shape) for x in results]
        return dtype

    def _keeps_digits(self, results: Foreign, gradients: Foreign) -> bool:
        """Return whether f computes in float64, given what it returned for operands of float64."""
        return all(self._to_numpy(x).dtype == FLOAT64 for x in results)

    @abstractmethod
    def _call(self, arrays: Foreign) -> list[Any]:
        """Call f, and return its float results; they must have the shapes of the first call."""

    def _to_numpy(self, x: Any) -> Array:
        """Return a numpy array with the same numbers; it may share the memory."""
        return np.asarray(x)

    def _from_numpy(self, x: Array, like: Any) -> Any:
        """Return an array of the framework, on the device of `like`."""
        return x

    def _grad(self, results: Foreign, leaves: Foreign, seeds: Foreign, recorded: bool) -> list[Any]:
        """Return a gradient or None by each leaf; the graph is retained."""
        by = [leaf for leaf in leaves if leaf.requires_grad]
        options = {"create_graph": recorded, "retain_graph": True, "allow_unused": True}
        with self._recording(True):
            found = iter(self._autograd(results, by, seeds, **options))
        return [next(found) if leaf.requires_grad else None for leaf in leaves]

    def _autograd(self, results: Foreign, by: Foreign, seeds: Foreign, **options: bool) -> Foreign:
        """Call the function of the framework that backpropagates through a graph."""
        raise NotImplementedError

    def _recording(self, enabled: bool) -> AbstractContextManager[Any]:
        """Set whether the framework records a graph in the block."""
        return nullcontext()

    def _refuses(self, error: Exception) -> bool:
        """Return whether an error of the framework means that f has no gradient."""
        return False

    def restored(self) -> AbstractContextManager[None]:
        """Restore all random generators after the block."""
        return Draws().put_back()

    def values(self, operands: Arrays) -> Vector:
        """Compute all results as one vector, without a graph unless f needs one."""
        if not self.needs_graph:
            try:
                with self._recording(False):
                    return flat(map(self._to_numpy, self._call(self._to_arrays(operands))))
            except RuntimeError:
                if self.shapes or not self.selects:  # f was called like this, or there is no graph
                    raise
            self.needs_graph, self.selects = True, False
        return flat(map(self._to_numpy, self._required(operands)[1]))

    def vjp(
        self, operands: Arrays, needed: Sequence[int] | None = None
    ) -> Callable[..., Gradients]:
        """Call f, and return a function `pullback(cotangents, recorded=False)` for this call.

        It computes the gradient of sum(cotangents * results) by each operand. `recorded` says
        whether the pass is recorded, as for a derivative of higher order. `needed` are the
        positions of the operands whose gradient is wanted; None means all.
        """
        needed = range(len(operands)) if needed is None else needed
        with self._findings():
            results, pull = self._pulled_back(operands, needed)

        def pullback(cotangents: Arrays, recorded: bool = False) -> Gradients:
            seeds = self._seeds(cotangents, results)
            with self._findings():
                found = pull(seeds, recorded)
            for i in needed:
                if found[i] is None:
                    why = "gives no gradient: is the result computed under no_grad or detached, or "
                    why += "does a backward return None?"
                    self.unreached.setdefault(self.names[i], f"{self.framework} {why}")
            return self._as_gradients(found, operands)

        return pullback

    def second_gradients(self, operands: Arrays, cotangents: Arrays, weights: Arrays) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with self.explained(RECORDING), self._recording(True):
            leaves, results = self._required(operands)
            seeds = [g.requires_grad_() for g in self._seeds(cotangents, results)]
            first = self._grad(results, leaves, seeds, True)
            pairs = [(g, w) for g, w in zip(first, weights, strict=True) if g is not None]
            parts = [(g * self._from_numpy(w, g)).sum() for g, w in pairs]
            total = [sum(parts[1:], parts[0])] if parts else []
            second = self._grad(total, [*leaves, *seeds], [None] * len(total), False)
            return self._as_gradients(second, [*operands, *cotangents])

    def same_shapes(self, results: list[Any]) -> list[Any]:
        """Return the results, or raise a ValueError if their shapes differ from the first call."""
        shapes = [tuple(x.shape) for x in results]
        if self.shapes and shapes != self.shapes:
            message = f"{self.name} gives results of shapes {shapes}, and {self.shapes} before; a "
            message += "function that has a gradient gives as many numbers for any values"
            raise self.error(message, ValueError)
        return results

    def _required(
        self, operands: Arrays, needed: Sequence[int] | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Return the operands as leaves, some of which require a gradient, and the results."""
        leaves = [
            x.requires_grad_(needed is None or i in needed)
            for i, x in enumerate(self._to_arrays(operands))
        ]
        with self._recording(True):
            return leaves, self._call(leaves)

    def _pulled_back(self, operands: Arrays, needed: Sequence[int]) -> tuple[list[Any], Pull]:
        """Call f; return its results, and a function that computes gradients by the operands."""
        leaves, results = self._required(operands, needed)
        return results, functools.partial(self._grad, results, leaves)

    def _to_arrays(self, operands: Arrays) -> list[Any]:
        """Return operands as arrays of the framework."""
        return [self._from_numpy(x, y) for x, y in zip(operands, self._given, strict=True)]

    def _seeds(self, cotangents: Arrays, like: Foreign) -> list[Any]:
        """Return cotangents in the dtypes of the results, as copies unless they are broadcast."""
        seeds = []
        for v, y in zip(cotangents, like, strict=True):
            dtype = self._to_numpy(y).dtype
            if v.size > 1 and not any(v.strides):
                seed = np.broadcast_to(v.flat[:1].astype(dtype), v.shape)
            else:
                seed = copied(v, dtype)
            seeds.append(self._from_numpy(seed, y))
        return seeds

    def _as_gradients(self, found: Foreign, by: Arrays) -> Gradients:
        """Return gradients as arrays of float64, with zeros for None."""
        return [
            np.zeros(x.shape) if g is None else np.array(self._to_numpy(g), FLOAT64, order="C")
            for g, x in zip(found, by, strict=True)
        ]

    @contextmanager
    def _findings(self) -> Iterator[None]:
        """Turn an error of the framework about a gradient into a finding (`NoGradient`)."""
        try:
            yield
        except Exception as error:
            if not self._refuses(error):
                raise
            sentence = str(error).splitlines()[0].split(". ")[0]
            raise NoGradient(", ".join(self.names), f"{self.framework}: {sentence}") from error

    def gradients(self, operands: Arrays, cotangents: Arrays, recorded: bool = False) -> Gradients:
        """Compute the gradient of sum(cotangents * results) by each operand, as in `vjp`."""
        return self.vjp(operands)(cotangents, recorded=recorded)

    def cotangents(self, operands: Arrays, rng: np.random.Generator) -> list[Array]:
        """Draw a cotangent for each result, scaled so that all gradients have a similar size.

        Cotangents have the digits of float32, so that they are the same numbers in both dtypes.
        """
        seeds = [rng.standard_normal(shape, np.float32).astype(FLOAT64) for shape in self.shapes]
        if len(seeds) == 1:
            return seeds
        changes = self._changes(operands)
        sizes = []
        for k, change in enumerate(changes):
            one = [v if at == k else np.zeros(v.shape) for at, v in enumerate(seeds)]
            sizes.append(max(change, largest_of(self.gradients(operands, one))))
        largest = max(sizes)
        return [
            v * 2.0 ** round(math.log2(largest / size)) if 0 < size < largest else v
            for v, size in zip(seeds, sizes, strict=True)
        ]

    def _changes(self, operands: Arrays) -> list[float]:
        """Return how fast each result changes if all elements move away from 0.

        So a result counts although its gradient is wrong and small, or 0.
        """
        step = tolerances.ANOTHER_POINT
        moved = away_from_0(operands, step)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        try:
            changes = (self.values(moved) - self.values(operands)) / step
        except Exception:  # f may not be defined there
            return [0.0 for _ in self.shapes]
        return [largest_of([change]) for change in np.split(changes, ends)]

    def gradients_by_path(
        self, operands: Arrays, cotangents: Arrays, dtype: np.dtype[Any], recorded: bool
    ) -> tuple[Gradients, dict[str, Gradients]]:
        """Compute the gradients, and by each other path that leads to them; all must be the same.

        f computes in `dtype`. If `recorded`, one path is a pass that is recorded for a derivative
        of higher order.
        """
        pullback = self.vjp(operands)
        gradients = pullback(cotangents)
        paths = {"a second pass": pullback(cotangents)}
        if recorded:
            with self.explained(RECORDING):
                paths["a recorded pass"] = pullback(cotangents, recorded=True)
        if self.layout is not None:
            name, laid_out = self.layout
            paths[name] = pullback([laid_out(v) for v in cotangents])
        for times in tolerances.SCALES.get(dtype, tolerances.COARSE_SCALES):
            scaled = [g / times for g in pullback([v * times for v in cotangents])]
            if np.array_equal(np.isfinite(flat(scaled)), np.isfinite(flat(gradients))):
                paths[f"a pass for cotangents times {times:.2g}"] = scaled
        with suppress(Exception):  # f may not be defined there
            self.vjp(elsewhere(operands))
            paths["a pass behind another call of f"] = pullback(cotangents)
        every = range(len(operands))
        if self.selects and len(operands) > 1:
            paths["a pass for it alone"] = [self.vjp(operands, [i])(cotangents)[i] for i in every]
        if self.selects and len(operands) > 2:  # one path, so that the memory stays in proportion
            paths["a pass without one of the others"] = without = list(gradients)
            for left_out in every:
                needed = [i for i in every if i != left_out]
                found = self.vjp(operands, needed)(cotangents)
                for i in needed:
                    if not np.array_equal(found[i], gradients[i], equal_nan=True):
                        without[i] = found[i]
        return gradients, paths

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find faults of gradients as arrays: pairs of an operand or cotangent, and a reason.

        A backward function must not write to the gradient that it is given, nor to the gradients
        that it gave before. And a write to a gradient must not change other arrays.
        """
        results, pull = self._pulled_back(self.operands, range(len(self.operands)))
        seeds = self._seeds(cotangents, results)
        found = zip(self.names, pull(seeds, False), strict=True)
        gradients = {name: self._to_numpy(g) for name, g in found if g is not None}
        before = {name: g.copy() for name, g in gradients.items()}
        after = {f"cotangent {k}": self._to_numpy(seed) for k, seed in enumerate(seeds)}
        wrote = "a backward function writes to the gradient that it is given, which others have"
        pairs = zip(after.items(), cotangents, strict=True)
        flaws = [
            (name, wrote) for (name, x), v in pairs if not np.array_equal(x, v.astype(x.dtype))
        ]
        pull(self._seeds([-2 * v for v in cotangents], results), False)
        operands = dict(zip(self.names, self.operands, strict=True))
        kinds = {
            "gradients": {f"the gradient of {name}": g for name, g in gradients.items()},
            "operands": operands,
            "cotangents": after,
        }
        others = [each for kind in self.apart_from for each in kinds[kind].items()]
        for name, gradient in gradients.items():
            if not np.array_equal(gradient, before[name], equal_nan=is_float(gradient.dtype)):
                used = "its gradient is kept in memory that the next call of backward writes to"
                flaws.append((name, used))
            for other, array in others:
                if other != f"the gradient of {name}" and np.shares_memory(gradient, array):
                    flaws.append((name, f"its gradient shares memory with {other}"))
            dtype = operands[name].dtype
            if gradient.dtype != dtype and gradient.shape:  # a number of Python may have any dtype
                flaws.append((name, f"its gradient is {gradient.dtype}, the operand {dtype}"))
        return flaws

    def widened(self, operands: Arrays) -> bool:
        """Return whether operands have more digits than the original operands."""
        return any(x.dtype != y.dtype for x, y in zip(operands, self.operands, strict=True))

    def dtype_inside(self, operands: Arrays, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype in which a function computes, if the check cannot see inside it.

        It is the dtype of the results, unless f gives the same results for operands that differ in
        further digits only, or its results have only these digits; then it is the dtype with these
        digits. Only results that operands with other digits change by far more than a rounding
        error are judged: further digits of a small x do not change 1 + x either.
        """
        step = tolerances.ANOTHER_POINT / math.pi

        def values_at(fewer: np.dtype[Any], units: float) -> Vector:
            """Compute f at numbers of a dtype near the operands, plus some units of its eps."""
            near = away_from_0(operands, step)
            factor = 1 + units * float(finfo(fewer).eps)
            rounded = [x.astype(fewer).astype(np.float64) * factor for x in near]
            return self.values([r.astype(x.dtype) for r, x in zip(rounded, operands, strict=True)])

        with suppress(Exception):  # f may not be defined there
            for fewer in (FLOAT32, np.dtype(np.float16)):
                if finfo(fewer).eps <= finfo(dtype).eps:
                    continue
                values, beside, beyond = (
                    values_at(fewer, units)
                    for units in (0, tolerances.SAME_DIGITS, tolerances.OTHER_DIGITS)
                )
                least = tolerances.SEEN_EPS * float(finfo(dtype).eps) * np.abs(values)
                moves = np.abs(beyond - values) > least
                alike = (values == beside) | (beside == beside.astype(fewer))
                if 2 * np.sum(alike & moves) > np.sum(moves):
                    dtype = fewer
        return dtype

    @contextmanager
    def explained(self, how: str) -> Iterator[None]:
        """Add a note that says how f was called to errors in the block."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, NoGradient):
                error.add_note(f"raised while {self.checker} called {self.name} {how}")
            raise

    def check_unwritten(self, when: str) -> None:
        """Raise a ValueError if an input or a parameter has changed."""
        for name, x in self._arrays.items():
            if not np.array_equal(self._before[name], x, equal_nan=is_float(x.dtype)):
                message = (
                    f"{self.name} writes to {name}{when}; a gradient is that of a function "
                    f"that leaves its inputs alone, so compute a new array instead"
                )
                raise self.error(message, ValueError)


def copied_module(module: Any) -> Any:
    """Return a copy of a Module, because a check changes the values of its parameters."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        message = (
            f"{type(module).__name__} cannot be copied ({error}), and it is left as it is; check a "
            f"function that calls it with tensors instead of its parameters"
        )
        raise op_error(TypeError, "gradcheck", message) from error


def kinds_of(values: Iterable[Any]) -> list[str]:
    """Return the type and the dtype of each value, for messages."""
    return [f"{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in values]


class Inputs:
    """The inputs of a function: the leaves in them, and inputs with other leaves in their places.

    Attributes:
        leaves: the leaves of the inputs.
        names: the names of the leaves, such as `params["w"]`.
    """

    def __init__(self, f: Any, inputs: Sequence[Any]) -> None:
        found: list[Leaf] = []
        self._structures: list[Structure] = []
        for x, name in zip(inputs, names_of_inputs(f, len(inputs)), strict=True):
            first = len(found)
            structure = flatten(x, name, found)
            if is_numbers(x):
                found[first:], structure = [Leaf(x, name)], first
            self._structures.append(structure)
        self.leaves = [leaf.value for leaf in found]
        self.names = [leaf.path for leaf in found]
        models = [leaf.path for leaf in found if leaf.stays]
        if models:
            message = f"a Module cannot be an input ({', '.join(models)}); pass the Module as f, "
            message += "or check a function that calls it"
            raise op_error(TypeError, "gradcheck", message)

    def rebuilt(self, leaves: Sequence[Any]) -> list[Any]:
        """Return inputs with other leaves, in containers like those of the inputs."""
        return [rebuild(structure, leaves) for structure in self._structures]


def is_numbers(x: Any) -> bool:
    """Return whether x is a list or tuple of plain numbers alone, also nested: an array."""
    return type(x) in (list, tuple) and all(np.isscalar(y) or is_numbers(y) for y in x)


def names_of_inputs(f: Any, count: int) -> list[str]:
    """Return f's names for its inputs, or "input 0" if there is no name or a parameter has it."""
    names = [f"input {i}" for i in range(count)]
    is_module = hasattr(f, "named_parameters") and not isinstance(f, type)
    taken = dict(f.named_parameters()) if is_module else {}
    context = ""  # a parameter of PyTorch's `forward` that is no input
    if is_apply(f):
        f, context = getattr(f.__self__, "forward", f), "ctx"
    with suppress(TypeError, ValueError):  # a function not in Python may have no signature
        signature = inspect.signature(f.forward if is_module else f)
        parameters = [p for p in signature.parameters.values() if p.name != context]
        for i, p in enumerate(parameters[:count]):
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in taken:
                names[i] = p.name
    return names


def is_apply(f: Any) -> bool:
    """Return whether f is the `apply` of a class, as of a torch.autograd.Function."""
    return getattr(f, "__name__", "") == "apply" and isinstance(getattr(f, "__self__", 0), type)


def elsewhere(operands: Arrays) -> list[Array]:
    """Return a point near this one, on the same side of 0, where equal operands differ."""
    moved = [copied(x) for x in operands]
    for i, x in enumerate(moved):
        x *= x.dtype.type(1 + tolerances.ANOTHER_POINT * (1 + i / 8))
    return moved


def away_from_0(operands: Arrays, step: float) -> list[Array]:
    """Return a point whose elements are farther from 0, by a step relative to x or to 1."""
    moved = [copied(x) for x in operands]
    for x in moved:
        x += np.copysign(step * np.maximum(np.abs(x), 1), x).astype(x.dtype)
    return moved


def copied(x: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return a copy, with axes in the order and direction that they have in memory, and gaps."""
    if x.flags.c_contiguous:
        return np.array(x, dtype, order="C")
    forward = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in x.strides)
    out = np.array(x[forward], dtype, order="K")
    if [s // out.itemsize for s in out.strides] != [abs(s) // x.itemsize for s in x.strides]:
        out = np.repeat(out[..., None], 2, axis=-1)[..., 0]
    return out[forward]


def flat(arrays: Iterable[Array]) -> Vector:
    """Return all elements of some arrays as one vector of float64."""
    return np.concatenate([x.ravel().astype(np.float64) for x in arrays] or [np.zeros(0)])


def largest_of(arrays: Iterable[Array]) -> float:
    """Return the largest finite absolute value."""
    return max(float(np.max(np.abs(g), initial=0.0, where=np.isfinite(g))) for g in arrays)
