"""Functions of shapes and places against numpy, for any shapes and arguments (hypothesis)."""

import string

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, grad

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def of_dims(smallest, largest=4, side=0):
    return arrays.array_shapes(min_dims=smallest, max_dims=largest, min_side=side, max_side=4)


def numbered(shape, start=1.0):
    """An array of different elements."""
    return np.arange(start, start + np.prod(shape)).reshape(shape)


def check_linear(name, shape, *args, reference=None, **options):
    """A linear function has numpy's values, and its gradient is its transpose: <f x, v> = <x, g v>.

    All numbers are small integers, so that both sides are exact.
    """
    x = Tensor(numbered(shape), requires_grad=True)
    out = getattr(minigrad, name)(x, *args, **options)
    assert_array_equal(out.data, (reference or getattr(np, name))(x.data, *args, **options))
    v = numbered(out.shape) * 7 % 11 - 5
    assert np.sum(out.data * v) == np.sum(x.data * grad(out, x, v).data)


many = hypothesis.settings(max_examples=60)


@hypothesis.given(st.data(), of_dims(1))
@many
def test_moveaxis(data, shape):
    axes = range(len(shape))
    count = data.draw(st.integers(0, len(shape)))
    source, destination = (data.draw(st.permutations(axes))[:count] for _ in range(2))
    signs = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    source = [s - len(shape) if negative else s for s, negative in zip(source, signs, strict=True)]
    check_linear("moveaxis", shape, source, destination)


@hypothesis.given(SHAPES, st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=4))
@many
def test_tile(shape, reps):
    check_linear("tile", shape, reps)


@hypothesis.given(st.data(), of_dims(1))
@many
def test_repeat(data, shape):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    count = int(np.prod(shape)) if axis is None else shape[axis]
    each = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    repeats = data.draw(st.integers(0, 3) | each)
    check_linear("repeat", shape, np.array(repeats, dtype=int) if count == 0 else repeats, axis)


@hypothesis.given(st.data(), of_dims(1, 3, side=1))
@many
def test_pad(data, shape):
    mode = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    width = st.integers(0, 9)
    pad_width = data.draw(
        width
        | st.tuples(width, width)
        | st.lists(st.tuples(width, width), min_size=len(shape), max_size=len(shape))
    )
    check_linear("pad", shape, pad_width, mode)


@hypothesis.given(
    of_dims(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.integers(-3, 3)
)
@many
def test_pad_fills_in_the_constant(shape, pad_width, value):
    x = numbered(shape)
    expected = np.pad(x, pad_width, constant_values=value) if shape else x
    assert_array_equal(minigrad.pad(x, pad_width, constant_values=value), expected)


@pytest.mark.full
@hypothesis.given(st.data(), of_dims(1))
@many
def test_roll(data, shape):
    axis = st.integers(-len(shape), len(shape) - 1)
    shift = st.integers(-9, 9)
    pairs = st.lists(st.tuples(shift, axis), min_size=1, max_size=3)
    several = pairs.map(lambda chosen: tuple(zip(*chosen, strict=True)))
    check_linear("roll", shape, *data.draw(several | st.tuples(shift, st.none() | axis)))


@hypothesis.given(st.data(), of_dims(1))
@many
def test_flip_twice_is_the_identity(data, shape):
    axes = data.draw(st.none() | st.sets(st.integers(0, len(shape) - 1)).map(tuple))
    check_linear("flip", shape, axes)
    x = numbered(shape)
    assert_array_equal(minigrad.flip(minigrad.flip(x, axes), axes), x)


@hypothesis.given(st.data(), of_dims(1))
@many
def test_split_and_concatenate_give_the_whole_again(data, shape):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    equal = st.sampled_from([n for n in range(1, size + 2) if size % n == 0])
    parts = data.draw(equal | st.lists(st.integers(0, size), max_size=3).map(sorted))
    x = Tensor(numbered(shape), requires_grad=True)
    pieces = minigrad.split(x, parts, axis)
    for piece, expected in zip(pieces, np.split(x.data, parts, axis), strict=True):
        assert_array_equal(piece.data, expected)
    whole = minigrad.concatenate(pieces, axis)
    assert_array_equal(whole.data, x.data)
    v = numbered(shape, 5.0)
    assert_array_equal(grad(whole, x, v).data, v)


@hypothesis.given(st.data(), SHAPES, st.integers(1, 3))
@many
def test_stack(data, shape, count):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    xs = [Tensor(numbered(shape, 100.0 * k), requires_grad=True) for k in range(count)]
    out = minigrad.stack(xs, axis)
    assert_array_equal(out.data, np.stack([x.data for x in xs], axis))
    v = numbered(out.shape, 7.0)
    for k, g in enumerate(grad(out, xs, v)):
        assert_array_equal(g.data, np.take(v, k, axis))


@hypothesis.given(of_dims(2), st.integers(-5, 5))
@many
def test_the_two_triangles_make_the_whole(shape, k):
    check_linear("tril", shape, k)
    check_linear("triu", shape, k)
    x = numbered(shape)
    assert_array_equal(minigrad.tril(x, k) + minigrad.triu(x, k + 1), x)


@hypothesis.given(st.data(), of_dims(2))
@many
def test_diagonal_and_trace(data, shape):
    axis1, axis2 = data.draw(st.permutations(range(len(shape))))[:2]
    offset = data.draw(st.integers(-5, 5))
    check_linear("diagonal", shape, offset, axis1, axis2)
    check_linear("trace", shape, offset, axis1, axis2)


@hypothesis.given(of_dims(1, 2), st.integers(-5, 5))
@many
def test_diag(shape, k):
    check_linear("diag", shape, k)


@hypothesis.given(st.data(), of_dims(1, 3), st.booleans())
@many
def test_sort_is_a_permutation_in_order(data, shape, descending):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    x = Tensor(data.draw(arrays.arrays(np.float64, shape, elements=st.integers(-3, 3))))
    x.requires_grad_()
    out, places = (f(x, axis, descending) for f in (minigrad.sort, minigrad.argsort))
    along = 0 if axis is None else axis
    rows = x.data.reshape(-1) if axis is None else x.data
    assert_array_equal(np.sort(places.data, along), np.sort(np.argsort(rows, along), along))
    assert_array_equal(out.data, np.take_along_axis(rows, places.data, along))
    steps = np.diff(out.data, axis=along)
    assert np.all(steps <= 0 if descending else steps >= 0)
    assert np.all(np.diff(places.data, axis=along)[steps == 0] > 0)  # equals keep their order
    v = numbered(out.shape)
    found = grad(out, x, v).data
    assert_array_equal(
        np.take_along_axis(found.reshape(-1) if axis is None else found, places.data, along), v
    )


@pytest.mark.parametrize("largest", [True, False])
def test_topk_finds_a_nan_beside_elements_that_equal_the_last_one(largest):
    sign = 1.0 if largest else -1.0
    x = np.zeros(64)
    x[[3, 5, 7, 9]] = np.nan, 5 * sign, 4 * sign, 4 * sign
    for k in range(1, 9):
        values, indices = minigrad.topk(x, k, 0, largest)
        order = minigrad.argsort(x, 0, descending=largest)[:k]
        assert_array_equal(indices, order)
        assert_array_equal(values, x[order])


@hypothesis.given(st.data(), of_dims(1, 3, side=1))
@many
def test_topk_is_the_beginning_of_sort(data, shape):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    k = data.draw(st.integers(0, shape[axis]))
    largest = data.draw(st.booleans())
    x = data.draw(arrays.arrays(np.float64, shape, elements=st.integers(-3, 3)))
    values, indices = minigrad.topk(x, k, axis, largest)
    first = (*[slice(None)] * (axis % len(shape)), slice(k))
    assert_array_equal(values, minigrad.sort(x, axis, largest)[first])
    assert_array_equal(indices, minigrad.argsort(x, axis, largest)[first])


def two_equal_ones(x):
    return np.where(np.arange(200) < 2, 9, x)


def one_nan(x):
    return np.where(np.arange(200) < 1, np.nan, x)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: np.round(x),  # many are equal
        lambda x: np.where(x > 1, np.nan, x),
        lambda x: np.where(abs(x) > 2, np.inf * x, x),
        lambda x: x.astype(np.float16),
        lambda x: (100 * x).astype(np.int8),
        lambda x: x > 0,
        lambda x: np.concatenate([[two_equal_ones(x[0])], [one_nan(x[1])], x[2:]]),
    ],
)
def test_few_of_many_elements_are_the_beginning_of_sort(change, axis, largest):
    x = change(np.random.default_rng(0).standard_normal((5, 3, 200))).swapaxes(axis, 2)
    for k in (1, 7, 25):
        values, indices = minigrad.topk(x, k, axis, largest)
        first = (*[slice(None)] * axis, slice(k))
        assert_array_equal(values, minigrad.sort(x, axis, largest)[first])
        assert_array_equal(indices, minigrad.argsort(x, axis, largest)[first])


