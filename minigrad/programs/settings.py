"""Options and states that a program reads again in each run, so they may change between runs.

The functions that the lines of a program call, such as the step of an optimiser, read these values
and change them.
"""

from __future__ import annotations

import random as stdlib_random
from typing import Any

import numpy as np

from minigrad.optim import EMA, LRScheduler, Optimizer

Settable = Optimizer | LRScheduler | EMA
GENERATORS = np.random.Generator, np.random.RandomState, stdlib_random.Random


def settings_of(value: Settable) -> Any:
    """Return the settings that only `step()` and `update()` may change in a step."""
    if isinstance(value, LRScheduler):
        return vars(value) | value.state_dict()
    # Loading a state makes another dict. This dict is kept, so the new one has another id.
    if isinstance(value, EMA):
        options = value.decay, value.warmup, value.updates, value.is_applied
        return *options, id(value.averages), value.averages
    groups = [{k: v for k, v in group.items() if k != "params"} for group in value.param_groups]
    return groups, id(value.state), value.state


def named_settings(value: Settable, words: set[str]) -> list[tuple[str, Any]]:
    """List the settings that a program reads again, and that the code of the step names too."""
    if isinstance(value, Optimizer):
        groups = enumerate(value.param_groups)
        return [
            (f"param_groups.{i}.{k}", group[k])
            for i, group in groups
            for k in sorted(group.keys() & words - {"params"})
        ]
    found = [(name, vars(value)[name]) for name in sorted(vars(value).keys() & words)]
    if isinstance(value, LRScheduler) and "get_last_lr" in words:
        found += [("get_last_lr()", rate) for rate in value.get_last_lr()]
    return found


def state_of(source: Any) -> Any:
    """Return the state of a source of random numbers."""
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if isinstance(source, np.random.RandomState):
        return source.get_state(legacy=False)
    return source.getstate()
