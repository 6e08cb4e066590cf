"""render: convert a conversation to the text format of a model, by its jinja2 template.

A template is code from an untrusted source. So it runs in jinja2's sandbox, which has no access to
the internals of Python, and with limits on the number of passes of loops and calls, and on the
length of the text. It can still take much memory, for example if it doubles a text in a loop, and
much time, for example for nested powers. The settings are those of transformers, with one
difference: transformers copies `thinking` and `reasoning` of a message to `reasoning_content`, and
here a message keeps its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import count
from typing import Any

from minigrad.packages import package

MOST_STEPS = 250_000
"""The largest number of passes of loops and calls, together, while a template makes a text."""

LONGEST = 1 << 24
"""The largest number of characters that a template may write."""

_STEPS = "the number of steps"  # no name that a template can write


def render(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """Return a conversation as text; a template can also use `variables`, such as `bos_token`.

    `Tokenizer.render` has the same errors.
    """
    exceptions = package("jinja2").exceptions
    try:  # copy by way of JSON: the template gets plain data, and no objects with methods
        turns = json.loads(json.dumps(messages))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"messages consist of values that JSON can represent: {error}") from None
    listed = turns if isinstance(turns, list) else []
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in listed]
    if not roles or not all(isinstance(role, str) for role in roles):
        raise ValueError(f"messages are tables with role and content, not {turns!r:.200}")
    given = {
        **{"tools": None, "documents": None, **variables},
        "messages": [{k: v for k, v in turn.items() if v is not None} for turn in turns],
        _STEPS: count(1),
    }
    made = ""
    try:
        for part in _compiled(template).generate(given):
            made += part
            if len(made) > LONGEST:
                raise exceptions.SecurityError(f"it writes more than {LONGEST:,} characters")
        return made
    except exceptions.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not a template of jinja2: {error}") from None
    except exceptions.SecurityError as error:
        raise ValueError(f"the chat template does what is not allowed: {error}") from None
    except exceptions.TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from None
    except Exception as error:  # an expression in it can raise any error
        raise ValueError(f"the chat template fails on these messages: {error!r:.200}") from None


@lru_cache
def _compiled(template: str) -> Any:
    """Return a template, in which the filter `step` limits loops and calls."""
    nodes, sandbox = package("jinja2").nodes, _sandbox()
    tree = sandbox.parse(template)
    for loop in tree.find_all(nodes.For):
        loop.test = nodes.Filter(loop.test or nodes.Const(True), "step", [], [], None, None)
    for call in tree.find_all(nodes.Call):
        call.node = nodes.Filter(call.node, "step", [], [], None, None)
    return sandbox.from_string(tree)


def _sandbox() -> Any:
    """Return jinja2's sandbox with transformers' settings."""
    jinja2, extensions = package("jinja2"), package("jinja2.ext")

    def step(context: Any, value: Any) -> Any:
        """Return a value, and count a step of the template that uses it."""
        if next(context.parent[_STEPS]) > MOST_STEPS:
            raise jinja2.exceptions.SecurityError(
                f"it makes more than {MOST_STEPS:,} passes of loops and calls"
            )
        return value

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
    made.filters |= {"step": jinja2.pass_context(step), "tojson": tojson}
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
