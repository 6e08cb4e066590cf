"""The sweep over the table of ops: see tests/cases."""

import contextlib

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import OPS, Observer, Tensor, assert_gradients, functional, gradcheck, observe
from tests.cases import CASES, GIVE_FLOAT32, distinct, first_of_each

DIFFERENTIABLE = [case for case in CASES if case.order]
SMOOTH = [case for case in DIFFERENTIABLE if case.derivative is None]
FUSED = [case for case in SMOOTH if case.name in OPS and OPS[case.name].composition]


CHECKS = []
"""The checks that `check` has seen, each with the rows that it is for, and the first of these."""


def check(cases):
    """Make a function a check of these rows; two tests at the end of the checks run all of them.

    The quick one takes the first of these rows for each function of the library, the full one the
    others.
    """

    def decorate(function):
        rows, first = ({id(case) for case in some} for some in (cases, first_of_each(cases)))
        CHECKS.append((function, rows, first))
        return function

    return decorate


@pytest.fixture(autouse=True)
def expected_warnings(request):
    """Warnings are errors, but for the rows that say why numpy warns."""
    case = request.node.callspec.params.get("case") if hasattr(request.node, "callspec") else None
    with np.errstate(all="ignore") if case and case.quiet else contextlib.nullcontext():
        yield


def tensors(arrays):
    return [Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]


def leaves(operands):
    return [x for x in operands if x.requires_grad]


def value_and_gradients(case, operands, create_graph=False):
    """The result of a case, a cotangent, and the gradients of the float operands."""
    out = case(*operands)
    cotangent = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
    gradients = minigrad.grad(out, leaves(operands), cotangent, create_graph=create_graph)
    return out, cotangent, gradients


# The table is complete

COMPOSITIONS = {
    name for name in functional.__all__ if not isinstance(getattr(functional, name), type)
}


def test_the_table_covers_exactly_the_ops_and_the_compositions():
    assert {case.name for case in CASES} ^ (set(OPS) | COMPOSITIONS) == set()


def test_every_row_has_a_name_of_its_own():
    names = [str(case) for case in CASES]
    assert [name for name in names if names.count(name) > 1] == []


def test_every_op_and_composition_is_a_function_of_minigrad_itself():
    names = set(OPS) | COMPOSITIONS
    assert {name for name in names if not callable(getattr(minigrad, name, None))} == set()
    assert {name for name in OPS if getattr(minigrad, name) is not OPS[name]} == set()


def test_every_vjp_of_every_op_runs_in_the_sweep():
    class VJPs(Observer):
        def __init__(self):
            self.seen = set()

        def on_vjp(self, node, parent, gradient, result):
            self.seen |= {(node.op.name, edge[1]) for edge in node.edges if edge[0] is parent}

    with observe(VJPs()) as vjps, np.errstate(all="ignore"):  # rows with infinite slopes
        for case in DIFFERENTIABLE:
            value_and_gradients(case, tensors(case.operands()))
    missing = {(name, position) for name, op in OPS.items() for position, _ in op.vjps} - vjps.seen
    assert missing == set()


# Values


@check(CASES)
def value_is_the_reference(case):
    arrays = case.operands()
    out = case(*tensors(arrays))
    expected = np.asarray(case.expected(*arrays))
    assert isinstance(out, Tensor)
    assert out.shape == expected.shape
    assert out.dtype == expected.dtype
    rtol = 1e-6 if out.dtype == np.float32 else 1e-12  # of integers: float32 rounds to 6e-8
    assert_allclose(out.data, expected, rtol=rtol, atol=1e-14)


@check(CASES)
def float32_value_is_float32_and_near_the_reference(case):
    arrays = case.operands(np.float32)
    out = case(*tensors(arrays))
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays]
    expected = np.asarray(case.expected(*wide))
    dtype = case.options.get("dtype", np.float32 if expected.dtype.kind == "f" else expected.dtype)
    assert out.dtype == dtype
    assert_allclose(out.data, expected, rtol=1e-5, atol=1e-6)  # float32 rounds to 6e-8


# A tensor turns integers to float32, numpy to float64; the others hold a tensor themselves.
OF_TENSORS = (*GIVE_FLOAT32, "frozen tensor", "index is a tensor")


@check([case for case in CASES if case.note not in OF_TENSORS])
def plain_arrays_give_a_plain_array_of_the_same_value(case):
    arrays = case.operands()
    out = case(*arrays)
    assert isinstance(out, (np.ndarray, np.generic))
    assert out.dtype == case(*tensors(arrays)).dtype
    assert_allclose(out, case(*tensors(arrays)).data, rtol=1e-14)


