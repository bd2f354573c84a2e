"""Names, filters and blocks that Transformers provides to chat templates."""

# ruff: noqa: E501 - templates are easier to read whole
import json
import re
import time

import pytest

from runtimes.errors import InvalidInputError
from runtimes.text.chat import render_chat

MESSAGES = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "Grüß Gott"},
    {"role": "assistant", "content": "<think>hm</think>Hello"},
]
TOOLS = [
    {"type": "function", "function": {"name": "now", "parameters": {"b": 1, "a": [True, None]}}}
]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # SmolLM3 marks the assistant's text.
        (
            ("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
            "{% endgeneration %}{% endif %}{% endfor %}"),
            "<think>hm</think>Hello",
        ),
        ("{%- generation -%} x {%- endgeneration -%}", "x"),
        ("{{ messages[1]|tojson }}", '{"role": "user", "content": "Grüß Gott"}'),
        (
            "{{ messages[1]|tojson(ensure_ascii=True) }}",
            json.dumps(MESSAGES[1], ensure_ascii=True),
        ),
        ("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ {'a': [1, 2]}|tojson(separators=(',', ':')) }}", '{"a":[1,2]}'),
        ("{{ {'a': 1}|tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ messages[0].content|tojson }}", '"Be <brief>."'),
        (
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
            "{% break %}{% endfor %}"),
            "user",
        ),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
        ("{% if tools %}{{ tools[0].function.name }}{% else %}-{% endif %}", "-"),
        ("{{ custom_tools is defined }} {{ bos_token }}{{ eos_token }}", "False <s></s>"),
        # trim_blocks and lstrip_blocks.
        ("  {% if true %}\nline\n  {% endif %}\nend", "line\nend"),
        (("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}"), "3"),
        ("{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}", "Hello"),
        ("{{ messages[2]['content'].split('<think>')[1][:2] ~ '!' }}", "hm!"),
        ("{{ messages[::-1][0].role }} {{ messages[1:]|length }}", "assistant 2"),
        ("{{ messages|map(attribute='role')|join(', ') }}", "system, user, assistant"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ messages|rejectattr('role', 'equalto', 'user')|map(attribute='role')|list }}",
         "['system', 'assistant']"),
        ("{{ (messages|first).role ~ (messages|last)['role'] }}", "systemassistant"),
        ("{{ '%s-%05.1f-%%' % ('a', 2.25) }} {{ '%s'|format(1) }}", "a-002.2-% 1"),
        ("{{ '{}:{:>4}'.format('a', 1) }}", "a:   1"),
        ("{{ 'a\nb'|indent(2) }}|{{ 'a\nb'|indent(2, true) }}", "a\n  b|  a\n  b"),
        ("{{ 'x'.upper() }}{{ 'ab'.replace('a', 'b') }}{{ 'x' * 3 }}{{ 7 // 2 }}", "Xbbxxx3"),
        ("{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(3, y=4) }}", "1234"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{% endfor %}", "ab"),
        ("{{ {'a': 1}.get('b', 'none') }} {{ 'a' in 'cat' }} {{ [1, 2] + [3] }}", "none True [1, 2, 3]"),
        ("{{ '<a>'|e }} {{ '<a>'|safe }} {{ 1.5|round|int }}", "&lt;a&gt; <a> 2"),
        ("{% filter upper %}abc{% endfilter %}{% set x %}a{{ 1 }}{% endset %}{{ x }}", "ABCa1"),
        ("{% call(x) f() %}{{ x }}{% endcall %}{% macro f() %}{% endmacro %}", None),
        ("{{ raise_exception('roles must alternate') }}", None),
        ("{{ missing.attribute }}", None),
    ],
)  # fmt: skip
def test_templates_find_what_they_find_in_transformers(template: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(InvalidInputError):
            render_chat(MESSAGES, template, begin="<s>", end="</s>")
    else:
        assert render_chat(MESSAGES, template, begin="<s>", end="</s>") == text


def test_the_time_is_formatted() -> None:
    text = render_chat(MESSAGES, "{{ strftime_now('%d %B %Y') }}")
    assert re.fullmatch(r"\d\d \w+ 20\d\d", text)


def test_tools_are_given_to_the_template() -> None:
    template = "{% for t in tools %}{{ t.function | tojson(indent=4) }}{% endfor %}"
    text = render_chat(MESSAGES, template, tools=TOOLS)
    assert text == json.dumps(TOOLS[0]["function"], indent=4)


def test_rendering_takes_little_of_the_time_to_the_first_token() -> None:
    """Measure the median: a template is compiled once, then costs well under a millisecond."""
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}{% endfor %}"
    render_chat(MESSAGES, template)
    seconds = []
    for _ in range(51):
        started = time.thread_time()
        render_chat(MESSAGES, template)
        seconds.append(time.thread_time() - started)
    assert sorted(seconds)[25] < 0.001
