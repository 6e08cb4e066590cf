"""The mutants that HIPS autograd can have, as primitives, and what its check_grads says of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.zoo.mutant import Mutant, Port


def kills(mutant: Mutant, planted: bool = True) -> bool | None:
    """Whether `check_grads(f, modes=["rev"])` sees that it is wrong; None if it cannot have it.

    It checks one operand, so it is called for each. Directions are random, from a fixed seed.
    """
    from autograd import numpy as anp
    from autograd.test_util import check_grads

    port = mutant.port
    if port is None:
        return None
    f = partial(port.around, anp, _primitive(port, port.wrong if planted else port.right))
    before = np.random.get_state()  # noqa: NPY002  # it draws from there
    np.random.seed(0)  # noqa: NPY002
    try:
        for position in range(len(mutant.inputs)):
            xs = [x.astype(np.float64, copy=False) for x in mutant.inputs]
            with np.errstate(all="ignore"):  # some faults are a nan
                check_grads(f, position, modes=["rev"])(*xs)
    except AssertionError:
        return True
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return False


def _primitive(port: Port, gradients: Callable[..., Any]) -> Any:
    """`port.forward` with these gradients."""
    from autograd import numpy as anp
    from autograd.extend import defvjp, primitive

    @primitive
    def ported(*xs: Any) -> Any:
        return port.forward(anp, *xs)

    def by(position: int) -> Callable[..., Any]:
        def vjp(_: Any, *xs: Any) -> Callable[[Any], Any]:
            def gradient(g: Any) -> Any:
                found = gradients(anp, g, *xs)
                return found[position] if isinstance(found, tuple) else found

            return gradient

        return vjp

    defvjp(ported, *map(by, range(8)))
    return ported
