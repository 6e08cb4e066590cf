"""Defining an op: its VJPs, joint VJPs, sequences of inputs, replayed ops, bad definitions."""

import ast
import copy
import functools
import pickle
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    OPS,
    Tensor,
    assert_gradients,
    grad,
    observe,
    op,
)
from tests.minigrad.core.leaves import Log, leaf

# ------------------------------------------------------------------------------------------------
# Ops of one's own
# ------------------------------------------------------------------------------------------------


def test_an_op_of_ones_own_has_derivatives_of_all_orders():
    @op
    def cube(x):
        """x^3."""
        return x * x * x

    cube.vjp("x", lambda g, x: 3 * g * x * x)
    assert_gradients(cube, np.array([0.5, -1.2]))
    assert isinstance(cube(np.ones(2)), np.ndarray)
    assert cube.__name__ == "cube"
    assert cube.__doc__ == "x^3."
    assert repr(cube) == "<op cube(x)>"
    assert "cube" in repr(cube(leaf(1.0)))
    assert "cube" not in OPS


def test_an_op_in_a_class_is_a_method_as_any_function():
    class Two(float):
        plus = minigrad.add

    assert Two(2.0).plus(1.0) == 3.0
    assert Two.plus is minigrad.add


def test_a_vjp_can_be_a_decorated_function_and_is_handed_back():
    @op
    def scaled(x, factor=2.0):
        return x * factor

    @scaled.vjp("x")
    def derivative(g, factor):
        return g * factor

    assert derivative(3.0, 4.0) == 12.0
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(scaled(x).sum(), x).data, [2.0, 2.0])
    assert_array_equal(grad(scaled(x, 5.0).sum(), x).data, [5.0, 5.0])
    assert_array_equal(grad(scaled(x, factor=-1.0).sum(), x).data, [-1.0, -1.0])
    assert_array_equal(grad(scaled(factor=-1.0, x=x).sum(), x).data, [-1.0, -1.0])


def test_an_op_can_have_keyword_only_options():
    @op
    def scaled(x, *, factor=2.0):
        return x * factor

    scaled.vjp("x", lambda g, factor: g * factor)
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(scaled(x).sum(), x).data, [2.0, 2.0])
    assert_array_equal(grad(scaled(x, factor=5.0).sum(), x).data, [5.0, 5.0])


def test_an_op_can_be_made_of_a_lambda():
    double = op(lambda x: x * 2)
    double.vjp("x", lambda g: g * 2)
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(double(x).sum(), x).data, [2.0, 2.0])


@pytest.mark.parametrize("name", ["next", "isinstance", "list", "tuple", "TypeError"])
def test_a_parameter_may_have_the_name_of_a_builtin(name):
    scope = {}
    exec(f"def scaled(x, {name}=2.0): return x * {name}", scope)
    scaled = op(scope["scaled"])
    exec(f"def vjp(g, {name}): return g * {name}", scope)
    scaled.vjp("x", scope["vjp"])
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(scaled(x).sum(), x).data, [2.0, 2.0])
    with pytest.raises(ValueError, match="could not be broadcast together"):
        scaled(x, **{name: np.ones(3)})


def test_an_option_takes_no_tensor():
    @op
    def scaled(x, factor=2.0):
        return x * factor

    scaled.vjp("x", lambda g, factor: g * factor)
    powered = op(lambda x, exponent=2.0: x ** np.exp(exponent))
    with pytest.raises(TypeError, match=r"^<lambda>: an option takes no Tensor, so pass .numpy"):
        powered(leaf(2.0), exponent=Tensor(3.0))
    with pytest.raises(TypeError, match=r"`scaled` returned a Tensor.* option takes no Tensor"):
        scaled(leaf(1.0, 2.0), Tensor(3.0))


