"""The API reference: every public name is documented, and pdoc makes pages of it."""

import inspect
import pydoc
import re
import subprocess
import sys

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


@pytest.mark.full
def test_pdoc_makes_pages_that_need_no_network_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="the reference needs the `docs` extra")
    from examples.site.reference import PACKAGES as NAMED

    command = [sys.executable, "-m", "pdoc", "--docformat", "google", *NAMED]
    command += ["--output-directory", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    pages = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*.html")}
    for package in (minigrad, nn, optim, diagnostics, viz, lora, lora.viz):
        page = pages[package.__name__.replace(".", "/") + ".html"]
        missing = [name for name in documented(package) if f'id="{name}"' not in page]
        assert missing == [], package
    for method in (name for name in dir(minigrad.Tensor) if name[0] != "_"):
        own, inherited = f'id="Tensor.{method}"', f'methods.html#TensorMethods.{method}"'
        assert own in pages["minigrad.html"] or inherited in pages["minigrad.html"], method
    assert "The hyperbolic tangent sinh(x) / cosh(x)" in pages["minigrad.html"]
    for name, page in pages.items():
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="(https?:)?//', page), name
