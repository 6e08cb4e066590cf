"""gradcheck of functions of PyTorch and JAX."""

import functools
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from minigrad import assert_gradients, gradcheck, tensor
from minigrad.__main__ import main
from tests.benchmarks.false_alarms import verdicts
from tests.minigrad.diagnostics.right_functions import (
    jax_cases,
    jax_steps,
    torch_cases,
    torch_steps,
)

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
X = np.array([[0.3, -1.2, 0.8], [1.5, 0.4, -0.6]])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def function(torch, forward, backward):
    """A torch.autograd.Function that saves its inputs for backward(ctx, g, *inputs)."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *xs):
            ctx.save_for_backward(*xs)
            return forward(*xs)

        @staticmethod
        def backward(ctx, g):
            return backward(ctx, g, *ctx.saved_tensors)

    return Custom.apply


def reasons(report):
    return "\n".join(entry.reason for entry in report.wrong)


# PyTorch: what is right


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("order", [1, 2])
def test_functions_and_modules_agree(torch, dtype, order):
    x = torch.tensor(X).to(getattr(torch, dtype))
    assert gradcheck(torch.tanh, [x], order=order).compared == (6 if order == 1 else 18)
    assert gradcheck(lambda x: {"a": x.sin(), "b": [x @ x.T, x > 0]}, x, order=order)
    report = gradcheck(torch.nn.Linear(3, 2, dtype=x.dtype), [x], order=order)
    assert report.verdict == "agree"
    assert {c.operand for c in report.comparisons} >= {"input", "weight", "bias"}


def test_the_default_is_the_first_order(torch):
    cube = function(torch, lambda x: x**3, lambda ctx, g, x: 3 * g * x**2)
    report = gradcheck(cube, [torch.tensor(X)])
    assert (report.function, report.verdict, report.compared) == ("Custom", "agree", 6)
    assert_gradients(cube, torch.tensor(X), order=2)


def test_modules_with_buffers_and_other_inputs(torch):
    x = torch.tensor(X, dtype=torch.float32)
    assert gradcheck(torch.nn.BatchNorm1d(3), [x]).compared == 12
    assert gradcheck(torch.nn.Embedding(4, 2), [torch.tensor([0, 2])]).compared == 8
    lstm = torch.nn.LSTM(3, 2)
    assert gradcheck(lstm, [x], samples=5)
    assert gradcheck(torch.nn.functional.softmax, [x, 1])
    weight = torch.ones(3, requires_grad=True)  # only inputs that require a gradient are operands
    assert gradcheck(torch.multiply, [x, weight]).compared == 3


# Users' threads


def fails(torch, f, x, **options):
    """Whether PyTorch's checker calls f wrong."""
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(f, (x,), **options)
    return True


def test_a_linear_layer_in_float32(torch):
    # PyTorch #5351: gradcheck of a Linear layer fails for an input of float32.
    torch.manual_seed(123)
    x = torch.rand(1, 2, requires_grad=True)
    layer = torch.nn.Linear(2, 1)
    assert fails(torch, layer, x, eps=1e-6, atol=1e-3)
    report = gradcheck(layer, [x])
    assert (report.verdict, report.tolerance) == ("agree", 1e-6)


def test_a_convolution_in_float32(torch):
    # PyTorch #114217: gradcheck of a Conv1d fails for an input of float32.
    torch.manual_seed(0)
    x = torch.rand([1, 16, 59], requires_grad=True)
    layer = torch.nn.Conv1d(16, 33, 5, stride=16)
    assert fails(torch, layer, x)
    assert gradcheck(layer, [x], samples=40).verdict == "agree"


