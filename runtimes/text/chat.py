"""Rendering of conversations as prompts, with the model's own template.

Templates come with the model and are untrusted programs. They run in a sandbox whose values are
bounded (runtimes.text.templates), under a limit of processor time, and their output is bounded.

Texts of users never become control tokens: see ``ControlTokens``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from runtimes.errors import ConversationRefusedError, InvalidInputError
from runtimes.text.control_tokens import NO_CONTROL_TOKENS, ChatPrompt, ControlTokens
from runtimes.text.deadline import call_within
from runtimes.text.templates import TemplateRefusalError, render

MAX_TEMPLATE_CHARACTERS = 1 << 16
MAX_PROMPT_CHARACTERS = 1 << 22
MAX_RENDER_SECONDS: Final = 1.0
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant:"
)


def render_chat(
    messages: Sequence[Mapping[str, str]],
    template: str = "",
    begin: str = "",
    end: str = "",
    *,
    control: ControlTokens = NO_CONTROL_TOKENS,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> ChatPrompt:
    """Return the prompt of a conversation; ``begin`` and ``end`` are the texts of those tokens.

    Raises InvalidInputError for an empty conversation and if the template fails, and its subclass
    ConversationRefusedError if the template itself refuses the conversation.
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
            f"the model's chat template has {len(template)} characters; the maximum is "
            f"{MAX_TEMPLATE_CHARACTERS}",
            advice="Publish the model with a shorter template.",
        )
    with_marks = control.mark([[dict(message) for message in messages], tools])
    variables = {
        "messages": with_marks.value[0],
        "tools": with_marks.value[1],
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": begin,
        "eos_token": end,
    }
    try:
        text = call_within(
            MAX_RENDER_SECONDS, lambda: _bounded(render(template or PLAIN_TEMPLATE, variables))
        )
    except TemplateRefusalError as error:
        raise ConversationRefusedError(
            f"the model's chat template refuses this conversation: {str(error)[:500]}",
            advice="Change the conversation, or send a plain prompt.",
        ) from error
    except Exception as error:
        # An untrusted program: it may raise anything.
        raise InvalidInputError(
            f"the model's chat template fails on this conversation: {str(error)[:500]}",
            advice="Publish the model with a chat template that works, or send a plain prompt.",
        ) from error
    return ChatPrompt(text, with_marks.marks)


def _bounded(pieces: Iterable[str]) -> str:
    text: list[str] = []
    length = 0
    for piece in pieces:
        text.append(piece)
        length += len(piece)
        if length > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"its output has more than {MAX_PROMPT_CHARACTERS} characters")
    return "".join(text)