@check(CASES)
def operands_are_not_written_to(case):
    arrays = case.operands()
    operands = tensors(arrays)
    out = case(*operands)
    if case.order:
        minigrad.grad(out, leaves(operands), np.ones_like(out.data))
    for before, operand in zip(arrays, operands, strict=True):
        assert_array_equal(operand.data, before)


# Derivatives


@check(DIFFERENTIABLE)
def derivatives_of_first_and_second_order_are_right(case):
    arrays = case.operands()
    if case.derivative is None:
        assert_gradients(case, *arrays, order=case.order)
        return
    _, cotangent, gradients = value_and_gradients(case, tensors(arrays))
    expected = case.derivative(cotangent.astype(np.float64), *arrays)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(gradients) == len(expected)
    for found, right in zip(gradients, expected, strict=True):
        assert_allclose(found.data, right, rtol=1e-6, atol=1e-12)


# Its gradient by the row of the padding is 0 because the documentation says so.
KINKED = [case for case in DIFFERENTIABLE if case.derivative and "padding" not in str(case)]


@pytest.mark.full
@pytest.mark.parametrize("case", KINKED, ids=str)
def test_what_the_documentation_promises_at_a_kink_is_not_called_wrong(case):
    narrow, wide = case.operands(np.float32), case.operands()
    # Of operands in float32, the checker looks at the gradients in both dtypes.
    assert gradcheck(case, narrow, order=case.order).verdict != "disagree"
    if any((x != y).any() for x, y in zip(narrow, wide, strict=True)):  # another point
        assert gradcheck(case, wide, order=case.order).verdict != "disagree"


@check(DIFFERENTIABLE)
def gradients_have_the_shape_and_dtype_of_their_operand(case):
    for dtype in (np.float32, np.float64):
        operands = tensors(case.operands(dtype))
        _, _, gradients = value_and_gradients(case, operands)
        for operand, gradient in zip(leaves(operands), gradients, strict=True):
            assert gradient.shape == operand.shape
            assert gradient.dtype == operand.dtype == dtype


@check(DIFFERENTIABLE)
def float32_gradient_is_near_the_float64_one(case):
    arrays = case.operands(np.float32)
    _, cotangent, narrow = value_and_gradients(case, tensors(arrays))
    wide = tensors([x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays])
    exact = minigrad.grad(case(*wide), leaves(wide), cotangent.astype(np.float64))
    for found, right in zip(narrow, exact, strict=True):
        assert_allclose(found.data, right.data, rtol=1e-4, atol=1e-5)  # float32 rounds to 6e-8


@check([case for case in SMOOTH if case.order == 2])
def float32_derivatives_of_second_order_are_near_those_in_float64(case):
    def mixed(operands):
        _, _, first = value_and_gradients(case, operands, create_graph=True)
        rng = np.random.default_rng(2)
        total = sum((g * rng.standard_normal(g.shape).astype(g.dtype)).sum() for g in first)
        return minigrad.grad(total, leaves(operands), allow_unused=True)

    arrays = case.operands(np.float32)
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays]
    for found, right in zip(mixed(tensors(arrays)), mixed(tensors(wide)), strict=True):
        assert found.dtype == np.float32
        largest = np.abs(right.data).max(initial=0.0)
        assert_allclose(found.data, right.data, rtol=0, atol=1e-5 * (1 + largest))


@check(DIFFERENTIABLE)
def gradient_of_one_operand_alone_is_the_same(case):
    arrays = case.operands()
    together = tensors(arrays)
    _, cotangent, gradients = value_and_gradients(case, together)
    positions = [i for i, x in enumerate(together) if x.requires_grad]
    for position, right in zip(positions, gradients, strict=True):
        alone = [Tensor(x, requires_grad=i == position) for i, x in enumerate(arrays)]
        found = minigrad.grad(case(*alone), alone[position], cotangent)
        # Not to the bit: where less is asked for, a loop may be compiled to add in another order.
        assert_allclose(found.data, right.data, rtol=1e-12, atol=1e-14)


@check(DIFFERENTIABLE)
def differentiable_gradients_have_the_same_values(case):
    arrays = case.operands()
    _, _, plain = value_and_gradients(case, tensors(arrays))
    _, _, recorded = value_and_gradients(case, tensors(arrays), create_graph=True)
    for found, right in zip(recorded, plain, strict=True):
        assert_allclose(found.data, right.data, rtol=1e-12, atol=1e-14)