def test_an_input_that_is_left_out_has_no_gradient():
    @op
    def shifted(x, shift=None):
        return x * 1.0 if shift is None else x + shift

    shifted.vjp("x", lambda g: g)
    shifted.vjp("shift", lambda g: g)
    x, shift = leaf(1.0, 2.0), leaf(3.0)
    assert_array_equal(grad(shifted(x).sum(), x).data, [1.0, 1.0])
    assert grad(shifted(x, shift).sum(), shift).item() == 2.0
    assert grad(shifted(x, shift=shift).sum(), shift).item() == 2.0


def test_an_op_without_a_vjp_for_what_needs_a_gradient_is_an_error():
    @op
    def rounded(x):
        return np.round(x)

    with pytest.raises(TypeError, match=r"^`rounded` has no VJP for x, .* `vjp`, .*x\.detach\(\)"):
        rounded(leaf(1.4, 2.6))
    assert_array_equal(rounded(leaf(1.4, 2.6).detach()).data, [1.0, 3.0])
    with minigrad.no_grad():
        assert not rounded(leaf(1.4, 2.6)).requires_grad


def test_an_option_that_requires_a_gradient_is_an_error():
    scale = leaf(2.0)

    @op
    def joined(xs, factor=1.0):
        return np.concatenate(xs) * float(factor)

    joined.vjp("xs", lambda g, xs, argnum: g)
    x, A, B = (leaf(*np.ones(1)).reshape(1, 1).detach() for _ in range(3))
    for option, call in [
        ("beta", lambda: minigrad.softplus(leaf(1.0), scale)),
        ("beta", lambda: minigrad.softplus(np.ones(1), beta=scale)),
        ("beta", lambda: minigrad.nn.Softplus(minigrad.nn.Parameter(1.0))(leaf(1.0))),
        ("scale", lambda: minigrad.lora_linear(x, x, A, B, scale=scale.sum())),
        ("factor", lambda: joined([leaf(1.0, 2.0)], scale)),
    ]:
        with pytest.raises(TypeError, match=rf"has no VJP for {option}, .*{option}\.detach\(\)"):
            call()
    with minigrad.no_grad():
        assert minigrad.softplus(leaf(1.0), scale).item() == minigrad.softplus(1.0, 2.0)


def test_a_vjp_without_the_name_of_its_input_is_refused_at_once():
    @op
    def doubled(x):
        return 2 * x

    with pytest.raises(TypeError, match=r'doubled\.vjp\("x", ...\), not a function first'):
        doubled.vjp(lambda g: 2 * g)
    with pytest.raises(ValueError, match="`doubled` has no input 'y', only x"):
        doubled.vjp("y")


def test_an_op_that_returns_no_floats_needs_no_vjp():
    @op
    def positive(x):
        return x > 0

    assert positive(leaf(1.4, -2.6)).data.tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_op_without_vjps_keeps_the_dtype(dtype):
    shrunk = op(lambda x, by: np.tanh(x) / by)
    assert shrunk(Tensor([1.0], dtype=dtype), 2.0).dtype == dtype
    assert shrunk(Tensor([1], dtype="int64"), 2.0).dtype == np.float32


def test_an_input_without_a_vjp_must_be_a_constant():
    @op
    def weighed(x, weight):
        return x * weight

    weighed.vjp("x", lambda g, weight: g * weight)
    x, weight = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with pytest.raises(TypeError, match="no VJP for weight"):
        weighed(x, weight)
    assert_array_equal(grad(weighed(x, weight.detach()).sum(), x).data, [3.0, 4.0])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrices_and_foreign_byte_orders_become_plain_arrays():
    swapped = op(lambda x: x.astype(x.dtype.newbyteorder(">")))
    swapped.vjp("x", lambda g: np.matrix(g))
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    assert swapped(x).dtype == x.dtype
    assert_array_equal(grad(swapped(x * x).sum(), x).data, 2 * x.data)


