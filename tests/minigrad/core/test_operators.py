"""What `Tensor` declares in the core is what `minigrad.operators` attaches to it."""

import ast
import functools
import inspect
import pydoc
import re
import textwrap

import pytest

from minigrad import Tensor, operators, ops
from minigrad.core import tensor


@functools.cache
def declared():
    """The methods that the core declares for type checkers, by name, as the source of each."""
    tree = ast.parse(inspect.getsource(tensor))
    (body,) = (node.body for node in tree.body if getattr(node, "name", None) == "Tensor")
    blocks = (node for node in body if isinstance(node, ast.If))
    (block,) = (block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING")
    functions = {node.name: node for node in block.body if isinstance(node, ast.FunctionDef)}
    shared = [node for node in block.body if isinstance(node, ast.Assign)]
    found = {target.id: functions[node.value.id] for node in shared for target in node.targets}
    signatures = {node.value.id for node in shared}
    return found | {name: node for name, node in functions.items() if name not in signatures}


def parameters(function):
    """The parameters after `self`, with their defaults and their kinds."""
    _, *others = inspect.signature(function).parameters.values()
    return [(p.name, p.default, p.kind) for p in others]


def test_the_declared_methods_are_those_that_are_attached():
    assert set(declared()) == set(operators.ATTACHED)
    for name, method in operators.ATTACHED.items():
        assert inspect.getattr_static(Tensor, name) is method


@pytest.mark.parametrize("name", [n for n in operators.ATTACHED if n != "T"])
def test_a_declared_method_has_the_parameters_of_the_one_that_is_attached(name):
    scope = {}
    node = declared()[name]
    exec(f"from __future__ import annotations\n{ast.unparse(node)}", scope)
    assert parameters(scope[node.name]) == parameters(operators.ATTACHED[name])


def test_every_attached_method_is_documented_where_it_has_a_name_of_its_own():
    named = [name for name in operators.ATTACHED if not name.startswith("__")]
    assert [name for name in named if not getattr(Tensor, name).__doc__] == []


def test_help_shows_a_method_with_the_documentation_of_its_op():
    text = pydoc.render_doc(Tensor.softmax, renderer=pydoc.plaintext)
    assert re.search(r"axis: '?Axis'? = -1", text)  # without quotes from Python 3.14 on
    shown = textwrap.dedent(text[text.index("\n    ") :])  # Python 3.11 indents empty lines, too
    assert shown.strip() == inspect.getdoc(ops.softmax)


def test_an_error_of_a_call_names_the_method():
    with pytest.raises(TypeError, match=r"Tensor\.exp\(\) takes 1 positional argument"):
        Tensor(1.0).exp(2)