@hypothesis.given(st.data(), of_dims(1, 3, side=1))
@many
def test_take_along_axis(data, shape):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = [data.draw(st.sampled_from([1, size])) for size in shape]
    sizes[axis] = data.draw(st.integers(0, 4))
    places = st.integers(-shape[axis], shape[axis] - 1)
    indices = data.draw(arrays.arrays(np.int64, sizes, elements=places))
    check_linear("take_along_axis", shape, indices, axis)


@st.composite
def contractions(draw):
    """Subscripts of einsum, and the shapes of its operands; sizes of 1 are broadcast."""
    letters = "abcd"
    sizes = {letter: draw(st.integers(1, 3)) for letter in letters}
    hidden = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    parts, shapes = [], []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.lists(st.sampled_from(letters), max_size=3))
        shape = [sizes[letter] for letter in part]
        if len(set(part)) == len(part):  # not of a diagonal
            shape = [draw(st.sampled_from([size, size, 1])) for size in shape]
        if draw(st.booleans()):
            kept = draw(st.integers(0, len(hidden)))
            at = draw(st.integers(0, len(part)))
            part.insert(at, "...")
            shape[at:at] = hidden[len(hidden) - kept :]
        parts.append("".join(part))
        shapes.append(tuple(shape))
    subscripts = ",".join(parts)
    if draw(st.booleans()):
        known = sorted(set(subscripts) & set(string.ascii_letters))
        output = draw(st.permutations(known))[: draw(st.integers(0, len(known)))]
        if "..." in subscripts:  # which numpy does not sum over
            output.insert(draw(st.integers(0, len(output))), "...")
        subscripts += "->" + "".join(output)
    return subscripts, shapes


@pytest.mark.full
@hypothesis.given(contractions(), st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=300)
def test_einsum(contraction, seed):
    subscripts, shapes = contraction
    rng = np.random.default_rng(seed)
    xs = [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]
    out = minigrad.einsum(subscripts, *xs)
    expected = np.einsum(subscripts, *(x.data for x in xs))
    assert out.shape == expected.shape
    assert_allclose(out.data, expected, rtol=1e-9, atol=1e-12)
    # It is linear in each operand, so <out, v> = <x, gradient of x> for each of them.
    v = rng.standard_normal(out.shape)
    for x, g in zip(xs, grad(out, xs, v), strict=True):
        assert_allclose(np.sum(x.data * g.data), np.sum(out.data * v), rtol=1e-9, atol=1e-12)