@pytest.mark.parametrize("result", [(1.0, 2.0), None, "text", [np.ones(2)]])
def test_a_forward_must_return_one_array(result):
    @op
    def odd(x):
        return result

    with pytest.raises(TypeError, match="an op has one output, an array"):
        odd(leaf(1.0))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (np.fft.rfft, "complex128; .*; return its real and its imaginary part"),
        (lambda x: x[0] * 2j, "complex128; .*; return its real and its imaginary part"),
        (lambda x: x.astype(str), "<U32; a tensor contains booleans, integers or floats$"),
        (lambda x: x.astype(object), "object; a tensor contains booleans, integers or floats$"),
    ],
)
def test_a_forward_must_return_real_numbers(forward, message):
    made = op(lambda x: forward(x))
    made.vjp("x", lambda g: g)
    assert made(np.ones(3)).dtype.kind in "cUO"  # it is a plain function of plain arrays
    with pytest.raises(TypeError, match=f"the forward of `<lambda>` returned .*{message}"):
        made(leaf(1.0, 2.0, 3.0))


def test_a_forward_that_returns_its_input_gives_a_new_tensor():
    @op
    def same(x):
        return x

    same.vjp("x", lambda g: g)
    x = leaf(1.0, 2.0)
    y = same(x)
    assert y is not x
    assert y.data is not x.data
    z = (y * y).sum()
    assert_array_equal(grad(z, x, retain_graph=True).data, [2.0, 4.0])
    x.copy_([0.0, 0.0])  # the same memory, so y has changed
    with pytest.raises(RuntimeError, match="written since"):
        z.backward()


def test_a_vjp_given_after_the_first_call_counts():
    @op
    def late(x):
        return x * 3

    x = leaf(1.0, 2.0)
    assert_array_equal(late(x.detach()).data, [3.0, 6.0])
    late.vjp("x", lambda g: g * 3)
    assert_array_equal(grad(late(x).sum(), x).data, [3.0, 3.0])


def test_vjps_get_arrays_and_under_create_graph_tensors():
    seen = []

    @op
    def scaled(x, factor, shape=None):
        return x * factor

    @scaled.vjp("x")
    def _scaled_x(g, x, factor, out, x_shape, shape):
        seen.append([type(value) for value in (g, x, factor, out, x_shape, shape)])
        return g * factor

    x = leaf(1.0, 2.0)
    grad(scaled(x, 2.0).sum(), x)
    grad(scaled(x, 2.0).sum(), x, create_graph=True)
    assert seen == [[kind, kind, float, kind, tuple, type(None)] for kind in (np.ndarray, Tensor)]


class WithAnOp:
    @staticmethod
    @op
    def square(x):
        return x * x


def test_a_tensor_that_a_vjp_makes_of_arrays_is_as_good_as_an_array():
    @op
    def total(x):
        return np.sum(x)

    total.vjp("x", lambda g, x: g * minigrad.ones_like(x))
    x = leaf([[0.5, -1.0], [2.0, 3.0]])
    total(minigrad.gelu(x)).backward()  # the VJP of gelu is a kernel, which takes arrays only
    (expected,) = grad(minigrad.gelu(x).sum(), [x])
    assert_array_equal(x.grad.data, expected.data)
    assert not x.grad.requires_grad
    assert_gradients(total, np.array([0.5, -1.2]))
    minigrad.viz.explore(total(x))
    with minigrad.receipt() as receipt:
        total(x * x).backward()
    assert not [row for row in receipt.rows if row.phase == "backward" and row.op == "sum"]


def test_an_array_that_a_vjp_makes_of_tensors_is_a_constant():
    @op
    def total(x):
        return np.sum(x)

    total.vjp("x", lambda g, x: np.ones(x.shape))
    x = leaf(0.5, -1.2)
    # Behind it come an op with a kernel, which takes arrays only, and a sum of gradients.
    first = grad(total(x.tanh() * 2 + x.softmax()), x, create_graph=True)
    right = grad((x.tanh() * 2 + x.softmax()).sum(), x, create_graph=True)
    assert_array_equal(first.data, right.data)
    assert_array_equal(grad(first.sum(), x).data, grad(right.sum(), x).data)


def test_a_copy_of_an_op_is_the_op():
    for each in (minigrad.tanh, minigrad.concatenate, sample, WithAnOp.square):
        assert copy.deepcopy(each) is each
        assert pickle.loads(pickle.dumps(each)) is each


