"""The mutants that PyTorch can have, as autograd Functions, and what its gradcheck and ours say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import minigrad
from tests.zoo.mutant import Mutant


def kills(mutant: Mutant, planted: bool = True) -> bool | None:
    """Whether `torch.autograd.gradcheck` sees that it is wrong; None for a mutant it cannot have.

    The inputs are of float64, which it asks for, the settings its own. `gradgradcheck` is called
    too if the fault is one of second order.
    """
    import torch

    if mutant.port is None or not mutant.port.torch:
        return None
    f = function(mutant, planted)
    checks = [torch.autograd.gradcheck]
    if mutant.order == 2:
        checks.append(torch.autograd.gradgradcheck)
    return not all(_passes(check, f, mutant) for check in checks)


def verdict(mutant: Mutant, planted: bool = True) -> str | None:
    """What our gradcheck says of the same function up to the order of the fault; None without one.

    Inputs are of the mutant's own dtype.
    """
    import torch

    if mutant.port is None or not mutant.port.torch:
        return None
    xs = [torch.tensor(np.array(x, order="C")) for x in mutant.inputs]
    with np.errstate(all="ignore"):  # some faults are a nan
        return minigrad.gradcheck(function(mutant, planted), xs, mutant.order).verdict


def _passes(check: Callable[..., bool], f: Any, mutant: Mutant) -> bool:
    import torch
    from torch.autograd.gradcheck import GradcheckError

    xs = [
        torch.tensor(np.array(x, np.float64, order="C"), requires_grad=True) for x in mutant.inputs
    ]
    try:
        return bool(check(f, xs))
    except GradcheckError:
        return False


def function(mutant: Mutant, planted: bool = True) -> Callable[..., Any]:
    """The function of a mutant on PyTorch's tensors, with the fault or without."""
    import torch

    port = mutant.port
    assert port is not None
    gradients = port.wrong if planted else port.right

    class Ported(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *xs: Any) -> Any:
            ctx.save_for_backward(*xs)
            return port.forward(torch, *xs)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return gradients(torch, g, *ctx.saved_tensors)

    return partial(port.around, torch, Ported.apply)
