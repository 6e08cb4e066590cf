"""minigrad: reverse-mode automatic differentiation from scratch, on numpy and numba.

The files in reading order: tensor (what a tensor is), op (what an op is), ops (the table of
derivatives), engine (the graph and the walk back through it), functional (what is composed of ops),
then nn, optim and trainer, which use them.
"""

from minigrad.tensor import Tensor  # isort: skip  # first, for it closes the one import cycle

from minigrad import nn, optim
from minigrad.checkpoint import checkpoint
from minigrad.creation import (
    arange,
    eye,
    full,
    linspace,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    tensor,
    zeros,
    zeros_like,
)
from minigrad.diagnostics import gradcheck
from minigrad.engine import grad
from minigrad.functional import (
    cross_entropy,
    dropout,
    expand_dims,
    l1,
    mean,
    mse,
    squeeze,
    swapaxes,
    var,
)
from minigrad.kernels.threads import get_num_threads, set_num_threads
from minigrad.mode import Observer, enable_grad, is_grad_enabled, no_grad, observe
from minigrad.op import OPS, Op, op
from minigrad.ops import (
    abs,
    add,
    astype,
    broadcast_to,
    clone,
    concatenate,
    divide,
    equal,
    erf,
    exp,
    gelu,
    getitem,
    greater,
    greater_equal,
    less,
    less_equal,
    linear,
    log,
    log_softmax,
    logsumexp,
    matmul,
    max,
    maximum,
    multiply,
    negative,
    not_equal,
    power,
    relu,
    reshape,
    scatter_add,
    sigmoid,
    sign,
    softmax,
    sqrt,
    subtract,
    sum,
    tanh,
    transpose,
    where,
)
from minigrad.random import manual_seed
from minigrad.history import History
from minigrad.trainer import Trainer

neg = negative