# Joint VJPs


def joint_product():
    """x y z with one VJP for x and y; it keeps which of them were needed."""

    @op
    def product(x, y, z):
        return x * y * z

    def derivative(g, needs_input_grad, x, y, z):
        product.asked.append(needs_input_grad)
        shared = g * z
        return shared * y if needs_input_grad[0] else None, shared * x if needs_input_grad[
            1
        ] else None

    product.asked = []
    product.joint_vjp(["x", "y"], derivative)
    return product


def test_a_joint_vjp_gives_all_gradients_at_once():
    product = joint_product()
    x, y, z = leaf(2.0), leaf(3.0), Tensor(5.0)
    assert [g.item() for g in grad(product(x, y, z), [x, y])] == [15.0, 10.0]
    assert product.asked == [(True, True)]


def test_a_joint_vjp_gets_what_is_needed():
    product = joint_product()
    x, y, z = leaf(2.0), leaf(3.0), Tensor(5.0)
    product(x, y.detach(), z).backward()
    product(x.detach(), y, z).backward()
    grad(product(x, y, z), y)
    assert product.asked == [(True, False), (False, True), (False, True)]
    assert x.grad.item() == 15.0
    assert y.grad.item() == 10.0


def test_a_joint_vjp_is_right_at_second_order():
    product = joint_product()
    arrays = [np.array([0.5, 1.5]), np.array([-1.0, 2.0])]
    assert_gradients(lambda x, y: product(x, y, Tensor(np.array([2.0, 3.0]))), *arrays)


@pytest.mark.parametrize("result", [lambda g: g, lambda g: (g,), lambda g: None])
def test_a_joint_vjp_must_return_one_gradient_for_each(result):
    @op
    def product(x, y):
        return x * y

    product.joint_vjp(["x", "y"], lambda g, needs_input_grad: result(g))
    with pytest.raises(TypeError, match="joint VJP of `product` must return 2 gradients"):
        product(leaf(1.0), leaf(2.0)).backward()


# Sequences of inputs


def total_op():
    @op
    def total(arrays, power=1):
        return sum(a**power for a in arrays)

    @total.vjp("arrays")
    def _total_one(g, argnum, arrays, power):
        return g * power * arrays[argnum] ** (power - 1)

    return total


def test_an_op_of_a_sequence_has_a_gradient_for_each_element():
    total = total_op()
    x, y = leaf(2.0), leaf(3.0)
    for arrays in ([x, y], (x, y), iter([x, y])):
        assert [g.item() for g in grad(total(arrays, power=2), [x, y])] == [4.0, 6.0]


def test_an_op_of_a_sequence_takes_constants_and_repetitions():
    total = total_op()
    x = leaf(2.0)
    out = total([x, 10.0, np.array(1.0), x, Tensor(5.0)], power=2)
    assert out.item() == 4 + 100 + 1 + 4 + 25
    assert grad(out, x).item() == 8.0
    assert not total([Tensor(1.0), 2.0]).requires_grad
    assert isinstance(total([np.ones(2), np.ones(2)]), np.ndarray)


def test_an_op_of_a_sequence_is_right_at_second_order():
    total = total_op()
    arrays = [np.array([0.5, 1.5]), np.array([1.0, 2.0]), np.array(0.7)]
    assert_gradients(lambda *xs: total(xs, 3), *arrays)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_list_or_dict_that_changes_after_the_call_changes_no_gradient(create_graph):
    @op
    def weighed(xs, weights):
        return sum(x * weight for x, weight in zip(xs, weights, strict=True))

    @op
    def scaled(x, options):
        return x * options["factors"][0]

    weighed.vjp("xs", lambda g, argnum, weights: g * weights[argnum])
    scaled.vjp("x", lambda g, options: g * options["factors"][0])
    x, weights, options = leaf(1.0, 2.0), [2.0, 3.0], {"factors": [5.0]}
    y = weighed([x, scaled(x, options)], weights).sum()
    weights[0], options["factors"][0] = 100.0, 100.0
    assert_array_equal(grad(y, x, create_graph=create_graph).data, [17.0, 17.0])


