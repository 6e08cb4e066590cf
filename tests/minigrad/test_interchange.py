"""DLPack: tensors in the memory of other libraries' arrays, and the other way round."""

from collections import namedtuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, from_dlpack
from minigrad.readonly import hold

DTYPES = ["float32", "float64", "float16", "int64", "int8", "uint8", "bool"]
SHAPES = [(), (3,), (0, 2), (2, 3, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_shares_memory_both_ways(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    x = from_dlpack(array)
    assert (x.dtype, x.shape) == (array.dtype, shape)
    assert type(x) is Tensor
    back = np.from_dlpack(x)
    assert_array_equal(back, array)
    assert back.flags.writeable
    assert np.shares_memory(back, array) == (array.size > 0)


def test_writes_go_both_ways():
    x = minigrad.tensor([1.0, 2.0, 3.0])
    array = np.from_dlpack(x)
    array[0] = 7.0
    assert_array_equal(x.data, [7, 2, 3])
    y = from_dlpack(x)
    y.copy_(np.zeros(3))
    assert_array_equal(array, np.zeros(3))


def test_views_keep_their_strides():
    x = minigrad.arange(6.0).reshape(2, 3)
    for view in (x.T, x[:, 1:], x[:, ::2]):
        array = np.from_dlpack(view)
        assert array.strides == view.data.strides
        assert np.shares_memory(array, x.data)
        assert_array_equal(from_dlpack(array).data, view.data)


def test_a_tensor_computes_and_learns_in_the_memory_of_another():
    array = np.array([1.0, 2.0])
    x = from_dlpack(array).requires_grad_()
    (x * x).sum().backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])
    minigrad.optim.SGD([x], lr=0.5).step()
    assert_array_equal(array, [0.0, 0.0])


def test_the_memory_lives_as_long_as_either_does():
    x = from_dlpack(np.full(1000, 3.0))
    array = np.from_dlpack(minigrad.full((1000,), 4.0))
    assert_array_equal(x.data, np.full(1000, 3.0))
    assert_array_equal(array, np.full(1000, 4.0))


def test_a_write_to_a_tensor_that_was_made_of_a_tensor_is_noticed():
    x, weights = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2))
    loss = (x * weights).sum()
    from_dlpack(weights).copy_([5.0, 5.0])
    with pytest.raises(RuntimeError, match="written since"):
        loss.backward()
    with pytest.raises(BufferError, match="requires a gradient"):
        from_dlpack(x)


def test_copy():
    array = np.ones(3)
    assert not np.shares_memory(from_dlpack(array, copy=True).data, array)
    assert np.shares_memory(from_dlpack(array, copy=False).data, array)
    x = Tensor(array)
    assert not np.shares_memory(np.from_dlpack(x, copy=True), array)


class Exported:
    """The array of another library, which says where its memory is."""

    def __init__(self, array, device=(1, 0)):
        self._array, self._device = array, device

    def __dlpack__(self, **options):
        if self._device != (1, 0):
            raise BufferError("it is on a GPU")
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._device


def test_read_only_memory_is_copied_because_a_tensor_is_writable():
    array = np.ones(3)
    array.flags.writeable = False
    x = from_dlpack(Exported(array))
    x.copy_(np.zeros(3))
    assert_array_equal(array, np.ones(3))
    with pytest.raises(BufferError, match=r"Exported is read-only, .* leave out copy=False"):
        from_dlpack(Exported(array), copy=False)


