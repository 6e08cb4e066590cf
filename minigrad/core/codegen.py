"""Code generation: a specialised call function for each op.

A small model spends its time in the calls of ops, not in their arithmetic. A general call function
loops over its arguments, looks up which of them have VJPs, and asks each VJP what to save. It takes
about twice as long as a function specialised for one op. So, as `dataclass` does for `__init__`, we
write the source of the function once for each op, and Python compiles it. For an example, see
`minigrad.multiply.source`:

    def multiply(a, b):
        ...
        if _isinstance(a, _Tensor):
            _a_node = a.node
            _a_data = a._data
        ...
        _out = _forward(_a_data, _b_data)
        ...
            if _a_node is not None:
                _edges.append((_a_node, 0, _vjp_0, _b_data, ))

Names that are not parameters of the op begin with an underscore.

The steps are the same for all ops: take the arrays out of the Tensors, convert them to one dtype,
run the forward function, and make a Tensor of the result. If some input needs a gradient, record a
node with an edge to each such input.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import native_dtype, shown
from minigrad.core.grad_mode import mode
from minigrad.core.node import Node, OpLike
from minigrad.core.tensor import NUMBERS, Tensor, as_array, refuse_gradients
from minigrad.errors import called_with, none_given, op_error, op_of
from minigrad.readonly import release
from minigrad.versions import clock


class StandIn:
    """Base class of objects that replace the array in a Tensor, to find out what ops do.

    Subclasses implement numpy's functions by `__array_ufunc__` and `__array_function__`, so ops
    that are written with numpy work on them. Ops that call kernels, and fused ops, call
    `result_of` instead of computing.
    """

    __slots__ = ()

    shape: tuple[int, ...]

    def result_of(self, op: OpLike, given: Sequence[Any]) -> Any:
        """Return the result of an op that has a cost or a composition, for these arguments."""
        raise NotImplementedError


def taken_over(op: OpLike, given: Sequence[Any]) -> Any:
    """Return the result of `result_of` of the first stand-in among the arguments."""
    data = (value._data if isinstance(value, Tensor) else value for value in given)
    return next(value for value in data if isinstance(value, StandIn)).result_of(op, given)


FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

FILENAME_PREFIX = "<the call of "
"""The prefix of the file names of generated sources, for tracebacks."""


def write(op: OpLike) -> tuple[str, Callable[..., Tensor]]:
    """Generate the call function of `op`; return its source and the function."""
    vjps = dict(sorted(op.vjps))
    signature = op.signature.parameters
    defaults = {p: parameter.default for p, parameter in signature.items()}
    keyword_only = [p for p, parameter in signature.items() if parameter.kind is _KEYWORD_ONLY]
    parameters = [p if defaults[p] is _NO_DEFAULT else f"{p}=_default_{p}" for p in signature]
    if keyword_only:
        parameters.insert(len(signature) - len(keyword_only), "*")
    # A parameter with a default value and without a VJP is an option, never a Tensor.
    values = [p for p in defaults if defaults[p] is _NO_DEFAULT or op.parameters.index(p) in vjps]
    inputs = [op.parameters[argnum] for argnum in vjps]
    constants = [p for p in values if p not in inputs]
    options = [p for p in op.parameters if p not in values and type(defaults[p]) not in (bool, str)]
    data = {p: f"_{p}_data" if p in values else p for p in op.parameters}

    def listed(names: Iterable[str]) -> str:
        return "".join(f"{name}, " for name in names)

    def any_of(condition: str, names: Iterable[str]) -> str:
        return " or ".join(condition.format(p=p) for p in names) or "False"

    def body() -> Iterator[str]:
        all_data = listed(data.values())
        yield "_found = _mixed = False"
        yield "_dtype = None"
        for p in values:
            yield f"_{p}_node = None"
            yield f"if _isinstance({p}, _Tensor):"
            yield "    _found = True"
            yield f"    _{p}_node = {p}.node"
            yield f"    _{p}_data = {p}._data"
            if p in inputs:
                yield f"    if _{p}_data.dtype is not _dtype:"
                yield "        _mixed = _mixed or _dtype is not None"
                yield f"        _dtype = _{p}_data.dtype"
            yield f"elif {p}.__class__ is _ndarray:"
            yield f"    _{p}_data = {p}"
            if p in inputs:
                yield "    _mixed = True"
            given = "" if defaults[p] is _NO_DEFAULT else f"{p} is not None and "
            yield "else:"
            yield f"    if {given}{p}.__class__ not in _NUMBERS:"
            is_array = p in inputs or signature[p].annotation == "Array"
            required = f", {op.parameters.index(p)}" if is_array else ""
            yield f"        {p} = _plain({p}, _op{required})"
            if p in inputs:
                yield "        _mixed = True"
            yield f"    _{p}_data = {p}"
        for p in options:
            yield f"if {p}.__class__ not in _NUMBERS and _isinstance({p}, _Tensor):"
            yield f"    _check_option(_op, {p!r}, {p})"
        if op.cost is not None or op.composition is not None:
            is_other = "_{p}_data.__class__ is not _ndarray and _isinstance(_{p}_data, _StandIn)"
            yield f"if {any_of(is_other, values)}:"
            yield f"    return _taken_over(_op, ({listed(op.parameters)}))"
        if inputs:
            of_inputs, given = listed(data[p] for p in inputs), listed(inputs)
            yield "if _mixed and _found:"
            yield f"    {of_inputs} = _agree(_op, {tuple(vjps)}, ({of_inputs}), ({given}))"
            yield "    _dtype = None"
        for p in inputs if op.floats else ():
            yield f"if _{p}_data.__class__ is not _ndarray:"
            yield f"    if not _found and {p} is not None:"
            yield f"        _{p}_data = _as_floats(_op, {p})"
            yield f"elif _{p}_data.dtype is not _FLOAT32 and _{p}_data.dtype is not _FLOAT64:"
            yield f"    _{p}_data = _as_floats(_op, _{p}_data)"
        passed = ", ".join(f"{p}={d}" if p in keyword_only else d for p, d in data.items())
        results = "_out, _residuals" if op.returns_residuals else "_out"
        yield "_recording, _observers = _mode.state"
        yield "try:"
        yield "    if not _observers:"
        yield f"        {results} = _forward({passed})"
        yield "    else:"
        yield f"        {results} = _watched(_forward, {passed})"
        yield "except _ERRORS as _error:"
        yield f"    raise _explained(_op, _error, ({all_data})) from _error"
        yield "if not _found:"
        yield "    for _observer in _observers:"
        yield f"        _observer.on_call(_op, ({listed(op.parameters)}), _out)"
        yield "    return _out"
        yield "if _out.__class__ is not _ndarray:"
        yield "    _out = _as_output(_op, _out)"
        yield "_differentiable = True"
        yield "if _out.dtype is not _dtype:"
        yield f"    _out = _cast_back(_op, _out, ({listed(inputs or values)}))"
        yield "    _differentiable = _out.dtype.kind == 'f'"
        yield f"if _out.base is not None or {any_of('_out is _{p}_data', values)}:"
        yield f"    _out = _view(_out, ({all_data}))"
        yield "_result = _new(_Tensor)"
        yield "_result._data = _out"
        yield "_result.node = None"
        if constants:
            given = any_of("_{p}_node is not None", constants)
            yield f"if _recording and ({given}) and _out.dtype.kind == 'f':"
            pairs = "".join(f"({p!r}, _{p}_node), " for p in constants)
            yield f"    raise _without_vjp(_op, [_p for _p, _node in ({pairs}) if _node])"
        if inputs:
            given = any_of("_{p}_node is not None", inputs)
            yield f"if _recording and _differentiable and ({given}):"
            yield "    _result.node = _node = _new(_Node)"
            yield "    _node.op = _op"
            yield "    _node.edges = _edges = []"
            yield "    _node.order = _next(_clock)"
            yield "    _node.shape = _out.shape"
            yield "    _node.dtype = _out.dtype"
        slots = [*data.values(), "_out", "", "_residuals"]  # the third: `argnum` of sequences
        saved_slots = {i for vjp in vjps.values() for i, only in vjp.slots if not only}
        for i, p in enumerate(op.parameters):
            may_be_list = p not in inputs and not isinstance(defaults[p], (bool, float, str))
            if inputs and may_be_list and (op.replayed or i in saved_slots):
                yield f"    if {data[p]}.__class__ in _LISTS:"
                yield f"        {data[p]} = _unshared({data[p]})"
        for argnum, vjp in vjps.items():
            p = op.parameters[argnum]
            saved = listed(f"_shape({slots[i]})" if only else slots[i] for i, only in vjp.slots)
            yield f"    if _{p}_node is not None:"
            yield f"        _edges.append((_{p}_node, {argnum}, _vjp_{argnum}, {saved}))"
        if inputs and op.replayed:
            yield f"    _node.arguments = ({all_data})"
        yield "for _observer in _observers:"
        yield f"    _observer.on_call(_op, ({listed(op.parameters)}), _result)"
        yield "return _result"

    name = op.name if op.name.isidentifier() else "call"  # a lambda has no name
    text = "\n    ".join([f"def {name}({', '.join(parameters)}):", *body()]) + "\n"
    forward = getattr(op.forward, "same", op.forward)
    namespace: dict[str, Any] = _NAMESPACE | {"_op": op, "_forward": forward}
    namespace |= {f"_vjp_{argnum}": vjp for argnum, vjp in vjps.items()}
    namespace |= {f"_default_{p}": default for p, default in defaults.items()}
    filename = f"{FILENAME_PREFIX}{op.name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), namespace)
    return text, namespace[name]


def on_sequence(op: OpLike, /, *args: Any, **options: Any) -> Tensor:
    """Call an op whose inputs are the elements of one sequence, with the same steps."""
    bound = op.signature.bind(*args, **options)
    bound.apply_defaults()
    options = dict(bound.arguments)
    given = options.pop(op.parameters[0])
    try:
        arrays = list(given)
    except TypeError as error:
        text = f"takes a sequence of tensors, not {shown(given)}"
        raise op_error(TypeError, op.name, text) from error
    found = any(isinstance(value, Tensor) for value in arrays)
    data: Sequence[Any] = [
        value._data if isinstance(value, Tensor) else plain(value, op, i)
        for i, value in enumerate(arrays)
    ]
    if found:
        data = agree(op, range(len(data)), data, arrays)
    recording, observers = mode.state
    forward = partial(watched, op.forward) if observers else op.forward
    try:
        out = forward(list(data), **options)
    except ERRORS as error:
        if isinstance(given, Tensor) and any(isinstance(v, Tensor) for v in options.values()):
            text = f"takes its tensors as one list, as in {op.name}([a, b])"
            raise op_error(TypeError, op.name, text) from error
        raise explained(op, error, data) from error
    for name, value in options.items():
        check_option(op, name, value)
    result: Any = out
    if found:
        out = cast_back(op, as_output(op, out), arrays)
        out = view(out, data)
        result = Tensor.at(out, None)
        ((_, vjp),) = op.vjps
        # Saved once for all edges: with n inputs, saving it for each edge would take n^2 memory.
        saved_options = (unshared(v) if v.__class__ in LISTS else v for v in options.values())
        slots = [list(data), *saved_options, out, _ARGNUM]
        saved = [shape(slots[slot]) if only else slots[slot] for slot, only in vjp.slots]
        edges = [
            (given.node, i, vjp, *(i if value is _ARGNUM else value for value in saved))
            for i, given in enumerate(arrays)
            if isinstance(given, Tensor) and given.node is not None
        ]
        if recording and edges and out.dtype.kind == "f":
            result.node = Node.of(op, edges, out)
    if observers:
        inputs = SequenceInputs(arrays)
        inputs.options = tuple(options.values())
        for observer in observers:
            observer.on_call(op, inputs, result)
    return result  # type: ignore[no-any-return]


def watched(forward: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call a forward function; observers can see that ops which it calls are a part of it."""
    before = mode.in_forward
    try:
        mode.in_forward = True
        return forward(*args, **options)
    finally:
        mode.in_forward = before