@check([case for case in DIFFERENTIABLE if case.derivative and case.order > 1 and not case.quiet])
def second_derivative_is_a_number_where_the_first_is(case):
    operands = tensors(case.operands())
    _, _, gradients = value_and_gradients(case, operands, create_graph=True)
    if not all(np.isfinite(g.data).all() for g in gradients):
        return
    total = sum((g * g).sum() for g in gradients)
    if total.requires_grad:
        for second in minigrad.grad(total, leaves(operands), allow_unused=True):
            assert np.isfinite(second.data).all()


# Fused ops are their compositions


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused_op_is_its_composition_to_second_order(case):
    def derivatives(function):
        operands = tensors(case.operands())
        out = case.apply(function, *operands)
        rng = np.random.default_rng(1)
        first = minigrad.grad(out, operands, rng.standard_normal(out.shape), create_graph=True)
        mixed = [(g * rng.standard_normal(g.shape)).sum() for g in first]
        second = minigrad.grad(mixed, operands, allow_unused=True)
        return [x.data for x in (out, *first, *second)]

    op = OPS[case.name]
    for found, right in zip(derivatives(op), derivatives(op.composition), strict=True):
        assert_allclose(found, right, rtol=1e-9, atol=1e-12)


# Broadcasting


def alternating(x, y):
    """A mask of the shape that x and y broadcast to."""
    return np.indices(np.broadcast_shapes(x.shape, y.shape)).sum(0) % 2 == 0


TWO_OPERANDS = {
    name: (getattr(minigrad, name), getattr(np, name))
    for name in (
        *("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "arctan2"),
    )
} | {
    "where": (
        lambda x, y: minigrad.where(alternating(x, y), x, y),
        lambda x, y: np.where(alternating(x, y), x, y),
    )
}
PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((), (3, 4)),
    ((3, 4), (3, 1)),
    ((3, 1), (1, 4)),
    ((1, 1), (4,)),
    ((1,), ()),
    ((2, 3, 4), (3, 4)),
]


def value_and_derivatives(function, arrays, cotangent, weights):
    """The value of a function, its gradients, and the gradients of their weighted sum."""
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out = function(*xs)
    first = minigrad.grad(out, xs, cotangent, create_graph=True)
    total = sum((g * w).sum() for g, w in zip(first, weights, strict=True))
    return [x.data for x in (out, *first, *minigrad.grad(total, xs, allow_unused=True))]


def summed_to(g, shape):
    """The sum over the axes along which an array of this shape was broadcast, by numpy alone."""
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


@pytest.mark.parametrize("name", TWO_OPERANDS)
def test_broadcast_operands_have_the_right_values_and_derivatives(name, rng):
    function, reference = TWO_OPERANDS[name]
    for shapes in PAIRS:
        arrays = [v + 2.5 for v in distinct(*shapes)(rng)]  # between 0.5 and 4.5
        weights = [rng.standard_normal(shape) for shape in shapes]
        whole = np.broadcast_shapes(*shapes)
        cotangent = rng.standard_normal(whole)
        out, *found = value_and_derivatives(function, arrays, cotangent, weights)
        assert out.shape == whole
        assert_allclose(out, reference(*arrays), rtol=1e-14, err_msg=str(shapes))
        repeated = [[np.array(np.broadcast_to(x, whole)) for x in xs] for xs in (arrays, weights)]
        _, *right = value_and_derivatives(function, repeated[0], cotangent, repeated[1])
        for one, other, shape in zip(found, right, shapes * 2, strict=True):
            exact = summed_to(other, shape)
            assert_allclose(one, exact, rtol=1e-12, atol=1e-12, err_msg=str(shapes))


# Layouts of memory


def transposed(x):
    return np.array(x.T, order="C").T


def reversed_memory(x):
    return np.array(np.flip(x))[(..., *[slice(None, None, -1)] * x.ndim)]


def spread(x):
    """Every other element of a larger array."""
    wide = np.full([2 * size for size in x.shape], np.nan)
    view = wide[(..., *[slice(None, None, 2)] * x.ndim)]
    view[...] = x
    return view


LAYOUTS = [transposed, reversed_memory, spread]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_they_are_for(layout):
    x = np.arange(6.0).reshape(2, 3)
    assert_array_equal(layout(x), x)
    assert not layout(x).flags.c_contiguous


@check(CASES)
def layout_of_memory_does_not_matter(case):
    for layout in LAYOUTS:
        check_layout(case, layout)


