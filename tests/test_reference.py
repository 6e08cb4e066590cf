"""The API reference: every public name is documented. `test_site` looks at its pages."""

import inspect
import pydoc

import pytest

import lora
import minigrad
from minigrad import data, diagnostics, io, metrics, nn, optim, viz

PACKAGES = [minigrad, nn, optim, data, io, metrics, diagnostics, viz, lora, lora.viz]


def documented(package):
    """Public functions and classes, by name; what else there is are modules and plain values."""
    names = getattr(package, "__all__", None) or [
        name
        for name, value in vars(package).items()
        if name[0] != "_" and getattr(value, "__module__", None) == package.__name__
    ]
    named = {name: getattr(package, name) for name in names}
    return {name: value for name, value in named.items() if callable(value)}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_says_what_it_is(package):
    found = documented(package)
    assert found
    assert [name for name, value in found.items() if not inspect.getdoc(value)] == []


def test_help_shows_an_op_as_a_function():
    text = pydoc.render_doc(minigrad.softmax, renderer=pydoc.plaintext)
    signature = text.replace("'", "")  # Python 3.14 prints annotations without quotation marks
    assert "softmax(x: Array, axis: Axis = -1)" in signature
    assert "e^x / sum(e^x)" in text