def test_relu_at_its_kink(torch):
    # PyTorch #114234: gradcheck of relu fails for memory that is not set, which is 0 or near it.
    x = torch.tensor([0.0, 1e-310, -3e-8, 2e-7, 0.5], dtype=torch.float64, requires_grad=True)
    relu = torch.nn.functional.relu
    assert fails(torch, relu, x)
    report = gradcheck(relu, [x])
    assert report.verdict == "cannot tell"
    assert all("kink" in entry.reason for entry in report.undecided)
    assert (0,) in {entry.index for entry in report.undecided}
    assert gradcheck(relu, [x.detach()[3:]]).verdict == "agree"
    wrong = function(torch, relu, lambda ctx, g, x: 2 * g * (x > 0))
    assert gradcheck(wrong, [x]).verdict == "disagree"


def test_the_corners_of_a_box(torch):
    # kornia #4184: gradcheck fails for the extremes of a box whose corners tie, and gradients were
    # switched off for that reason.
    corners = [[i, j, k] for i in (0.0, 2.0) for j in (0.0, 1.0) for k in (0.0, 3.0)]
    box = torch.tensor(corners, dtype=torch.float64, requires_grad=True)
    extremes = lambda corners: torch.cat((corners.amin(0), corners.amax(0) - corners.amin(0)))
    assert fails(torch, extremes, box)
    report = gradcheck(extremes, [box])
    assert report.verdict == "cannot tell"
    assert all("kink" in entry.reason for entry in report.undecided)
    tilted = box.detach() @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert gradcheck(extremes, [tilted]).verdict == "agree"

    def first_only(ctx, g, corners):
        return torch.zeros_like(corners)

    assert gradcheck(function(torch, lambda c: c.amax(0), first_only), [box]).verdict == "disagree"


# PyTorch: what is wrong


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("factor", [2.002, 1.0, -2.0, 0.0, float("nan")])
def test_a_wrong_backward_is_found(torch, dtype, factor):
    square = function(torch, lambda x: x * x, lambda ctx, g, x: factor * g * x)
    x = torch.tensor(X, dtype=getattr(torch, dtype))
    assert gradcheck(square, [x]).verdict == "disagree"


def fault(torch, name):
    """The backward of a square, and of a product, that is wrong in some cases only."""
    seen, scratch = [], {}

    def remembering(ctx, g, x):
        return 2 * g * seen[-1]

    def forward(x):
        seen.append(x.clone())
        return x * x

    def writing(ctx, g, x):
        return g.mul_(2 * x)

    def reusing(ctx, g, x):
        return torch.mul(2 * x, g, out=scratch.setdefault(x.dtype, torch.empty_like(x)))

    def alone(ctx, g, x, y):
        return g * y * (1 if all(ctx.needs_input_grad) else 2), g * x

    def flat(ctx, g, x):  # reads the memory of g, as a kernel does that takes it for contiguous
        memory = g.untyped_storage()
        first = torch.empty(0, dtype=g.dtype).set_(memory)
        return 2 * x * first.repeat(x.numel())[: x.numel()].reshape(x.shape)

    return {
        "in float32 only": (None, lambda ctx, g, x: g * x * (2 + (g.dtype == torch.float32) / 9)),
        "remembers": (forward, remembering),
        "writes": (None, writing),
        "uses memory again": (None, reusing),
        "for one alone": (torch.multiply, alone),
        "reads memory": (None, flat),
        "ignores strides of 0": (None, lambda ctx, g, x: 2 * g * x * (1 + (0 in g.stride()))),
        "shape": (None, lambda ctx, g, x: g[0]),
        "count": (torch.multiply, lambda ctx, g, x, y: g * y),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("in float32 only", ""),
        ("remembers", "by a pass behind another call of f"),
        ("writes", "writes to the gradient that it is given"),
        ("uses memory again", "in memory that the next call of backward writes to"),
        ("for one alone", "by a pass for it alone"),
        ("reads memory", "by cotangents in transposed memory"),
        ("ignores strides of 0", "for a cotangent that is broadcast, as behind a sum"),
        ("shape", "torch: Function CustomBackward returned an invalid gradient at index 0"),
        ("count", "torch: function CustomBackward returned an incorrect number of gradients"),
    ],
)
def test_hidden_faults_are_found(torch, name, reason):
    forward, backward = fault(torch, name)
    f = function(torch, forward or (lambda x: x * x), backward)
    x = torch.tensor(X, dtype=torch.float32)
    report = gradcheck(f, [x, x + 1] if forward is torch.multiply else [x])
    assert report.verdict == "disagree"
    assert reason in reasons(report)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_and_modules_may_differentiate_by_their_inputs(torch, dtype):
    class Penalty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())

        def forward(self, x):
            (slope,) = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
            return (slope.norm(dim=1) - 1).square().mean()

    x = torch.tensor(X, dtype=getattr(torch, dtype))
    assert gradcheck(Penalty().to(x.dtype), x)
    force = lambda x, y: torch.autograd.grad((x**3 * y).sum(), x, create_graph=True)[0]
    assert gradcheck(force, [x, x + 1], order=2)
    constant = lambda x: torch.autograd.grad((x**3).sum(), x)[0]
    assert gradcheck(constant, x).verdict == "disagree"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("BatchNorm1d", (16, 4)),
        ("BatchNorm2d", (4, 3, 5, 2)),
        ("InstanceNorm1d", (4, 3, 6)),
        ("GroupNorm", (4, 6, 5)),
    ],
)
def test_a_gradient_that_is_0_but_for_rounding_is_not_accused(torch, name, shape, dtype, seed):
    torch.manual_seed(seed)
    sizes = (2, 6) if name == "GroupNorm" else shape[1:2]
    layer = getattr(torch.nn, name)(*sizes).to(getattr(torch, dtype))
    report = gradcheck(layer, [torch.randn(shape, dtype=getattr(torch, dtype))])
    assert report.verdict != "disagree", report