def check_layout(case, layout):
    arrays = case.operands()
    arranged = [layout(x.astype(np.float64)) if x.dtype.kind == "f" else x for x in arrays]
    strided = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in arranged]
    assert all(
        np.shares_memory(t.data, x) for t, x in zip(strided, arranged, strict=True) if x.size
    )
    plain = tensors(arrays)
    out, right = case(*strided), case(*plain)
    assert_allclose(out.data, right.data, rtol=1e-13, atol=1e-15)
    if case.order:
        cotangent = np.random.default_rng(1).standard_normal(out.shape)
        found = minigrad.grad(out, leaves(strided), layout(cotangent))
        exact = minigrad.grad(right, leaves(plain), cotangent)
        for one, other in zip(found, exact, strict=True):
            assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-14)


def misaligned(x):
    """In memory that begins one byte after a multiple of the size of an element."""
    view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


@check(CASES)
def misaligned_memory_gives_the_same_bits(case):
    arrays = case.operands(np.float32)
    plain, moved = ([*map(make, arrays)] for make in (np.array, misaligned))
    assert_array_equal(case(*moved), case(*plain))
    plain, moved = (
        [Tensor(x, requires_grad=x.dtype.kind == "f") for x in xs] for xs in (plain, moved)
    )
    right, out = case(*plain), case(*moved)
    if case.order:
        cotangent = np.random.default_rng(1).standard_normal(out.shape).astype(np.float32)
        exact = minigrad.grad(right, leaves(plain), cotangent)
        found = minigrad.grad(out, leaves(moved), misaligned(cotangent))
        for one, other in zip(found, exact, strict=True):
            assert_array_equal(one.data, other.data)


def is_regular(case):
    """Whether it wants a matrix that is not singular, as one with equal rows is."""
    names = "inv", "solve", "cholesky", "matrix_power"
    return case.name in names and case.operands()[0].ndim == 2


@check([case for case in SMOOTH if not is_regular(case)])
def operand_and_cotangent_repeated_by_strides_of_zero(case):
    arrays = [
        np.broadcast_to(x[:1], x.shape) if x.dtype.kind == "f" and x.ndim and x.size else x
        for x in case.operands()
    ]
    # as_strided, for Tensor takes a copy of what broadcast_to gives, which cannot be written
    repeated = [
        np.lib.stride_tricks.as_strided(np.array(x[:1]), x.shape, x.strides)
        if 0 in x.strides
        else x
        for x in arrays
    ]
    strided = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in repeated]
    plain = tensors([np.array(x) for x in arrays])
    out, right = case(*strided), case(*plain)
    assert_allclose(out.data, right.data, rtol=1e-13, atol=1e-15)
    cotangent = np.broadcast_to(1.5, out.shape)
    found = minigrad.grad(out, leaves(strided), cotangent)
    exact = minigrad.grad(right, leaves(plain), np.array(cotangent))
    for one, other in zip(found, exact, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-14)


# All rows


def run_checks(case, of_these):
    """Run each check that has the case among `of_these(rows, first)`, as CHECKS gives both."""
    for function, rows, first in CHECKS:
        if id(case) in of_these(rows, first):
            function(case)


def rows_of(of_these):
    """The rows of the table for which `run_checks` runs something."""
    wanted = {row for _, rows, first in CHECKS for row in of_these(rows, first)}
    return pytest.mark.parametrize("case", [c for c in CASES if id(c) in wanted], ids=str)


FIRST, OTHERS = (lambda rows, first: first), (lambda rows, first: rows - first)


@rows_of(FIRST)
def test_every_check_of_first_rows(case):
    run_checks(case, FIRST)


@pytest.mark.full
@rows_of(OTHERS)
def test_every_check_of_all_other_rows(case):
    run_checks(case, OTHERS)


# Numbers and nothing


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["mean", "var", "logsumexp", "softmax", "cumsum"])
def test_a_number_is_reduced_over_its_first_or_last_axis_as_over_none(name, axis):
    x = Tensor(np.array(2.0), requires_grad=True)
    out, right = (getattr(minigrad, name)(x, axis=a) for a in (axis, None))
    assert_array_equal(out.data, right.data)
    assert_array_equal(minigrad.grad(out.sum(), x).data, minigrad.grad(right.sum(), x).data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 0), -1), ((0, 3), 0), ((0, 3), (0, 1)), ((0,), None)]
)
def test_softmax_along_an_empty_axis_is_empty(name, shape, axis, dtype):
    x = Tensor(np.zeros(shape, dtype), requires_grad=True)
    out, moved = minigrad.jvp(lambda x: getattr(minigrad, name)(x, axis), x, np.ones(shape, dtype))
    assert (out.shape, out.dtype, moved.shape) == (shape, dtype, shape)
    first = minigrad.grad(getattr(minigrad, name)(x, axis).sum(), x, create_graph=True)
    assert (first.shape, minigrad.grad(first.sum(), x).shape) == (shape, shape)


