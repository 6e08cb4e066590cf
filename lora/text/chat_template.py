"""ChatTemplate: the jinja2 template that converts a conversation to the text format of a model.

A template is code from an untrusted source. So it runs in jinja2's sandbox, which has no access to
the internals of Python; the time and the memory that it takes are not limited. The settings are
those of transformers, with one difference: transformers copies `thinking` and `reasoning` of a
message to `reasoning_content`, and here a message keeps its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lora.text.packages import package


class ChatTemplate:
    """A chat template in the language of jinja2.

    The template can use the conversation and `variables`, such as `bos_token`. A ValueError is
    raised if the text is not a valid template, and an ImportError if jinja2 is not installed.
    """

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        self._variables = dict(variables)
        try:
            self._template = _sandbox().from_string(text)
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
        turns = messages if isinstance(messages, Sequence) else []
        roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
        if not roles or not all(isinstance(role, str) for role in roles):
            raise ValueError(f"messages are tables with role and content, not {messages!r:.200}")
        given = {
            **{"tools": None, "documents": None, **self._variables, **variables},
            "messages": [{k: v for k, v in turn.items() if v is not None} for turn in turns],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return str(self._template.render(given))
        except exceptions.SecurityError as error:
            raise ValueError(f"the chat template tries what is not allowed: {error}") from None
        except exceptions.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        except Exception as error:  # an expression in it can raise any error
            raise ValueError(f"the chat template fails on these messages: {error!r:.200}") from None


def _sandbox() -> Any:
    """Return jinja2's sandbox with transformers' settings."""
    jinja2, extensions = package("jinja2"), package("jinja2.ext")

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
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
