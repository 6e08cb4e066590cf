"""What all optimisers share: groups of parameters with options, and a state for each one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.core.grad_mode import mode
from minigrad.core.tensor import Tensor
from minigrad.readonly import release
from minigrad.versions import mark_written

Parameters = Iterable[Tensor] | Sequence[Mapping[str, Any]]
State = dict[str, Any]
Stepped = tuple[NDArray[Any], NDArray[Any], State]


class Optimizer(ABC):
    """Base class: `step()` changes every parameter that has a gradient.

    An optimiser of one's own defines `check_options`, `update` and, if it keeps a state,
    `state_names`; or, to step all parameters of a group in one go, `update_all` in place of
    `update`.

    Args:
        params: tensors, or groups of them: `[{"params": [...], "lr": 1e-3}, {"params": [...]}]`.
        defaults: the options of groups that do not set them.

    Attributes:
        param_groups: one dict for each group, with "params" and every option, which may be
            changed between steps.
        defaults: the options of groups that do not set them.

    Raises:
        ValueError: if there are no parameters, one occurs twice, is frozen or is no leaf, or an
            option has an impossible value.
        TypeError: if something else than a tensor is among them, or an option is unknown.
    """

    def __init__(self, params: Parameters, defaults: Mapping[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                f"{type(self).__name__}: the parameters are a list, as in [tensor], not one tensor"
            )
        groups: list[Any] = list(params)
        if groups and not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self._states: dict[Tensor, State] = {}
        self._places: dict[int, Any] = {}
        for group in groups:
            self.add_param_group(group)
        if not self._parameters():
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Optimise more parameters from here on, such as those of layers that were frozen so far.

        Args:
            group: a dict with "params" and any options; the others are the defaults.

        Raises:
            ValueError: if a parameter is optimised already, is frozen or is no leaf, or an option
                has an impossible value; then nothing is changed.
            TypeError: if it is no such dict, something else than a tensor is among the parameters,
                or an option is unknown.
        """
        i = len(self.param_groups)
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"group {i} must be a dict with 'params', not {group!r:.80}")
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise TypeError(
                f"group {i} has unknown options {sorted(unknown)}; known are "
                f"{sorted(self.defaults)}"
            )
        tensors = group["params"]
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        seen = {id(parameter) for parameter in self._parameters()}
        for k, tensor in enumerate(tensors):
            _check(tensor, f"parameter {k} of group {i}", seen)
        complete = {**self.defaults, **group, "params": tensors}
        self.check_options(complete)
        self.param_groups.append(complete)

    @abstractmethod
    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise a ValueError or a TypeError if an option of a group has an impossible value."""

    def state_names(self, group: Mapping[str, Any]) -> set[str]:
        """What the state of a parameter consists of, once it has one, under a group's options."""
        return set()

    def update(
        self, x: NDArray[Any], g: NDArray[Any], state: State, group: Mapping[str, Any]
    ) -> None:
        """Change the value `x` of one parameter in place, given its gradient and its state."""
        raise NotImplementedError(f"{type(self).__name__} defines neither update nor update_all")

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Change the values of all parameters of a group that have a gradient, in place.

        Args:
            parameters: for each its value, its gradient and its state.
            group: the options.
        """
        for x, g, state in parameters:
            self.update(x, g, state, group)

    def places(self, group: Mapping[str, Any]) -> Any:
        """What a kernel that steps a whole group remembers of its arrays (`kernels.optim`)."""
        known = self._places.get(id(group))
        if known is None:
            known = self._places[id(group)] = kernels.optim.TableCache()
        return known

    def step(self) -> None:
        """Change every parameter that has a gradient; the others, and their states, stay."""
        for group in self.param_groups:
            stepped: list[Stepped] = []
            for parameter in group["params"]:
                node = parameter.node
                if node is None or node.grad is None:
                    continue
                x = parameter._data
                if not x.flags.writeable:
                    release(x)
                state = self._states.get(parameter)
                if state is None:
                    state = self._states[parameter] = {}
                for value in state.values():
                    if value.__class__ is np.ndarray:
                        if value.dtype is not x.dtype:
                            self._convert(state, x.dtype)
                        break  # they are all of one dtype
                stepped.append((x, node.grad._data, state))
            if stepped:
                self.update_all(stepped, group)
                mark_written(*[x for x, _, _ in stepped])
        for observer in mode.observers:
            observer.on_step(self)

    @staticmethod
    def _convert(state: State, dtype: np.dtype[Any]) -> None:
        """Follow a model that was converted."""
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                state[key] = value.astype(dtype, copy=False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or with False make zeros of those there are.

        A parameter without a gradient is not stepped; one with zeros is, by momentum and decay.
        """
        for parameter in self._parameters():
            if set_to_none or parameter.grad is None:
                parameter.zero_grad()
            else:  # a new tensor: the old one may be held by someone
                parameter.grad = Tensor(np.zeros(parameter.shape, parameter.dtype))

    def state_bytes(self) -> int:
        """How many bytes the state holds: for Adam, two numbers for each trained one."""
        return sum(
            value.nbytes
            for state in self._states.values()
            for value in state.values()
            if isinstance(value, np.ndarray)
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state and the options; parameters are numbered in the order of the groups.

        `{"state": {number: {...}}, "param_groups": [{"params": [numbers], "lr": ...}]}`, with
        arrays, numbers and booleans only.
        """
        numbers = {p: k for k, p in enumerate(self._parameters())}
        return {
            "state": {
                numbers[p]: {
                    key: value.copy() if isinstance(value, np.ndarray) else value
                    for key, value in state.items()
                }
                for p, state in self._states.items()
            },
            "param_groups": [
                {**group, "params": [numbers[p] for p in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` has given, with its options.

        Options that it does not know are taken for switched off, if they are off here too.

        Raises:
            ValueError: if it belongs to other parameters; then nothing is changed.
        """
        parameters = self._parameters()
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(
                "load_state_dict: a state of an optimiser is a dict with 'state' and 'param_groups'"
            )
        groups = state_dict["param_groups"]
        sizes, expected = ([len(g["params"]) for g in gs] for gs in (groups, self.param_groups))
        if sizes != expected:
            raise ValueError(
                f"load_state_dict: the state has groups of {sizes} parameters, this optimiser "
                f"{expected}"
            )
        loaded = []
        for group, own in zip(groups, self.param_groups, strict=True):
            missing = {key for key, value in own.items() if key not in group and value is not False}
            unknown = set(group) - set(own)
            if missing or unknown:
                raise ValueError(
                    f"load_state_dict: the options of a group are {sorted(own)}; the state lacks "
                    f"{sorted(missing)} and has unknown {sorted(unknown)}"
                )
            loaded.append({**own, **group, "params": own["params"]})
            self.check_options(loaded[-1])
        states: dict[Tensor, State] = {}
        options = [group for group in loaded for _ in group["params"]]
        for number, state in state_dict["state"].items():
            if not 0 <= int(number) < len(parameters):
                raise ValueError(
                    f"load_state_dict: there is a state for parameter {number}, but the optimiser "
                    f"has {len(parameters)}"
                )
            names = self.state_names(options[int(number)])
            if state and set(state) != names:
                raise ValueError(
                    f"load_state_dict: the state of parameter {number} has {sorted(state)}, "
                    f"{type(self).__name__} with the options of its group needs {sorted(names)}"
                )
            parameter = parameters[int(number)]
            for key, value in state.items():
                if isinstance(value, np.ndarray) and value.shape != parameter.shape:
                    raise ValueError(
                        f"load_state_dict: {key} of parameter {number} has shape {value.shape}, "
                        f"the parameter {parameter.shape}"
                    )
            states[parameter] = {
                key: value.astype(parameter.dtype) if isinstance(value, np.ndarray) else value
                for key, value in state.items()
            }
        for own, group in zip(self.param_groups, loaded, strict=True):
            own.update(group)
        self._states = states

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            count = sum(p.size for p in group["params"])
            lines.append(
                f"  group {i}: {len(group['params'])} tensors, {count:,} numbers, {options}"
            )
        return "\n".join([*lines, ")"])


def _check(tensor: Any, role: str, seen: set[int]) -> None:
    """Refuse what cannot be optimised, or is there already."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{role} must be a Tensor, not {type(tensor).__name__}")
    if not tensor.is_leaf:
        raise ValueError(f"{role} is {tensor.describe()}; only leaves can be optimised")
    if not tensor.requires_grad:
        raise ValueError(
            f"{role} is frozen ({tensor.describe()}), so it would never change; leave it out: "
            f"model.trainable_parameters() lists the others"
        )
    if id(tensor) in seen:
        raise ValueError(f"{role} occurs twice ({tensor.describe()}); it would be stepped twice")
    seen.add(id(tensor))
