"""Chat templates that build refuses."""

from functools import partial

import pytest

from runtimes.errors import BuildError
from runtimes.text.chat import render_chat
from runtimes.text.chat_proof import prove_chat

EVERYTHING = "{% for m in messages %}{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.mark.parametrize(
    "template",
    [
        "",
        EVERYTHING,
        NO_SYSTEM + EVERYTHING,
        "{% generation %}" + EVERYTHING + "{% endgeneration %}",
    ],
)
def test_a_template_that_works_passes(template: str) -> None:
    prove_chat(partial(render_chat, template=template))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% unknown %}", "unknown tag"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% if messages|length > 1 %}{{ nothing.at.all }}{% endif %}" + EVERYTHING, "undefined"),
        ("{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}" + EVERYTHING, "zero"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "1 s"),
        ("a fixed prompt", "leaves out"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_reason(template: str, reason: str) -> None:
    with pytest.raises(BuildError, match=reason) as caught:
        prove_chat(partial(render_chat, template=template))
    assert "every chat" in caught.value.advice
