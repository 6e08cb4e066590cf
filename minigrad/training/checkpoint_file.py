"""Checkpoints of training: the state of a `Trainer` in a file, as named arrays, and JSON.

The state contains what a later step depends on and training changes: the weights, the states of the
optimiser, the scheduler, the averages and the random generators, the best weights so far, the order
of an unfinished epoch, and the records. It does not contain `requires_grad`: if a callback froze a
layer during the run, freeze it again before the run goes on, or it trains.

The name of an array begins with its part, as in "model.0.weight" or "optimizer.3.exp_avg". The JSON
is in the metadata. If it is too long for them, as after many steps, it is an array of bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from minigrad.io import load_state, save_state

KEY = "minigrad.trainer"
_LONGEST_TEXT = 1 << 24  # characters in the metadata, for which there are 100 MB at most
_PLAIN = ("generators", "best_loss", "epochs_since_best", "steps", "epochs")


def write(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state that `Trainer.state_dict` returned; errors are those of `Trainer.save`."""
    classes, ema, unfinished = state["classes"], dict(state["ema"] or {}), dict(state["pass"] or {})
    parts = {"model": state["model"], "best": state["best"], "ema": ema.pop("averages", {})}
    parts["pass"] = {"order": unfinished.pop("order", None)}
    parts["optimizer"] = {
        f"{number}.{key}": value
        for number, values in state["optimizer"]["state"].items()
        for key, value in values.items()
    }
    numbers = {k: v for k, v in parts["optimizer"].items() if not isinstance(v, np.ndarray)}
    facts = {
        **{name: state[name] for name in _PLAIN},
        "optimizer": classes["optimizer"],
        "param_groups": state["optimizer"]["param_groups"],
        "numbers": numbers,
        "scheduler": classes["scheduler"],
        "scheduler_state": state["scheduler"],
        "ema": ema or None,
        "pass": unfinished or None,
    }
    arrays = {
        f"{part}.{name}": value
        for part, values in parts.items()
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    text = json.dumps(known, default=lambda value: value.tolist())
    if len(text) > _LONGEST_TEXT:
        arrays[KEY], text = np.frombuffer(text.encode(), np.uint8), "in the array of this name"
    try:
        save_state(path, arrays, {KEY: text})
    except OSError as error:
        if os.path.exists(path):
            error.add_note("the older checkpoint is unchanged, and `load` continues from it")
        raise


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that `write` wrote; return the state for `Trainer.load_state_dict`.

    A ValueError is raised if the file is incomplete, or is not a checkpoint of a Trainer.
    """
    return state_of(*load_state(path), path)


def state_of(
    arrays: dict[str, Any], metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return the state from the arrays and the metadata in a file; errors are those of `read`."""
    file = repr(os.fspath(path))
    if KEY not in metadata:
        raise ValueError(f"{file} is not a checkpoint of a Trainer")
    try:
        text = arrays.pop(KEY).tobytes() if KEY in arrays else metadata[KEY]
        facts = json.loads(text)
        parts: dict[str, Any] = {n: {} for n in ("model", "best", "optimizer", "ema", "pass")}
        for name, value in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        optimizer: dict[int, dict[str, Any]] = {}
        for name, value in {**parts["optimizer"], **facts["numbers"]}.items():
            number, _, key = name.partition(".")
            optimizer.setdefault(int(number), {})[key] = value
        ema = "EMA" if "ema" in facts else None
        classes = {"optimizer": facts["optimizer"], "scheduler": facts.get("scheduler"), "ema": ema}
        return {
            **{name: facts[name] for name in _PLAIN},
            **{"classes": classes, "model": parts["model"], "best": parts["best"]},
            "optimizer": {"state": optimizer, "param_groups": facts["param_groups"]},
            "scheduler": facts.get("scheduler_state"),
            "ema": {**facts["ema"], "averages": parts["ema"]} if ema else None,
            # Older files have the order among the facts.
            "pass": {**facts["pass"], **parts["pass"]} if "pass" in facts else None,
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a checkpoint of a Trainer, or one of another version: {error!r:.300}"
        ) from error
