"""Proof at build that a model's chat template renders conversations."""

from collections.abc import Callable, Sequence
from typing import Final

from runtimes.errors import BuildError, ConversationRefusedError, InvalidInputError

Conversation = Sequence[dict[str, str]]

_QUESTION: Final = {"role": "user", "content": "Which way to the harbour?"}
_TURNS: Final = (
    _QUESTION,
    {"role": "assistant", "content": "Down the hill."},
    {"role": "user", "content": "And back?"},
)
_SYSTEM: Final = {"role": "system", "content": "You answer in few words."}


def prove_chat(render: Callable[[Conversation], str]) -> None:
    """Raise BuildError unless a question, several turns and a system message render.

    A template may refuse a system message or several turns on purpose (``raise_exception``). It may
    not fail on them, and it may not leave out the question.
    """
    for conversation, may_be_refused in (
        ([_QUESTION], False),
        (_TURNS, True),
        ([_SYSTEM, _QUESTION], True),
    ):
        try:
            prompt = render(conversation)
        except ConversationRefusedError as error:
            if may_be_refused:
                continue
            raise _unusable(str(error)) from error
        except InvalidInputError as error:
            raise _unusable(str(error)) from error
        if conversation[-1]["content"] not in prompt:
            raise _unusable("the model's chat template leaves out what the user writes")


def _unusable(reason: str) -> BuildError:
    return BuildError(
        reason, advice="Repair the model's chat template: every chat with this model would fail."
    )
