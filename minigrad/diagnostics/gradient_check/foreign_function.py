"""A function of PyTorch or JAX, as what a gradient check needs of it.

Neither is imported here: who has arrays or functions of one has imported it, and they are known by
the module of their type.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad.containers import Leaf, flatten
from minigrad.diagnostics.gradient_check.checked_function import (
    RECORDING,
    Array,
    Arrays,
    CheckedFunction,
    Gradients,
    NoGradient,
    Outline,
    Positions,
    Pullback,
    as_seeds,
    copied,
    copied_module,
    gradcheck_error,
    names_of_inputs,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64, is_float, least_exact

# Methods of PyTorch's tensors whose results depend on a tensor and have no gradient.
CUTS = "detach", "item", "tolist", "__float__", "__int__", "__bool__"

Foreign = Sequence[Any]  # arrays of a framework
Pull = Callable[..., Foreign]  # computes a gradient or None by each array, for some cotangents


def _kinds(values: Iterable[Any]) -> list[str]:
    """Return the type and the dtype of each value, for messages."""
    return [f"{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in values]


class ForeignFunction(CheckedFunction):
    """A function of another framework, which is asked for its gradients.

    Inputs that are no operands are handed on as they are. `Any` stands for the framework's arrays.
    """

    framework: str

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        super().__init__(f)
        self._f = f
        owner = getattr(f, "__self__", None)
        if self.name == "apply" and isinstance(owner, type):  # of a torch.autograd.Function
            self.name, f = owner.__name__, getattr(owner, "forward", f)
        self._inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        floats = [i for i, x in enumerate(self._inputs) if self._is_floats(x)]
        self._positions = [i for i in floats if getattr(self._inputs[i], "requires_grad", False)]
        self._positions = self._positions or floats
        names = names_of_inputs(f, len(self._inputs))
        given = {names[i]: self._inputs[i] for i in self._positions} | self._parameters()
        if not given:
            kinds = _kinds(self._inputs)
            raise self.error(
                f"no input is of floats of {self.framework}; they are {kinds}; convert them first"
            )
        self._given = list(given.values())  # the operands, as arrays of the framework
        self.take({name: copied(self._to_numpy(x)) for name, x in given.items()})

    def _parameters(self) -> dict[str, Any]:
        """Return those that f has and that are operands too."""
        return {}

    @abstractmethod
    def _is_floats(self, x: Any) -> bool:
        """Return whether x is an array of floats of this framework."""

    @abstractmethod
    def _to_numpy(self, x: Any) -> Array:
        """Return an array of numpy with the same numbers, perhaps in the same memory."""

    @abstractmethod
    def _from_numpy(self, x: Array, like: Any) -> Any:
        """Return an array of the framework, on the device of another one."""

    @abstractmethod
    def _pulled_back(self, arrays: Foreign, needed: Sequence[int]) -> tuple[list[Any], Pull]:
        """Call f, and return its results, and what computes a gradient or None by each array."""

    @abstractmethod
    def _refuses(self, error: Exception) -> bool:
        """Return whether the framework says by an error that f gives no gradient."""

    def _call(self, arrays: Foreign) -> list[Any]:
        """Return the results of f that are of floats."""
        inputs = list(self._inputs)
        for i, x in zip(self._positions, arrays, strict=False):
            inputs[i] = x
        result = self._called(inputs, arrays[len(self._positions) :])
        leaves: list[Leaf] = []
        flatten(result, "gradcheck: the result of f", leaves)
        results = [x for x, *_ in leaves if self._is_floats(x)]
        if not results:
            kinds = ", ".join(_kinds(x for x, *_ in leaves))
            raise self.error(
                f"f must return an array of floats of {self.framework}, or a tuple, list or dict "
                f"with one, not {kinds or type(result).__name__}"
            )
        return results

    def _called(self, inputs: Foreign, parameters: Foreign) -> Any:
        """Call f with these parameters, if it has any."""
        return self._f(*inputs)

    def _to_arrays(self, operands: Arrays) -> list[Any]:
        """Return operands as arrays of the framework."""
        return [self._from_numpy(x, y) for x, y in zip(operands, self._given, strict=True)]

    def results(self, operands: Arrays) -> list[Array]:
        """Compute the results of floats."""
        return [self._to_numpy(x) for x in self._call(self._to_arrays(operands))]

    def vjp(self, operands: Arrays, needed: Positions = None) -> tuple[list[Array], Pullback]:
        """Call f, and return its results and what pulls cotangents back through this call."""
        needed = range(len(operands)) if needed is None else needed
        with self._findings():
            results, pull = self._pulled_back(self._to_arrays(operands), needed)

        def pullback(cotangents: Arrays, recorded: bool = False) -> Gradients:
            seeds = self._seeds(cotangents, results)
            with self._findings():
                found = pull(seeds, recorded)
            for i in needed:
                if found[i] is None:
                    why = "gives no gradient: is the result computed under no_grad or detached, or "
                    why += "does a backward return None?"
                    self.unreached.setdefault(self.names[i], f"{self.framework} {why}")
            return [
                np.zeros(x.shape) if g is None else np.array(self._to_numpy(g), FLOAT64, order="C")
                for g, x in zip(found, operands, strict=True)
            ]

        return [self._to_numpy(x) for x in results], pullback

    def _seeds(self, cotangents: Arrays, like: Foreign) -> list[Any]:
        """Return cotangents as arrays with the dtypes of others, which f may write to."""
        seeds = as_seeds(cotangents, [self._to_numpy(y).dtype for y in like])
        return [self._from_numpy(v, y) for v, y in zip(seeds, like, strict=True)]

    @contextmanager
    def _findings(self) -> Iterator[None]:
        """Report what the framework refuses as a gradient as a finding, and no error."""
        try:
            yield
        except Exception as error:
            if not self._refuses(error):
                raise
            sentence = str(error).splitlines()[0].split(". ")[0]
            raise NoGradient(", ".join(self.names), f"{self.framework}: {sentence}") from error

    def outline(self, operands: Arrays) -> Outline:
        """Call f where a gradient is required, and say what its results are.

        Raises:
            TypeError: if the operands have more digits than the inputs, and the results do not.
        """
        results, pullback = self.vjp(operands)
        pullback([np.ones(x.shape) for x in results])
        dtype = least_exact(x.dtype for x in results)
        if dtype != FLOAT64 and self.widened(operands):
            raise self.error(f"{self.name} computes in {dtype} only")
        return Outline([x.shape for x in results], self.least_exact(operands, dtype))


class TorchFunction(ForeignFunction):
    """A function of PyTorch's tensors, or a Module, which is copied."""

    framework = "torch"
    layout = "cotangents in transposed memory", lambda v: np.array(v, order="F")
    selects = True

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        self.torch = sys.modules["torch"]
        self._written = False  # whether a backward function writes to its gradient
        self._modules: list[Any] = []  # a copy of f in its own dtype, and one in float64
        if isinstance(f, self.torch.nn.Module):
            self._modules = [copied_module(f), copied_module(f).double()]
        super().__init__(f, inputs)

    def _parameters(self) -> dict[str, Any]:
        named = self._modules[0].named_parameters() if self._modules else ()
        return {name: p for name, p in named if p.requires_grad}

    def _is_floats(self, x: Any) -> bool:
        return isinstance(x, self.torch.Tensor) and x.is_floating_point()

    def _to_numpy(self, x: Any) -> Array:
        x = x.detach().cpu().to_dense()
        if x.dtype != self.torch.bfloat16:
            return np.asarray(x.numpy())
        import ml_dtypes

        return np.asarray(x.contiguous().view(self.torch.int16).numpy()).view(ml_dtypes.bfloat16)

    def _from_numpy(self, x: Array, like: Any) -> Any:
        """Return a tensor, on the device of another; on the CPU it shares the memory of x."""
        if x.size > 1 and not any(x.strides):  # one number that is broadcast
            return self._from_numpy(x.ravel()[:1].copy(), like).expand(x.shape)
        if x.dtype.kind == "V":  # bfloat16
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16).to(like.device)
        return self.torch.from_numpy(x).to(like.device)

    def _called(self, inputs: Foreign, parameters: Foreign) -> Any:
        """Call f; constants and a Module are of float64 if all operands are."""
        operands = [*(inputs[i] for i in self._positions), *parameters]
        wide = all(x.dtype == self.torch.float64 for x in operands)
        inputs = [x.double() if wide and self._is_floats(x) else x for x in inputs]
        if not self._modules:
            return self._f(*inputs)
        module = self._modules[wide]
        state = dict(zip(self._parameters(), parameters, strict=True))
        state |= {name: x.clone() for name, x in module.named_buffers()}
        return self.torch.func.functional_call(module, state, tuple(inputs))

    def results(self, operands: Arrays) -> list[Array]:
        """Compute the results of floats, with no graph."""
        with self.torch.no_grad():
            return super().results(operands)

    def _required(self, arrays: Foreign, needed: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """Return the arrays, of which some require a gradient, and the results."""
        leaves = [x.requires_grad_(i in needed) for i, x in enumerate(arrays)]
        with self.torch.enable_grad():
            return leaves, self._call(leaves)

    def _pulled_back(self, arrays: Foreign, needed: Sequence[int]) -> tuple[list[Any], Pull]:
        leaves, results = self._required(arrays, needed)

        def pull(seeds: Foreign, recorded: bool) -> Foreign:
            before = [g.clone() for g in seeds]
            gradients = self._grad(results, leaves, seeds, recorded)
            pairs = zip(seeds, before, strict=True)
            self._written |= not all(self.torch.equal(g, same) for g, same in pairs)
            return gradients

        return results, pull

    def _grad(self, results: Foreign, leaves: Foreign, seeds: Foreign, recorded: bool) -> list[Any]:
        """Return a gradient or None by each leaf; the graph is kept."""
        reached = [(y, g) for y, g in zip(results, seeds, strict=True) if y.requires_grad]
        by = [x for x in leaves if x.requires_grad]
        if not reached:
            return [None] * len(leaves)
        ends, given = zip(*reached, strict=True)
        options = {"retain_graph": True, "create_graph": recorded, "allow_unused": True}
        found = iter(self.torch.autograd.grad(ends, by, given, **options))
        return [next(found) if x.requires_grad else None for x in leaves]

    def second_gradients(self, operands: Arrays, cotangents: Arrays, weights: Arrays) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with self.explained(RECORDING), self.torch.enable_grad():
            arrays = self._to_arrays(operands)
            leaves, results = self._required(arrays, range(len(arrays)))
            seeds = [g.requires_grad_() for g in self._seeds(cotangents, results)]
            first = self._grad(results, leaves, seeds, recorded=True)
            pairs = [(g, w) for g, w in zip(first, self._seeds(weights, leaves), strict=True)]
            total = sum((g * w).sum() for g, w in pairs if g is not None)
            by = [*leaves, *seeds]
            second = [None] * len(by)
            if getattr(total, "requires_grad", False):
                second = self.torch.autograd.grad(total, by, allow_unused=True)
            return [
                np.zeros(tuple(x.shape)) if g is None else np.array(self._to_numpy(g), FLOAT64)
                for g, x in zip(second, by, strict=True)
            ]

    def _refuses(self, error: Exception) -> bool:
        signs = "returned an invalid gradient", "returned an incorrect number", "Can't call numpy()"
        return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)

    def outline(self, operands: Arrays) -> Outline:
        """Call f where a gradient is required, and say what its results are and what cuts it."""
        cut: set[str] = set()

        class Watch(self.torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
            def __torch_function__(self, f: Any, types: Any, args: Any, options: Any = None) -> Any:
                name = getattr(f, "__name__", "")
                if name in CUTS and args[0].requires_grad and is_recording():
                    cut.add(f".{name}()")
                return f(*args, **options or {})

        is_recording = self.torch.is_grad_enabled
        outline = super().outline(operands)
        with Watch():
            leaves, results = self._required(self._to_arrays(operands), range(len(operands)))
        if cut:
            why = f"f uses {' and '.join(sorted(cut))}, through which no gradient flows"
            self.unreached = dict.fromkeys(self.names, why)
        pending, seen = [x.grad_fn for x in results if x.grad_fn is not None], set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [following for following, _ in node.next_functions if following]
        own = {id(x) for x in leaves}
        others = sum(hasattr(node, "variable") and id(node.variable) not in own for node in seen)
        return replace(outline, others=others)

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find what is wrong with gradients as arrays, and the operand or cotangent."""
        written = "a backward function writes to the gradient that it is given, which others have"
        flaws = [("the cotangent", written)] if self._written else []
        return flaws + self.broadcast_flaws(self.operands)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore all random generators after the block, those of PyTorch included."""
        devices = {x.device for x in self._given if x.device.type == "cuda"}
        with super().restored(), self.torch.random.fork_rng(devices):
            yield


class JaxFunction(ForeignFunction):
    """A function of JAX's arrays; without `jax_enable_x64` it is checked in float32."""

    framework = "jax"

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        self.jax = sys.modules["jax"]
        super().__init__(f, inputs)

    def _is_floats(self, x: Any) -> bool:
        return isinstance(x, self.jax.Array) and is_float(x.dtype)

    def _to_numpy(self, x: Any) -> Array:
        return np.asarray(x)

    def _from_numpy(self, x: Array, like: Any) -> Any:
        return self.jax.device_put(self.jax.numpy.array(x), next(iter(like.devices())))

    def _pulled_back(self, arrays: Foreign, needed: Positions = None) -> tuple[list[Any], Pull]:
        results, pull = self.jax.vjp(lambda *xs: self._call(xs), *arrays)
        return results, lambda seeds, recorded=False: pull(list(seeds))

    def second_gradients(self, operands: Arrays, cotangents: Arrays, weights: Arrays) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with self.explained(RECORDING):
            arrays = self._to_arrays(operands)
            seeds = self._seeds(cotangents, self._pulled_back(arrays)[0])
            gradients = lambda xs, gs: self._pulled_back(xs)[1](gs)  # noqa: E731
            first, pull = self.jax.vjp(gradients, arrays, seeds)
            given = self._seeds(weights, first)
            return [np.array(g, FLOAT64) for part in pull(tuple(given)) for g in part]

    def _refuses(self, error: Exception) -> bool:
        kinds = self.jax.errors.TracerArrayConversionError, self.jax.errors.ConcretizationTypeError
        return isinstance(error, kinds) or "ustom VJP" in str(error) or "custom_vjp" in str(error)


def framework_of(f: Any, inputs: Any) -> type[ForeignFunction] | None:
    """Return what checks functions of the framework that f or its inputs are of, or None."""
    of_f = [f, getattr(f, "__self__", None)]
    given = [*of_f, *(inputs if isinstance(inputs, (list, tuple)) else [inputs])]
    types = [x if isinstance(x, type) else type(x) for x in given]
    modules = {base.__module__ for kind in types for base in kind.__mro__}
    roots = {
        module.partition(".")[0] for module in (*modules, getattr(f, "__module__", None) or "")
    }
    is_torch, is_jax = "torch" in roots, bool(roots & {"jax", "jaxlib"})
    if is_torch and is_jax:
        raise gradcheck_error("f and its inputs are of PyTorch and of JAX; use those of one")
    return TorchFunction if is_torch else JaxFunction if is_jax else None