def test_a_written_element_of_a_sequence_is_named():
    total = total_op()
    x, y = leaf(2.0), leaf(3.0)
    out = total([x, y], power=2)
    y.copy_(0.0)
    with pytest.raises(
        RuntimeError, match=r"`total`.* saved its input arrays\[1\] .*written since"
    ):
        out.backward()


def test_concatenate_minds_no_write_for_it_needs_shapes_only():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    out = (minigrad.concatenate([x, y]) * np.arange(4.0)).sum()
    y.copy_([0.0, 0.0])
    out.backward()
    assert_array_equal(y.grad.data, [2.0, 3.0])


# Fused ops that are replayed


def replayed_op():
    """tanh(x y) x, with VJPs that work on arrays only."""

    @op(composition=lambda x, y: minigrad.tanh(x * y) * x, replayed=True)
    def fused(x, y):
        return np.tanh(x * y) * x

    @fused.vjp("x")
    def _fused_x(g, x, y):
        assert type(g) is type(x) is np.ndarray
        t = np.tanh(x * y)
        return np.multiply(g, t + x * y * (1 - t * t))

    @fused.vjp("y")
    def _fused_y(g, x, y):
        assert type(g) is type(x) is np.ndarray
        return np.multiply(g, x * x * (1 - np.tanh(x * y) ** 2))

    return fused


def test_a_replayed_op_is_right_at_orders_one_and_two():
    arrays = [np.array([0.5, -1.2]), np.array([0.7, 0.4])]
    fused = replayed_op()
    assert_gradients(fused, *arrays)
    assert_gradients(lambda x: fused(x, x), arrays[0])
    assert_gradients(lambda x, y: fused(fused(x, y), y.tanh()), *arrays)


def test_a_replayed_op_is_right_at_order_three():
    fused = replayed_op()

    def second(f):
        def run(x, y):
            (g,) = grad(f(x, y).sum(), [x], create_graph=True)
            return grad(g.sum(), [x], create_graph=True)[0]

        return run

    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    found = grad(second(fused)(x, y).sum(), [x, y])
    right = grad(second(fused.composition)(x, y).sum(), [x, y])
    for one, other in zip(found, right, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12)


def test_first_order_runs_the_vjps_and_not_the_composition():
    fused = replayed_op()
    with observe(Log()) as log:
        fused(leaf(1.0, 2.0), leaf(3.0, 4.0)).sum().backward()
    assert "tanh" not in log.calls
    assert ("fused", 0) in log.vjps
    assert ("fused", 1) in log.vjps


def work_of_second_derivative(length):
    fused = replayed_op()
    x, y = leaf(0.3, 0.4), leaf(0.5, 0.6)
    h = x
    for _ in range(length):
        h = fused(h, y)
    with observe(Log()) as log:
        g = grad(h.sum(), x, create_graph=True)
        first = len(log.calls) + len(log.vjps)
        grad(g.sum(), x)
    return first, len(log.calls) + len(log.vjps) - first


def test_a_replay_does_not_walk_on_upstream():
    short, long = work_of_second_derivative(10), work_of_second_derivative(20)
    for few, many in zip(short, long, strict=True):
        assert few < many <= 2.1 * few


def test_a_replayed_gradient_by_one_input_depends_on_the_others_too():
    fused = replayed_op()
    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    g = grad(fused(x, y).sum(), x, create_graph=True)  # by x alone
    right = grad(fused.composition(x, y).sum(), x, create_graph=True)
    assert_allclose(grad(g.sum(), y).data, grad(right.sum(), y).data, rtol=1e-12)


def test_a_replay_with_a_constant_input_is_right():
    fused = replayed_op()
    y = Tensor(np.array([0.7, 0.4]))
    assert_gradients(lambda x: fused(x, y), np.array([0.5, -1.2]))
    assert_gradients(lambda x: fused(y, x), np.array([0.5, -1.2]))


