"""The call of an op, written out for that op.

A small model spends its time in the calls of ops, not in their arithmetic. A call that loops over
its arguments, looks up which of them have rules and asks each rule what to save costs about twice
as much as one in which all this is written out. So, as `dataclass` does with `__init__`, we write
the text of the function once for each op, and let Python compile it. `minigrad.multiply.source`
shows one:

    def multiply(x, y):
        ...
        if isinstance(x, _Tensor):
            _x_node = x.node
            _x_data = x._data
        ...
        _out = _forward(_x_data, _y_data)
        ...
            if _x_node is not None:
                _edges.append((_x_node, 0, _rule_0, _y_data, ))

What the call needs besides the op's own parameters has names with an underscore.

The steps are the same for all ops: take the arrays out of the Tensors, bring them to one dtype, run
the forward, wrap its result, and, if some input needs a gradient, leave a node with an edge to each
such input.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from minigrad.core.dtypes import FLOAT32, FLOAT64, common_float
from minigrad.core.grad_mode import mode
from minigrad.core.node import Node, OpLike
from minigrad.core.sketch import Sketch, sketched
from minigrad.core.tensor import Tensor, as_array
from minigrad.errors import op_error, op_of
from minigrad.readonly import release
from minigrad.versions import clock

_UNWRAP = """
    _{p}_node = None
    if isinstance({p}, _Tensor):
        _found = True
        _{p}_node = {p}.node
        _{p}_data = {p}._data"""

_TAKE_DTYPE = """
        if _{p}_data.dtype is not _dtype:
            _mixed = _mixed or _dtype is not None
            _dtype = _{p}_data.dtype"""

_ELSE = """
    else:
        _{p}_data = {p}"""

_NOTE_MIXED = """
        if {p}.__class__ not in _NUMBERS:
            _mixed = True"""

_NOTE_MIXED_OR_NONE = """
        if {p} is not None and {p}.__class__ not in _NUMBERS:
            _mixed = True"""

_SKETCHED = """
    if {any_sketch}:
        return _sketched(_op, ({all}))"""

_AGREE = """
    if _mixed and _found:
        {inputs_data} = _agree(_op, {positions}, ({inputs_data}), ({inputs}))
        _dtype = None"""

_FLOATS = """
    if _{p}_data.__class__ is not _ndarray:
        if not _found and {p} is not None:
            _{p}_data = _as_floats(_op, {p})
    elif _{p}_data.dtype is not _FLOAT32 and _{p}_data.dtype is not _FLOAT64:
        _{p}_data = _as_floats(_op, _{p}_data)"""

_RUN = """
    try:
        {results} = _forward({passed})
    except (IndexError, OverflowError, TypeError, ValueError) as _error:
        raise _explained(_op, _error, ({all_data},)) from _error
    _recording, _observers = _mode.state
    if not _found:
        for _observer in _observers:
            _observer.on_call(_op, ({all}), _out)
        return _out
    if _out.__class__ is not _ndarray:
        _out = _as_output(_op, _out)
    _differentiable = True
    if _out.dtype is not _dtype:
        _out = _demoted(_op, _out, ({inputs}))
        _differentiable = _out.dtype.kind == "f"
    if _out.base is not None or {aliased}:
        _out = _view(_out, ({all_data},))
    _result = _new(_Tensor)
    _result._data = _out
    _result.node = None"""

_REFUSE = """
    if _recording and ({any_ruleless}) and _out.dtype.kind == "f":
        raise _without_rule(_op, {ruleless})"""

_RECORD = """
    if _recording and _differentiable and ({any_node}):
        _result.node = _node = _new(_Node)
        _node.op = _op
        _node.edges = _edges = []
        _node.order = next(_clock)
        _node.shape = _out.shape
        _node.dtype = _out.dtype
        _node.watched = False"""

_EDGE = """
        if _{p}_node is not None:
            _edges.append((_{p}_node, {position}, _rule_{position}, {saved}))"""

_KEEP_ARGUMENTS = """
        _node.arguments = ({all_data},)"""

_RETURN = """
    for _observer in _observers:
        _observer.on_call(_op, ({all}), _result)
    return _result
