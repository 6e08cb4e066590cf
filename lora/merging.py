"""Merge the adapters of a complete model, undo the merge, or fold the adapters into its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer, check_mergeable
from lora.adapter import check_names
from lora.attachment import state
from lora.attachment.state import Attachment
from lora.certificate import DTYPES, MergeCertificate, certify, check_dtypes, merging_of
from minigrad.errors import named_errors
from minigrad.kernels.start import interrupts_held_back
from minigrad.nn import Buffer, Module, Parameter


@named_errors
def merge(
    model: Module,
    adapters: str | Sequence[str] | None = None,
    *,
    limit: float | None = None,
    dtype: str | None = None,
    radius: float = 1.0,
    dtypes: str | Sequence[str] = DTYPES,
    progress: bool = True,
) -> MergeCertificate:
    """Merge the active adapters: compute W + dW once per layer, and certify the rounding error.

    The base weights stay in memory beside the merged ones; `lora.fold` frees them. W + dW is
    computed in float64 and rounded once, to the dtype of the layer. For the numbers of the
    certificate see `lora.certificate.CertificateRow`.

    No gradient passes from the merged weight to A and B. So a merged model whose adapters require
    gradients computes only under `minigrad.no_grad()`; otherwise its forward pass raises a
    RuntimeError.

    Args:
        model: a model with adapters.
        adapters: names of active adapters to merge; None for all of them. The other active ones are
            computed beside the merged weight, even if they were merged before.
        limit: raise an error if in one layer the rounding error is larger than this share of the
            update, in Frobenius norms; None for no limit.
        dtype: the dtype for which `limit` is checked; None for the dtype of each layer.
        radius: the norm of the inputs for which the certificate bounds the change of the outputs.
        dtypes: the dtypes of the certificate: "float64", "float32", "float16", "bfloat16", "nf4".
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if `model` is not a Module, a layer has a dtype that cannot be certified, a name
            is not a string, or the limit or radius is not a number.
        ValueError: if there are no adapters, a name belongs to no active adapter, none is active,
            an option makes no sense, a grouped convolution has one of the adapters, or a merged
            weight would not be finite.
        MergeError: if more than the limit would be lost.

    After an error nothing is changed.
    """
    found, asked = state.adapted_layers(model), check_dtypes(dtypes)
    chosen = (adapters,) if isinstance(adapters, str) else adapters
    if chosen is not None:
        if not isinstance(chosen, Iterable):
            raise TypeError(f"adapters are names, as in ['a', 'b'], not {chosen!r:.60}")
        chosen = tuple(chosen)
        if not chosen:
            raise ValueError("adapters are empty; None means all active adapters")
        known = dict.fromkeys(name for _, layer in found for name in layer.adapters)
        for name in chosen:
            check_names([name], known)
            if not any(name in layer.active for _, layer in found):
                raise ValueError(
                    f"adapter {name!r} is not active; lora.switch(model, {name!r}) makes it so, or "
                    f"layer.use([{name!r}]) of layers that were made by hand"
                )
    merged = {
        path: (layer, [name for name in layer.active if chosen is None or name in chosen])
        for path, layer in found
    }
    check_mergeable({path: layer for path, (layer, names) in merged.items() if names})
    parts = [merging_of(path, *pair) for path, pair in merged.items() if pair[1]]
    if not parts:
        raise ValueError(
            "no adapter is active, so there is none to merge; call lora.switch(model, name) first, "
            "or layer.use([name]) of layers that were made by hand"
        )
    dtype_of = {part.name: str(part.dtype) for part in parts}  # by layer
    certified = dict.fromkeys([*asked, *([] if dtype is None else [dtype]), *dtype_of.values()])
    certificate = certify(parts, tuple(certified), radius, progress=progress)
    broken = [name for name, own in dtype_of.items() if not certificate.of(name, own).is_finite]
    if broken:
        raise ValueError(
            f"the merged weight would not be finite in {', '.join(map(repr, broken))}: "
            f"{certificate.of(broken[0], dtype_of[broken[0]]).note}; nothing was merged"
        )
    if limit is not None:
        for kind in sorted(set(dtype_of.values())) if dtype is None else [dtype]:
            rows = [row for row in certificate.rows if dtype or dtype_of[row.layer] == kind]
            MergeCertificate(tuple(rows), certificate.radius).check(limit, kind)
    for layer, names in merged.values():
        if names:
            layer.merge(names)
        else:
            layer.unmerge()  # with no adapter to merge, a merged weight would only be a copy of W
    return certificate.only(asked)


@named_errors
def unmerge(model: Module) -> list[str]:
    """Undo `merge`: compute with W, A and B again; return the names of all layers with adapters.

    The base weights equal those before the merge in every bit, because a merge never writes to
    them. Without a merge, nothing changes.

    Raises:
        TypeError: if `model` is not a Module.
        ValueError: if there are no adapters.
    """
    found = state.adapted_layers(model)
    for _, layer in found:
        layer.unmerge()
    return [name for name, _ in found]


@named_errors
def fold(model: Module) -> Module:
    """Replace each layer with adapters by a plain one with the weight W + dW; return the model.

    W + dW, over all active adapters, is computed in float64 and rounded once, to the dtype of the
    layer; a base in few bits becomes floats. W is freed, unless something else refers to it. A
    weight that was tied to another is not tied afterwards. Parameters that were trained in full
    stay in the model. `requires_grad` flags are restored to those before `attach`; a weight that
    was in few bits stays frozen. If `attach` was called with parts of the model, each part is
    folded by itself. A model that is itself a layer with adapters is not changed; its plain layer
    is returned.

    Raises:
        TypeError: if `model` is not a Module.
        ValueError: if there are no adapters, an adapter is not active and would be lost, W + dW is
            not finite, an adapter is on a grouped convolution, or `attach` was called with a larger
            model; nothing is changed then.
        RuntimeError: if an adapter has changed since a merge, or inside of `lora.disabled`.
    """
    layers = dict(state.adapted_layers(model))
    # `attach` was called with inner modules later, so their flags must be restored first.
    attachments = state.attachments_in(model)[::-1]
    for part, attachment in attachments:
        attachment.check_enabled("adapters cannot be folded in")
        state.attached_layers(part, attachment)
    state.check_copies_are_known(model)
    known = {id(layer) for _, each in attachments for layer in each.layers.values()}
    others = [name for name, m in layers.items() if name and m.is_attached and id(m) not in known]
    if others:
        raise ValueError(
            f"the adapters of {', '.join(others)} are known to the complete model only; call this "
            f"with the model that lora.attach was called with"
        )
    for layer in layers.values():
        if lost := [name for name in layer.adapters if name not in layer.active]:
            raise ValueError(
                f"adapter {', '.join(map(repr, lost))} is not active, and would be lost; "
                f"lora.remove(model, {lost[0]!r}) says that it may be, lora.switch makes it active "
                f"(of layers that were made by hand: layer.remove and layer.use)"
            )
    check_mergeable(layers)
    folded: dict[int, Module] = {}
    broken = []
    for name, layer in layers.items():
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                plain = folded[id(layer)] = layer.plain()
            except RuntimeError as error:
                raise RuntimeError(f"{name}: {error}" if name else str(error)) from error
        if not all(np.isfinite(parameter._data).all() for parameter in plain.parameters()):
            broken.append(name)
    if broken:
        raise ValueError(
            f"the merged weight would not be finite in {', '.join(map(repr, broken))}; nothing was "
            f"changed"
        )
    if isinstance(model, AdaptedLayer):
        return folded[id(model)]
    _replace_by_plain(model, attachments, folded)
    return model


@interrupts_held_back()
def _replace_by_plain(
    model: Module, attachments: Sequence[tuple[Module, Attachment]], folded: Mapping[int, Module]
) -> None:
    """Replace layers with adapters by the folded ones, given by id, and drop the attachments."""
    for part, attachment in attachments:
        # A weight in few bits was not a parameter, and `quantize` froze a bias that its layer
        # shares. They get no flag back, and stay frozen.
        for layer in attachment.layers.values():
            folded[id(layer)].freeze()
        for name in attachment.active:
            for copy in attachment.adapters[name].copies:
                trained: Any = copy.own  # becomes an ordinary parameter or buffer of the model
                trained.__class__ = Buffer if isinstance(trained, Buffer) else Parameter
                if isinstance(trained, Parameter):
                    trained.requires_grad_(False)
        state.store(part, None)
    state.replace(model, folded)
    for part, attachment in attachments:
        attachment.flags.restore(part)
