"""Leaves for the tests of the engine."""

import numpy as np

from minigrad import (
    Observer,
    Tensor,
)


def leaf(*values, dtype=np.float64):
    """A leaf with these values, one after another; of zero dimensions if there is only one."""
    return Tensor(np.array(values if len(values) > 1 else values[0], dtype), requires_grad=True)


def drawn(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


class Log(Observer):
    """Writes down what happens, by names of ops."""

    def __init__(self):
        self.calls, self.vjps, self.freed = [], [], []

    def on_call(self, op, inputs, result):
        self.calls.append(op.name)

    def on_vjp(self, node, parent, gradient, result):
        self.vjps.append((node.op.name, next(edge[1] for edge in node.edges if edge[0] is parent)))

    def on_free(self, node):
        self.freed.append(node.name)
