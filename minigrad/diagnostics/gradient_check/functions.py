"""Functions of minigrad, PyTorch, JAX and numpy, in the form that a gradient check needs.

This module does not import PyTorch or JAX: a user who has arrays or functions of one has imported
it already. The module of an object's type shows which framework the object belongs to.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, ClassVar

import numpy as np

from minigrad.containers import Leaf, flatten
from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode, mode, unobserved
from minigrad.core.node import Node, reachable
from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor, as_array, assigned
from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    RECORDING,
    Array,
    Arrays,
    CheckedFunction,
    Foreign,
    Gradients,
    Inputs,
    NoGradient,
    Pull,
    copied,
    copied_module,
    flat,
    is_apply,
    kinds_of,
    largest_of,
    names_of_inputs,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64, finfo, is_float, least_exact
from minigrad.errors import op_error
from minigrad.nn.module import Module
from minigrad.transforms import hvp, jvp

# Methods of PyTorch's tensors whose results depend on the tensor but have no gradient.
CUTS = "detach", "item", "tolist", "__float__", "__int__", "__bool__"


class FrameworkFunction(CheckedFunction):
    """A function of a framework that computes gradients: its operands are the inputs of floats.

    If f is a Module, `module` is a copy of it, whose trainable parameters are operands too, after
    the inputs. Other inputs are passed to the function unchanged.
    """

    array_type: ClassVar[str]  # the name of the framework's type of arrays, for messages
    result_type: ClassVar[type] = object  # of all results, also of those without a gradient

    def __init__(
        self, f: Callable[..., Any], inputs: Inputs, leaves: Foreign, module: Any = None
    ) -> None:
        super().__init__(f)
        if is_apply(f):  # of a torch.autograd.Function
            self.name = f.__self__.__name__  # type: ignore[attr-defined]
        self._f, self._inputs, self._leaves = f, inputs, leaves
        trainable = () if module is None else module.named_parameters()
        self._parameters = {name: p for name, p in trainable if p.requires_grad}
        floats = [i for i, x in enumerate(leaves) if self._is_floats(x)]
        self._positions = [i for i in floats if getattr(leaves[i], "requires_grad", False)]
        self._positions = self._positions or floats
        given = {inputs.names[i]: leaves[i] for i in self._positions} | self._parameters
        arrays = {name: copied(self._to_numpy(x)) for name, x in given.items()}
        named = zip(inputs.names, leaves, strict=True)
        tensors = {name: x._data for name, x in named if isinstance(x, Tensor)}
        constants = {name: x for name, x in tensors.items() if not is_float(x.dtype)}
        self.take(constants | arrays, leaves)
        self._given = list(given.values())

    @abstractmethod
    def _is_floats(self, x: Any) -> bool:
        """Return whether x is an array of floats of this framework."""

    def _call(self, arrays: Foreign) -> list[Any]:
        leaves = list(self._leaves)
        for i, x in zip(self._positions, arrays, strict=False):
            leaves[i] = x
        result = self._called(leaves, arrays[len(self._positions) :])
        found: list[Leaf] = []
        flatten(result, "gradcheck: the result of f", found)
        values = [x for x, *_ in found]
        results = [x for x in values if self._is_floats(x)]
        if not results or not all(isinstance(x, self.result_type) for x in values):
            kinds = ", ".join(kinds_of(values)) or type(result).__name__
            raise self.error(
                f"f must return a {self.array_type} of floats, or a tuple, list or dict of them, "
                f"not {kinds}"
            )
        return self.same_shapes(results)

    def _called(self, leaves: Foreign, parameters: Foreign) -> Any:
        """Call f with these leaves of its inputs, and with these parameters, if it has any."""
        return self._f(*self._inputs.rebuilt(leaves))

    def _note_cuts(self, cuts: set[str]) -> None:
        """Note what f uses that takes values out of the graph, as a reason for wrong gradients."""
        if cuts:
            why = f"f uses {' and '.join(sorted(cuts))}, through which no gradient flows"
            self.unreached = dict.fromkeys(self.names, why)

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find faults of gradients as arrays, also for a cotangent of ones that is a broadcast 1.

        The VJP of a sum gives such a broadcast cotangent, with strides of 0. For cotangents of
        ones, a gradient may be 0 up to rounding, as that of a batch norm. So the differences are
        relative to a gradient for random cotangents.
        """
        flaws = super().flaws(cotangents)
        pullback = self.vjp(self.operands)
        varied = [np.cos(np.arange(math.prod(shape))).reshape(shape) for shape in self.shapes]
        usual = pullback(varied)
        plain = pullback([np.ones(shape) for shape in self.shapes])
        try:
            other = pullback([np.broadcast_to(np.ones(()), shape) for shape in self.shapes])
        except Exception as error:
            why = f"a VJP fails for a cotangent that is broadcast, as behind a sum: {error!r}"
            return [*flaws, (self.names[0], why)]
        why = "its gradient is another one for a cotangent that is broadcast, as behind a sum"
        for name, x, g, h, v in zip(self.names, self.operands, plain, other, usual, strict=True):
            share = tolerances.SAME_BROADCAST_EPS * float(finfo(x.dtype).eps)
            near = max(share, self.nondet_tol) * largest_of([g, v])
            if not np.allclose(g, h, rtol=0.0, atol=near, equal_nan=True):
                flaws.append((name, why))
        return flaws