def test_memory_that_is_held_is_released_first():
    released = []

    class Holder:
        def on_release(self):
            released.append(True)

    holder, x = Holder(), minigrad.ones(3)
    assert hold(x.data, holder)
    np.from_dlpack(x)[0] = 2.0
    assert released
    assert_array_equal(x.data, [2, 1, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_dlpack([1.0]), TypeError, r"a list has no __dlpack__\(\)"),
        (lambda: from_dlpack(np.ones(2, complex)), TypeError, "not complex128"),
        (
            lambda: from_dlpack(Exported(np.ones(2), (2, 0))),
            BufferError,
            r"Exported cannot be shared \(.*\); what can is a detached array .* of the CPU",
        ),
        (lambda: from_dlpack(np.ones(2, ">f8")), BufferError, "numpy ndarray cannot be shared"),
        (
            lambda: np.from_dlpack(minigrad.ones(2, requires_grad=True)),
            BufferError,
            r"dtype float32 requires a gradient, .* use \.detach\(\)",
        ),
        (
            lambda: from_dlpack(minigrad.ones(2, requires_grad=True) * 2),
            BufferError,
            r"\(made by multiply\) requires a gradient, .* use \.detach\(\)",
        ),
        (
            lambda: np.from_dlpack(minigrad.arange(3.0)[::-1]),
            BufferError,
            r"has strides of \(-4,\) bytes, .* \.clone\(\) makes a copy",
        ),
        (
            lambda: np.from_dlpack(Tensor(np.zeros(4, [("x", "f4"), ("y", "f8")])["y"])),
            BufferError,
            r"has strides of \(12,\) bytes",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_clone_makes_what_can_be_shared():
    assert_array_equal(np.from_dlpack(minigrad.arange(3.0)[::-1].clone()), [2, 1, 0])


# ------------------------------------------------------------------------------------------------
# PyTorch and JAX
# ------------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pytorch_shares_memory_both_ways(dtype, shape):
    torch = pytest.importorskip("torch")
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    theirs = torch.from_dlpack(Tensor(array))
    assert_array_equal(theirs.numpy(), array)
    x = from_dlpack(theirs.T if len(shape) == 2 else theirs)
    assert x.dtype == array.dtype
    if array.size:
        theirs.zero_()
        assert not array.any()
        assert not x.data.any()


@pytest.mark.peers
def test_what_pytorch_has_and_numpy_has_not_is_refused():
    torch = pytest.importorskip("torch")
    for bad, message in (
        (torch.ones(2, dtype=torch.bfloat16), r"torch Tensor cannot be shared .* x\.float\(\)"),
        (torch.ones(2, device="meta"), r"torch Tensor cannot be shared .* x\.cpu\(\)"),
        (torch.ones(2, requires_grad=True), "cannot be shared .*require gradient.* detached"),
    ):
        with pytest.raises(BufferError, match=message):
            from_dlpack(bad)
    with pytest.raises(BufferError, match=r"requires a gradient, .* use \.detach\(\)"):
        torch.from_dlpack(minigrad.ones(2, requires_grad=True))
    assert_array_equal(from_dlpack(torch.ones(2, dtype=torch.bfloat16).float()).data, [1, 1])


@pytest.mark.peers
def test_jax_takes_tensors_and_its_arrays_are_copied():
    jax = pytest.importorskip("jax")
    x = minigrad.arange(6.0).reshape(2, 3)
    assert_array_equal(np.asarray(jax.dlpack.from_dlpack(x)), x.data)
    theirs = jax.numpy.arange(3.0)
    ours = from_dlpack(theirs)
    ours.copy_(np.zeros(3))
    assert_array_equal(np.asarray(theirs), [0, 1, 2])
    with pytest.raises(BufferError, match="is read-only, and the memory of a tensor is writable"):
        from_dlpack(theirs, copy=False)
    with pytest.raises(BufferError, match="cannot be shared"):
        from_dlpack(jax.numpy.ones(2, jax.numpy.bfloat16))


@pytest.mark.peers
def test_transforms_say_how_to_convert_an_array_of_another_library():
    torch = pytest.importorskip("torch")
    message = r"not a Tensor of torch; .*minigrad\.from_dlpack\(x\) makes a Tensor"
    with pytest.raises(TypeError, match=message):
        minigrad.gradient(lambda w: w["a"].sum())({"a": torch.ones(2)})


@pytest.mark.parametrize("function", [np.size, np.shape, np.ndim])
def test_functions_of_numpy_that_read_a_shape_take_a_tensor_by_name(function):
    x = Tensor(np.ones((2, 3)))
    assert function(a=x) == function(x) == function(x.data)


def test_a_named_tuple_of_tensors_is_a_sequence_for_numpy():
    keys = namedtuple("Keys", "second first")(Tensor([1.0, 0.0]), Tensor([2.0, 2.0]))
    assert_array_equal(np.lexsort(keys), [1, 0])
