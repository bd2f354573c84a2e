"""Work in steps, run to its end."""

from typing import TypeVar

from runtimes.base import Steps

T = TypeVar("T")


def whole(steps: Steps[T]) -> T:
    """Run every step and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as over:
            answer: T = over.value
            return answer