class TensorFunction(FrameworkFunction):
    """A function of minigrad's Tensors, or a copy of a Module; the inputs are copied too."""

    framework, array_type = "minigrad", "Tensor"
    layout = (
        "cotangents in reversed and transposed memory",
        lambda v: np.flip(np.array(np.flip(v), order="F")),
    )
    apart_from = "gradients", "operands", "cotangents"  # because users write to `.grad`
    selects = True
    result_type = Tensor
    given_as = ", as minigrad Tensors; a function of PyTorch or JAX is given arrays of theirs"

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        leaves = []
        for x, name in zip(inputs.leaves, inputs.names, strict=True):
            try:
                leaves.append(Tensor.at(copied(as_array(x)), None))
            except (TypeError, ValueError) as error:
                raise self.error(f"{name} must be made of numbers; {error}") from error
        module = copied_module(f) if isinstance(f, Module) else None
        super().__init__(f if module is None else module, inputs, leaves, module)

    def _is_floats(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dtype.kind == "f"

    def _called(self, leaves: Foreign, parameters: Foreign) -> Any:
        pairs = zip(self._parameters.values(), parameters, strict=True)
        with assigned([(p, {"_data": x._data, "node": x.node}) for p, x in pairs]):
            return super()._called(leaves, parameters)

    def _to_numpy(self, x: Tensor) -> Array:
        return x._data

    def _from_numpy(self, x: Array, like: Any) -> Tensor:
        return Tensor.at(x, None)

    def _recording(self, enabled: bool) -> grad_mode:
        return grad_mode(enabled)

    def _autograd(self, results: Foreign, by: Foreign, seeds: Foreign, **options: bool) -> Foreign:
        return grad(results, by, seeds, **options)

    def outline(self, operands: Arrays) -> np.dtype[Any]:
        """Call f where a gradient is required, and find dtypes, leaves and cuts of its graph."""
        with observe(cuts := _Cuts()):
            leaves, results = self._required(operands)
        self._note_cuts(cuts.found)
        nodes = reachable([x.node for x in results if x.node is not None])
        dtypes = [node.dtype for node in nodes if node.op is not None]
        self.others = len(_other_leaves(results, leaves))
        self.shapes = [x.shape for x in results]
        return least_exact([*(x.dtype for x in results), *dtypes])

    def slope(
        self,
        operands: Arrays,
        directions: Mapping[int, Array],
        cotangents: Arrays,
        weights: Arrays | None = None,
    ) -> float | None:
        """Compute sum(cotangents * J directions) in forward mode.

        With `weights`, it is sum(weights * H directions), in forward mode over a backward pass, as
        `hvp` computes it; H is the Hessian of sum(cotangents * results). `directions` has the
        operands that move, by their positions.

        The result is None if f cannot run in forward mode because it differentiates by its inputs
        itself. No observer watches, because only then an op uses its own rule for tangents.
        """
        moving = list(directions) if weights is None else range(len(operands))

        def total(*moved: Tensor) -> Tensor:
            inputs = dict(enumerate(map(Tensor, operands))) | dict(zip(moving, moved, strict=True))
            results = self._call(list(inputs.values()))
            seeds = self._seeds(cotangents, results)
            parts: list[Tensor] = [(v * y).sum() for v, y in zip(seeds, results, strict=True)]
            return sum(parts[1:], parts[0])

        point = [operands[i] for i in moving]
        vs = [directions.get(i, np.zeros(operands[i].shape)) for i in moving]
        with unobserved(False), suppress(RuntimeError):
            if weights is None:
                return float(jvp(total, point, vs).tangent.item())
            products = hvp(total, point, vs)
            return float(np.dot(flat(weights), flat(x._data for x in products)))
        return None

    def gradients_by_path(
        self, operands: Arrays, cotangents: Arrays, dtype: np.dtype[Any], recorded: bool
    ) -> tuple[Gradients, dict[str, Gradients]]:
        """Compute the gradients by `grad`, and by each other path, including `backward`.

        The `.grad` of leaves that are not operands is restored.
        """
        gradients, paths = super().gradients_by_path(operands, cotangents, dtype, recorded)
        leaves, results = self._required(operands)
        others = [(node, node.grad) for node in _other_leaves(results, leaves)]
        try:
            for _ in range(2):
                for result, seed in zip(results, cotangents, strict=True):
                    if result.requires_grad:
                        result.backward(seed.copy(), retain_graph=True)
        finally:
            for node, gradient in others:
                node.grad = gradient
        twice = self._as_gradients([x.grad for x in leaves], operands)
        paths["backward, twice"] = [g / 2 for g in twice]
        return gradients, paths


class _Cuts(Observer):
    """Finds what takes values out of the graph."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        if tensor.requires_grad:
            self.found.add(how)

    def on_call(self, op: Any, inputs: Sequence[Any], result: Any) -> None:
        if not mode.grad_enabled and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            self.found.add("no_grad")


def _other_leaves(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
    """Find other leaves that results depend on and that would get a gradient."""
    own = {x.node for x in leaves}
    nodes = reachable([x.node for x in results if x.node is not None])
    return [n for n in nodes if (n.op is None or n.retains_grad) and n not in own]


class TorchFunction(FrameworkFunction):
    """A function of PyTorch's tensors, or a copy of a Module."""

    framework, array_type = "torch", "torch.Tensor"
    layout = "cotangents in transposed memory", lambda v: np.array(v, order="F")
    selects = True

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        self.torch = sys.modules["torch"]
        self._modules: list[Any] = []  # a copy of f in its own dtype, and one in float64
        if isinstance(f, self.torch.nn.Module):
            self._modules = [copied_module(f), copied_module(f).double()]
        super().__init__(f, inputs, inputs.leaves, *self._modules[:1])

    def _is_floats(self, x: Any) -> bool:
        is_floats = isinstance(x, self.torch.Tensor) and x.is_floating_point()
        return is_floats and x.dtype.itemsize > 1  # float8 has no gradients, and numpy lacks it

    def _to_numpy(self, x: Any) -> Array:
        x = x.detach().cpu().to_dense()
        if x.dtype != self.torch.bfloat16:
            return np.asarray(x.numpy())
        import ml_dtypes

        return np.asarray(x.contiguous().view(self.torch.int16).numpy()).view(ml_dtypes.bfloat16)

    def _from_numpy(self, x: Array, like: Any) -> Any:
        """Return a tensor on the device of `like`; on the CPU it shares the memory of x."""
        if x.size > 1 and not any(x.strides):  # a single number that is broadcast
            return self._from_numpy(x.ravel()[:1].copy(), like).expand(x.shape)
        if x.dtype.kind == "V":  # bfloat16
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16).to(like.device)
        return self.torch.from_numpy(x).to(like.device)

    def _called(self, leaves: Foreign, parameters: Foreign) -> Any:
        """Call f; if all operands are float64, constants and a Module become float64 too."""
        operands = [*(leaves[i] for i in self._positions), *parameters]
        wide = all(x.dtype == self.torch.float64 for x in operands)
        leaves = [x.double() if wide and self._is_floats(x) else x for x in leaves]
        if not self._modules:
            return super()._called(leaves, parameters)
        module = self._modules[wide]
        state = dict(zip(self._parameters, parameters, strict=True))
        state |= {name: x.clone() for name, x in module.named_buffers()}
        return self.torch.func.functional_call(module, state, tuple(self._inputs.rebuilt(leaves)))

    def _recording(self, enabled: bool) -> AbstractContextManager[Any]:
        return self.torch.set_grad_enabled(enabled)  # type: ignore[no-any-return]

    def _autograd(self, results: Foreign, by: Foreign, seeds: Foreign, **options: bool) -> Foreign:
        reached = [(y, g) for y, g in zip(results, seeds, strict=True) if y.requires_grad]
        if not reached:
            return [None] * len(by)
        ends, given = zip(*reached, strict=True)
        return self.torch.autograd.grad(ends, by, given, **options)  # type: ignore[no-any-return]

    def _refuses(self, error: Exception) -> bool:
        signs = "returned an invalid gradient", "returned an incorrect number", "Can't call numpy()"
        return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)

    def outline(self, operands: Arrays) -> np.dtype[Any]:
        """Call f where a gradient is required, and find the dtype, leaves and cuts of its graph."""
        cut: set[str] = set()

        class Watch(self.torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
            def __torch_function__(self, f: Any, types: Any, args: Any, options: Any = None) -> Any:
                name = getattr(f, "__name__", "")
                if name in CUTS and args[0].requires_grad and is_recording():
                    cut.add(f".{name}()")
                return f(*args, **options or {})

        is_recording = self.torch.is_grad_enabled
        dtype = super().outline(operands)
        with Watch():
            leaves, results = self._required(operands)
        self._note_cuts(cut)
        pending, seen = [x.grad_fn for x in results if x.grad_fn is not None], set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [following for following, _ in node.next_functions if following]
        own = {id(x) for x in leaves}
        self.others = sum(
            hasattr(node, "variable") and id(node.variable) not in own for node in seen
        )
        return dtype

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore all random generators after the block, including those of PyTorch."""
        devices = {x.device for x in self._given if x.device.type == "cuda"}
        with super().restored(), self.torch.random.fork_rng(devices):
            yield


class JaxFunction(FrameworkFunction):
    """A function of JAX's arrays; without `jax_enable_x64` it is checked in float32."""

    framework, array_type = "jax", "jax.Array"

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        self.jax = sys.modules["jax"]
        super().__init__(f, inputs, inputs.leaves)

    def _is_floats(self, x: Any) -> bool:
        jnp = self.jax.numpy  # the dtype of a key is none of numpy
        return isinstance(x, self.jax.Array) and bool(jnp.issubdtype(x.dtype, jnp.floating))

    def _from_numpy(self, x: Array, like: Any) -> Any:
        return self.jax.device_put(self.jax.numpy.array(x), next(iter(like.devices())))

    def _pulled_back(self, operands: Arrays, needed: Sequence[int]) -> tuple[list[Any], Pull]:
        return self._vjp(self._to_arrays(operands))

    def _vjp(self, arrays: Foreign) -> tuple[list[Any], Pull]:
        results, pull = self.jax.vjp(lambda *xs: self._call(xs), *arrays)
        return results, lambda seeds, recorded: pull(list(seeds))

    def second_gradients(self, operands: Arrays, cotangents: Arrays, weights: Arrays) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with self.explained(RECORDING):
            arrays = self._to_arrays(operands)
            seeds = self._seeds(cotangents, self._vjp(arrays)[0])
            first, pull = self.jax.vjp(lambda xs, gs: self._vjp(xs)[1](gs, True), arrays, seeds)
            given = self._seeds(weights, first)
            return [np.array(g, FLOAT64) for part in pull(tuple(given)) for g in part]

    def _refuses(self, error: Exception) -> bool:
        kinds = self.jax.errors.TracerArrayConversionError, self.jax.errors.ConcretizationTypeError
        return isinstance(error, kinds) or "ustom VJP" in str(error) or "custom_vjp" in str(error)


class ArrayPair(CheckedFunction):
    """`forward` and `backward`, in any language; the check cannot see inside them."""

    checker = "check_vjp"
    framework = "numpy"
    apart_from = ("operands",)  # a gradient may be g itself, or that of another input too

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Sequence[Any]
    ) -> None:
        for name, function in (("forward", forward), ("backward", backward)):
            if not callable(function):
                raise self.error(f"{name} must be a function, not {function!r:.60}")
        super().__init__(forward)
        self._forward, self._backward = forward, backward
        self._takes_out = False
        with suppress(TypeError, ValueError):  # a function in C may not have a signature
            self._takes_out = "out" in inspect.signature(backward).parameters
        arrays: list[Array] = []
        for i, x in enumerate(inputs):
            must = f"input {i} must be an array of real numbers, not"
            try:
                array = copied(np.asarray(x))
            except (TypeError, ValueError) as error:
                raise self.error(f"{must} {type(x).__name__}: {error}") from error
            if array.dtype.kind not in "biuf" and not is_float(array.dtype):
                raise self.error(f"{must} {type(x).__name__} of dtype {array.dtype}")
            arrays.append(array)
        self.take(dict(zip(names_of_inputs(forward, len(arrays)), arrays, strict=True)), arrays)

    def _call(self, arrays: Foreign) -> list[Array]:
        return self._pulled_back(arrays)[0]

    def _pulled_back(
        self, operands: Arrays, needed: Sequence[int] = ()
    ) -> tuple[list[Array], Pull]:
        """Call forward and copy its results, because it may use the same memory each time."""
        left = iter(operands)
        arguments = [next(left) if is_float(x.dtype) else x for x in self._arrays.values()]
        result = self._forward(*arguments)
        several = isinstance(result, (tuple, list))
        found = [np.array(x) for x in (result if several else [result])]
        floats = [x for x in found if is_float(x.dtype)]
        if not floats or not all(is_float(x.dtype) or x.dtype.kind in "biu" for x in found):
            given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in found) or "nothing"
            raise self.error(
                f"forward must return an array of floats, or a tuple with one, not "
                f"{type(result).__name__} ({given})"
            )
        pull = functools.partial(self._gradients, arguments, found, several)
        return self.same_shapes(floats), pull

    def _gradients(
        self, arguments: Arrays, outs: Arrays, several: bool, seeds: Foreign, recorded: bool
    ) -> list[Array]:
        """Call backward for this call of forward, and return the gradients by the operands.

        `several` says whether forward returned its results, `outs`, as a tuple.
        """
        left = iter(seeds)
        given = [next(left) if is_float(x.dtype) else None for x in outs]
        options = {"out": tuple(outs) if several else outs[0]} if self._takes_out else {}
        called = getattr(self._backward, "__name__", "backward")
        try:
            found = self._backward(tuple(given) if several else given[0], *arguments, **options)
        except Exception as error:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arguments)
            error.add_note(f"raised in {called}(g, *inputs), with inputs {shapes}")
            raise
        gradients = list(found) if isinstance(found, (tuple, list)) else [found]
        if len(gradients) != len(arguments):
            many = f" of {len(gradients)}" if isinstance(found, (tuple, list)) else ""
            raise self.error(
                f"{called} must return a gradient for each of the {len(arguments)} inputs, in a "
                f"tuple if there are several, and None for integers; it returned a "
                f"{type(found).__name__}{many}"
            )
        checked = []
        for name, x, g in zip(self._arrays, arguments, gradients, strict=True):
            if not is_float(x.dtype):
                continue
            array = np.asarray(g)
            if g is None:
                reason = f"{called} returned None for an input of floats; return zeros if "
                raise NoGradient(name, reason + "nothing depends on it")
            if array.dtype.kind not in "biuf" and not is_float(array.dtype):
                what = f"{type(g).__name__} of dtype {array.dtype} for {name}"
                raise self.error(f"{called} must return arrays of floats, not {what}")
            if array.shape != x.shape:
                reason = f"{called} returned a gradient of shape {array.shape} for an input of "
                raise NoGradient(name, f"{reason}{x.shape}")
            checked.append(array)
        return checked

    def _keeps_digits(self, results: Foreign, gradients: Foreign) -> bool:
        """Return whether all arrays are float64, and the values near those for narrow operands.

        A kernel that reads any memory as float32, for example, gives wrong numbers.
        """
        narrow = self.values(self.operands)
        given = least_exact(x.dtype for x in self.operands)
        near = tolerances.TOLERANCE_ROOTS * math.sqrt(float(finfo(given).eps))
        return all(x.dtype == FLOAT64 for x in (*results, *gradients)) and np.allclose(
            flat(results), narrow, rtol=near, atol=near * largest_of([narrow]), equal_nan=True
        )


def framework_of(f: Any, inputs: Sequence[Any]) -> type[TorchFunction | JaxFunction] | None:
    """Return the class for functions of the framework of f or of its inputs, or None."""
    given = [f, getattr(f, "__self__", None), *inputs]
    types = [x if isinstance(x, type) else type(x) for x in given]
    modules = {base.__module__ for kind in types for base in kind.__mro__}
    modules.add(getattr(f, "__module__", None) or "")
    roots = {module.partition(".")[0] for module in modules}
    is_torch, is_jax = "torch" in roots, bool(roots & {"jax", "jaxlib"})
    if is_torch and is_jax:
        message = "f and its inputs belong to PyTorch and to JAX; use one of the two"
        raise op_error(TypeError, "gradcheck", message)
    return TorchFunction if is_torch else JaxFunction if is_jax else None
