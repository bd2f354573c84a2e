"""Several works in steps at once, as a worker does them."""

from typing import TypeVar

from runtimes.base import Steps

T = TypeVar("T")


def in_turn(*works: Steps[T]) -> list[T]:
    """A step of each, over and over; the answers."""
    answers: dict[int, T] = {}
    while len(answers) < len(works):
        for at, steps in enumerate(works):
            if at not in answers:
                try:
                    next(steps)
                except StopIteration as over:
                    answers[at] = over.value
    return [answers[at] for at in range(len(works))]
