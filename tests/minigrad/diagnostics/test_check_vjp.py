"""check_vjp: any function of numpy arrays, and one that computes its gradient."""

import ctypes
import shutil
import subprocess

import numba
import numpy as np
import pytest

import minigrad as mg
from minigrad import assert_vjp, check_vjp
from minigrad.diagnostics import GradientError
from tests.benchmarks.false_alarms import verdicts
from tests.minigrad.diagnostics.right_functions import PAIRS, pair_cases

X = np.array([[0.3, -1.2, 0.8], [1.5, 0.4, -0.6]])
Y = np.array([[1.1, 0.7, -0.9], [0.2, -1.4, 0.5]])
square = lambda x: x * x
square_vjp = lambda g, x: 2 * g * x


def only(dtype, f):
    """f, which fails for arrays of another dtype."""

    def narrow(*arrays, **options):
        for x in arrays:
            if x.dtype != dtype:
                raise TypeError(f"{dtype} only, not {x.dtype}")
        return f(*arrays, **options)

    return narrow


# Right pairs, of every form


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("forward", "backward", "inputs", "entries"),
    [
        (square, square_vjp, X, 6),
        (square, lambda g, x: (2 * g * x,), [X], 6),
        (np.tanh, lambda g, x, out: g * (1 - out * out), [X], 6),
        (np.multiply, lambda g, x, y: (g * y, g * x), [X, Y], 12),
        (np.multiply, lambda g, x, y: [g * y, g * x], (X, Y), 12),
        (np.add, lambda g, x, y: (g, g), [X, Y], 12),
        (np.matmul, lambda g, x, y: (g @ y.T, x.T @ g), [X, Y.T], 12),
        (lambda x, i: x[:, i], lambda g, x, i: (g @ np.eye(3, dtype=x.dtype)[i], None),
         [X, np.array([2, 0])], 6),
        (lambda x: (np.sin(x), np.cos(x)), lambda g, x: g[0] * np.cos(x) - g[1] * np.sin(x),
         [X], 6),
        (lambda x: (x > 0, x * x), lambda g, x, out: 2 * g[1] * x, [X], 6),
        (lambda x: (x, x * x), lambda g, x, out: g[0] + 2 * g[1] * out[0], [X], 6),
        (lambda x: x.sum(), lambda g, x: np.full(x.shape, g), [X], 6),
        (lambda x: x.T, lambda g, x: g.T, [X.T], 6),
    ],
)  # fmt: skip
def test_right_pairs_agree(forward, backward, inputs, entries, dtype):
    arrays = [inputs] if isinstance(inputs, np.ndarray) else inputs
    report = check_vjp(
        forward, backward, [x.astype(dtype) if x.dtype.kind == "f" else x for x in arrays]
    )
    assert (report.verdict, report.compared) == ("agree", entries)
    assert report.dtype == "float64"


def test_numbers_and_tensors_are_inputs_too():
    assert check_vjp(lambda x: x**3, lambda g, x: 3 * g * x**2, 0.7)
    assert check_vjp(lambda x: float(x) ** 3, lambda g, x: float(3 * g * x**2), np.float32(0.7))
    assert check_vjp(lambda x, n: x**n, lambda g, x, n: (n * g * x ** (n - 1), None), [X, 3])
    assert check_vjp(square, square_vjp, mg.tensor(X))


