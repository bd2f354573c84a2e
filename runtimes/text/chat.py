"""Render conversations as prompts, by the model's own template.

Templates come with the model and are Jinja, as for Hugging Face's ``apply_chat_template``. They run
in Jinja's immutable sandbox; their length and their output are bounded.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtimes.errors import InvalidInputError

MAX_TEMPLATE_CHARACTERS = 1 << 16
MAX_PROMPT_CHARACTERS = 1 << 22
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant:"
)


def render_chat(
    messages: Sequence[dict[str, str]], template: str = "", begin: str = "", end: str = ""
) -> str:
    """Return the prompt of a conversation; ``begin`` and ``end`` are the texts of those tokens.

    Raises InvalidInputError for an empty conversation, or one that the template refuses.
    """
    if not messages:
        raise InvalidInputError("the conversation is empty", advice="Send at least one message.")
    for message in messages:
        if set(message) != {"role", "content"}:
            raise InvalidInputError(
                f"a message has the fields {sorted(message)}", advice="Send role and content."
            )
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidInputError(
            f"the model's chat template has {len(template)} characters",
            advice=f"Publish the model with one of at most {MAX_TEMPLATE_CHARACTERS}.",
        )
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
        autoescape=False,
    )
    environment.filters["tojson"] = _to_json
    try:
        pieces = environment.from_string(template or PLAIN_TEMPLATE).generate(
            messages=messages,
            add_generation_prompt=True,
            bos_token=begin,
            eos_token=end,
            raise_exception=_refuse,
        )
        return _bounded(pieces)
    except Exception as error:
        # An untrusted program: it may raise anything.
        raise InvalidInputError(
            f"the model's chat template refuses this conversation: {str(error)[:500]}",
            advice="Change the conversation, or send a plain prompt.",
        ) from error


def _bounded(pieces: Any) -> str:
    text: list[str] = []
    length = 0
    for piece in pieces:
        text.append(piece)
        length += len(piece)
        if length > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"its output has more than {MAX_PROMPT_CHARACTERS} characters")
    return "".join(text)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