def test_a_replayed_op_minds_writes_to_all_its_inputs():
    fused = replayed_op()
    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    g = grad(fused(x, y).sum(), x, create_graph=True)
    y.copy_([0.0, 0.0])
    with pytest.raises(RuntimeError, match="written since"):
        grad(g.sum(), x)


def keeping_op(runs):
    """tanh(x y), which keeps 1 - tanh^2 for its joint VJP; `runs` counts the forwards."""

    @op(composition=lambda x, y: minigrad.tanh(x * y), returns_residuals=True)
    def keeping(x, y):
        runs.append(None)
        t = np.tanh(x * y)
        return t, 1 - t * t

    keeping.joint_vjp(
        ("x", "y"),
        lambda g, needs_input_grad, x, y, residuals: (g * residuals * y, g * residuals * x),
    )
    return keeping


def test_an_op_that_keeps_something_is_right_at_orders_one_and_two():
    arrays = [np.array([0.5, -1.2]), np.array([0.7, 0.4])]
    keeping = keeping_op([])
    assert_gradients(keeping, *arrays)
    assert_gradients(lambda x: keeping(x, x), arrays[0])


def test_what_an_op_keeps_is_no_part_of_its_result():
    runs = []
    keeping = keeping_op(runs)
    assert_array_equal(keeping(np.ones(2), 0.5), np.tanh([0.5, 0.5]))
    x = leaf(1.0, 2.0)
    result = keeping(x, 0.5)
    assert isinstance(result, Tensor)
    result.sum().backward()
    assert len(runs) == 2  # and none in the backward pass
    assert_allclose(x.grad.data, 0.5 / np.cosh([0.5, 1.0]) ** 2, rtol=1e-12)


def test_what_an_op_keeps_is_freed_with_the_graph():
    residuals = []

    @op(composition=lambda x: x * 2.0, replayed=True, returns_residuals=True)
    def double(x):
        residuals.append(np.zeros(3))
        references.append(weakref.ref(residuals[-1]))
        return x * 2.0, residuals.pop()

    double.vjp("x", lambda g, residuals: g * 2.0 + residuals.sum())
    references = []
    loss = double(leaf(1.0, 2.0)).sum()
    assert references[0]() is not None
    loss.backward()
    assert references[0]() is None
    double(Tensor([1.0]))  # no VJP will ask for it
    assert references[1]() is None


# Bad definitions


@pytest.mark.parametrize("property", ["linear", "fresh"])
def test_a_property_that_names_no_input_is_refused(property):
    with pytest.raises(ValueError, match="has no input 'z', only x"):
        op(**{property: ["z"]})(lambda x: x)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"elementwise": "no"}, "^elementwise must be True or False, not 'no'"),
        ({"floats": None}, "^floats must be True or False, not None"),
        ({"linear": "xy"}, r"linear of `<lambda>` is a list of names, such as \['xy'\], not 'xy'"),
        ({"cost": "lots"}, "cost of `<lambda>` is an integer or a function, not 'lots'"),
        ({"cost": {"x": 1}}, "cost of `<lambda>` is an integer or a function, not {'x': 1}"),
        ({"shape": (3,)}, r"shape of `<lambda>` is a function, not \(3,\)"),
        ({"nonfinite_hint": 3}, "nonfinite_hint of `<lambda>` is a text, .*, not 3"),
        ({"gradient_hint": {"why": 3}}, "gradient_hint of `<lambda>` is a text, .*, not 3"),
    ],
)
def test_a_property_of_another_kind_is_refused(properties, message):
    with pytest.raises(TypeError, match=message):
        op(**properties)(lambda x, y: x)


def test_a_cost_of_a_vjp_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"cost of `product` is an integer or .*, not 'lots'"):
        product_of_two().vjp("y", lambda g, x: g * x, cost="lots")


def test_a_vjp_cannot_name_what_the_op_does_not_keep():
    fused = op(lambda x: x)
    with pytest.raises(ValueError, match="asks for 'residuals'"):
        fused.vjp("x", lambda g, residuals: g)


