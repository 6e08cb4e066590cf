"""The base class of optimisers: groups of parameters with options, and states of parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import are_same, check_count, check_state, python_numbers, shown
from minigrad.core.grad_mode import mode
from minigrad.core.tensor import Tensor
from minigrad.errors import named_errors
from minigrad.nn.module import Module
from minigrad.readonly import release
from minigrad.renamed import add_hints, hint_arguments, with_hints
from minigrad.tables import counted
from minigrad.versions import mark_written

_memory, _writeable = attrgetter("_data"), attrgetter("flags.writeable")

Parameters = Iterable[Tensor] | Sequence[Mapping[str, Any]]
State = dict[str, Any]
Stepped = tuple[NDArray[Any], NDArray[Any], State]


def check_gradients_left(tensors: Iterable[Tensor]) -> None:
    """Raise a RuntimeError if only a captured step has computed gradients of these tensors.

    Inside of a captured step, nothing is raised: a tensor may have no gradient in it.
    """
    if mode.captured_steps:
        return
    nodes = [tensor.node for tensor in tensors if tensor.node is not None]
    if any(node.in_program for node in nodes) and all(node.grad is None for node in nodes):
        raise RuntimeError(
            "none of these tensors has a gradient: gradients of a captured step do not outlive it; "
            "call optimizer.step(), clip_grad_norm, clip_grad_value or grad_norm inside of the "
            "step, and return the norm if it is of interest"
        )


class LastStep:
    """The values that a group's step saves for the next one, which mostly has the same parameters.

    Attributes:
        xs: the values of the parameters.
        states: their states. If an object in `xs` or `states` is another one in the next step, that
            step makes a new `LastStep`.
        names: the names of the arrays in the states that the kernel changes besides the values.
        options: the values of the group when they were last checked.
        others: the same without lr.
    """

    def __init__(self, xs: list[NDArray[Any]], states: list[State]) -> None:
        self.xs, self.states = xs, states
        self.names: list[str] | None = None
        self.options: list[Any] = []
        self.others: list[Any] = []
        self._columns: list[list[NDArray[Any]]] = []

    def count_step(self) -> list[int]:
        """Add 1 to the number of steps in the state of each parameter, and return the numbers."""
        for state in self.states:
            state["step"] = state.get("step", 0) + 1
        return [state["step"] for state in self.states]

    def columns(self, names: list[str], start: float = 0.0) -> list[list[NDArray[Any]]]:
        """Return the values, and these arrays of the states, as lists; new arrays hold `start`."""
        if names != self.names:
            for x, state in zip(self.xs, self.states, strict=True):
                new = [name for name in names if name not in state]
                state.update({name: np.full_like(x, start, dtype_of_state(x)) for name in new})
            self._columns = [self.xs, *([state[name] for state in self.states] for name in names)]
            self.names = names
        return self._columns


class Optimizer(ABC):
    """Base class of optimisers: `step()` changes every parameter that has a gradient.

    To write an optimiser, define `check_options`, `update` and, if it has a state, `state_names`;
    also `check_states` if an option cannot be changed after a step. Define `update_all` instead of
    `update` to step all parameters of a group together. Options are the hyperparameters, such as
    the learning rate.

    The state of a parameter is a dict of numbers and arrays, which `update` fills. Its arrays of
    floats are converted to the dtype of the parameter, or float32 for float16. A state of other
    values than "step", a number of steps, and arrays of floats in the shape of the parameter can be
    loaded if the optimiser also defines `check_value`.

    Args:
        params: tensors, or groups of tensors:
            `[{"params": [...], "lr": 1e-3}, {"params": [...]}]`.
        defaults: the options for groups that do not set them; also an attribute.

    Attributes:
        param_groups: a dict for each group: "params", and the options, which may be changed between
            steps.

    Raises:
        ValueError: if there are no parameters, a parameter occurs twice, is frozen or is not a
            leaf, or an option has an impossible value.
        TypeError: if the parameters are one tensor, a Module or a set instead of a list, a
            parameter is not a tensor, or an option is unknown or has a wrong type.
    """

    unused_names: frozenset[str] = frozenset()
    """Names that the state of a parameter may still have after an option was switched off."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hint_arguments(cls)

    def __init__(self, params: Parameters, defaults: Mapping[str, Any]) -> None:
        check_ordered(f"{type(self).__name__}: the parameters", params, (Tensor, Module))
        groups: list[Any] = list(params)
        if groups and not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        self.defaults = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self._states: dict[Tensor, State] = {}
        self._last: dict[int, LastStep] = {}  # of each group, by its id
        for group in groups:
            self.add_param_group(group)
        if not self._parameters():
            raise ValueError(f"{type(self).__name__}: there are no parameters to optimise")

    @property
    def lr(self) -> float:
        """The learning rate of all groups; an assignment sets it for all of them.

        Raises:
            ValueError: if it is read, and the groups have different learning rates; or if it is set
                to an impossible value.
            TypeError: if it is set to something else than a number.
            AttributeError: if the optimiser has no option lr.
        """
        if "lr" not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no option lr")
        rates = [group["lr"] for group in self.param_groups]
        if any(rate != rates[0] for rate in rates):
            raise ValueError(
                f"{type(self).__name__}: the groups have different learning rates, {rates}; each "
                f"is optimizer.param_groups[i]['lr']"
            )
        return rates[0]  # type: ignore[no-any-return]  # an option

    @lr.setter
    def lr(self, rate: float) -> None:
        if "lr" not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no option lr")
        for group in self.param_groups:
            self.check_options({**group, "lr": rate})
        for group in self.param_groups:
            group["lr"] = rate

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "lr" and name in vars(self).get("defaults", ()):
            raise AttributeError(
                f"{type(self).__name__}: {name} is an option of each group; set "
                f"optimizer.param_groups[i][{name!r}]"
            )
        if name == "learning_rate":
            raise AttributeError(
                f"{type(self).__name__}: the learning rate is called lr; set optimizer.lr"
            )
        super().__setattr__(name, value)

    @named_errors
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, such as those of layers that were frozen so far.

        `group` is a dict with "params" and any options; missing options have their defaults. After
        an error, nothing is changed.

        Raises:
            ValueError: as in `Optimizer`; a parameter may not be in an earlier group either.
            TypeError: as in `Optimizer`, or if `group` is not a dict with "params".
        """
        i = len(self.param_groups)
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"group {i} must be a dict with 'params', not {group!r:.80}")
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise TypeError(
                f"group {i} has unknown options {sorted(unknown)}, beside {sorted(self.defaults)}"
            )
        tensors = group["params"]
        check_ordered(f"the parameters of group {i}", tensors)
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        seen = {id(parameter) for parameter in self._parameters()}
        for k, tensor in enumerate(tensors):
            role = f"parameter {k} of group {i}"
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{role} must be a Tensor, not {type(tensor).__name__}")
            if not tensor.is_leaf:
                raise ValueError(f"{role} is {tensor.describe()}; only leaves can be optimised")
            if not tensor.requires_grad:
                raise ValueError(
                    f"{role} is frozen ({tensor.describe()}), so it would never change; leave it "
                    f"out: model.trainable_parameters() lists the others"
                )
            if id(tensor) in seen:
                raise ValueError(
                    f"{role} occurs twice ({tensor.describe()}); it would be stepped twice"
                )
            seen.add(id(tensor))
        complete = {**self.defaults, **group, "params": tensors}
        self.check_options(complete)
        _convert_numbers(complete)
        self.param_groups.append(complete)

    @abstractmethod
    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise a ValueError or a TypeError if an option of a group has an impossible value."""

    def state_names(self, group: Mapping[str, Any]) -> Collection[str]:
        """Return the names of the values that the state of a parameter has after a step."""
        return ()

    def check_states(self, states: Sequence[State], group: Mapping[str, Any]) -> None:  # noqa: B027
        """Raise a ValueError if states of earlier steps do not fit the options of a group."""

    def check_value(self, role: str, name: str, value: Any, parameter: Tensor) -> None:
        """Raise an error about `role`, a value of a state to load, if it does not fit.

        Raises:
            ValueError: if the value is not an array of floats in the shape of the parameter, or,
                named "step", not an integer of at least 0.
        """
        if name == "step":
            check_count(role, value)
        elif not isinstance(value, np.ndarray):
            raise ValueError(f"{role} is an array, not {value!r:.60}")
        elif value.shape != parameter.shape or value.dtype.kind != "f":
            raise ValueError(
                f"{role} has shape {value.shape} and dtype {value.dtype}, the parameter "
                f"{parameter.shape} and {parameter.dtype}"
            )

    def update(
        self, x: NDArray[Any], g: NDArray[Any], state: State, group: Mapping[str, Any]
    ) -> None:
        """Change the value `x` of one parameter in place, given its gradient and its state."""
        raise NotImplementedError(f"{type(self).__name__} defines neither update nor update_all")

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Change the values of parameters in place, given the value, gradient and state of each."""
        for x, g, state in parameters:
            self.update(x, g, state, group)

    def last_step(self, group: Mapping[str, Any]) -> LastStep:
        """Return the `LastStep` of a group."""
        return self._last[id(group)]

    @with_hints
    def step(self) -> None:
        """Change every parameter that has a gradient; the others and their states do not change.

        If the model was converted to another dtype, its states are converted too. States of
        float16 parameters are float32.

        Raises:
            ValueError: if an option was set to an impossible value, or to one that does not fit
                the earlier steps. Nothing is changed then.
            TypeError: if an option was set to a value of a wrong type.
            RuntimeError: if no gradient is left outside of a captured step, which computed them.
        """
        self.check_groups()
        has_stepped = False
        for group in self.param_groups:
            parameters, gradients = [], []
            for parameter in group["params"]:
                node = parameter.node
                if node is not None and node.grad is not None:
                    parameters.append(parameter)
                    gradients.append(node.grad._data)
            if parameters:
                self.step_group(group, parameters, gradients)
                has_stepped = True
        if not has_stepped:
            check_gradients_left(self._parameters())
        for observer in mode.observers:
            observer.on_step(self)

    def check_groups(self) -> None:
        """Raise the errors of `step` about options, before any parameter is changed."""
        try:
            for group in self.param_groups:
                self._check_group(group)
        except (TypeError, ValueError) as error:
            error.args = (f"step: {error}",)
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Check the options of a group if one has changed since its last step.

        Also convert scalars of numpy to numbers of Python, as which a checkpoint saves them. With a
        float32, 1 - beta would be rounded, so a resumed run would have other bits.

        A scheduler changes lr in every step. So if only lr has, the other options, whose checks
        take a third of the time of a small step, are not checked again.
        """
        values, last = [*group.values()], self._last.get(id(group))
        if last is not None and are_same(values, last.options):
            return
        rate = group.get("lr")
        others = [*{**group, "lr": None}.values()]
        is_rate = type(rate) is float and 0 <= rate < math.inf
        if last is None or not is_rate or not are_same(others, last.others):
            if missing := sorted(self.defaults.keys() - group.keys()):
                raise ValueError(
                    f"a group lacks the options {missing}; add_param_group adds a group with the "
                    f"defaults of missing options"
                )
            self.check_options(group)
            states = map(self._states.get, group["params"])
            self.check_states([state for state in states if state], group)
            _convert_numbers(group)
            values, others = [*group.values()], [*{**group, "lr": None}.values()]
        if last is not None:
            last.options, last.others = values, others

    def step_group(
        self,
        group: dict[str, Any],
        parameters: Sequence[Tensor],
        gradients: Sequence[NDArray[Any]],
    ) -> None:
        """Change parameters of one group, given their gradients; raise the errors of `step`."""
        self._check_group(group)  # again, because a captured step calls only this function
        xs: list[NDArray[Any]] = [*map(_memory, parameters)]
        states: list[Any] = [*map(self._states.get, parameters)]
        last = self._last.get(id(group))
        if (
            last is None
            or not (are_same(xs, last.xs) and are_same(states, last.states))
            or not all(map(_writeable, xs))
        ):
            states = [*map(self._state_of, parameters)]
            self._last[id(group)] = LastStep(xs, states)
        if group.get("maximize"):
            gradients = [np.negative(g, out=np.empty_like(g)) for g in gradients]
        self.update_all([*zip(xs, gradients, states, strict=True)], group)
        mark_written(*xs)

    def _state_of(self, parameter: Tensor) -> State:
        """Return the state of a parameter, in `dtype_of_state`; make the parameter writable."""
        release(parameter._data)
        state, dtype = self._states.setdefault(parameter, {}), dtype_of_state(parameter)
        if any(_has_floats(v) and v.dtype != dtype for v in state.values()):
            state.update(_copied(state, dtype))
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None; with False, set existing ones to zeros.

        `step` skips a parameter without a gradient. A parameter whose gradient is zeros is still
        changed by momentum and weight decay.
        """
        for parameter in self._parameters():
            if set_to_none or parameter.grad is None:
                parameter.zero_grad()
            else:  # a new tensor, because the user may still hold the old gradient
                parameter.grad = Tensor(np.zeros(parameter.shape, parameter.dtype))

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to copy, without `_last`: a copy has other arrays and group ids."""
        return vars(self) | {"_last": {}}

    @property
    def state(self) -> Mapping[Tensor, State]:
        """The state of each parameter that has one: not a copy, and only to be read."""
        return self._states

    def state_bytes(self) -> int:
        """Return the size of the state in bytes.

        For Adam, it is twice the size of the weights, or four times if they are float16.
        """
        values = (value for state in self._states.values() for value in state.values())
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state and the options.

        Parameters are numbered in the order of the groups. The form is
        `{"state": {number: {...}}, "param_groups": [{"params": [numbers], "lr": ...}]}`, with
        arrays, numbers and booleans only.
        """
        numbers = {p: k for k, p in enumerate(self._parameters())}
        groups = [{**g, "params": [numbers[p] for p in g["params"]]} for g in self.param_groups]
        # A parameter that was taken out of its group may still have a state.
        state = {numbers[p]: _copied(s) for p, s in self._states.items() if p in numbers}
        return {"state": state, "param_groups": groups}

    @named_errors
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned, with its options.

        As in PyTorch, the numbers in a group of the state belong to the parameters at the same
        positions in the group of this optimiser. An option that is missing in the state, and is
        False in this optimiser, stays False. If there is an error, nothing is changed.

        Raises:
            TypeError: if a value in the state has a wrong type.
            ValueError: if it is not the state of an optimiser, or does not fit these parameters and
                options.
        """
        parameters = self._parameters()
        try:
            groups = [dict(group) for group in state_dict["param_groups"]]
            sizes = [len(group["params"]) for group in groups]
            numbers = [int(number) for group in groups for number in group["params"]]
            found = {int(number): dict(state) for number, state in state_dict["state"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"a state of an optimiser is a dict of 'state', a dict of dicts by the numbers of "
                f"parameters, and 'param_groups', a list of dicts that list their 'params', not "
                f"{state_dict!r:.100}"
            ) from error
        expected = [len(group["params"]) for group in self.param_groups]
        if sizes != expected:
            raise ValueError(f"the state has groups of {sizes} parameters, not of {expected}")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"the groups of the state list parameters twice: {numbers!r:.100}")
        loaded = []
        for group, own in zip(groups, self.param_groups, strict=True):
            is_off = {key for key, value in own.items() if value is False and key not in group}
            check_state("a group with these options", group, own.keys() - is_off)
            # A list, as JSON has instead of a tuple, would be shared with the caller.
            given = {key: tuple(v) if isinstance(v, list) else v for key, v in group.items()}
            loaded.append({**own, **given, "params": own["params"]})
            self.check_options(loaded[-1])
        states: dict[Tensor, State] = {}
        options = [group for group in loaded for _ in group["params"]]
        known = dict(zip(numbers, zip(parameters, options, strict=True), strict=True))
        for number, state in found.items():
            if number not in known:
                raise ValueError(
                    f"there is a state for parameter {number}, but the groups of the state list "
                    f"{numbers!r:.100}"
                )
            parameter, group = known[number]
            if state:
                owner = f"parameter {number} in {type(self).__name__} with the options of its group"
                check_state(owner, state, self.state_names(group), self.unused_names)
            for key, value in state.items():
                self.check_value(f"{key} of parameter {number}", key, value, parameter)
            states[parameter] = _copied(state, dtype_of_state(parameter))
        for own, group in zip(self.param_groups, loaded, strict=True):
            own.update(group)
        self._states = states

    def _parameters(self) -> list[Tensor]:
        """Return the parameters of all groups."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            tensors = counted(len(group["params"]), "tensor")
            parameters = counted(sum(p.size for p in group["params"]), "parameter")
            lines.append(f"  group {i}: {tensors}, {parameters}, {options}")
        return "\n".join([*lines, ")"])


add_hints(Optimizer, "Optimizer")


def dtype_of_state(x: Tensor | NDArray[Any]) -> np.dtype[Any]:
    """Return the dtype of the state of x: float32 for float16, where small squares would be 0."""
    return np.dtype(np.float32) if x.dtype == np.float16 else x.dtype


def check_ordered(whose: str, params: Any, wrong: tuple[type, ...] = ()) -> None:
    """Raise a TypeError unless `params` can be a list of tensors; `wrong` are further classes."""
    # The order of a set differs from run to run, and a state is by number.
    if isinstance(params, (set, frozenset, *wrong)) or not isinstance(params, Iterable):
        raise TypeError(
            f"{whose} are a list of tensors, in the same order in each run, such as "
            f"model.trainable_parameters(), not {shown(params)}"
        )


def _convert_numbers(group: dict[str, Any]) -> None:
    """Convert the options of a group that are scalars of numpy to numbers of Python."""
    group.update({k: python_numbers(v) for k, v in group.items() if k != "params"})


def _copied(state: State, dtype: np.dtype[Any] | None = None) -> State:
    """Return a copy of a parameter's state; convert its arrays of floats to `dtype`, if given."""
    return {
        key: np.array(value, dtype if _has_floats(value) else None, order="C")
        if isinstance(value, np.ndarray)
        else value
        for key, value in state.items()
    }


def _has_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