def plain(value: Any, op: OpLike, argnum: int | None = None) -> Any:
    """Return an instance of a subclass of ndarray as a plain array, and anything else as it is.

    `argnum` is None for an option.

    Raises:
        TypeError: if the array has a mask, or contains no numbers, or the value is None and the op
            requires this input, or is a list with tensors that require a gradient.
    """
    if value is None and argnum is not None and op.is_required(argnum):
        raise op_error(TypeError, op.name, none_given(op.input_name(argnum)))
    if argnum is not None and isinstance(value, (list, tuple)):
        try:
            refuse_gradients(value)
        except TypeError as error:
            raise op_error(TypeError, op.name, str(error)) from None
    return array_for(op, value) if isinstance(value, np.ndarray) else value


def array_for(op: OpLike, value: Any, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Return `as_array(value, dtype)`; the message of an error begins with the name of the op."""
    try:
        return as_array(value, dtype)
    except (TypeError, ValueError) as error:
        raise op_error(type(error), op.name, str(error)) from error


class SequenceInputs(list[Any]):
    """The inputs of an op whose first parameter is a sequence, and its options, for observers."""

    options: tuple[Any, ...]


def array_of(value: Any) -> Any:
    """Return the array of a Tensor; in a list or tuple, replace each Tensor by its array."""
    if isinstance(value, Tensor):
        return value._data
    if type(value) in (list, tuple, SequenceInputs):
        return (tuple if type(value) is tuple else list)(map(array_of, value))
    return value


_ARGNUM = object()  # a placeholder for the argnum of an input, until it is known


def shape(value: Any) -> Any:
    """Return the shape of an array or number, or the shapes of a list of them."""
    if isinstance(value, (np.ndarray, StandIn)):
        return value.shape
    return Shapes(map(np.shape, value)) if isinstance(value, list) else np.shape(value)


def unshared(value: Any) -> Any:
    """Return an option to save: a copy of a list or dict, and of those in it or in a tuple.

    The caller may change a list or dict before the backward pass.
    """
    if value.__class__ is dict:
        return dict(zip(value, unshared([*value.values()]), strict=True))
    if not LISTS.isdisjoint(map(type, value)):
        return value.__class__([unshared(v) if v.__class__ in LISTS else v for v in value])
    return value.copy() if value.__class__ is list else value


class Shapes(tuple[tuple[int, ...], ...]):
    """The shapes of the inputs of an op that takes a sequence."""

    def starts(self, axis: int) -> list[int]:
        """Return where each input begins in their concatenation along `axis`; computed once."""
        known: dict[int, list[int]] = vars(self).setdefault("known", {})
        if axis not in known:
            known[axis] = list(accumulate((s[axis] for s in self), initial=0))
        return known[axis]


def agree(
    op: OpLike, argnums: Sequence[int], values: Sequence[Any], given: Sequence[Any]
) -> Sequence[Any]:
    """Return the inputs of `op` at `argnums`, converted to one float dtype.

    This is the common dtype of the float Tensors and arrays that have axes; if there are none, of
    the float Tensors without axes. Numbers, 0-d arrays, lists of numbers and integers do not change
    it. `given` are the inputs as they were passed; `values` has arrays instead of the Tensors.
    """
    dtype = getattr(values[0], "dtype", None) if values else None
    for value in values:
        if value.__class__ is not np.ndarray or value.dtype is not dtype or not value.ndim:
            break
    else:
        return values  # all arrays have one dtype: the usual case
    if any(isinstance(value, StandIn) for value in values):
        return values
    agreed = [
        value.item()
        if isinstance(value, np.generic) or (isinstance(came, np.ndarray) and not came.ndim)
        else value
        for value, came in zip(values, given, strict=True)
    ]
    arrays = {}
    for i, (argnum, value) in enumerate(zip(argnums, agreed, strict=True)):
        if isinstance(value, (np.ndarray, list, tuple)):
            arrays[i] = array_for(op, value)
        elif isinstance(value, int):
            # Convert subclasses of int, such as a size or a member of an enumeration.
            agreed[i] = value if value.__class__ is bool else int(value)
        elif value.__class__ is not float and value is not None:
            convert = "; minigrad.tensor(x) converts it" if hasattr(value, "__array__") else ""
            text = f"takes tensors, arrays and numbers, not {value!r:.60}"
            text = f"{text} for {op.input_name(argnum)}{convert}"
            raise op_error(TypeError, op.name, text)
    firm = [x for i, x in arrays.items() if not isinstance(agreed[i], (list, tuple))]
    target = common_float(firm or list(arrays.values()))
    if target is not None and len(values) > 1:
        # Convert the list itself: its floats may have more digits than float32.
        arrays = {i: array_for(op, agreed[i], target) for i in arrays}
    return [arrays.get(i, value) for i, value in enumerate(agreed)]


def common_float(arrays: Sequence[Any]) -> np.dtype[Any] | None:
    """Return the common dtype of the float arrays, or None if there are none.

    0-d arrays count only if no array has axes.
    """
    floats = [x for x in arrays if x.dtype.kind == "f"]
    dtypes = {x.dtype for x in floats if x.ndim} or {x.dtype for x in floats}
    return np.result_type(*dtypes) if dtypes else None


def as_floats(op: OpLike, value: Any) -> Any:
    """Convert an input of a function of floats: integers to float64, float16 to float32.

    `cast_back` converts the result back.
    """
    try:
        array: Any = value if isinstance(value, StandIn) else np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise op_error(ValueError, op.name, str(error)) from error
    if array.dtype.kind not in "biuf":
        raise op_error(TypeError, op.name, f"takes tensors, arrays and numbers, not {value!r:.60}")
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4  # in any byte order
    return array.astype(np.float32 if narrow else np.float64, copy=False)


def cast_back(op: OpLike, out: Any, given: Sequence[Any]) -> Any:
    """Convert a result to the dtype that its op should return.

    This is the common dtype of the float inputs, or of all operands if the op has no VJPs. If there
    are none, a float64 result of integers (a quotient, or a root) becomes float32, the default
    float dtype. The result of an op with an option `dtype`, such as `astype`, is not converted.

    Raises:
        TypeError: if a tensor cannot hold the result, such as complex numbers.
    """
    kind = out.dtype.kind
    if kind not in "biuf":
        advice = "; return its real and its imaginary part" if kind == "c" else ""
        raise TypeError(
            f"the forward of `{op.name}` returned an array of {out.dtype}; a tensor contains "
            f"booleans, integers or floats{advice}"
        )
    if not out.dtype.isnative:
        out = out.astype(native_dtype(out.dtype))
    if kind != "f" or "dtype" in op.parameters:
        return out
    arrays = [x for x in given if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.ndim)]
    usual = common_float(arrays) or FLOAT32
    return out.astype(usual) if out.dtype.itemsize > usual.itemsize else out


def as_output(op: OpLike, out: Any) -> Any:
    """Return a result as a plain array; numpy's reductions, for example, return numbers."""
    if isinstance(out, (np.ndarray, np.generic, int, float)):
        return np.asarray(out)
    if isinstance(out, StandIn):
        return out
    if isinstance(out, Tensor):
        raise TypeError(
            f"the forward of `{op.name}` returned a Tensor, and it gets and returns arrays; "
            f"{OPTION_IS_TENSOR}"
        )
    raise TypeError(
        f"the forward of `{op.name}` returned {shown(out)}; an op has one output, an array"
    )


def check_option(op: OpLike, name: str, value: Any) -> None:
    """Raise a TypeError if an option is a Tensor that requires a gradient."""
    if isinstance(value, Tensor) and value.node is not None and mode.state[0]:
        raise without_vjp(op, [name])


def without_vjp(op: OpLike, names: Sequence[str]) -> TypeError:
    """Return the error for an input that requires a gradient, if the op has no VJP for it."""
    return TypeError(
        f"`{op.name}` has no VJP for {' and '.join(names)}, and a gradient is required; give an op "
        f"of your own a VJP by its method `vjp`, or pass {names[0]}.detach() if it is meant as a "
        f"constant"
    )


def view(out: Any, values: Sequence[Any]) -> Any:
    """Return a writable array for a result that shares memory with an input; copy if necessary."""
    if not out.flags.writeable:
        # Memory that is only held can be released. A view that repeats elements is never writable.
        inherited = release(out) and 0 not in out.strides
        if not inherited:
            return out.copy()
        out.flags.writeable = True
    for value in values:  # any() takes three times as long
        if out is value:
            return out.view()
    return out


def explained(op: OpLike, error: Exception, values: Sequence[Any]) -> Exception:
    """Return the error of a forward function, with the op's name and operands in the message."""
    if op_of(error) == op.name:
        return error
    text, named = str(error), dict(zip(op.parameters, values, strict=False))
    if "boolean subtract" in text:  # numpy advises functions that are not here
        text = f"{text.partition(', use ')[0]}; use not_equal"
    elif text.startswith(("zero-size array", "attempt to get arg")) and "axis" in named:
        text = f"shape {np.shape(values[0])} has no elements along axis {named['axis']}"
    elif text.startswith("ufunc"):  # without a loop for these types
        text = f"takes tensors, arrays and numbers; {text}"
    elif "does not take Tensors" in text and any(isinstance(value, Tensor) for value in values):
        text = OPTION_IS_TENSOR
    kind: type[Exception] = IndexError if isinstance(error, IndexError) else TypeError
    if isinstance(error, (OverflowError, ValueError)):  # AxisError is an IndexError as well
        kind = ValueError
    return op_error(kind, op.name, text.rstrip(" ."), called_with(values))


# The types of options that are or hold a list or dict, and the errors of numpy that are explained.
LISTS = {list, tuple, dict}
ERRORS = (IndexError, OverflowError, TypeError, ValueError)

OPTION_IS_TENSOR = (
    "an option takes no Tensor, so pass .numpy() or .item() for one, or give it a VJP"
)

_NO_DEFAULT = inspect.Parameter.empty
_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

# What generated code uses: the names of this module, and a few more. All begin with an underscore,
# because a parameter of an op may have any of these names.
_NAMESPACE: dict[str, Any] = {f"_{name}": value for name, value in globals().items()} | {
    "_clock": clock,
    "_isinstance": isinstance,
    "_NUMBERS": NUMBERS,
    "_ndarray": np.ndarray,
    "_new": object.__new__,
    "_next": next,
}