def under_no_grad(torch, x):
    with torch.no_grad():
        return x.tanh()


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (under_no_grad, "torch gives no gradient: is the result computed under no_grad"),
        (lambda torch, x: x.tanh().detach(), "f uses .detach(), through which no gradient flows"),
        (lambda torch, x: x * x.sum().item(), "f uses .item(), through which no gradient flows"),
        (lambda torch, x: torch.tensor(x.tolist()) ** 2, "f uses .tolist()"),
        (
            lambda torch, x: torch.from_numpy(np.tanh(x.numpy())),
            "Can't call numpy() on Tensor that",
        ),
    ],
)
def test_where_the_graph_is_cut_is_the_finding(torch, f, reason):
    report = gradcheck(lambda x: f(torch, x), [torch.tensor(X)])
    assert report.verdict == "disagree"
    assert reason in reasons(report)


def test_a_constant_is_right(torch):
    assert gradcheck(lambda x: torch.ones(2, dtype=x.dtype), [torch.tensor(X)])
    assert gradcheck(lambda x, y: x * x, [torch.tensor(X), torch.tensor(X)])


def test_nothing_of_the_user_is_changed(torch):
    x = torch.tensor(X, requires_grad=True)
    x.grad = before = torch.ones_like(x)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3).double(), torch.nn.BatchNorm1d(3).double())
    outer = torch.ones(3, dtype=torch.float64, requires_grad=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seed = torch.random.get_rng_state()
    with torch.no_grad():
        report = gradcheck(lambda x: model(x) * outer, [x])
        assert gradcheck(model, [x], order=2)
    assert gradcheck(torch.nn.Dropout(), [x]).reason.startswith("not deterministic")
    assert report.others == 5
    assert "not checked: 5 more tensors" in repr(report)
    assert x.grad is before
    assert torch.equal(before, torch.ones_like(x))
    assert x.requires_grad
    assert outer.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x.detach(), torch.tensor(X))
    assert torch.equal(torch.random.get_rng_state(), seed)
    unchanged = {n: torch.equal(v, state[n]) for n, v in model.state_dict().items() if "0." in n}
    assert all(unchanged.values())


