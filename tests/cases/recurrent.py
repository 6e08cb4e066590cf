"""The recurrence of recurrent layers."""

import numpy as np

from tests.cases.case import Case, fixed, logistic, narrow, normal

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


def recurrence(x, state, weight, bias=None, cell="lstm"):
    """One sequence after the other, and one step after the other."""
    size = weight.shape[1]
    bias = np.zeros(len(weight)) if bias is None else bias
    out = np.zeros((len(x), *state.shape))
    for n in range(x.shape[1]):
        now = state[n]
        for t in range(len(x)):
            gets, product = (v.reshape(-1, size) for v in (x[t, n], weight @ now[:size] + bias))
            now = out[t, n] = STEPS[cell](gets, product, now.reshape(-1, size)).ravel()
    return out


def gru(x, product, state):
    r, z = logistic(x[:2] + product[:2])
    return (1 - z) * np.tanh(x[2] + r * product[2]) + z * state


def lstm(x, product, state):
    i, f, o = logistic((x + product)[[0, 1, 3]])
    c = f * state[1] + i * np.tanh(x[2] + product[2])
    return np.stack([o * np.tanh(c), c])


STEPS = {
    "rnn_tanh": lambda x, product, _: np.tanh(x + product),
    "rnn_relu": lambda x, product, _: np.maximum(x + product, 0),
    "gru": gru,
    "lstm": lstm,
}


def row(cell, note, steps, batch, size, bias):
    gates, states = GATES[cell], 1 + (cell == "lstm")
    shapes = (steps, batch, gates * size), (batch, states * size), (gates * size, size)
    drawn = normal(*shapes, *[(gates * size,)] * bias)

    def make(rng):
        """Numbers so small that no gate is so far from 0 that its slope is lost in float32."""
        return tuple(x / 2 for x in drawn(rng))

    return Case("recurrence", make, recurrence, {"cell": cell}, note=f"{cell}{note}")


CASES = [
    *[
        row(cell, note, *sizes)
        for cell in GATES
        for note, sizes in {
            "": (3, 2, 2, True),
            ", no bias": (2, 2, 2, False),
            ", one step": (1, 2, 2, True),
            ", one sequence": (2, 1, 2, True),
            ", size 1": (2, 2, 1, True),
            ", no sequence": (2, 0, 2, True),
        }.items()
    ],
    Case(
        "recurrence",
        fixed([[[0.5, -0.5]], [[0.0, 1.0]]], [[0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]),
        recurrence,
        {"cell": "rnn_relu"},
        note="kink: 0 at 0",
        derivative=lambda g, x, state, weight: (
            g * (x > 0),
            np.zeros(state.shape),
            np.einsum("nj,nk->jk", g[1] * (x[1] > 0), np.maximum(x[0], 0)),
        ),
    ),
    Case(
        "recurrence",
        fixed([[[1, 2]]], [[1, 0]], [[1, 2], [0, 1]]),
        narrow(recurrence),
        {"cell": "rnn_tanh"},
        note="integers give float32",
        order=0,
    ),
]
