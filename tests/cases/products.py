"""Matrix products and what comes down to them."""

import numpy as np

from minigrad.kernels.bfloat16 import BFloat16Matrix
from minigrad.kernels.nf4 import NF4Matrix
from tests.cases.case import Case, below, joined, normal


def linear(x, weight, bias=0.0):
    return np.einsum("...i,oi->...o", x, weight) + bias


def lora_linear(x, weight, lora_a, lora_b, bias=0.0, scale=1.0):
    update = np.einsum("...i,ri,or->...o", x, lora_a, lora_b)
    return np.einsum("...i,oi->...o", x, weight) + bias + scale * update


def narrow_linear(x, weight, bias=0.0):
    return linear(x, weight.dense(np.float64), bias)


# Blocks of 2 in rows of 3: the last one of a row is shorter, and so is the last byte.
NARROW = {
    "nf4_linear": NF4Matrix.of(np.array([[0.3, -1.7, 0.9], [-0.2, 0.6, 2.1]]), block_size=2),
    "bfloat16_linear": BFloat16Matrix(np.array([[0x3E9A, 0xBFDA, 0x3F66], [0, 1, 0x4006]], "u2")),
}

EINSUMS = {
    "matrix product": ("ij,jk->ik", [(2, 3), (3, 2)]),
    "transposed output": ("ij,jk->ki", [(2, 3), (3, 2)]),
    "transposed operand": ("ij,kj->ik", [(2, 3), (4, 3)]),
    "implicit output": ("ij,jk", [(2, 3), (3, 2)]),
    "implicit order": ("ba,cb", [(2, 3), (3, 2)]),
    "implicit scalar": ("i,i", [(3,), (3,)]),
    "inner": ("ij,ij->", [(2, 3), (2, 3)]),
    "outer": ("i,j->ij", [(2,), (3,)]),
    "outer transposed": ("i,j->ji", [(2,), (3,)]),
    "outer of matrices": ("ij,kl->ikjl", [(2, 1), (2, 3)]),
    "elementwise": ("ij,ij->ij", [(2, 3), (2, 3)]),
    "elementwise transposed": ("ij,ji->ij", [(2, 3), (3, 2)]),
    "batch": ("bij,bjk->bik", [(2, 2, 3), (2, 3, 2)]),
    "batch last": ("ijb,jkb->ikb", [(2, 3, 2), (3, 2, 2)]),
    "attention": ("bqhd,bkhd->bhqk", [(2, 2, 1, 2), (2, 3, 1, 2)]),
    "two inner axes": ("ijk,jkl->il", [(2, 2, 3), (2, 3, 2)]),
    "sum of an axis": ("ij->i", [(2, 3)]),
    "sum of all": ("ij->", [(2, 3)]),
    "sum of one's own": ("ij,k->i", [(2, 3), (2,)]),
    "transpose": ("ij->ji", [(2, 3)]),
    "implicit transpose": ("ba", [(2, 3)]),
    "nothing to do": ("i->i", [(3,)]),
    "scalar": ("->", [()]),
    "scalar and vector": (",i->i", [(), (3,)]),
    "trace": ("ii->", [(3, 3)]),
    "implicit trace": ("ii", [(3, 3)]),
    "diagonal": ("ii->i", [(3, 3)]),
    "diagonal of a batch": ("bii->bi", [(2, 3, 3)]),
    "diagonal of three": ("iii->i", [(2, 2, 2)]),
    "two diagonals": ("iijj->ji", [(2, 2, 3, 3)]),
    "diagonal and product": ("iij,jk->ik", [(2, 2, 3), (3, 2)]),
    "diagonal in the right one": ("ij,jj->i", [(2, 3), (3, 3)]),
    "ellipsis": ("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 2)]),
    "implicit ellipsis": ("...ij,...jk", [(2, 2, 3), (2, 3, 2)]),
    "ellipsis of none": ("...i,i->...", [(3,), (3,)]),
    "ellipsis in one": ("...i,i->...", [(2, 2, 3), (3,)]),
    "ellipsis broadcast": ("...i,...i->...", [(2, 1, 3), (2, 3)]),
    "ellipsis in the middle": ("i...j->j...i", [(2, 2, 3)]),
    "ellipsis summed": ("i...->i...", [(2, 1, 2)]),
    "ellipsis and diagonal": ("...ii->...i", [(2, 3, 3)]),
    "size 1": ("ij,jk->ik", [(2, 1), (3, 2)]),
    "size 1 in both": ("ij,ij->ij", [(2, 1), (1, 3)]),
    "size 1 summed": ("ij,ij->", [(2, 1), (2, 3)]),
    "three": ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 2)]),
    "three with one axis": ("i,i,i->i", [(3,), (3,), (3,)]),
    "three summed": ("i,i,i->", [(3,), (3,), (3,)]),
    "bilinear": ("bi,oij,bj->bo", [(2, 2), (2, 2, 3), (2, 3)]),
    "four": ("a,ab,bc,c->", [(2,), (2, 3), (3, 2), (2,)]),
    "three with ellipsis": ("...i,ij,...j->...", [(2, 2), (2, 3), (2, 3)]),
    "capitals": ("Ab,bA->A", [(2, 3), (3, 2)]),
    "spaces": (" ij , jk -> ik ", [(2, 3), (3, 2)]),
    "no elements": ("ij,jk->ik", [(2, 0), (0, 2)]),
    "no rows": ("ij,jk->ik", [(0, 2), (2, 2)]),
}

