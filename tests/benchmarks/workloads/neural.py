"""Functions of neural networks, forward and backward, and a transformer's block and step.

All begin with the same arrays, drawn by numpy, and their gradients or losses are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload

Array = NDArray[Any]

ROWS, COLUMNS = 512, 1024
ATTENTION = 8, 8, 256, 32  # batch, heads, length, size of a head
DROPPED = 0.1
DRAWN = "dropout"  # each library draws its own zeros, so there is nothing to compare

# The functions by name, as each library spells them. What is wanted has 1.0.
WANTED = {"gelu": 1.0, "softmax": 1.0, "layer_norm": 1.0, "cross_entropy": 1.0}
FUNCTIONS = [*WANTED, "silu", "tanh", "sigmoid", "exp", "rms_norm", DRAWN, "attention"]


def _arrays(name: str) -> tuple[Array, Array, Array]:
    """x, the gradient that arrives at the result, and labels."""
    rng = np.random.default_rng(0)
    shape = (3, *ATTENTION) if name == "attention" else (ROWS, COLUMNS)
    x = rng.standard_normal(shape).astype(np.float32)
    arrives = rng.standard_normal(x.shape[-len(ATTENTION) :]).astype(np.float32)
    return x, arrives, rng.integers(0, COLUMNS, ROWS)


def _there_and_back(x: Any, function: Callable[[Any], Any], arrives: Any, compared: bool) -> Run:
    """Forward and backward, for any library with PyTorch's names."""

    def run() -> Any:
        x.grad = None
        y = function(x)
        if y.ndim == 0:
            y.backward()
        else:
            y.backward(arrives)
        return x.grad if compared else None

    return run


def _function_minigrad(name: str) -> Run:
    import minigrad as mg

    array, arrives, labels = _arrays(name)
    weight, bias = (mg.ones(COLUMNS, requires_grad=True) for _ in range(2))
    functions: Mapping[str, Callable[[Any], Any]] = {
        "softmax": mg.softmax,
        "layer_norm": lambda x: mg.layer_norm(x, COLUMNS, weight, bias),
        "rms_norm": lambda x: mg.rms_norm(x, COLUMNS, weight),
        "cross_entropy": lambda x: mg.cross_entropy(x, labels),
        DRAWN: lambda x: mg.dropout(x, DROPPED),
        "attention": lambda x: mg.scaled_dot_product_attention(x[0], x[1], x[2], is_causal=True),
    }
    function = functions.get(name) or getattr(mg, name)
    x = mg.tensor(array, requires_grad=True)
    return _there_and_back(x, function, mg.tensor(arrives), name != DRAWN)


def _function_torch(name: str) -> Run:
    import torch
    from torch.nn import functional as F  # noqa: N812  # as everybody calls it

    array, arrives, labels = map(torch.from_numpy, _arrays(name))
    weight, bias = (torch.ones(COLUMNS, requires_grad=True) for _ in range(2))
    functions: Mapping[str, Callable[[Any], Any]] = {
        "gelu": F.gelu,
        "silu": F.silu,
        "softmax": lambda x: torch.softmax(x, -1),
        "layer_norm": lambda x: F.layer_norm(x, (COLUMNS,), weight, bias),
        "rms_norm": lambda x: F.rms_norm(x, (COLUMNS,), weight),
        "cross_entropy": lambda x: F.cross_entropy(x, labels),
        DRAWN: lambda x: F.dropout(x, DROPPED),
        "attention": lambda x: F.scaled_dot_product_attention(x[0], x[1], x[2], is_causal=True),
    }
    function = functions.get(name) or getattr(torch, name)
    x = array.requires_grad_()
    return _there_and_back(x, function, arrives, name != DRAWN)


class Size(NamedTuple):
    """A causal transformer on a batch of sequences; `letters` is 0 for a bare block."""

    width: int
    heads: int
    depth: int
    batch: int
    length: int
    letters: int = 0


BLOCK = Size(256, 8, 1, 8, 256)
# A character transformer of about a million parameters.
CHARACTERS = Size(128, 4, 5, 8, 64, 85)


