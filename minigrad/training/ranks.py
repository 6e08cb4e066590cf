"""How the ranks of a training run work together.

They have the same start, the same model in an evaluation, and the files of rank 0. With a single
process, `check_ranks` and `check_same_model` return at once, `state_of_first` reads the file, and
the Trainer does not call the other functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from minigrad import random
from minigrad.core.tensor import Tensor
from minigrad.distributed import World
from minigrad.distributed.agreement import check_agreement, digest
from minigrad.io import load_state
from minigrad.nn.module import Module, Parameter, attributes_of, load_values
from minigrad.optim import EMA
from minigrad.tables import counted
from minigrad.training import checkpoint_file

T = TypeVar("T")  # a module or a parameter


def check_ranks(ranks: World, micro_batches: int, accumulation_steps: int) -> None:
    """Raise a ValueError if some ranks would never get a micro-batch."""
    most = min(micro_batches, accumulation_steps)
    if most < ranks.size:
        raise ValueError(
            f"{ranks.size} ranks are to share the micro-batches of a step, and it has only {most} "
            f"(accumulation_steps={accumulation_steps}, and the data have {micro_batches} in all); "
            f"start at most {counted(most, 'rank')}, or take more and smaller micro-batches"
        )


def take_from_first(ranks: World, parameters: Mapping[str, Parameter], ema: EMA | None) -> None:
    """Set trained parameters and their averages to the values of rank 0.

    Also set the state of the default generator to that of rank 0, unless the script seeded it.

    Raises:
        ValueError: on all ranks, if names, shapes or dtypes of the parameters differ from rank 0.
    """
    forms = {
        f"the parameter {name}": f"{p.dtype} of shape {'x'.join(map(str, p.shape)) or '()'}"
        for name, p in parameters.items()
    }
    is_seeded = random.was_seeded()
    orders = {"the order of the parameters": digest(parameters)}
    check_agreement(ranks, {**forms, **orders, "whether manual_seed was called": str(is_seeded)})
    if not is_seeded:
        bits = random.generator().bit_generator
        bits.state = ranks.broadcast(bits.state, "fit")
    values = {name: ranks.broadcast(p._data, "fit") for name, p in parameters.items()}
    load_values(parameters, values, "model")
    if ema is not None:
        state = ema.state_dict()
        averages = {name: ranks.broadcast(x, "fit") for name, x in state["averages"].items()}
        ema.load_state_dict({**state, "averages": averages})


_OF_FROZEN: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The digests of matrices of 4 and 16 bits, which never change and may have gigabytes."""


def named_in(
    model: Module, loss: Any, names: Callable[[Module], Iterator[tuple[str, T]]]
) -> Iterator[tuple[str, T, str]]:
    """Yield what `names` lists of a model, such as modules, and of the loss with " of the loss".

    A loss has modules and parameters if it is a module, or a method of one.
    """
    seen = set()
    for part, whose in (model, ""), (getattr(loss, "__self__", loss), " of the loss"):
        for name, each in names(part) if isinstance(part, Module) else ():
            if id(each) not in seen:
                seen.add(id(each))
                yield name, each, whose


def digests_of_attributes(model: Module, loss: Any = None) -> dict[str, str]:
    """Return the attributes of modules, without parameters and their mode, as texts, by name.

    These attributes are arrays (also frozen weights of 4 and 16 bits), numbers and texts, also in
    lists and dicts, and the class. Other objects, such as a cache, are left out. The modules are
    those of the model and of the loss. Long values become digests.
    """
    from minigrad.kernels.narrow import NarrowMatrix  # with numba, which is slow to import

    numbers = bool, int, float, complex, np.generic
    kinds = np.ndarray, Tensor, NarrowMatrix, *numbers, str, list, tuple, dict

    def text(value: Any) -> str:
        is_short = isinstance(value, (*numbers, str)) and len(repr(value)) <= 40
        return repr(value) if is_short else digest([without_parameters(value)])

    def without_parameters(value: Any) -> Any:
        if isinstance(value, (Module, Parameter)):
            return None
        if isinstance(value, NarrowMatrix):
            if value not in _OF_FROZEN:
                _OF_FROZEN[value] = digest(vars(value).values())
            return _OF_FROZEN[value]
        if isinstance(value, (list, tuple)):
            return [*map(without_parameters, value)]
        if isinstance(value, dict):
            return {k: without_parameters(v) for k, v in value.items()}
        return value

    return {
        f"{name}.{key}{whose}".lstrip("."): text(value)
        for name, module, whose in named_in(model, loss, Module.named_modules)
        for key, value in {**attributes_of(module), "__class__": type(module).__qualname__}.items()
        if isinstance(value, kinds) and not isinstance(value, Parameter) and key != "training"
    }


def digests_of_model(
    model: Module, loss: Any, parameters: Mapping[str, Parameter], attributes: Mapping[str, str]
) -> dict[str, str]:
    """Return digests of parameters and of the other attributes of modules, with full names.

    Also return the names of functions that are attributes; a forward pass may make them.
    """
    return {
        **{
            f"the function {f'{name}.{key}'.lstrip('.')}{whose}": str(value.__qualname__)
            for name, module, whose in named_in(model, loss, Module.named_modules)
            for key, value in attributes_of(module).items()
            if hasattr(value, "__qualname__")
        },
        **{f"the weights of {name}": digest([p]) for name, p in parameters.items()},
        **{f"the attribute {name}": value for name, value in attributes.items()},
    }


def parameters_of(model: Module, loss: Any = None) -> dict[str, Parameter]:
    """Return all parameters of the model and of the loss by name."""
    named = named_in(model, loss, Module.named_parameters)
    return {f"{name}{whose}": parameter for name, parameter, whose in named}


def check_same_model(ranks: World, model: Module, data: Any, loss: Any = None) -> None:
    """Raise an error on all ranks if their models, their losses or their data differ."""
    if ranks.size == 1:
        return
    attributes = digests_of_attributes(model, loss)
    digests = digests_of_model(model, loss, parameters_of(model, loss), attributes)
    check_agreement(
        ranks,
        {"the data": digest([data]), **digests},
        "the ranks would not evaluate the same; give all of them the same data and the same "
        "model: made from one seed (manual_seed), loaded, or trained by fit",
    )


def check_unchanged(model: Module, before: Mapping[str, str], loss: Any = None) -> None:
    """Raise a ValueError if a step has changed an attribute of a module besides parameters."""
    now = digests_of_attributes(model, loss)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise ValueError(
            f"the forward pass changes {', '.join(changed)[:300]}, as that of running means or of "
            f"a counter does. Each rank has other micro-batches, so the model would differ from "
            f"rank to rank; train it in one process"
        )


def state_of_first(ranks: World, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state in the checkpoint that rank 0 reads, on all ranks; all have its errors."""
    seeing = [rank for rank, sees in enumerate(ranks.gather(os.path.exists(path))) if sees]
    if seeing and 0 not in seeing:
        raise FileNotFoundError(
            f"rank 0, which reads and writes files, sees no file {os.fspath(path)!r}; only ranks "
            f"{seeing} see one: copy it to the machine of rank 0"
        )
    arrays: dict[str, Any] = {}  # of rank 0

    def read() -> tuple[list[str], dict[str, str]]:
        found, metadata = load_state(path)
        arrays.update(found)
        return list(found), metadata

    names, metadata = ranks.on_first(read, "load")
    sent = {name: ranks.broadcast(arrays.get(name), "load") for name in names}
    return checkpoint_file.state_of(sent, metadata, path)