"""


FILENAME_PREFIX = "<the call of "
"""How the file names begin under which Python knows the texts of calls."""


def write(op: OpLike) -> tuple[str, Callable[..., Tensor]]:
    """The text of the call of `op`, and the function that it defines."""
    rules = dict(sorted(op.rules))
    signature = op.signature.parameters
    defaults = {p: parameter.default for p, parameter in signature.items()}
    keyword_only = [p for p, parameter in signature.items() if parameter.kind is _KEYWORD_ONLY]
    parameters = [p if defaults[p] is _NO_DEFAULT else f"{p}=_default_{p}" for p in signature]
    if keyword_only:
        parameters.insert(len(signature) - len(keyword_only), "*")
    # What has no rule but a default is an option, and never a Tensor.
    values = [p for p in defaults if defaults[p] is _NO_DEFAULT or op.parameters.index(p) in rules]
    inputs = [op.parameters[position] for position in rules]
    data = {p: f"_{p}_data" if p in values else p for p in op.parameters}
    words = {
        "all": "".join(f"{p}, " for p in op.parameters),
        "all_data": ", ".join(data.values()),
        "results": "_out, _kept" if op.keeps else "_out",
        "passed": ", ".join(f"{p}={d}" if p in keyword_only else d for p, d in data.items()),
        "inputs": "".join(f"{p}, " for p in inputs),
        "inputs_data": "".join(f"{data[p]}, " for p in inputs),
        "aliased": " or ".join(f"_out is {data[p]}" for p in values) or "False",
        "any_sketch": " or ".join(f"_{p}_data.__class__ is _Sketch" for p in values) or "False",
        "any_node": " or ".join(f"_{p}_node is not None" for p in inputs),
        "positions": tuple(rules),
        "ruleless": [p for p in values if p not in inputs],
        "any_ruleless": " or ".join(f"_{p}_node is not None" for p in values if p not in inputs),
    }
    name = op.name if op.name.isidentifier() else "call"  # a lambda has no name
    text = f"def {name}({', '.join(parameters)}):\n    _found = _mixed = False\n    _dtype = None"
    for p in values:
        text += _UNWRAP.format(p=p)
        text += _TAKE_DTYPE.format(p=p) if p in inputs else ""
        text += _ELSE.format(p=p)
        if p in inputs:
            text += (_NOTE_MIXED if defaults[p] is _NO_DEFAULT else _NOTE_MIXED_OR_NONE).format(p=p)
    if op.cost is not None or op.composition is not None:
        text += _SKETCHED.format(**words)
    text += _AGREE.format(**words) if inputs else ""
    text += "".join(_FLOATS.format(p=p) for p in inputs if op.floats)
    text += _RUN.format(**words)
    text += _REFUSE.format(**words) if words["ruleless"] else ""
    if inputs:
        text += _RECORD.format(**words)
        slots = [*data.values(), "_out", "", "_kept"]  # the place of `position`, of sequences
        for position, rule in rules.items():
            saved = "".join(
                f"_shape({slots[slot]}), " if shape_only else f"{slots[slot]}, "
                for slot, shape_only in rule.slots
            )
            text += _EDGE.format(p=op.parameters[position], position=position, saved=saved)
        text += _KEEP_ARGUMENTS.format(**words) if op.replayed else ""
    text += _RETURN.format(**words)
    namespace: dict[str, Any] = _NAMESPACE | {"_op": op, "_forward": op.forward}
    namespace |= {f"_rule_{position}": rule for position, rule in rules.items()}
    namespace |= {f"_default_{p}": default for p, default in defaults.items()}
    filename = f"{FILENAME_PREFIX}{op.name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), namespace)
    return text, namespace[name]


def on_sequence(op: OpLike, arrays: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
    """The same steps for an op whose inputs are the elements of one sequence: how many, it says."""
    arrays = list(arrays)
    tensors = [value if isinstance(value, Tensor) else None for value in arrays]
    data: Sequence[Any] = [value._data if isinstance(value, Tensor) else value for value in arrays]
    found = any(tensor is not None for tensor in tensors)
    if found:
        data = agree(op, range(len(data)), data, arrays)
    try:
        out = op.forward(list(data), **options)
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise explained(op, error, data) from error
    recording, observers = mode.state
    result: Any = out
    if found:
        out = demoted(op, as_output(op, out), arrays)
        out = view(out, data)
        result = Tensor.at(out, None)
        ((_, rule),) = op.rules
        # What all edges share is saved once: as much for each of n inputs would be n^2.
        saved = _saved(rule, [list(data), *options.values(), out, _POSITION])
        edges = [
            (tensor.node, i, rule, *(i if value is _POSITION else value for value in saved))
            for i, tensor in enumerate(tensors)
            if tensor is not None and tensor.node is not None
        ]
        if recording and edges and out.dtype.kind == "f":
            result.node = Node.of(op, edges, out)
    for observer in observers:
        observer.on_call(op, arrays, result)
    return result  # type: ignore[no-any-return]


_POSITION = object()  # stands for the position of an input, until it is known


def _saved(rule: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(shape(values[slot]) if only else values[slot] for slot, only in rule.slots)


def shape(value: Any) -> Any:
    """The shape of an array or number, the shapes of a list of them."""
    if isinstance(value, (np.ndarray, Sketch)):
        return value.shape
    return Shapes(map(np.shape, value)) if isinstance(value, list) else np.shape(value)


class Shapes(tuple[tuple[int, ...], ...]):
    """The shapes of the inputs of an op of many."""

    def starts(self, axis: int) -> list[int]:
        """Where each begins when they are joined along `axis`; computed once for all of them."""
        known: dict[int, list[int]] = vars(self).setdefault("known", {})
        if axis not in known:
            known[axis] = list(accumulate((s[axis] for s in self), initial=0))
        return known[axis]


def agree(
    op: OpLike, positions: Sequence[int], values: Sequence[Any], given: Sequence[Any]
) -> Sequence[Any]:
    """The inputs of `op` at `positions`, brought to one float dtype.

    It is the common one of the Tensors and arrays of floats that have dimensions, else of the
    Tensors without: numbers, 0-d arrays, lists of numbers and integers never promote.

    Args:
        op: whose inputs they are.
        positions: theirs among its parameters.
        values: with arrays for the Tensors.
        given: as they came.
    """
    for value in values:
        if (
            value.__class__ is not np.ndarray
            or value.dtype is not values[0].dtype
            or not value.ndim
        ):
            break
    else:
        return values  # arrays of one dtype, mostly a Tensor and data
    if any(value.__class__ is Sketch for value in values):
        return values
    agreed = [
        value.item()
        if isinstance(value, np.generic) or (isinstance(came, np.ndarray) and not came.ndim)
        else value
        for value, came in zip(values, given, strict=True)
    ]
    arrays = {}
    for i, (position, value) in enumerate(zip(positions, agreed, strict=True)):
        if isinstance(value, (np.ndarray, list, tuple)):
            arrays[i] = as_array(value)
        elif value.__class__ not in NUMBERS and (value is not None or op.is_required(position)):
            raise op_error(
                TypeError,
                op.name,
                f"takes tensors, arrays and numbers, not {value!r} for {op.input_name(position)}",
            )
    firm = [x for i, x in arrays.items() if not isinstance(agreed[i], (list, tuple))]
    target = common_float(firm or list(arrays.values()))
    if target is not None and len(values) > 1:
        # From the list itself, which may have more digits than the usual float.
        arrays = {i: as_array(agreed[i], target) for i in arrays}
    return [arrays.get(i, value) for i, value in enumerate(agreed)]


def as_floats(op: OpLike, value: Any) -> Any:
    """What a function of floats computes with: float64 for integers, float32 for half of it.

    What it returns is narrowed again (see `demoted`).
    """
    array = value if value.__class__ is Sketch else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise op_error(TypeError, op.name, f"takes tensors, arrays and numbers, not {value!r:.60}")
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64, copy=False)


def demoted(op: OpLike, out: Any, given: Sequence[Any]) -> Any:
    """The result in the dtype that its op should have computed in.

    That is the common one of the inputs that are floats. Where there are none, float64 out of
    integers (divided, or the root of one) becomes float32, our usual float. An op that is told a
    dtype, as `astype` is, knows best.
    """
    if out.dtype.kind != "f" or "dtype" in op.parameters:
        return out
    arrays = [x for x in given if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.ndim)]
    usual = common_float(arrays) or FLOAT32
    return out.astype(usual) if out.dtype.itemsize > usual.itemsize else out


def as_output(op: OpLike, out: Any) -> Any:
    """The result of a forward that is no plain array: numpy's reductions give numbers."""
    if isinstance(out, (np.ndarray, np.generic, int, float)):
        return np.asarray(out)
    if isinstance(out, Sketch):
        return out
    raise TypeError(
        f"the forward of `{op.name}` returned {out!r:.60}; an op has one output, an array"
    )