def block_weights(size: Size) -> dict[str, Array]:
    """The parameters of one block under our names, the same for all blocks."""
    rng = np.random.default_rng(0)
    d, hidden = size.width, 4 * size.width
    matrices = {f"attn.{name}_proj": (d, d) for name in ("q", "k", "v", "out")}
    matrices |= {"mlp.layers.0": (hidden, d), "mlp.layers.1": (d, hidden)}
    weights: dict[str, Array] = {}
    for name, shape in matrices.items():
        weights[f"{name}.weight"] = rng.standard_normal(shape) / shape[1] ** 0.5
        weights[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0])
    for name in ("norm1", "norm2"):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(d), np.zeros(d)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _ends(size: Size) -> dict[str, Array]:
    """What is before and after the blocks of a character transformer."""
    rng = np.random.default_rng(1)
    shapes = {
        "letters.weight": (size.letters, size.width),
        "places.weight": (size.length, size.width),
        "head.weight": (size.letters, size.width),
        "head.bias": (size.letters,),
    }
    return {
        name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def batch_of(size: Size) -> tuple[Array, Array]:
    """Sequences and an array of the result's shape, or of letters and the next ones."""
    rng = np.random.default_rng(2)
    if size.letters:
        before, after = rng.integers(0, size.letters, (2, size.batch, size.length))
        return before, after.reshape(-1)
    x, arrives = rng.standard_normal((2, size.batch, size.length, size.width))
    return x.astype(np.float32), arrives.astype(np.float32)


def block_minigrad(size: Size) -> Any:
    from minigrad import nn

    block = nn.TransformerBlock(size.width, size.heads, causal=True)
    block.load_state_dict(block_weights(size))
    return block


def _block_torch(size: Size) -> Any:
    import torch

    options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    block = torch.nn.TransformerEncoderLayer(size.width, size.heads, 4 * size.width, **options)
    ours = {name: torch.from_numpy(array) for name, array in block_weights(size).items()}
    renamed = {
        "attn.out_proj": "self_attn.out_proj",
        "mlp.layers.0": "linear1",
        "mlp.layers.1": "linear2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    state = {}
    for kind in ("weight", "bias"):
        for here, there in renamed.items():
            state[f"{there}.{kind}"] = ours[f"{here}.{kind}"]
        parts = [ours[f"attn.{name}_proj.{kind}"] for name in ("q", "k", "v")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    block.load_state_dict(state)
    return block


def _block_run(block: Any, x: Any, arrives: Any, options: Mapping[str, Any]) -> Run:
    parameters = list(block.parameters())

    def run() -> Any:
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        block(x, **options).backward(arrives)
        return x.grad

    return run


def _block_step_minigrad(size: Size) -> Run:
    import minigrad

    x, arrives = batch_of(size)
    leaf = minigrad.tensor(x, requires_grad=True)
    return _block_run(block_minigrad(size), leaf, minigrad.tensor(arrives), {})


def _block_step_torch(size: Size) -> Run:
    import torch

    x, arrives = map(torch.from_numpy, batch_of(size))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(size.length)
    options = {"src_mask": mask, "is_causal": True}
    return _block_run(_block_torch(size), x.requires_grad_(), arrives, options)


def _characters_minigrad(size: Size) -> Run:
    import minigrad
    from minigrad import nn, optim

    letters = nn.Embedding(size.letters, size.width)
    places = nn.Embedding(size.length, size.width)
    head = nn.Linear(size.width, size.letters)
    blocks = [block_minigrad(size) for _ in range(size.depth)]
    end = nn.Sequential(*blocks, nn.LayerNorm(size.width), head)
    for name, array in _ends(size).items():
        layer, _, kind = name.partition(".")
        parameter = getattr({"letters": letters, "places": places, "head": head}[layer], kind)
        parameter.copy_(array)
    optimizer = optim.AdamW([p for m in (letters, places, end) for p in m.parameters()])
    text, after = batch_of(size)
    positions = np.arange(size.length)

    def run() -> float:
        optimizer.zero_grad()
        scores = end(letters(text) + places(positions))
        loss = minigrad.cross_entropy(scores.reshape(-1, size.letters), after)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def _characters_torch(size: Size) -> Run:
    import torch
    from torch import nn

    letters = nn.Embedding(size.letters, size.width)
    places = nn.Embedding(size.length, size.width)
    head = nn.Linear(size.width, size.letters)
    blocks = nn.ModuleList(_block_torch(size) for _ in range(size.depth))
    end = nn.Sequential(nn.LayerNorm(size.width), head)
    layers = nn.ModuleDict({"letters": letters, "places": places, "head": head})
    layers.load_state_dict({name: torch.from_numpy(array) for name, array in _ends(size).items()})
    optimizer = torch.optim.AdamW(
        [p for m in (letters, places, blocks, end) for p in m.parameters()]
    )
    mask = nn.Transformer.generate_square_subsequent_mask(size.length)
    text, after = map(torch.from_numpy, batch_of(size))
    positions = torch.arange(size.length)

    def run() -> float:
        optimizer.zero_grad()
        x = letters(text) + places(positions)
        for block in blocks:
            x = block(x, src_mask=mask, is_causal=True)
        loss = nn.functional.cross_entropy(end(x).reshape(-1, size.letters), after)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def _two(ours: Callable[[Any], Run], torch: Callable[[Any], Run]) -> dict[str, Contender]:
    return {OURS: Contender(ours), "torch": Contender(torch, ("torch",))}


WORKLOADS = {
    "functions": Workload(
        f"forward and backward on {ROWS} x {COLUMNS} (attention: causal, {ATTENTION})",
        _two(_function_minigrad, _function_torch),
        [Point(name, name) for name in FUNCTIONS],
        [Goal("torch", WANTED)],
        steps=2,
        seconds=0.1,
    ),
    "block": Workload(
        f"forward and backward of a causal transformer block, width {BLOCK.width}, "
        f"{BLOCK.heads} heads, {BLOCK.batch} x {BLOCK.length}",
        _two(_block_step_minigrad, _block_step_torch),
        [Point("", BLOCK)],
        [Goal("torch", 1.2)],
        steps=2,
    ),
    "transformer": Workload(
        f"a training step of a causal transformer of {CHARACTERS.depth} blocks of width "
        f"{CHARACTERS.width}, {CHARACTERS.batch} x {CHARACTERS.length} characters, with AdamW",
        _two(_characters_minigrad, _characters_torch),
        [Point("", CHARACTERS)],
        steps=5,
        tolerance=SAME_LOSS,
    ),
}