def test_what_insists_on_float32_is_checked_in_it(torch):
    weight = torch.linspace(-1, 1, 9).reshape(3, 3)
    x = torch.tensor(X, dtype=torch.float32)
    report = gradcheck(lambda x: torch.tanh(x @ weight), [x])
    assert (report.verdict, report.dtype) == ("agree", "float32")
    assert "computed in float32" in repr(report)
    inside = lambda x: torch.tanh(x.float()).double()
    assert gradcheck(inside, [x.double()]).dtype == "float32"


def test_errors_say_what_to_pass(torch):
    x = torch.tensor(X)
    with pytest.raises(TypeError, match=r"a torch.Tensor of floats, or .* not ndarray"):
        gradcheck(lambda x: x.detach().numpy(), [x])
    with pytest.raises(
        TypeError, match=r"no input contains floats .* \['Tensor torch.int64'\]; conv"
    ):
        gradcheck(torch.sum, [torch.tensor([1, 2])])
    with pytest.raises(TypeError, match=r"no input contains floats of torch.*\['Tensor float64'\]"):
        gradcheck(torch.sum, [tensor(X)])
    custom = function(torch, torch.tanh, raising).__self__
    with pytest.raises(TypeError, match=r"f is the class Custom; pass Custom.apply"):
        gradcheck(custom, [x])
    with pytest.raises(TypeError, match=r"of them, not Tensor torch.complex128"):
        gradcheck(torch.fft.rfft, [x])
    with pytest.raises(ValueError, match="writes to x"):
        gradcheck(lambda x: x.detach().mul_(2) + x, [x])
    with pytest.raises(RuntimeError, match="mine") as caught:
        gradcheck(function(torch, torch.tanh, raising), [x])
    assert "raised while gradcheck called Custom" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError, match="belong to PyTorch and to JAX"):
        gradcheck(torch.tanh, [x, pytest.importorskip("jax").numpy.ones(2)])


def raising(ctx, g, x):
    raise RuntimeError("mine")


def test_a_double_backward_that_is_not_there_is_wrong(torch):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.factor = 1 - torch.tanh(x) ** 2
            return torch.tanh(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * ctx.factor

    assert gradcheck(Once.apply, [torch.tensor(X)])
    report = gradcheck(Once.apply, [torch.tensor(X)], order=2)
    assert {entry.order for entry in report.wrong} == {2}


def test_sums_by_atomics_can_be_allowed(torch):
    def shuffled(x):
        return x.sin().sum() * (1 + 1e-7 * torch.rand(()))

    x = torch.tensor(X, dtype=torch.float32)
    assert "not deterministic" in gradcheck(shuffled, [x]).reason
    for seed in range(8):  # in some of these, two calls give the same number in float32
        torch.manual_seed(seed)
        assert gradcheck(shuffled, [x], nondet_tol=1e-6).verdict == "agree"
    wrong = function(torch, torch.sin, lambda ctx, g, x: g * x)
    report = gradcheck(lambda x: wrong(x).sum() * (1 + 1e-7 * torch.rand(())), [x], nondet_tol=1e-6)
    assert report.verdict == "disagree"


# JAX


def test_functions_of_jax_agree(jax):
    x = jax.numpy.asarray(X, dtype="float32")
    report = gradcheck(jax.numpy.tanh, [x])
    assert (report.verdict, report.dtype, report.compared) == ("agree", "float32", 6)
    assert "computed in float32, in which differences can show relative errors" in repr(report)
    assert gradcheck(lambda x: {"a": jax.numpy.sin(x), "b": (x @ x.T, x > 0)}, [x])
    assert gradcheck(jax.jit(lambda x, n: x**n), [x, jax.numpy.arange(3)]).compared == 6
    assert gradcheck(jax.numpy.tanh, x.astype("bfloat16")).dtype == "bfloat16"
    with jax.enable_x64(True):
        x = jax.numpy.asarray(X)
        assert gradcheck(jax.numpy.tanh, [x], order=2).compared == 18
        report = gradcheck(lambda x: jax.numpy.tanh(x.astype("float32")).astype("float64"), [x])
        assert report.dtype == "float32"
        assert gradcheck(jax.numpy.tanh, [x.astype("float32")]).dtype == "float64"


def with_vjp(jax, backward):
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), backward)
    return square


