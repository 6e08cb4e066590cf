"""What `Tensor` declares in the core is what `minigrad.operators` attaches to it."""

import ast
import inspect

from minigrad import Tensor, operators
from minigrad.core import tensor


def methods(nodes):
    """The arguments and the result of each method, as source."""
    found = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return {
        node.name: (ast.unparse(node.args), ast.unparse(node.returns), len(node.decorator_list))
        for node in found
    }


def class_body(module, name):
    tree = ast.parse(inspect.getsource(module))
    (body,) = (node.body for node in tree.body if getattr(node, "name", None) == name)
    return body


def test_the_declared_methods_are_those_that_are_attached_with_the_same_signatures():
    blocks = [node for node in class_body(tensor, "Tensor") if isinstance(node, ast.If)]
    (declared,) = (methods(node.body) for node in blocks)
    assert declared
    assert declared == methods(class_body(operators, "Operators"))


def test_what_is_attached_is_what_a_tensor_has():
    assert set(operators.ATTACHED) == set(methods(class_body(operators, "Operators")))
    for name, method in operators.ATTACHED.items():
        assert inspect.getattr_static(Tensor, name) is method


def test_every_attached_method_is_documented_where_it_has_a_name_of_its_own():
    named = [name for name in operators.ATTACHED if not name.startswith("__")]
    assert [name for name in named if not getattr(Tensor, name).__doc__] == []
