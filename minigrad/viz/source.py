"""The source text of VJPs and forwards."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Source:
    """A function as text."""

    text: str  # the expression of a lambda, or the body of a function without its docstring
    # The derivative as one expression of ops: the body of a lambda, or what a VJP with a kernel for
    # arrays returns for Tensors; empty if there is no such expression.
    formula: str = ""
    kernel: bool = False  # whether the VJP has a kernel for arrays besides its formula


def source_of(function: Any) -> Source | None:
    """Return the text of a Python function, or None if it has no source, like a builtin."""
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    definition = next((node for node in _definitions(text) if _is_of(code, node)), None)
    if definition is None:
        return None
    if isinstance(definition, ast.Lambda):
        return Source(_segment(text, definition.body), _in_a_line(text, definition.body))
    body = definition.body[ast.get_docstring(definition) is not None :]
    lines = text.splitlines()[body[0].lineno - 1 : definition.end_lineno]
    shown = textwrap.dedent("\n".join(lines)).strip()
    first, *more = body
    if isinstance(first, ast.If) and "isinstance(g, Tensor)" in ast.unparse(first.test):
        first, *more = first.body
    if more or not isinstance(first, ast.Return) or first.value is None:
        return Source(shown)
    return Source(shown, _in_a_line(text, first.value), kernel=first is not body[0])


def signature_of(function: Any) -> str:
    """Return the signature of a function as text: names of parameters, with their defaults."""
    known = inspect.signature(function).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in known)


def filled_in(formula: str, values: Mapping[str, Any]) -> str | None:
    """Write the formula with numbers in place of names; None unless all values are numbers.

    `g * (1 - out * out)` becomes `1 * (1 - 0.76 * 0.76)`.
    """
    kinds = int, float, np.generic, np.ndarray
    if not formula or not all(isinstance(v, kinds) and np.size(v) == 1 for v in values.values()):
        return None
    tree = ast.parse(f"({formula})", mode="eval")
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in called]
    for node in names:
        if node.id in values:
            number = in_short(values[node.id])
            node.id = f"({number})" if number[0] == "-" and node is not tree.body else number
    return ast.unparse(tree)


def in_short(value: Any) -> str:
    """Write a number with four digits."""
    return f"{np.asarray(value).item():.4g}"


@lru_cache(maxsize=64)
def _definitions(text: str) -> list[ast.Lambda | ast.FunctionDef]:
    try:
        nodes = ast.walk(ast.parse(text))
    except SyntaxError:
        return []
    return [node for node in nodes if isinstance(node, (ast.Lambda, ast.FunctionDef))]


def _is_of(code: CodeType, node: ast.Lambda | ast.FunctionDef) -> bool:
    """Return whether `code` was compiled from this node; columns tell lambdas on a line apart."""
    if isinstance(node, ast.FunctionDef):
        starts = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
        return node.name == code.co_name and code.co_firstlineno in starts
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    known = code.co_name, code.co_firstlineno, names
    if known != ("<lambda>", node.lineno, tuple(a.arg for a in arguments)):
        return False
    body = node.body
    inside = range(body.col_offset, (body.end_col_offset or 0) + 1)
    return body.end_lineno != body.lineno or any(
        line == last == body.lineno and start in inside and end in inside
        for line, last, start, end in code.co_positions()
    )


def _in_a_line(text: str, node: ast.expr) -> str:
    """Return the text of an expression; if it has several lines, in one line without comments."""
    segment = _segment(text, node)
    return ast.unparse(node) if "\n" in segment else segment


def _segment(text: str, node: ast.AST) -> str:
    return textwrap.dedent(ast.get_source_segment(text, node) or ast.unparse(node))
