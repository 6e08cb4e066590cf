"""The mutants that JAX can have, as custom VJPs, and what its check_grads and ours say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minigrad
from tests.zoo.mutant import Mutant


def kills(mutant: Mutant, planted: bool = True) -> bool | None:
    """Whether `jax.test_util.check_grads` sees that it is wrong; None if JAX cannot have it.

    It checks the reverse mode up to the order of the fault, with its own tolerances, at inputs of
    the mutant's own dtype: float64, unless the fault is one of float32 only.
    """
    import jax
    from jax.test_util import check_grads

    if mutant.port is None or not mutant.port.jax:
        return None
    with jax.enable_x64(True):
        xs = [jax.numpy.asarray(x) for x in mutant.inputs]
        try:
            check_grads(function(mutant, planted), xs, mutant.order, modes=["rev"])
        except AssertionError:
            return True
    return False


def verdict(mutant: Mutant, planted: bool = True) -> str | None:
    """What our gradcheck says of the same function up to the order of the fault; None without one.

    Inputs are of the mutant's own dtype.
    """
    import jax

    if mutant.port is None or not mutant.port.jax:
        return None
    with jax.enable_x64(True), np.errstate(all="ignore"):  # some faults are a nan
        xs = [jax.numpy.asarray(x) for x in mutant.inputs]
        return minigrad.gradcheck(function(mutant, planted), xs, mutant.order).verdict


def function(mutant: Mutant, planted: bool = True) -> Callable[..., Any]:
    """The function of a mutant on JAX's arrays, with the fault or without."""
    import jax
    from jax import numpy as jnp

    port = mutant.port
    assert port is not None
    gradients = port.wrong if planted else port.right

    @jax.custom_vjp
    def ported(*xs: Any) -> Any:
        return port.forward(jnp, *xs)

    def backward(xs: Any, g: Any) -> Any:
        found = gradients(jnp, jnp.asarray(g), *xs)  # numpy's where the caller's is
        return found if isinstance(found, tuple) else (found,)

    ported.defvjp(lambda *xs: (ported(*xs), xs), backward)
    return partial(port.around, jnp, ported)