@op
def sample(x, y, n=3):
    return x * y * n


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda: sample.vjp("z", lambda g: g), "`sample` has no input 'z', only x, y, n"),
        (
            lambda: sample.vjp("x", lambda g, z: g),
            "a VJP of `sample` asks for 'z'; it can have g, out and x, y, n, "
            "or the shape of one, as x_shape",
        ),
        (lambda: sample.vjp("x", lambda g, z_shape: g), "asks for 'z_shape'"),
        (lambda: sample.vjp("x", lambda y, g: g), "takes g first, not y, g"),
        (lambda: sample.vjp("x", lambda: 0), "takes g first"),
        (
            lambda: sample.joint_vjp(["x"], lambda g, x: g),
            "takes g, needs_input_grad first, not g, x",
        ),
        (lambda: sample.joint_vjp(["z"], lambda g, needs_input_grad: g), "has no input 'z'"),
        (
            lambda: sample.vjp("y", lambda g, argnum: g),
            "a sequence of inputs is the first parameter",
        ),
    ],
)
def test_bad_vjps_are_refused_by_name(define, message):
    with pytest.raises(ValueError, match="sample") as caught:
        define()
    assert message in str(caught.value)
    assert sample.vjps == []


def product_of_two():
    @op
    def product(x, y):
        return x * y

    product.vjp("x", lambda g, y: g * y)
    return product


def test_a_second_vjp_for_an_input_is_refused():
    with pytest.raises(ValueError, match="`product` already has a VJP for 'x'"):
        product_of_two().vjp("x", lambda g, y: g * y)


def test_a_joint_vjp_beside_others_is_refused():
    with pytest.raises(ValueError, match="`product` has VJPs already"):
        product_of_two().joint_vjp(["x", "y"], lambda g, needs_input_grad, x, y: (g * y, g * x))
    joint = joint_product()
    with pytest.raises(ValueError, match="`product`"):
        joint.vjp("z", lambda g, x, y: g * x * y)


def test_a_vjp_beside_that_of_a_sequence_is_refused():
    with pytest.raises(ValueError, match="`total`"):
        total_op().vjp("power", lambda g: g)


@pytest.mark.parametrize("name", ["g", "out", "needs_input_grad", "argnum", "_x"])
def test_reserved_names_of_parameters_are_refused(name):
    namespace = {"__name__": __name__}
    exec(f"def f({name}): return {name}", namespace)
    with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
        op(namespace["f"])


@pytest.mark.parametrize("text", ["def f(*x): return x", "def f(x, **y): return x"])
def test_forwards_with_any_number_of_arguments_are_refused(text):
    namespace = {"__name__": __name__}
    exec(text, namespace)
    with pytest.raises(ValueError, match=r"an op names all its parameters; \*+[xy] does not"):
        op(namespace["f"])


def test_a_forward_without_a_name_is_refused():
    for forward in (functools.partial(np.multiply, 2.0), OfAnotherLibrary()):
        with pytest.raises(TypeError, match=r"is made of a function, not of .*lambda x: forward"):
            op(forward)


def test_replayed_without_a_composition_is_refused():
    for properties in ({"replayed": True}, {"returns_residuals": True}):
        with pytest.raises(ValueError, match="must name the composition"):
            op(**properties)(lambda x: x)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "the VJP of `bad` for its input x returned None"),
        (2.0, TypeError, "the VJP of `bad` for its input x returned 2.0"),
        ((1, 2), TypeError, r"the VJP of `bad` for its input x returned \(1, 2\)"),
        (np.ones(3), ValueError, r"gradient of shape \(3,\), which cannot be summed to .* \(2,\)"),
        (np.ones((1, 1)), ValueError, r"gradient of shape \(1, 1\), which cannot be summed"),
        (np.ones(2) * 1j, TypeError, r"input x returned complex128; .* return its real part"),
        (np.ones((3, 2)) * 1j, TypeError, r"input x returned complex128; .* return its real part"),
        (np.array(["a", "b"]), TypeError, r"input x returned <U1; a gradient is of real numbers$"),
    ],
)
def test_what_a_vjp_must_not_return_is_named(returned, error, message):
    @op
    def bad(x):
        return x * 1.0

    bad.vjp("x", lambda g: returned)
    with pytest.raises(error, match=message):
        bad(leaf(1.0, 2.0)).sum().backward()


