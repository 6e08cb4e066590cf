"""LoRAConfig: which layers of a model get an adapter, and which kind of adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal, TypeVar, get_args

from lora.patterns import ALL_LINEAR, Patterns, check_patterns, check_several, check_table, near
from lora.scaling import LoRAScaling, check_alpha, check_size
from lora.variants.inits import check_init
from minigrad.checks import check_count, check_flag, check_integer, check_probability, python_number
from minigrad.errors import named_errors
from minigrad.renamed import instead

Bias = Literal["none", "all", "lora_only"]
Scaling = LoRAScaling | Literal["standard", "rslora"]

C = TypeVar("C", bound=type)


def _naming_fields(cls: C) -> C:
    """Make a dataclass list its fields in the error about an unknown field."""
    made: Any = named_errors(cls.__init__)  # type: ignore[misc]  # of this very class
    known = [each.name for each in fields(cls)]

    @wraps(made)
    def init(self: Any, *values: Any, **named: Any) -> None:
        unknown = []
        for name in [name for name in named if name not in known]:
            hint = instead(cls.__name__, name).removeprefix("; ")
            unknown.append(f"{name!r} ({hint})" if hint else near(name, known))
        if unknown:
            raise TypeError(
                f"{cls.__name__} has no field{'s' * (len(unknown) > 1)} {', '.join(unknown)}; the "
                f"fields are {', '.join(known)}"
            )
        made(self, *values, **named)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_naming_fields
@dataclass(frozen=True, repr=False)
class LoRAConfig:
    """The configuration of LoRA adapters: which layers get one, and its rank, scale and kind.

        W' = W + s B A          A: (rank, d_in), B: (d_out, rank)

    W is frozen, and A and B train (Hu et al., 2021, section 4.1). Four choices are independent: how
    the base is stored (see `lora.quantize`), the form of the update (LoRA, or DoRA with
    `use_dora`), its first values (`init`), and its `scaling`. Patterns match names as in PEFT.

    Args:
        rank: the rank of each update; the groups of a grouped convolution must divide it.
        alpha: the strength of each update; the scale is alpha / rank by default, see `scaling`.
        targets: "all-linear" for every linear layer; a sequence of names, where "q" also matches
            every name that ends in ".q"; or one string, a regular expression for complete names.
            Embeddings and convolutions are found by name only. The name of a `MultiHeadAttention`
            means its four projections.
        scaling: "standard" for the scale alpha / rank, or "rslora" for alpha / sqrt(rank)
            (Kalajdzievski, 2023).
        dropout: the probability of dropping an element of the input of A, in training.
        exclude: the targets that get no adapter: names, or one regular expression.
        layers_to_transform: adapt only the layers with this index, or these indices; the index of
            "blocks.3.q" is 3.
        layers_pattern: the name before that index, such as "blocks", if a name has several numbers;
            by default the first number is the index.
        rank_pattern: other ranks, by regular expressions for a name or its end. If several match a
            name, the first counts; an expression that has no effect is an error.
        alpha_pattern: other alphas, given like other ranks.
        bias: "lora_only" also trains the biases of the layers with adapters, "all" every bias of
            the model.
        modules_to_save: names of further modules to train in full, such as a new head. Their
            buffers, such as running means, belong to the adapter too.
        init: the first values of A and B: "gaussian", "kaiming", "orthogonal", which needs an even
            rank, "mica", which freezes B, "pissa" or, for large layers, "pissa_niter_4"; see
            `lora.variants.inits`.
        use_dora: also train a magnitude for each output (Liu et al., 2024); grouped convolutions
            cannot have one.
        dora_norm_gradient: use DoRA's full derivative. The paper treats the norm as a constant
            (section 4.3).

    Biases and modules are trained as copies, which replace the originals while the adapter is
    active.

    Raises:
        TypeError: if a field is unknown, or a value has the wrong type.
        ValueError: if a rank is not positive, an alpha is not positive and finite, dropout is not a
            probability, targets or `layers_to_transform` are empty, an index is negative, a regular
            expression is invalid or would match any name, `scaling`, `bias` or `init` is unknown,
            or two fields contradict each other. `attach` checks whether the patterns match layers.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Patterns = ALL_LINEAR
    scaling: Scaling = LoRAScaling.STANDARD
    dropout: float = 0.0
    exclude: Patterns = ()
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    bias: Bias = "none"
    modules_to_save: Sequence[str] = ()
    init: str = "gaussian"
    use_dora: bool = False
    dora_norm_gradient: bool = False

    def __post_init__(self) -> None:
        own = vars(self)  # which may be written to, although the class is frozen
        own.update({name: python_number(value) for name, value in own.items()})
        check_size("rank", self.rank)
        check_alpha("alpha", self.alpha)
        check_probability("dropout", self.dropout)
        own["dropout"] = float(self.dropout)
        check_init(self.init)
        own["scaling"] = LoRAScaling(self.scaling)
        check_several("modules_to_save", self.modules_to_save)
        before = self.layers_pattern
        own["layers_pattern"] = (before,) if isinstance(before, str) else before
        for role in ("targets", "exclude", "modules_to_save", "layers_pattern"):
            own[role] = check_patterns(role, own[role])
        if not self.targets:
            raise ValueError('targets are empty; name layers, or say "all-linear"')
        if self.exclude == ALL_LINEAR:
            raise ValueError('exclude="all-linear" leaves nothing; name the layers to leave out')
        layers: Any = self.layers_to_transform
        if layers is not None:
            several = isinstance(layers, Iterable) and not isinstance(layers, str)
            indices = tuple(layers) if several else (layers,)
            if not indices:
                raise ValueError("layers_to_transform is empty; None means all layers")
            role = "an index in layers_to_transform"
            wanted = tuple(check_count(role, check_integer(role, index)) for index in indices)
            own["layers_to_transform"] = wanted
        elif self.layers_pattern:
            raise ValueError(
                f"layers_pattern={before!r} says where an index is, and needs layers_to_transform"
            )
        for role, check in (("rank_pattern", check_size), ("alpha_pattern", check_alpha)):
            table = check_table(role, own[role])
            for pattern, value in table.items():
                check(f"{role}[{pattern!r}]", value)
            own[role] = {pattern: python_number(value) for pattern, value in table.items()}
        check_bias(self.bias)
        for flag in ("use_dora", "dora_norm_gradient"):
            check_flag(flag, own[flag])
        if self.use_dora and self.init == "mica":
            raise ValueError('init="mica" trains A only, and DoRA a magnitude; take one of the two')
        if self.dora_norm_gradient and not self.use_dora:
            raise ValueError("dora_norm_gradient=True is about DoRA, and needs use_dora=True")

    def __repr__(self) -> str:
        usual = vars(LoRAConfig())
        shown = ("rank", "alpha")  # which tell the scale, also if they are as usual
        named = [f"{n}={v!r}" for n, v in vars(self).items() if n in shown or v != usual[n]]
        return f"LoRAConfig({', '.join(named)})"


def check_bias(bias: Any) -> None:
    """Raise a ValueError unless `bias` says which biases are trained."""
    if bias not in get_args(Bias):
        raise ValueError(f"bias is one of {', '.join(get_args(Bias))}, not {bias!r:.60}")
