"""Hostile chat templates: refused soon, and before they take much memory."""

import json
import subprocess
import sys
import time

import pytest

from runtimes.errors import InvalidInputError
from runtimes.text.chat import render_chat

MESSAGES = [{"role": "user", "content": "Hi"}]
# ruff: noqa: E501, ISC004 - templates are easier to read whole
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 2 ** (2 ** 30) }}",
    "{% set x = 2 ** 4000 %}{% for a in range(99999) %}{% set x = x * x %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "{{ ('%(a)s' * 20000) % {'a': 'x' * 100000} }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ ('{0}' * 20000).format('x' * 100000) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * 'x' }}",
    "{{ [0] * 1000000000 }}",
    "{{ (('x' * 8000000) * 1)[0:8000000] * 100 }}",
    "{{ (range(99999)|list) * 1000 }}",
    "{{ ('x' * 99999)|list|join('y' * 99999) }}",
    "{{ ('y' * 99999).join('x' * 99999) }}",
    "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
    "{{ 'x'.translate({120: 'y' * 1000000}) }}",
    "{{ ('\t' * 99999).expandtabs(99999) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ ('\n' * 99999)|indent(1000000000) }}",
    "{{ 'x'|indent('y' * 99999) ~ ('\n' * 99999)|indent('y' * 99999) }}",
    "{{ [1]|batch(1000000000, 'x')|list }}",
    "{{ [1]|slice(1000000000)|list }}",
    "{{ 1.5|round(1000000000, 'ceil') }}",
    "{{ lipsum(1000000000) }}",
    "{{ (1).to_bytes(1000000000) }}",
    "{{ dict.fromkeys(range(99999), 'x') }}",
    "{{ dict.update(messages[0], role='x') }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ messages|tojson(indent=1000000000) }}",
    "{{ messages|tojson(separators=('x' * 9999999, ':')) }}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for a in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
    "{% endfor %}{{ ns.x|tojson }}",
    "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = ns.y %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% endfor %}",
    "{% set s = 'x' * 4000000 %}{% set ns = namespace(x=[]) %}{% for a in range(9999) %}"
    "{% set ns.x = ns.x + [s[1:]] %}{% endfor %}",
    "{% set s = 'x' * 4000000 %}{% set ns = namespace(x=none) %}{% for a in range(9999) %}"
    "{% set ns.x = namespace(a=s[1:], b=ns.x) %}{% endfor %}",
    "{{ [1]|sum(start=[[]] * 99999999) }}",
    "{{ '9' * 9999999 }}{{ ('9' * 9999999)|int * 1 }}",
    "{{ range(99999)|map('string')|list|map('center', 100000)|join }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}",
    "{% if 1 %}" * 5000,
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_template_that_loops_or_allocates_is_refused_soon(template: str) -> None:
    before = time.process_time()
    with pytest.raises(InvalidInputError):
        render_chat(MESSAGES, template)
    assert time.process_time() - before < 5


def test_all_of_them_take_little_memory() -> None:
    """Run in a child process with a limit that the memory of one hostile template would exceed."""
    script = """
import json, sys
from runtimes.errors import InvalidInputError
from runtimes.text.chat import render_chat
for template in json.load(sys.stdin):
    try:
        render_chat([{"role": "user", "content": "Hi"}], template)
    except InvalidInputError:
        pass
# ru_maxrss would include the memory of the process that started this one.
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""
    # The first three only loop.
    templates = json.dumps(HOSTILE[3:])
    run = subprocess.run(
        [sys.executable, "-c", script], input=templates, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-300:]
    assert int(run.stdout) < 400, "MiB at the peak"


def test_a_rendering_is_counted_alone() -> None:
    """Each call may create as many bytes as the one before."""
    template = "{% for a in range(100) %}{% set x = 'x' * 1000000 %}{% endfor %}done"
    assert [render_chat(MESSAGES, template) for _ in range(4)] == ["done"] * 4


def test_after_the_deadline_no_exception_is_left() -> None:
    loops = HOSTILE[0]
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="took more than 1 s"):
            render_chat(MESSAGES, loops)
        assert sum(range(1_000_000)) > 0
    assert render_chat(MESSAGES) == "user: Hi\nassistant:"