class OfAnotherLibrary:
    """An array of another library, such as a tensor of PyTorch."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(2)


def test_what_a_call_must_not_be_given_is_named():
    for bad in ("text", object(), [1.0, "a"], {1: 2}):
        with pytest.raises(
            TypeError, match=r"add: takes tensors, arrays and numbers|tensor contains"
        ):
            minigrad.add(leaf(1.0), bad)
    with pytest.raises(TypeError, match=r"numbers, not .* for b; minigrad.tensor\(x\) converts it"):
        minigrad.add(leaf(1.0), OfAnotherLibrary())
    with pytest.raises(TypeError, match="add: takes tensors, arrays and numbers, not None for b"):
        minigrad.add(leaf(1.0), None)


def test_wrong_arguments_of_a_call_are_pythons_usual_error():
    with pytest.raises(TypeError, match=r"exp\(\) missing 1 required positional argument: 'x'"):
        minigrad.exp()
    with pytest.raises(TypeError, match=r"sum\(\) got an unexpected keyword argument 'axes'"):
        minigrad.sum(leaf(1.0), axes=0)


# ------------------------------------------------------------------------------------------------
# Names of version 0.1
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: sample.rule("x", lambda g: g), "'rule'; it is 'vjp' since minigrad 0.2"),
        (lambda: sample.joint_rule, "'joint_rule'; it is 'joint_vjp' since minigrad 0.2"),
        (lambda: op(lambda x: x).vjp("x", lambda g, position: g), "'argnum' since minigrad 0.2"),
        (lambda: op(lambda x: x).vjp("x", lambda g, kept: g), "'residuals' since minigrad 0.2"),
        (
            lambda: op(lambda x: x).joint_vjp(["x"], lambda g, needs: [g]),
            "'needs_input_grad' since minigrad 0.2",
        ),
        (
            lambda: type("Watch", (minigrad.Observer,), {"on_rule": lambda self, *seen: None}),
            "Watch.on_rule: it is 'on_vjp' since minigrad 0.2",
        ),
        (lambda: op(keeps=True), "op: .* 'keeps'; it is 'returns_residuals' since minigrad 0.2"),
        (lambda: minigrad.multiply(x=1.0, y=2.0), r"multiply\(\) got .* 'x'; it takes a, b$"),
        (lambda: minigrad.dot(x=1.0, y=2.0), "dot: got .* 'x'; it takes a, b$"),
        (lambda: minigrad.optim.SGD([leaf(1.0)]).places, "it is 'last_step' since minigrad 0.2"),
        (lambda: minigrad.diagnostics.Comparison, "use minigrad.diagnostics.ReceiptComparison"),
    ],
)
def test_an_old_name_raises_an_error_that_gives_the_new_one(use, message):
    with pytest.raises((AttributeError, TypeError, ValueError), match=message):
        use()


def test_an_attribute_that_an_op_never_had_is_an_ordinary_error():
    with pytest.raises(AttributeError, match=r"'Op' object has no attribute 'ruel'$"):
        sample.ruel()


@pytest.mark.parametrize("op", [minigrad.multiply, minigrad.concatenate, minigrad.lora_linear])
def test_the_text_of_a_call_is_python(op):
    ast.parse(op.source)
    assert op.source.startswith("def ")


def test_the_cost_of_a_joint_vjp_is_of_its_inputs():
    product = op(lambda a, b: a * b)
    with pytest.raises(ValueError, match=r"has 'aa'; it can have a, b, shared"):
        product.joint_vjp(["a", "b"], lambda g, needs_input_grad: (g, g), cost={"aa": 3, "b": 1})
    assert product.vjps == []
