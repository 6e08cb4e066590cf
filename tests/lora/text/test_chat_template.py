"""Chat templates: settings, refusals and what the sandbox does not allow."""

import pytest

from lora.text import chat_template
from tests.lora.text.models import TEMPLATE

USER = [{"role": "user", "content": "<b>Ü</b>"}]


def render(template, messages=USER, **options):
    return chat_template.render(template, messages, {"bos_token": "<s>", **options})


def test_blocks_are_trimmed_and_loops_have_controls():
    text = (
        "{% for i in range(9) %}\n  {% if i == 2 %}{% break %}{% endif %}\n{{ i }}\n{% endfor %}\n"
    )
    assert render(text) == "0\n1\n"
    text = "{% for x in 'abc' if x != 'b' %}{{ loop.index ~ x ~ loop.last }} {% endfor %}"
    assert render(text) == "1aFalse 2cTrue "


def test_what_a_template_can_use():
    assert render("{{ bos_token }}{{ messages[0]['content'] }}") == "<s><b>Ü</b>"
    assert render("{{ add_generation_prompt }}", add_generation_prompt=True) == "True"
    assert render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ {'z': '<ü>', 'a': 1} | tojson }}") == '{"z": "<ü>", "a": 1}'
    assert render("{{ {'z': 1} | tojson(indent=1) }}") == '{\n "z": 1\n}'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}") == "a"


def test_fields_of_messages_that_are_null_are_left_out():
    message = {"role": "user", "content": "x", "tool_calls": None}
    assert render("{{ 'tool_calls' in messages[0] }}", [message]) == "False"


def test_an_unknown_role_is_refused_with_the_words_of_the_template():
    with pytest.raises(ValueError, match="there is no role ghost"):
        render(TEMPLATE, [*USER, {"role": "ghost", "content": "boo"}])


@pytest.mark.parametrize(
    "messages",
    [[], ["x"], [{"content": "x"}], [{"role": 1}], "text", None, 5, [{"role": "user", "x": {1}}]],
)
def test_messages_that_are_no_messages_are_refused(messages):
    with pytest.raises(ValueError, match=r"messages (are tables|consist of values)"):
        render("x", messages)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) + f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for i in range(300) recursive %}"
        "{% if loop.depth == 1 %}{{ loop(range(900)) }}{% endif %}{% endfor %}",
    ],
)
def test_steps_of_a_template_are_limited(template):
    with pytest.raises(ValueError, match="does what is not allowed: it makes more than 250,000"):
        render(template)


def test_the_length_of_what_a_template_writes_is_limited():
    with pytest.raises(ValueError, match="does what is not allowed: it writes more than"):
        render("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}")


def test_a_template_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not a template of jinja2"):
        render("{% for %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self._TemplateReference__context.environment }}{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% set x = messages.append(1) %}",
        "{{ messages[0].update(role='x') }}",
        "{{ range(10000000) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_templates_that_try_too_much_end_with_a_sentence(template):
    with pytest.raises(ValueError, match="the chat template"):
        render(template)


@pytest.mark.parametrize("name", ["messages.__class__", "raise_exception.__globals__"])
def test_what_python_is_made_of_is_nothing_in_a_template(name):
    assert render("{{ " + name + " }}") == ""


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": ["x"]}]
    with pytest.raises(ValueError, match="not allowed"):
        render("{% set _ = messages[0].content.append('y') %}", messages)
    assert messages == [{"role": "user", "content": ["x"]}]