@pytest.mark.parametrize(
    ("backward", "reason"),
    [
        (lambda x, g: (2.02 * g * x,), ""),
        (lambda x, g: (-2 * g * x,), ""),
        (lambda x, g: (2 * g[0] * x[0],), "jax: "),
        (lambda x, g: (2 * g * x, g), "jax: "),
    ],
)
def test_a_wrong_vjp_of_jax_is_found(jax, backward, reason):
    report = gradcheck(with_vjp(jax, backward), [jax.numpy.asarray(X, dtype="float32")])
    assert report.verdict == "disagree"
    assert reason in reasons(report)
    if not reason:
        assert {entry.operand for entry in report.wrong} >= {"x"}


def test_containers_of_jax_and_pytorch_are_operands_by_their_leaves(jax, torch):
    def loss(params, x):
        return ((x @ params["layer"]["w"] + params["b"]) ** 2).sum() / params["count"]

    rng = np.random.default_rng(0)
    w, b, x = rng.standard_normal((3, 2)), np.ones(2), rng.standard_normal((4, 3))
    of_jax = jax.numpy.array
    of_torch = functools.partial(torch.tensor, requires_grad=True)
    for made in (of_jax, of_torch):
        params = {"layer": {"w": made(w)}, "b": made(b), "count": 4}
        report = gradcheck(loss, (params, made(x)))
        assert report.verdict == "agree"
        names = [one.operand for one in report.comparisons]
        assert names == ['params["layer"]["w"]', 'params["b"]', "x"]


def test_lists_and_results_with_names_of_pytorch(torch):
    class Output(dict):  # as transformers has
        def __init__(self, **items):
            super().__init__(**items)
            self.__dict__ = self

    x, y = torch.tensor(X), torch.tensor(X[:, :2])
    report = gradcheck(lambda xs: torch.cat(xs, dim=1), [[x, y]])
    assert report.verdict == "agree"
    assert [one.operand for one in report.comparisons] == ["xs[0]", "xs[1]"]
    assert gradcheck(lambda x: torch.max(x, dim=1), [x]).verdict == "agree"
    assert gradcheck(torch.linalg.slogdet, [x[:, :2]]).verdict == "agree"
    assert gradcheck(lambda x: Output(logits=x * x, cache=None), [x]).verdict == "agree"
    state = torch.zeros(1, 3), torch.zeros(1, 3)
    report = gradcheck(torch.nn.LSTM(3, 3), [x.float(), state])
    assert report.verdict == "agree"
    assert report.tolerance == 1e-6, "the state is float64 too"


def test_typed_keys_of_jax_are_constants(jax):
    key = jax.random.key(0)

    def noisy(params, key):
        return params["w"] * jax.random.normal(params["key"], (2, 3)), key

    assert gradcheck(noisy, [{"w": jax.numpy.array(X), "key": key}, key]).verdict == "agree"
    with pytest.raises(TypeError, match=r"floats of jax.* they are \['PRNGKeyArray "):
        gradcheck(lambda key: jax.random.normal(key), [key])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_operands_of_few_digits_with_results_of_more_are_not_accused(jax, torch, dtype):
    jnp = jax.numpy
    x = jnp.array(X, dtype)
    report = gradcheck(lambda x: x.astype(jnp.float32) * 2, [x])
    assert not report.wrong
    assert report.dtype == dtype
    x = torch.tensor(X).to(getattr(torch, dtype))
    if x.dtype.itemsize > 1:
        report = gradcheck(lambda x: x.float() * 2, [x])
        assert not report.wrong
        assert report.dtype == dtype
    else:
        scale = gradcheck(lambda x, scale: x * scale.double(), [torch.tensor(X), x])
        assert scale.verdict == "agree"
        with pytest.raises(TypeError, match=f"no input contains floats of torch.*{dtype}"):
            gradcheck(lambda x: x.float() * 2, [x])


