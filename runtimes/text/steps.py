"""Work in steps, for those who have nothing else to do meanwhile."""

from typing import TypeVar

from runtimes.base import Steps

T = TypeVar("T")


def whole(steps: Steps[T]) -> T:
    """Every step, one after another; the answer."""
    while True:
        try:
            next(steps)
        except StopIteration as over:
            answer: T = over.value
            return answer