def without_rule(op: OpLike, names: Sequence[str]) -> TypeError:
    """An input is to get a gradient, and nobody has said how: not a case for silence."""
    return TypeError(
        f"`{op.name}` has no rule for {' or '.join(names)}, which requires a gradient; pass "
        f"{names[0]}.detach() if it is meant as a constant (an op of your own can be given a rule)"
    )


def view(out: Any, values: Sequence[Any]) -> Any:
    """A result that shares memory with an input: its own array, and one that can be written."""
    if not out.flags.writeable:
        # A view of held memory is read-only for no reason of its own; what repeats numbers is.
        inherited = release(out) and 0 not in out.strides
        if not inherited:
            return out.copy()
        out.flags.writeable = True
    return out.view() if any(out is value for value in values) else out


def explained(op: OpLike, error: Exception, values: Sequence[Any]) -> Exception:
    """An error of numpy's with the op's name and its operands; one of our own as it is."""
    if op_of(error) == op.name:
        return error
    operands = ", ".join(
        f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.50}"
        for value in values
    )
    text = f"{error}; it was called with {operands}"
    if isinstance(error, (OverflowError, ValueError)):
        return op_error(ValueError, op.name, text)
    if isinstance(error, IndexError):
        return op_error(IndexError, op.name, text)
    no_numbers = str(error).startswith("ufunc")  # has no loop for such types
    takes = ", and takes tensors, arrays and numbers" if no_numbers else ""
    return op_error(TypeError, op.name, text + takes)


# Python's own numbers adapt to the dtype of the array beside them.
NUMBERS = {float, int, bool}

_NO_DEFAULT = inspect.Parameter.empty
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

_NAMESPACE = {
    "_Node": Node,
    "_Tensor": Tensor,
    "_FLOAT32": FLOAT32,
    "_NUMBERS": NUMBERS,
    "_FLOAT64": FLOAT64,
    "_agree": agree,
    "_as_floats": as_floats,
    "_as_output": as_output,
    "_clock": clock,
    "_demoted": demoted,
    "_explained": explained,
    "_mode": mode,
    "_ndarray": np.ndarray,
    "_new": object.__new__,
    "_shape": shape,
    "_Sketch": Sketch,
    "_sketched": sketched,
    "_view": view,
    "_without_rule": without_rule,
}
