"""The models of lora's tests, and what all tests do to them: put adapters on, move, photograph."""

import numpy as np

import lora
import minigrad
from lora import AdaptedLayer, LoRAConfig, LoRALayer
from lora.attachment.state import attachment_of
from minigrad.nn import (
    BatchNorm1d,
    Conv1d,
    Conv2d,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    Parameter,
    Sequential,
)

KINDS = ["dense", "embedding", "nf4", "bfloat16"]

TOKENS = np.array([[0, 3, 6], [2, 2, 5]])
"""An input of `TokenNet`."""


class TokenNet(Module):
    """An embedding, linear layers with and without a bias, a norm and a head."""

    def __init__(self, rng, dtype=np.float64):
        self.table = Embedding(7, 5, dtype=dtype, rng=rng)
        self.q = Linear(5, 4, dtype=dtype, rng=rng)
        self.v = Linear(4, 5, bias=False, dtype=dtype, rng=rng)
        self.norm = LayerNorm(5, dtype=dtype)
        self.head = Linear(5, 3, dtype=dtype, rng=rng)

    def forward(self, x):
        x = self.table(x)
        return self.head(self.norm(x + self.v(minigrad.tanh(self.q(x)))))


class TiedNet(Module):
    """An embedding and a head that share one weight."""

    def __init__(self, rng, dtype=np.float64):
        self.table = Embedding(7, 5, dtype=dtype, rng=rng)
        self.head = Linear(5, 7, bias=False, dtype=dtype, rng=rng)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(minigrad.tanh(self.table(x)))


class ConvNet(Module):
    """Convolutions of images and of sequences, and a head."""

    def __init__(self, rng, dtype=np.float32):
        self.first = Conv2d(3, 6, (3, 2), stride=2, padding=1, dtype=dtype, rng=rng)
        self.point = Conv2d(6, 4, 1, bias=False, dtype=dtype, rng=rng)
        self.line = Conv1d(4, 5, 3, padding="same", dtype=dtype, rng=rng)
        self.head = Linear(5, 2, dtype=dtype, rng=rng)

    def forward(self, x):
        x = self.point(minigrad.tanh(self.first(x)))
        return self.head(self.line(x.reshape(*x.shape[:2], -1)).mean(axis=-1))


def batch_normed(dtype=np.float64):
    """A linear layer and a norm with running statistics; each call makes the same one."""
    return Sequential(
        Linear(4, 3, dtype=dtype, rng=np.random.default_rng(3)), BatchNorm1d(3, dtype=dtype)
    )


def with_own_statistics(rng, name="default", passes=3):
    """The same with an adapter whose statistics are of other data; it is in evaluation mode."""
    model = batch_normed()
    put_on(model, name, rng, targets=["0"], modules_to_save=["1"])
    for _ in range(passes):
        model(5 * rng.standard_normal((8, 4)) + 3)
    return model.eval()


def one_layer(kind, rng, dtype=np.float64, width=(6, 4), block_size=4):
    """A model of one layer, which is dense, an embedding or in few bits."""
    layer = Embedding if kind == "embedding" else Linear
    model = Sequential(layer(*width, dtype=dtype, rng=rng))
    if kind == "bfloat16":
        lora.quantize(model, format="bfloat16", progress=False)
    if kind == "nf4":
        lora.quantize(model, block_size=block_size, progress=False)
    return model


def one_convolution(kind, sizes, options, shape, rng):
    """A model of one convolution in float64, and an input of this shape."""
    layer = kind(*sizes, **options, dtype=np.float64, rng=rng)
    return Sequential(layer), rng.standard_normal(shape)


def lora_layer(
    rng, /, dtype=np.float64, trained=True, *, kind=LoRALayer, d_out=5, d_in=7, rank=3, **options
):
    """A LoRALayer with a bias and, if it is trained, a B that is not zero."""
    weight, bias = rng.standard_normal((d_out, d_in)), rng.standard_normal(d_out)
    options = {"bias": bias.astype(dtype), "rng": rng, **options}
    layer = kind(weight.astype(dtype), d_out, d_in, rank, 6.0, **options)
    if trained:
        layer.lora_b = rng.standard_normal((d_out, rank))
    return layer


def layers_of(model):
    """The layers with adapters, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer)}


def adapters_of(model, name):
    """One adapter in all layers that have it, by the names of the layers."""
    layers = layers_of(model).items()
    return {path: layer.adapters[name] for path, layer in layers if name in layer.adapters}


def shake(model, rng, name="default", size=0.3):
    """Move everything that an adapter trains, as if it had learned something."""
    parts = [part for adapter in adapters_of(model, name).values() for part in adapter.trained()]
    attachment = attachment_of(model)
    if attachment.adapters:
        parts += [c.own for c in attachment.adapters[name].copies if isinstance(c.own, Parameter)]
    for part in parts:
        part.copy_(part.data + size * rng.standard_normal(part.shape))


def put_on(model, name, rng, size=0.3, **options):
    """Attach an adapter, of rank 2 by default, and move it."""
    report = lora.attach(model, LoRAConfig(**{"rank": 2, **options}), adapter=name, rng=rng)
    shake(model, rng, name, size)
    return report


def snapshot(model):
    """Which objects a model is made of, which of them train and in which mode, and all bits."""
    modules = [(name, id(m), type(m), m.training) for name, m in model.named_modules()]
    parameters = [
        (name, id(p), p.requires_grad, p.dtype, p.data.tobytes())
        for name, p in model.named_parameters()
    ]
    attachment = attachment_of(model)
    return modules, parameters, list(attachment.adapters), attachment.active
