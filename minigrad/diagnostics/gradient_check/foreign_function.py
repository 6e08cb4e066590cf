"""A function of PyTorch or JAX, in the form that a gradient check needs.

This module does not import the frameworks: a user who has arrays or functions of one has imported
it already. The module of an object's type shows which framework the object belongs to.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from minigrad.containers import Leaf, flatten
from minigrad.diagnostics.gradient_check.checked_function import (
    RECORDING,
    Array,
    Arrays,
    CheckedFunction,
    Foreign,
    Gradients,
    Inputs,
    Pull,
    copied,
    copied_module,
    is_apply,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64
from minigrad.errors import op_error

# Methods of PyTorch's tensors whose results depend on the tensor but have no gradient.
CUTS = "detach", "item", "tolist", "__float__", "__int__", "__bool__"


def _kinds(values: Iterable[Any]) -> list[str]:
    """Return the type and the dtype of each value, for messages."""
    return [f"{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in values]


class ForeignFunction(CheckedFunction):
    """A function of another framework, which computes its gradients.

    Inputs that are not operands are passed to the function unchanged.
    """

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        super().__init__(f)
        self._f = f
        if is_apply(f):  # of a torch.autograd.Function
            self.name = f.__self__.__name__  # type: ignore[attr-defined]
        self._inputs, leaves = inputs, inputs.leaves
        floats = [i for i, x in enumerate(leaves) if self._is_floats(x)]
        self._positions = [i for i in floats if getattr(leaves[i], "requires_grad", False)]
        self._positions = self._positions or floats
        given = {inputs.names[i]: leaves[i] for i in self._positions} | self._parameters()
        if not given:
            kinds = _kinds(leaves)
            raise self.error(
                f"no input holds floats of {self.framework}; they are {kinds}; convert them first"
            )
        self.take({name: copied(self._to_numpy(x)) for name, x in given.items()})
        self._given = list(given.values())

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters of f that are operands too."""
        return {}

    @abstractmethod
    def _is_floats(self, x: Any) -> bool:
        """Return whether x is an array of floats of this framework."""

    def _call(self, arrays: Foreign) -> list[Any]:
        leaves = list(self._inputs.leaves)
        for i, x in zip(self._positions, arrays, strict=False):
            leaves[i] = x
        result = self._called(leaves, arrays[len(self._positions) :])
        found: list[Leaf] = []
        flatten(result, "gradcheck: the result of f", found)
        results = [x for x, *_ in found if self._is_floats(x)]
        if not results:
            kinds = ", ".join(_kinds(x for x, *_ in found))
            raise self.error(
                f"f must return an array of floats of {self.framework}, or a tuple, list or dict "
                f"with one, not {kinds or type(result).__name__}"
            )
        return self.same_shapes(results)

    def _called(self, leaves: Foreign, parameters: Foreign) -> Any:
        """Call f with these leaves of its inputs, and with these parameters, if it has any."""
        return self._f(*self._inputs.rebuilt(leaves))


class TorchFunction(ForeignFunction):
    """A function of PyTorch's tensors, or a copy of a Module."""

    framework = "torch"
    layout = "cotangents in transposed memory", lambda v: np.array(v, order="F")
    selects = True

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
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
        state = dict(zip(self._parameters(), parameters, strict=True))
        state |= {name: x.clone() for name, x in module.named_buffers()}
        inputs = tuple(self._inputs.rebuilt(leaves))
        return self.torch.func.functional_call(module, state, inputs)

    def _recording(self, enabled: bool) -> AbstractContextManager[Any]:
        return self.torch.set_grad_enabled(enabled)  # type: ignore[no-any-return]

    def _pulled_back(self, operands: Arrays, needed: Sequence[int]) -> tuple[list[Any], Pull]:
        results, pull = super()._pulled_back(operands, needed)

        def watched(seeds: Foreign, recorded: bool) -> Foreign:
            before = [g.clone() for g in seeds]
            gradients = pull(seeds, recorded)
            self._written |= not all(map(self.torch.equal, seeds, before))
            return gradients

        return results, watched

    def _grad(self, results: Foreign, leaves: Foreign, seeds: Foreign, recorded: bool) -> list[Any]:
        reached = [(y, g) for y, g in zip(results, seeds, strict=True) if y.requires_grad]
        by = [x for x in leaves if x.requires_grad]
        if not reached:
            return [None] * len(leaves)
        ends, given = zip(*reached, strict=True)
        options = {"retain_graph": True, "create_graph": recorded, "allow_unused": True}
        found = iter(self.torch.autograd.grad(ends, by, given, **options))
        return [next(found) if x.requires_grad else None for x in leaves]

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
        self.others = sum(
            hasattr(node, "variable") and id(node.variable) not in own for node in seen
        )
        return dtype

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find faults of gradients as arrays: pairs of an operand or cotangent, and a reason."""
        written = "a backward function writes to the gradient that it is given, which others have"
        flaws = [("the cotangent", written)] if self._written else []
        return flaws + self.broadcast_flaws()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore all random generators after the block, including those of PyTorch."""
        devices = {x.device for x in self._given if x.device.type == "cuda"}
        with super().restored(), self.torch.random.fork_rng(devices):
            yield


class JaxFunction(ForeignFunction):
    """A function of JAX's arrays; without `jax_enable_x64` it is checked in float32."""

    framework = "jax"

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        self.jax = sys.modules["jax"]
        super().__init__(f, inputs)

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


def framework_of(f: Any, inputs: Sequence[Any]) -> type[ForeignFunction] | None:
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