CASES = [
    Case("matmul", normal((2, 3), (3, 4)), np.matmul),
    Case("matmul", normal((2, 3)), np.matmul, function=lambda f, x: x @ x.T, note="own T"),
    *[
        Case("matmul", normal(x, y), np.matmul, note=note)
        for note, x, y in [
            ("vectors", (3,), (3,)),
            ("vector and matrix", (3,), (3, 2)),
            ("matrix and vector", (2, 3), (3,)),
            ("vector and batch", (3,), (2, 3, 2)),
            ("batch and vector", (2, 2, 3), (3,)),
            ("batch", (2, 2, 3), (2, 3, 2)),
            ("batch and matrix", (2, 2, 3), (3, 2)),
            ("matrix and batch", (3, 2), (2, 2, 3)),
            ("broadcast batches", (2, 1, 2, 3), (2, 3, 2)),
            ("sum of nothing", (2, 0), (0, 3)),
            ("no rows", (0, 2), (2, 3)),
            ("no batch", (0, 2, 2), (2, 3)),
            ("no rows, and batch", (0, 3), (2, 3, 2)),
            ("no rows, and batch of nothing", (0, 0), (0, 0, 0)),
            ("matrix and no batch", (2, 3), (0, 3, 2)),
            ("sum of nothing, and batch", (2, 0), (3, 0, 2)),
        ]
    ],
    *[
        Case("linear", normal(x, (2, 3), *bias), linear, note=f"x of {len(x)} dims{note}")
        for note, bias in {"": [(2,)], ", no bias": []}.items()
        for x in [(3,), (4, 3), (2, 2, 3)]
    ],
    Case("linear", normal((0, 3), (2, 3), (2,)), linear, note="empty"),
    *[
        Case(
            "lora_linear",
            normal(x, (4, 3), (2, 3), (4, 2), *bias),
            lora_linear,
            options={"scale": 1.5},
            note=f"x of {len(x)} dims{note}",
        )
        for note, bias in {"": [(4,)], ", no bias": []}.items()
        for x in [(3,), (5, 3), (2, 2, 3)]
    ],
    Case("lora_linear", normal((5, 3), (4, 3), (1, 3), (4, 1)), lora_linear, note="rank 1"),
    Case("lora_linear", normal((5, 3), (4, 3), (6, 3), (4, 6)), lora_linear, note="rank 6"),
    Case("lora_linear", normal((0, 3), (4, 3), (2, 3), (4, 2)), lora_linear, note="empty"),
    *[
        Case(
            name,
            normal(x, *bias),
            narrow_linear,
            options={"weight": weight},
            names=("x", "bias")[: 1 + len(bias)],
            note=f"x of {len(x)} dims{note}",
        )
        for name, weight in NARROW.items()
        for note, bias in {"": [(2,)], ", no bias": []}.items()
        for x in [(3,), (4, 3), (2, 2, 3)]
    ],
    *[
        Case(name, normal(x), narrow_linear, options={"weight": w}, names=("x",), note=note)
        for name, weight in NARROW.items()
        for note, x, w in [("transposed", (4, 2), weight.T), ("empty", (0, 3), weight)]
    ],
    *[
        Case("dot", normal(x, y), np.dot, note=note)
        for note, x, y in [
            ("vectors", (3,), (3,)),
            ("matrices", (2, 3), (3, 2)),
            ("matrix and vector", (2, 3), (3,)),
            ("vector and matrix", (3,), (3, 2)),
            ("stack and vector", (2, 2, 3), (3,)),
            ("stack and matrix", (2, 2, 3), (3, 2)),
            ("vector and stack", (3,), (2, 3, 2)),
            ("matrix and stack", (2, 3), (2, 3, 2)),
            ("stacks", (2, 1, 3), (2, 3, 2)),
            ("numbers", (), ()),
            ("number and matrix", (), (2, 3)),
            ("matrix and number", (2, 3), ()),
            ("sum of nothing", (2, 0), (0, 3)),
            ("empty stack", (2, 3), (0, 3, 2)),
        ]
    ],
    *[
        Case("tensordot", normal(x, y), np.tensordot, options, note=note)
        for note, x, y, options in [
            ("two axes", (2, 3, 4), (3, 4, 2), {}),
            ("one axis", (2, 3), (3, 2), {"axes": 1}),
            ("no axis", (2,), (3, 2), {"axes": 0}),
            ("an axis of each", (2, 3), (2, 4), {"axes": (0, 0)}),
            ("negative", (2, 3), (4, 3), {"axes": (-1, -1)}),
            ("in another order", (2, 3, 4), (4, 2, 2), {"axes": ([0, 2], [1, 0])}),
            ("all", (2, 3), (2, 3), {}),
            ("numbers", (), (), {"axes": 0}),
            ("sum of nothing", (2, 0), (0, 3), {"axes": 1}),
            ("empty", (0, 2), (2, 3), {"axes": 1}),
        ]
    ],
    *[
        Case(name, normal(x, y), getattr(np, name), note=f"{x} {y}")
        for name, shapes in {
            "inner": [
                *[((3,), (3,)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 2, 3), (4, 3))],
                *[((), (2, 3)), ((2,), ()), ((), ()), ((2, 0), (3, 0)), ((0, 2), (2,))],
            ],
            "kron": [
                *[((2,), (3,)), ((2, 3), (3, 1)), ((2,), (2, 2)), ((2, 1, 2), (2, 3))],
                *[((), (2, 2)), ((), ()), ((1,), (1,)), ((0, 2), (2, 2))],
            ],
        }.items()
        for x, y in shapes
    ],
    *[
        Case("outer", normal(x, y), np.outer, note=note)
        for note, x, y in [
            ("", (2,), (3,)),
            ("matrices", (2, 2), (1, 3)),
            ("numbers", (), ()),
            ("empty", (0,), (3,)),
        ]
    ],
    *[
        Case(
            "einsum",
            normal(*shapes),
            np.einsum,
            function=lambda f, *xs, s=subscripts: f(s, *xs),
            note=note,
        )
        for note, (subscripts, shapes) in EINSUMS.items()
    ],
    Case(
        "einsum",
        normal((2, 3)),
        np.einsum,
        function=lambda f, x: f("ij,kj->ik", x, x),
        note="with itself",
    ),
    Case(
        "einsum",
        joined(normal((2, 3)), below(9, (3,))),
        np.einsum,
        function=lambda f, x, y: f("ij,j->i", x, y),
        note="with integers",
    ),
]
