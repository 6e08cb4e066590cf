"""minigrad: reverse-mode automatic differentiation from scratch, on numpy and numba.

`Tensor` is an array with respect to which results are differentiated, as `grad` does. In
reading order:

    core                 tensors, ops, the graph that ops record, and backpropagation
    ops                  the table of derivatives
    functional           functions that are composed of ops, so they need no derivative rule
    operators            the operators and methods of a tensor
    transforms           derivatives of functions
    nn, optim, training  models, optimisers, and the training loop
    distributed          training on several processes and machines
    data, metrics, io    tables and batches, metrics of predictions, and files
    sampling             drawing the next token of a text
    programs             capturing a training step as a program
    diagnostics, viz     checks of gradients, and pictures
    kernels              compiled loops over numbers, the only part that uses numba
"""

import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036  # a clone can be run without an installer's check
    raise ImportError(
        f"minigrad and lora need Python 3.11 or later, and this is {sys.version.split()[0]}; "
        "make a virtual environment with a later one"
    )

from minigrad import cpu, launcher

launcher.prepare_rank()  # first, so that an error in the rest of this import ends all ranks
cpu.limit_instructions()  # before numpy and numba choose theirs

from minigrad import (
    creation,
    data,
    distributed,
    functional,
    io,
    metrics,
    nn,
    ops,
    optim,
    transforms,
    viz,
)
from minigrad import operators as operators  # attaches Tensor's operators and methods
from minigrad import renamed as renamed  # helpful errors for other libraries' names
from minigrad import sampling as sampling
from minigrad.config import installed_version, set_pack_limit, show_config
from minigrad.core.backward import grad
from minigrad.core.grad_mode import enable_grad, is_grad_enabled, no_grad
from minigrad.core.observers import Observer, observe
from minigrad.core.op import OPS, Op, op
from minigrad.core.tensor import Tensor
from minigrad.creation import *
from minigrad.diagnostics import (
    assert_gradients,
    assert_vjp,
    check_vjp,
    detect_anomaly,
    gradcheck,
    liveness,
    receipt,
)
from minigrad.functional import *
from minigrad.kernels.threads import get_num_threads, set_num_threads
from minigrad.ops import *
from minigrad.programs import CaptureError, capture
from minigrad.random import manual_seed
from minigrad.training import History, Trainer
from minigrad.transforms.checkpoint import checkpoint
from minigrad.transforms.derivatives import *

__version__ = installed_version("minigrad-lora")

neg = ops.negative

__all__ = ["data", "distributed", "io", "metrics", "nn", "optim", "sampling", "viz"]
__all__ += ["OPS", "Observer", "Op", "Tensor", "neg", "observe", "op"]
__all__ += ["checkpoint", "enable_grad", "grad", "is_grad_enabled", "no_grad"]
__all__ += ["assert_gradients", "assert_vjp", "check_vjp", "detect_anomaly", "gradcheck"]
__all__ += ["liveness", "receipt"]
__all__ += ["CaptureError", "History", "Trainer", "capture"]
__all__ += ["get_num_threads", "manual_seed", "set_num_threads", "set_pack_limit"]
__all__ += ["show_config"]
__all__ += creation.__all__ + transforms.derivatives.__all__

if not TYPE_CHECKING:  # a type checker finds ops and compositions by the imports above
    __all__ += functional.__all__ + ops.__all__
renamed.hint_names(__name__)