def test_a_vjp_that_is_wrong_at_second_order_only(jax):
    backward = lambda x, g: (2 * g * jax.lax.stop_gradient(x),)
    x = jax.numpy.asarray(X, dtype="float32")
    assert gradcheck(with_vjp(jax, backward), [x])
    assert gradcheck(with_vjp(jax, backward), [x], order=2).verdict == "disagree"


def test_numpy_inside_a_function_of_jax_is_the_finding(jax):
    x = jax.numpy.asarray(X, dtype="float32")
    report = gradcheck(lambda x: jax.numpy.asarray(np.tanh(np.asarray(x))), [x])
    assert report.verdict == "disagree"
    assert "jax: The numpy.ndarray conversion method" in reasons(report)
    report = gradcheck(lambda x: x * float(x.sum()), [x])
    assert "jax: " in reasons(report)
    assert gradcheck(jax.lax.stop_gradient, [x]).verdict == "disagree"


# The command line


FILE = """
import torch

model = torch.nn.Linear(4, 2)

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]

def plain(x):
    return torch.tanh(x)
"""


@pytest.mark.parametrize(
    ("target", "options", "code", "said"),
    [
        ("{}:model", ["--dtype", "float32"], 0, "gradcheck of Linear: agree (22 entries"),
        ("{}:Square.apply", [], 1, "gradcheck of Square: disagree"),
        ("{}:plain", ["--framework", "torch", "--order", "2"], 0, "agree (36 entries"),
        ("jax.numpy:tanh", [], 0, "computed in float32"),
    ],
)
def test_the_command_takes_them(torch, jax, target, options, code, said, tmp_path, capsys):
    (tmp_path / "of_torch.py").write_text(textwrap.dedent(FILE))
    target = target.format(tmp_path / "of_torch.py")
    with pytest.raises(SystemExit) as caught:
        main(["check", target, "--shapes", "3x4", *options])
    assert caught.value.code == code
    assert said in capsys.readouterr().out


def test_the_command_says_which_framework_to_name(jax, tmp_path, capsys):
    (tmp_path / "of_jax.py").write_text("import jax.numpy\ndef f(x): return jax.numpy.sin(x)\n")
    with pytest.raises(SystemExit) as caught:
        main(["check", f"{tmp_path}/of_jax.py:f", "--shapes", "3"])
    assert caught.value.code == 3
    assert "for a function of JAX, add --framework jax" in capsys.readouterr().err


# No false alarm


def test_right_functions_of_torch_are_not_accused(torch):
    count = len(torch_steps())
    counts, wrong = verdicts(torch_cases(count), count)
    assert not wrong, wrong[0]
    assert counts["agree"] > 0.9 * count > 54


def test_right_functions_of_jax_are_not_accused(torch, jax):
    """JAX compiles each for a second, so those that PyTorch has too are left to the test of it."""
    names = jax_steps().keys() - torch_steps().keys()
    cases = (case for case in jax_cases(len(jax_steps())) if case.name in names)
    with jax.enable_x64(True):
        counts, wrong = verdicts(cases, len(names))
    assert not wrong, wrong[0]
    assert counts["agree"] > 0.9 * len(names) > 12


def test_neither_is_imported():
    code = """
        import sys
        import numpy
        import minigrad

        minigrad.gradcheck(minigrad.tanh, numpy.ones(2))
        minigrad.check_vjp(numpy.square, lambda g, x: 2 * g * x, numpy.ones(2))
        print({"torch", "jax"} & set(sys.modules))
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"
