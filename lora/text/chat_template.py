"""ChatTemplate: the jinja2 template that converts a conversation to the text format of a model.

A template is code from an untrusted source. So it runs in jinja2's sandbox, which has no access to
the internals of Python, and with limits on the number of passes of loops and calls, on products
and sums, and on the length of the text. It can still take much memory in other ways, such as
methods of texts, the filter `center`, `%` and blocks of `set`. The settings are those of
transformers, with one difference: transformers copies `thinking` and `reasoning` of a message to
`reasoning_content`, and here a message keeps its keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any

from lora.text.packages import package

LONGEST = 1 << 24
"""The largest number of characters of the text of a template, and of a product or sum in it."""

MOST_STEPS = 250_000
"""The largest number of passes of loops and calls, together, while a template makes a text."""

_STEPS = "the number of steps"  # no name that a template can write


class ChatTemplate:
    """A chat template in the language of jinja2.

    The template can use the conversation and `variables`, such as `bos_token`. A ValueError is
    raised if the text is not a valid template, and an ImportError if jinja2 is not installed.
    """

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        self._variables = dict(variables)
        try:
            sandbox = _sandbox()
            self._template = sandbox.from_string(_limited(sandbox.parse(text)))
        except (package("jinja2").TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template is not a template of jinja2: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return a conversation as text; `Tokenizer.render` has the same arguments and errors."""
        exceptions = package("jinja2").exceptions
        try:  # copy by way of JSON: the template gets plain data, and no objects with methods
            turns = json.loads(json.dumps(messages))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"messages are made of what JSON has: {error}") from None
        listed = turns if isinstance(turns, list) else []
        roles = [t.get("role") if isinstance(t, dict) else None for t in listed]
        if not roles or not all(isinstance(role, str) for role in roles):
            raise ValueError(f"messages are tables with role and content, not {turns!r:.200}")
        given = {
            **{"tools": None, "documents": None, **self._variables, **variables},
            "messages": [{k: v for k, v in turn.items() if v is not None} for turn in turns],
            "add_generation_prompt": add_generation_prompt,
            _STEPS: count(1),
        }
        made = ""
        try:
            for part in self._template.generate(given):
                made += part
                if len(made) > LONGEST:
                    raise exceptions.SecurityError(f"to write more than {LONGEST:,} characters")
        except exceptions.SecurityError as error:
            raise ValueError(f"the chat template tries what is not allowed: {error}") from None
        except exceptions.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        except Exception as error:  # an expression in it can raise any error
            raise ValueError(f"the chat template fails on these messages: {error!r:.200}") from None
        return made


def _limited(tree: Any) -> Any:
    """Return the tree of a template, in which filters of `_sandbox` limit loops, calls and `~`."""
    nodes = package("jinja2").nodes
    for loop in tree.find_all(nodes.For):
        loop.test = nodes.Filter(loop.test or nodes.Const(True), "step", [], [], None, None)
    for call in tree.find_all(nodes.Call):
        call.node = nodes.Filter(call.node, "step", [], [], None, None)
    for texts in tree.find_all(nodes.Concat):
        texts.nodes = [nodes.Filter(nodes.List(texts.nodes), "joined", [], [], None, None)]
    return tree


def _sandbox() -> Any:
    """Return jinja2's sandbox with transformers' settings."""
    jinja2, extensions = package("jinja2"), package("jinja2.ext")

    def step(context: Any, value: Any) -> Any:
        """Return a value, and count a step of the template that uses it."""
        if next(context.parent[_STEPS]) > MOST_STEPS:
            raise jinja2.exceptions.SecurityError(
                f"to make more than {MOST_STEPS:,} passes of loops and calls"
            )
        return value

    def check_size(values: Iterable[Any]) -> None:
        if sum(len(x) for x in values if hasattr(x, "__len__")) > LONGEST:
            raise jinja2.exceptions.SecurityError(f"to make a sum longer than {LONGEST:,}")

    def joined(values: Sequence[Any]) -> str:
        texts = [*map(str, values)]
        check_size(texts)
        return "".join(texts)

    def plus(left: Any, right: Any) -> Any:
        check_size((left, right))
        return left + right

    def times(left: Any, right: Any) -> Any:
        sizes = [abs(x) if isinstance(x, (int, float)) else len(x) for x in (left, right)]
        if sizes[0] * sizes[1] > LONGEST:
            raise jinja2.exceptions.SecurityError(f"to make something {sizes[0]} times {sizes[1]}")
        return left * right

    def power(left: Any, right: Any) -> Any:  # nested powers would take forever
        raise jinja2.exceptions.SecurityError("a power (**); write it as a product")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Return JSON without the HTML escapes that jinja2's own filter adds."""
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def parse(extension: Any, parser: Any) -> Any:
        """Return a part of a template that is marked as an answer, in its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)

    answers = type("Answers", (extensions.Extension,), {"tags": {"generation"}, "parse": parse})
    made = package("jinja2.sandbox").ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[answers, extensions.loopcontrols]
    )
    made.intercepted_binops = {"+", "*", "**"}
    made.binop_table = {**made.binop_table, "+": plus, "*": times, "**": power}
    made.filters |= {"step": jinja2.pass_context(step), "tojson": tojson, "joined": joined}
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
