"""The modules of both packages: what their names mean, and how they import one another."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from types import ModuleType

import pytest

import lora
import minigrad


@pytest.mark.parametrize("root", [minigrad, lora])
def test_no_function_of_a_package_hides_a_module_of_the_same_name(root):
    inside = walk_packages(root.__path__, f"{root.__name__}.")
    hidden = []
    for package in (root, *(importlib.import_module(name) for _, name, has in inside if has)):
        for module in iter_modules(package.__path__):
            if not isinstance(vars(package).get(module.name, root), ModuleType):
                hidden.append(f"{package.__name__}.{module.name}")
    assert hidden == []


@pytest.mark.parametrize("root", [minigrad, lora])
def test_no_module_is_imported_by_a_fixed_string(root):
    by_string = []
    for path in Path(root.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in ("import_module", "__import__"):
                    by_string.append(f"{path.name}: {node.args[0].value}")
    assert by_string == []


def test_an_import_brings_nothing_that_only_a_part_needs():
    """In a rank of `mpiexec` too, where the import does not start MPI."""
    code = """
import sys, lora, minigrad.viz
print({*sys.modules} & {"gguf", "jinja2", "matplotlib", "mpi4py", "numba", "tokenizers"})
import lora.text
print({*sys.modules} & {"gguf", "jinja2", "matplotlib", "mpi4py", "tokenizers"})
"""
    environment = {**os.environ, "PMI_SIZE": "2"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\nset()\n"