# Wrong ones


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "backward",
    [
        lambda g, x: 2.02 * g * x,
        lambda g, x: g * x,
        lambda g, x: -2 * g * x,
        lambda g, x: 2 * x,
        lambda g, x: np.zeros_like(x),
        lambda g, x: g * x * np.nan,
        lambda g, x: 2 * g * x + np.eye(2, 3, 2),
        lambda g, x: 2 * g * x + (g - g.mean()),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_wrong_gradients_are_found(backward, dtype):
    wrong = lambda g, x: backward(g, x).astype(dtype)
    report = check_vjp(square, wrong, X.astype(dtype))
    assert report.verdict == "disagree"
    assert report.headline.startswith("check_vjp of <lambda>: disagree (6 entries")


def test_the_input_that_is_wrong_is_named():
    report = check_vjp(lambda x, y: x * y, lambda g, x, y: (g * y, 1.001 * g * x), [X, Y])
    assert {entry.operand for entry in report.wrong} == {"y"}


def test_assert_vjp_raises_with_the_report():
    assert_vjp(np.multiply, lambda g, x, y: (g * y, g * x), X, Y)
    with pytest.raises(GradientError, match="check_vjp of multiply: disagree") as caught:
        assert_vjp(np.multiply, lambda g, x, y: (g * y, g * y), X, Y, samples=2)
    assert isinstance(caught.value, AssertionError)


def test_samples_of_a_large_input():
    x = np.linspace(-1, 1, 3000).reshape(30, 100)
    report = check_vjp(np.tanh, lambda g, x, out: g * (1 - out * out), x, samples=20)
    assert (report.verdict, report.compared, report.total) == ("agree", 20, 3000)


# Other languages

C_SOURCE = """
void forward(const float *x, float *y, int n) {
    for (int i = 0; i < n; i++) y[i] = x[i] * x[i] * x[i];
}
void backward(const float *g, const float *x, float *out, int n) {
    for (int i = 0; i < n; i++) out[i] = FACTOR * g[i] * x[i] * x[i];
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(("factor", "verdict"), [(3, "agree"), (3.02, "disagree")])
@pytest.mark.parametrize("checked", [True, False], ids=["typed pointers", "any memory"])
def test_a_kernel_in_c(factor, verdict, checked, tmp_path):
    (tmp_path / "cube.c").write_text(C_SOURCE.replace("FACTOR", str(factor)))
    library = str(tmp_path / "cube.so")
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", tmp_path / "cube.c", "-o", library], check=True
    )
    kernels = ctypes.CDLL(library)
    array = np.ctypeslib.ndpointer(np.float32, flags="C") if checked else ctypes.c_void_p
    kernels.forward.argtypes = [array, array, ctypes.c_int]
    kernels.backward.argtypes = [array, array, array, ctypes.c_int]
    given = (lambda x: x) if checked else (lambda x: x.ctypes.data)

    def forward(x):
        y = np.empty_like(x)
        kernels.forward(given(x), given(y), x.size)
        return y

    def backward(g, x):
        out = np.empty_like(x)
        kernels.backward(given(g), given(x), given(out), x.size)
        return out

    report = check_vjp(forward, backward, X.astype(np.float32))
    assert (report.verdict, report.dtype) == (verdict, "float32")


@pytest.mark.full
def test_a_kernel_of_numba():
    @numba.njit
    def forward(x, y):
        out = np.empty(x.size, x.dtype)
        for i in range(x.size):
            out[i] = x[i] * np.exp(y[i])
        return out

    @numba.njit
    def backward(g, x, y, out):
        return g * np.exp(y), g * out

    assert check_vjp(forward, backward, [X[0], Y[0]])
    wrong = numba.njit(lambda g, x, y: (g * np.exp(y), g * x))
    assert check_vjp(forward, wrong, [X[0], Y[0]]).verdict == "disagree"


# Few digits


@pytest.mark.parametrize(
    ("dtype", "resolved", "factor"),
    [(np.float32, 2e-3, 1.01), (np.float16, 0.1, 1.5), ("bfloat16", 0.3, 3)],
)
def test_kernels_of_one_dtype(dtype, resolved, factor):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    forward = only(dtype, lambda x, y: np.tanh(x) * y)

    def backward(by):
        def computed(g, x, y):
            g, x, y = (v.astype(np.float32) for v in (g, x, y))
            t = np.tanh(x)
            return (by * g * y * (1 - t * t)).astype(dtype), (g * t).astype(dtype)

        return only(dtype, computed)

    inputs = [X.astype(dtype), Y.astype(dtype)]
    report = check_vjp(forward, backward(1), inputs)
    assert report.verdict == "agree", report
    assert report.dtype == np.dtype(dtype).name
    assert report.tolerance < resolved
    assert f"computed in {report.dtype}, in which differences can show relative err" in repr(report)
    assert f"an entry that agrees may be off by {report.slack:.2g}, and the largest" in repr(report)
    assert check_vjp(forward, backward(factor), inputs).verdict == "disagree"
    assert check_vjp(forward, backward(-1), inputs).verdict == "disagree"


def test_a_step_below_the_last_digit_is_no_proof_of_a_gradient_of_0():
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    x = np.random.default_rng(0).standard_normal(5).astype(dtype)
    assert check_vjp(only(dtype, lambda x: x**3), lambda g, x: g * x**2 * dtype(3), x)
    report = check_vjp(only(dtype, lambda x: x**3), lambda g, x: 0 * g, x)
    assert report.verdict != "agree"
    assert np.all(report.comparisons[0].doubt[np.abs(x) > 0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_kernel_that_computes_with_fewer_digits_than_it_shows_is_seen_to(dtype):
    forward = lambda x: np.tanh(x.astype(dtype).astype(np.float64))
    report = check_vjp(forward, lambda g, x, out: g * (1 - out * out), X)
    assert (report.verdict, report.dtype) == ("agree", np.dtype(dtype).name)
    rounded = lambda x: np.tanh(x).astype(dtype).astype(np.float64)
    assert check_vjp(rounded, lambda g, x: g * (1 - np.tanh(x) ** 2), X).dtype == report.dtype


@pytest.mark.parametrize(
    ("dtype", "size", "factor"),
    [(np.float32, 1e-4, 1.05), (np.float32, 1e-2, 1.05), (np.float64, 1e-9, 1.0005)],
)
def test_small_inputs_are_not_taken_for_few_digits(dtype, size, factor):
    x = np.array([1, 2, -1.5, 0], dtype) * dtype(size)
    forward = only(dtype, lambda x: 1 / (1 + np.exp(-x)))
    report = check_vjp(forward, lambda g, x, out: g * out * (1 - out) * dtype(factor), x)
    assert (report.verdict, report.dtype) == ("disagree", np.dtype(dtype).name)
    assert check_vjp(forward, lambda g, x, out: g * out * (1 - out), x)


def test_a_step_is_not_taken_for_few_digits():
    forward = lambda x: np.concatenate((np.floor(x), np.tanh(x)))
    assert check_vjp(forward, lambda g, x: g[2:] * (1 - np.tanh(x) ** 2), X).dtype == "float64"


# Sums in any order


def in_any_order(factor):
    """A sum of many terms of float32 as atomics add it, and its gradient."""
    rng = np.random.default_rng(1)

    def add(terms):
        order = rng.permutation(len(terms))
        return np.cumsum(terms[order].astype(np.float32), 0, np.float32)[-1]

    weights = np.linspace(0.5, 1, 60).astype(np.float32)[:, None]
    forward = lambda x: add(np.sin(weights * x.ravel())).reshape(x.shape)
    backward = lambda g, x: add(factor * g.ravel() * weights * np.cos(weights * x.ravel())).reshape(
        x.shape
    )
    return forward, backward


def test_sums_in_any_order_can_be_allowed():
    x = X.astype(np.float32)
    report = check_vjp(*in_any_order(1), x)
    assert report.verdict == "cannot tell"
    assert "not deterministic: two calls with the same inputs differ by up to" in report.reason
    assert "allow it by nondet_tol=" in report.reason
    report = check_vjp(*in_any_order(1), x, nondet_tol=1e-5)
    assert (report.verdict, report.dtype) == ("agree", "float32")
    assert check_vjp(*in_any_order(1.05), x, nondet_tol=1e-5).verdict == "disagree"
    assert "not deterministic" in check_vjp(*in_any_order(1), x, nondet_tol=1e-9).reason


def test_gradcheck_allows_it_as_well():
    rng = np.random.default_rng(0)
    f = lambda x: mg.tanh(x) * (1 + 1e-7 * rng.random(x.shape))
    assert "not deterministic" in mg.gradcheck(f, X, order=1).reason
    report = mg.gradcheck(f, X, order=1, nondet_tol=1e-6)
    assert (report.verdict, report.unsteady) == ("agree", True)
    assert "numbers may differ from call to call, so judged as in float32, in which" in repr(report)
    f = lambda x: mg.tanh(x.detach()) * x * (1 + 1e-7 * rng.random(x.shape))
    assert mg.gradcheck(f, X, order=1, nondet_tol=1e-6).verdict == "disagree"


@pytest.mark.parametrize("value", [-1e-3, 1.0, np.nan, "much", None])
def test_nondet_tol_is_between_0_and_1(value):
    with pytest.raises(ValueError, match="check_vjp: nondet_tol is a number from 0 to below 1"):
        check_vjp(square, square_vjp, X, nondet_tol=value)


# What is not a gradient is a finding


def remembering():
    """A pair whose backward uses what its forward saw last."""
    seen = []

    def forward(x):
        seen[:] = [x.copy()]
        return x * x

    return forward, lambda g, x: 2 * g * seen[0]


def writing(g, x):
    g *= 2 * x
    return g.copy()


BUFFER = np.empty(X.shape)


def reusing(g, x):
    return np.multiply(2 * g, x, out=BUFFER)


@pytest.mark.parametrize(
    ("forward", "backward", "reason"),
    [
        (square, lambda g, x: None, "returned None for an input of floats; return zeros if"),
        (square, lambda g, x: g.sum(), r"a gradient of shape \(\) for an input of \(2, 3\)"),
        (square, lambda g, x: (2 * g * x).T,
         r"a gradient of shape \(3, 2\) for an input of \(2, 3\)"),
        (square, lambda g, x: (2 * g * x).astype(np.float32),
         "its gradient is float32, the operand float64"),
        (square, lambda g, x: (2 * g * x).astype(int),
         "its gradient is int64, the operand float64"),
        (square, writing, "a backward function writes to the gradient that it is given"),
        (square, reusing, "kept in memory that the next call of backward writes to"),
        (lambda x: +x, lambda g, x: x, "its gradient shares memory with x"),
        (*remembering(), "by a pass behind another call of f"),
    ],
)  # fmt: skip
def test_what_is_no_gradient_is_a_finding(forward, backward, reason):
    report = check_vjp(forward, backward, X)
    assert report.verdict == "disagree"
    found = "\n".join(entry.reason for entry in report.wrong)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found)


# What cannot be checked is an error


def failing(*arrays):
    raise RuntimeError("no CUDA device")


@pytest.mark.parametrize(
    ("forward", "backward", "inputs", "said"),
    [
        (np.add, lambda g, x, y: g, [X, Y], "for each of the 2 inputs, in a tuple if there are"),
        (np.add, lambda g, x, y: (g, g, g), [X, Y], "it returned a tuple of 3"),
        (square, lambda g, x: "one", X, "must return arrays of floats, not str"),
        (square, failing, X,
         "RuntimeError\nno CUDA device\nraised in failing(g, *inputs), with inputs float64[2, 3]"),
        (failing, square_vjp, X,
         "RuntimeError\nno CUDA device\nraised while check_vjp called failing with the inputs"),
        (lambda x: None, square_vjp, X,
         "forward must return an array of floats, or a tuple with one, not NoneType (object[])"),
        (lambda x: x > 0, square_vjp, X, "not ndarray (bool[2, 3])"),
        (lambda x: {"y": x}, square_vjp, X, "not dict (object[])"),
        (lambda x: x.astype(complex), square_vjp, X, "not ndarray (complex128[2, 3])"),
        (lambda x: (), square_vjp, X, "not tuple (nothing)"),
        (square, square_vjp, np.array([1, 2]), "no input contains floats"),
        (square, square_vjp, "text",
         "input 0 must be an array of real numbers, not str of dtype <U4"),
        (square, square_vjp, [X, None], "input 1 must be an array of real numbers, not NoneType"),
        (square, square_vjp, [[X, X[:, 0]]],
         "input 0 must be an array of real numbers, not list: setting"),
        (square, 3, X, "backward must be a function, not 3"),
        (3, square_vjp, X, "forward must be a function, not 3"),
        (lambda x: np.sin(x, out=x), square_vjp, X, "writes to x; a gradient is"),
        (square, lambda g, x: np.multiply(x, 2, out=x) * g, X,
         "writes to x where a gradient"),
        (lambda x: x[x > 0.3], square_vjp, np.array([0.3, 0.7]), "gives results of shapes"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_an_error(forward, backward, inputs, said):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        check_vjp(forward, backward, inputs)
    notes = getattr(caught.value, "__notes__", [])
    assert said in "\n".join([type(caught.value).__name__, str(caught.value), *notes])


def test_inputs_are_left_as_they_are():
    x = X.copy()
    x.setflags(write=False)
    assert check_vjp(square, square_vjp, x)
    assert np.array_equal(x, X)


def test_values_that_are_not_finite_are_undecided():
    report = check_vjp(np.log, lambda g, x: g / x, np.array([-1.0, 2.0]))
    assert report.verdict == "cannot tell"
    report = check_vjp(np.abs, lambda g, x: g * np.sign(x), np.array([0.0, 2.0]))
    assert "a kink" in repr(report)


# No false alarm


@pytest.mark.full
def test_right_pairs_are_not_accused():
    counts, wrong = verdicts(pair_cases(2 * len(PAIRS)), 2 * len(PAIRS))
    assert not wrong, wrong[0]
    assert counts.total() >= 120
    assert counts["agree"] > 0.9 * counts.total()