# Ways to name an axis


OF_AXES = [
    *("sum", "mean", "var", "std", "prod", "max", "min", "logsumexp", "norm"),
    *("softmax", "log_softmax", "flip"),
]
OF_ONE_AXIS = ["cumsum", "cumprod", "argmax", "argmin", "argsort", "sort"]


@pytest.mark.parametrize("name", OF_AXES)
def test_axes_may_be_lists_and_numpy_integers(name, rng):
    x = Tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    function = getattr(minigrad, name)
    for axis, same in (([0, -1], (0, -1)), (np.int64(1), 1), ((np.int64(0), 2), (0, 2))):
        found, right = function(x, axis=axis), function(x, axis=same)
        assert_array_equal(found.data, right.data)
        v = rng.standard_normal(right.shape)
        assert_array_equal(minigrad.grad(found, x, v).data, minigrad.grad(right, x, v).data)


@pytest.mark.parametrize("name", OF_ONE_AXIS)
def test_an_axis_may_be_a_numpy_integer(name, rng):
    x = rng.standard_normal((2, 3, 4))
    function = getattr(minigrad, name)
    assert_array_equal(function(x, axis=np.int64(1)), function(x, axis=1))


@pytest.mark.parametrize("name", ["any", "all"])
def test_axes_of_booleans_may_be_lists_and_numpy_integers(name, rng):
    x = rng.random((2, 3, 4)) < 0.5
    function = getattr(minigrad, name)
    assert_array_equal(function(x, axis=[0, -1]), function(x, axis=(0, 2)))
    assert_array_equal(function(x, axis=np.int64(1)), function(x, axis=1))


def test_places_and_counts_may_be_numpy_integers(rng):
    x = rng.standard_normal((4, 4))
    one, two = np.int64(1), np.int64(2)
    for name, given, plain in [
        ("roll", (one, two - 1), (1, 1)),
        ("repeat", (two, one), (2, 1)),
        ("tile", (two,), (2,)),
        ("pad", (two,), (2,)),
        ("diag", (one,), (1,)),
        ("diagonal", (one, two - 2, one), (1, 0, 1)),
        ("tril", (one,), (1,)),
        ("triu", (one,), (1,)),
        ("expand_dims", (one,), (1,)),
        ("layer_norm", (two * 2,), (4,)),
    ]:
        function = getattr(minigrad, name)
        assert_array_equal(function(x, *given), function(x, *plain))
    assert_array_equal(minigrad.split(x, two, one)[1], minigrad.split(x, 2, 1)[1])
    assert_array_equal(minigrad.topk(x, two, one).values, minigrad.topk(x, 2, 1).values)


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_vectors_of_a_grid_may_be_in_a_sequence(kind):
    vectors = [Tensor([1.0, 2.0]), np.arange(3.0), [4.0]]
    for found, expected in zip(
        minigrad.meshgrid(kind(vectors)), minigrad.meshgrid(*vectors), strict=True
    ):
        assert_array_equal(found, expected, strict=True)
    (row,) = minigrad.meshgrid(kind([1.0, 2.0]))  # numbers are one vector
    assert_array_equal(row, [1.0, 2.0])


def test_new_and_dropped_axes_may_be_lists_and_numpy_integers():
    x = minigrad.zeros(2, 1, 3)
    assert minigrad.expand_dims(x, [0, -1]).shape == (1, 2, 1, 3, 1)
    assert minigrad.expand_dims(x, np.int64(1)).shape == (2, 1, 1, 3)
    assert minigrad.squeeze(x, [1]).shape == minigrad.squeeze(x, np.int64(1)).shape == (2, 3)
    assert minigrad.swapaxes(x, np.int64(0), 2).shape == (3, 1, 2)
    assert minigrad.transpose(x, [2, 0, 1]).shape == (3, 2, 1)


def test_the_order_of_one_axis_may_be_an_integer():
    for axes in (0, -1, np.int64(0)):
        x = Tensor([1.0, 2.0], requires_grad=True)
        assert_array_equal(minigrad.grad(minigrad.transpose(x, axes) @ x, x), [2.0, 4.0])
