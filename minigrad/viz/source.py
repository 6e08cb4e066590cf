"""The source text of VJPs and forwards: what runs, as it is written."""

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
    """A function as text.

    Attributes:
        text: the expression of a lambda, or the body of a function without its docstring.
        formula: the derivative as one expression of ops: that of a lambda, or what a VJP returns
            for Tensors if it has a kernel for arrays; empty if there is none.
        kernel: whether the VJP has a kernel for arrays beside its formula.
    """

    text: str
    formula: str = ""
    kernel: bool = False


def source_of(function: Any) -> Source | None:
    """Return the text of a Python function; None if it has none, such as one that is built in."""
    found = _definition(function)
    if found is None:
        return None
    text, definition = found
    if isinstance(definition, ast.Lambda):
        expression = _segment(text, definition.body)
        return Source(expression, " ".join(expression.split()))
    body = definition.body
    if ast.get_docstring(definition) is not None:
        body = body[1:]
    if not body:
        return Source("...")
    lines = text.splitlines()[body[0].lineno - 1 : definition.end_lineno]
    shown = textwrap.dedent("\n".join(lines)).strip()
    first = body[0]
    if len(body) == 1 and isinstance(first, ast.Return) and first.value is not None:
        return Source(shown, " ".join(_segment(text, first.value).split()))
    formula = _for_tensors(text, body)
    return Source(shown, formula, bool(formula))


def _for_tensors(text: str, body: list[ast.stmt]) -> str:
    """Return what `if isinstance(g, Tensor): return ...` at the head of a VJP returns."""
    first = body[0]
    if not isinstance(first, ast.If) or "isinstance(g, Tensor)" not in ast.unparse(first.test):
        return ""
    (last, *more) = first.body
    if more or not isinstance(last, ast.Return) or last.value is None:
        return ""
    return " ".join(_segment(text, last.value).split())


def signature_of(function: Any) -> str:
    """Return the names of the parameters, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    shown = [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in ((p.name, p) for p in parameters)
    ]
    return ", ".join(shown)


def filled_in(formula: str, values: Mapping[str, Any]) -> str | None:
    """Write the formula with numbers for its names; None unless all values are numbers.

    `g * (1 - out * out)` becomes `1 * (1 - 0.76 * 0.76)`.
    """
    if not formula or not all(_is_number(value) for value in values.values()):
        return None
    try:
        tree = ast.parse(formula, mode="eval")
    except SyntaxError:
        return None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in values and id(node) not in called
    ]
    text = formula.encode()  # offsets are in bytes
    for node in sorted(names, key=lambda node: node.col_offset, reverse=True):
        number = in_short(values[node.id])
        if number.startswith("-") and node is not tree.body:
            number = f"({number})"
        assert node.end_col_offset is not None
        text = text[: node.col_offset] + number.encode() + text[node.end_col_offset :]
    return text.decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic)) or (
        isinstance(value, np.ndarray) and value.size == 1
    )


def in_short(value: Any) -> str:
    """Write a number with four digits."""
    return f"{np.asarray(value).item():.4g}"


def _definition(function: Any) -> tuple[str, ast.Lambda | ast.FunctionDef] | None:
    """Return the text of the file that a function is in, and its definition there."""
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    tree = _parsed("".join(lines))
    if tree is None:
        return None
    text = "".join(lines)
    for node in tree:
        if isinstance(node, ast.Lambda):
            if code.co_name == "<lambda>" and _is_of(code, node):
                return text, node
        elif node.name == code.co_name and code.co_firstlineno in (
            node.lineno,
            *(decorator.lineno for decorator in node.decorator_list),
        ):
            return text, node
    return None


def _is_of(code: CodeType, node: ast.Lambda) -> bool:
    """Whether `code` was compiled from this lambda; columns distinguish several on a line."""
    columns = [
        (start, end)
        for line, last, start, end in code.co_positions()
        if line == node.body.lineno and start is not None and end is not None and last == line
    ]
    last = node.body.end_col_offset
    assert last is not None
    return (
        node.lineno == code.co_firstlineno
        and tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        == code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        and (
            node.body.end_lineno != node.body.lineno
            or any(node.body.col_offset <= start and end <= last for start, end in columns if end)
        )
    )


@lru_cache(maxsize=64)
def _parsed(text: str) -> list[ast.Lambda | ast.FunctionDef] | None:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Lambda, ast.FunctionDef))]


def _segment(text: str, node: ast.AST) -> str:
    return textwrap.dedent(ast.get_source_segment(text, node) or ast.unparse(node))
