"""render: convert a conversation to the text format of a model, by its jinja2 template.

A template is code from an untrusted source. So it runs in jinja2's sandbox, which has no access to
the internals of Python; the time and the memory that it takes are not limited. The settings are
those of transformers, with one difference: transformers copies `thinking` and `reasoning` of a
message to `reasoning_content`, and here a message keeps its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from lora.text.packages import package


def render(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """Return a conversation as text; a template can also use `variables`, such as `bos_token`.

    `Tokenizer.render` has the same errors.
    """
    exceptions = package("jinja2").exceptions
    turns = messages if isinstance(messages, Sequence) else []
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
    if not roles or not all(isinstance(role, str) for role in roles):
        raise ValueError(f"messages are tables with role and content, not {messages!r:.200}")
    given = {
        **{"tools": None, "documents": None, **variables},
        "messages": [{k: v for k, v in turn.items() if v is not None} for turn in turns],
    }
    try:
        return str(_compiled(template).render(given))
    except exceptions.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not a template of jinja2: {error}") from None
    except exceptions.SecurityError as error:
        raise ValueError(f"the chat template tries what is not allowed: {error}") from None
    except exceptions.TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from None
    except Exception as error:  # an expression in it can raise any error
        raise ValueError(f"the chat template fails on these messages: {error!r:.200}") from None


@lru_cache
def _compiled(template: str) -> Any:
    return _sandbox().from_string(template)


def _sandbox() -> Any:
    """Return jinja2's sandbox with transformers' settings."""
    jinja2, extensions = package("jinja2"), package("jinja2.ext")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        """Return JSON without the HTML escapes that jinja2's own filter adds."""
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
