"""A training run in a file: what `Trainer.save` writes, and how `Trainer.load` goes on from it.

It holds all that a later step depends on: the weights, the states of the optimiser, the scheduler,
the averages and the random generators, the best weights so far, and the records. Arrays are named
by what they belong to, as in "model.0.weight" or "optimizer.3.exp_avg"; the rest is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minigrad import random
from minigrad.history import History
from minigrad.io import load_state, save_state

if TYPE_CHECKING:
    from minigrad.trainer import Trainer

KEY = "minigrad.trainer"


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write the state of a trainer and of all that it uses."""
    arrays = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    arrays |= {f"best.{name}": value for name, value in trainer._best.items()}
    optimizer = trainer.optimizer.state_dict()
    numbers: dict[str, Any] = {}
    for number, state in optimizer["state"].items():
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                arrays[f"optimizer.{number}.{key}"] = value
            else:
                numbers[f"{number}.{key}"] = value
    facts: dict[str, Any] = {
        "optimizer": type(trainer.optimizer).__name__,
        "param_groups": optimizer["param_groups"],
        "numbers": numbers,
        "generators": [g.bit_generator.state for g in _generators(trainer)],
        "best_loss": trainer._best_loss,
        "epochs_since_best": trainer._epochs_since_best,
        "steps": trainer.history.steps,
        "epochs": trainer.history.epochs,
    }
    if trainer.scheduler is not None:
        facts["scheduler"] = type(trainer.scheduler).__name__
        facts["scheduler_state"] = trainer.scheduler.state_dict()
    if trainer.ema is not None:
        facts["ema"] = trainer.ema.state_dict()
        averages = facts["ema"].pop("averages")
        arrays |= {f"ema.{name}": value for name, value in averages.items()}
    save_state(path, arrays, {KEY: json.dumps(facts, default=_as_list)})


def load(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Bring a trainer and all that it uses into the state that a file holds, or change nothing."""
    arrays, metadata = load_state(path)
    file = repr(os.fspath(path))
    if KEY not in metadata:
        raise ValueError(f"{file} is no checkpoint of a Trainer")
    generators = _generators(trainer)
    try:
        facts = json.loads(metadata[KEY])
        states = _states(arrays, facts)
        history = History(facts["steps"], facts["epochs"])
        best_loss, since_best = facts["best_loss"], facts["epochs_since_best"]
        kinds = [state["bit_generator"] for state in facts["generators"]]
        optimizer = facts["optimizer"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no checkpoint of a Trainer, or one of another version: {error!r}"
        ) from error
    for name, saved, own in (
        ("optimiser", optimizer, type(trainer.optimizer).__name__),
        ("scheduler", facts.get("scheduler"), _name(trainer.scheduler)),
        ("ema", "EMA" if "ema" in facts else None, _name(trainer.ema)),
    ):
        if saved != own:
            raise ValueError(
                f"{file} was saved with {saved or f'no {name}'}, and this trainer has "
                f"{own or 'none'}"
            )
    own_kinds = [generator.bit_generator.state["bit_generator"] for generator in generators]
    if kinds != own_kinds:
        raise ValueError(
            f"{file} has the states of the random generators {kinds}, this trainer and model use "
            f"{own_kinds}"
        )
    weights = trainer.model.state_dict()
    for name, value in states["model"].items():
        if name in weights and value.dtype != weights[name].dtype:
            raise ValueError(
                f"{file} has {name} as {value.dtype}, and this model as {weights[name].dtype}; "
                f"convert the model with astype first"
            )
    with ExitStack() as undo:
        for name in ("model", "optimizer", "scheduler", "ema"):
            part = getattr(trainer, name)
            if part is not None:
                undo.callback(part.load_state_dict, part.state_dict())
                part.load_state_dict(states[name])
        for generator, state in zip(generators, facts["generators"], strict=True):
            source = generator.bit_generator
            undo.callback(setattr, source, "state", source.state)
            source.state = state
        undo.pop_all()  # nothing has failed, so nothing is undone
    trainer._best = states["best"]
    trainer._best_loss = best_loss
    trainer._epochs_since_best = since_best
    trainer.history = history


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if no file can be at this path, before a run has taken its time.

    Raises:
        FileNotFoundError: if its folder does not exist.
        IsADirectoryError: if it is a folder itself.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(
            f"the checkpoint {os.fspath(path)!r} is a folder; name a file in it"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"the folder of the checkpoint {os.fspath(path)!r} does not exist; make it first"
        )


def _states(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What each part's `load_state_dict` takes, from the arrays and facts of a file."""
    parts: dict[str, dict[str, NDArray[Any]]] = {
        name: {} for name in ("model", "best", "optimizer", "ema")
    }
    for name, value in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**parts["optimizer"], **facts["numbers"]}.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in facts["param_groups"]
    ]
    return {
        "model": parts["model"],
        "best": parts["best"],
        "optimizer": {"state": state, "param_groups": groups},
        "scheduler": facts.get("scheduler_state"),
        "ema": {**facts.get("ema", {}), "averages": parts["ema"]},
    }


def _generators(trainer: Trainer) -> list[np.random.Generator]:
    """Every generator that a step may draw from: the default one, the trainer's, the modules'."""
    own = [random.generator(), *([] if trainer.rng is None else [trainer.rng])]
    for module in trainer.model.modules():
        own += [v for v in vars(module).values() if isinstance(v, np.random.Generator)]
    return list({id(generator): generator for generator in own}.values())


def _name(part: object) -> str | None:
    return None if part is None else type(part).__name__


def _as_list(value: Any) -> Any:
    """For JSON: the arrays that the states of some generators have."""
    return value.tolist()
