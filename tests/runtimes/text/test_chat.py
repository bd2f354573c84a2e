import pytest

from runtimes.errors import InvalidInputError
from runtimes.text.chat import MAX_TEMPLATE_CHARACTERS, render_chat

MESSAGES = [{"role": "user", "content": "Hi {{ 1 + 1 }}"}]


def test_the_template_decides_and_messages_are_data() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    assert render_chat(MESSAGES, template, begin="<s>") == "<s>[user] Hi {{ 1 + 1 }}"


def test_without_a_template_roles_and_texts_are_lines() -> None:
    assert render_chat(MESSAGES) == "user: Hi {{ 1 + 1 }}\nassistant:"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
        "x" * (MAX_TEMPLATE_CHARACTERS + 1),
    ],
)
def test_a_hostile_or_refusing_template_gives_one_clear_error(template: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        render_chat(MESSAGES, template)
    assert caught.value.advice


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"role": "user", "content": "x", "tool": "y"}]]
)
def test_a_conversation_without_role_and_content_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidInputError):
        render_chat(messages)
