"""The messages of errors begin with the name of the function, class or layer that was called."""

import inspect

import numpy as np
import pytest

import lora
import lora.offline
import lora.text
import minigrad as mg
from minigrad import nn, optim

X = mg.tensor([[1.0, 2.0]], requires_grad=True)
PLAIN = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mg.mse(X), "mse: missing 1 required positional argument: 'target'"),
        (lambda: mg.mse(X, [1.0]), r"mse: .* \(1, 2\), the target \(1,\); they must be the same"),
        (lambda: nn.MSELoss()(X, [1.0]), "MSELoss: the prediction has shape"),
        (lambda: nn.CrossEntropyLoss()(X), "CrossEntropyLoss: missing 1 req.*: 'target'"),
        (lambda: nn.ReLU()(), "ReLU: missing 1 required positional argument: 'x'"),
        (lambda: nn.Softmax(axis=7)(X), "Softmax: axis 7 is out of bounds"),
        (lambda: nn.Linear(0, 2), "Linear: "),
        (lambda: optim.SGD([X], lr=-1), r"SGD: lr must be in \[0.0, inf\), not -1"),
        (lambda: optim.StepLR(optim.SGD([X]), 0), "StepLR: "),
        (lambda: mg.checkpoint(3), "checkpoint: f is a function or a module, not 3"),
        *(
            (lambda name=name: getattr(lora, name)(3), f"{name}: only a Module has adapters, not 3")
            for name in ("adapters", "detach", "fold", "merge", "switch", "unmerge", "quantize")
        ),
        (lambda: lora.save(3, "x"), "save: only a Module has adapters, not 3"),
        (lambda: lora.remove(3, "x"), "remove: only a Module has adapters, not 3"),
        (lambda: lora.param_groups(3, lr=0.1), "param_groups: only a Module has adapters, not 3"),
        (lambda: lora.merge(PLAIN), r"merge: the model has no adapters; lora\.attach"),
        (lambda: lora.load(PLAIN, 3), "load: .*, not '?int'?"),
        (lambda: lora.LoRALayer(np.ones((2, 2)), 2, 2, 0, 1), "LoRALayer: rank"),
        (lambda: lora.LoRALayer(np.ones((2, 2)), 2, 2, 1, -1), "LoRALayer: alpha"),
        (lambda: lora.LoRALayer(np.ones((2, 2)), 2, 2, 1, 1, dropout=2), "LoRALayer: dropout"),
        (lambda: optim.SGD(nn.MLP([2, 2])), "SGD: .*, not a value of class MLP$"),
        (lambda: mg.einsum(X, X), r"einsum: .*, not a Tensor of shape \(1, 2\)"),
        (lambda: mg.io.save_state("x", nn.MLP([2, 2])), "save_state .*, not a value of class MLP$"),
        (lambda: mg.Trainer(PLAIN, optim.SGD, mg.mse), "Trainer: optimizer .*, not the class SGD;"),
        (lambda: mg.gradcheck(X, X), r"gradcheck: .*, not a Tensor of shape \(1, 2\)"),
        (lambda: mg.liveness(PLAIN, X, X), r"loss_fn must .*, not a Tensor of shape \(1, 2\)"),
        (
            lambda: mg.cross_entropy(np.ones((2, 3, 5)), np.ones((2, 3), int)),
            r"cross_entropy: .* of shape \(2, 3, 5\), with the classes on axis 1, have",
        ),
        (
            lambda: mg.concatenate(X, X),
            r"concatenate: takes its tensors as one list, as in concatenate\(\[a, b\]\)",
        ),
        (lambda: mg.hstack(X, X), r"hstack: .*; the arrays are one list, as in \[a, b\]"),
        (lambda: mg.vstack(X, X), r"vstack: .*; the arrays are one list, as in \[a, b\]"),
        (lambda: mg.column_stack(X, X), r"column_stack: .*; the arrays are one list, as in"),
        (lambda: mg.tensor(1.0, dtype="abc"), "tensor: a dtype is 'float32'"),
        (lambda: mg.tensor(1.0, requires_grad=3), "tensor: requires_grad must be True or False"),
        (lambda: mg.ones_like(X, dtype="abc"), "ones_like: a dtype is 'float32'"),
        (lambda: mg.zeros_like(3), "zeros_like: takes a Tensor or an array, not 3"),
        (lambda: mg.linspace("a", 1), "linspace: a tensor contains booleans"),
        (lambda: mg.manual_seed(-1), "manual_seed: the seed must be"),
        (lambda: mg.grad(X.sum(), 3.5), r"grad: inputs are tensors, .*, not 3\.5"),
        (lambda: optim.grad_norm(3), "grad_norm: the parameters are tensors"),
        (lambda: optim.clip_grad_norm([X, 3], 1.0), "clip_grad_norm: the parameters are tensors"),
        (lambda: optim.clip_grad_value(X, "a"), "clip_grad_value: clip_value must be a number"),
        (lambda: nn.init.calculate_gain("x"), "calculate_gain: nonlinearity is 'linear', "),
        (lambda: nn.init.kaiming_normal_(X, a="x"), "kaiming_normal_: a must be a number, not 'x'"),
        (lambda: nn.init.xavier_normal_(X, "x"), "xavier_normal_: gain must be a number, not 'x'"),
        (lambda: nn.init.orthogonal_(X, "x"), "orthogonal_: gain must be a number, not 'x'"),
        (lambda: nn.init.trunc_normal_(X, "x"), "trunc_normal_: mean must be a number, not 'x'"),
        (lambda: nn.init.trunc_normal_(X, a=[1]), r"trunc_normal_: a must be a number, not \[1\]"),
        (lambda: lora.LoRAConfig(rank="x"), "LoRAConfig: rank is an integer, not 'x'"),
        (lambda: lora.Adapter(np.ones((2, 2)), "x", 1.0), "Adapter: rank is an integer, not 'x'"),
        (lambda: lora.verify(3, mg.mse, X), "verify: only a Module has adapters, not 3"),
        (lambda: lora.offline.merge_files("a", "b", "c", dtype="x"), "merge_files: weights are"),
        (lambda: lora.text.load_model(None), "load_model: .*, not .?NoneType"),
        (lambda: mg.io.load_state(None), "load_state: .*, not .?NoneType"),
        (lambda: mg.Trainer(PLAIN, optim.SGD([PLAIN.weight]), mg.mse, batch_size=0), "Trainer: b"),
        (lambda: X.detach().flatten(5), "flatten: axis 5 is out of bounds"),
        (lambda: X.detach().copy_([1.0]), r"copy_: cannot copy data of shape \(1,\)"),
        (lambda: X.requires_grad_("a"), "requires_grad_: requires_grad must be True or False"),
        (lambda: nn.Linear(2, 2).astype("abc"), "astype: a dtype is 'float32'"),
        (lambda: optim.SGD([X]).add_param_group(3), "add_param_group: group 1 must be a dict"),
        (lambda: mg.data.train_test_split([1], [1, 2]), "train_test_split: the arrays have"),
        (lambda: mg.observe(mg.Observer).__enter__(), "observe: takes an Observer, not the class"),
        (lambda: mg.observe(3).__enter__(), "observe: takes an Observer, not 3"),
        (lambda: mg.data.read_csv(None, "y"), "read_csv: .*, not NoneType"),
    ],
)
def test_a_message_names_what_was_called(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


@pytest.mark.parametrize("name", mg.OPS)
def test_an_op_that_refuses_a_masked_array_names_itself(name):
    masked, op = np.ma.array([1.0, 2.0], mask=[0, 1]), mg.OPS[name]
    values = [p.default for p in op.signature.parameters.values()]
    required = [masked for default in values if default is inspect.Parameter.empty]
    with pytest.raises(TypeError, match=f"^{name}: a tensor has no mask"):
        op(*required)


@pytest.mark.parametrize("bias", [np.array(["a"]), [1, "a"]])
def test_an_op_that_refuses_an_array_of_texts_names_itself(bias):
    with pytest.raises(TypeError, match=r"^linear: a tensor contains booleans"):
        mg.linear(X, X, bias)


def test_a_message_names_the_function_that_was_called_and_none_inside_of_it():
    class Own(nn.Linear):
        pass

    class OwnNorm(nn.LayerNorm):
        pass

    with pytest.raises(ValueError, match=r"^Own: in_features"):
        Own(0, 2)
    with pytest.raises(ValueError, match=r"^OwnNorm: eps must be in"):
        OwnNorm(3, eps=-1.0)
    with pytest.raises(TypeError, match=r"\(1, 2\) float32, <class 'numpy.complex64'>"):
        mg.astype(X, np.complex64)
    with pytest.raises(ValueError, match=r"^MLP: out_features must be a positive integer, not 0"):
        nn.MLP([2, 0])
