"""One text among several in a context: its tokens, state and slot."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from runtimes.text.generation import Chosen
from runtimes.text.sampling import Sampler

# Tokens that a reader may fall behind before generation pauses.
LOOKAHEAD: Final = 2


class Owner(Protocol):
    """The driver of streams, implemented by the Scheduler."""

    def poll(self, stream: "Stream") -> Chosen | None: ...

    def remove(self, stream: "Stream") -> None: ...


@dataclass(slots=True)
class Slot:
    """A sequence of the context, and the tokens whose keys and values are cached in it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    adapter: str = ""
    cache_salt: str = ""
    taken: bool = False
    used: int = 0


class Stream:
    """One text in progress; a TokenSource (runtimes.text.generation)."""

    def __init__(
        self,
        owner: "Owner",
        tokens: Sequence[int],
        room: int,
        sampler: Sampler,
        adapter: str,
        *,
        cache_salt: str = "",
    ) -> None:
        self.prefill_seconds = self.decode_seconds = 0.0
        self.cached_tokens = 0
        self.adapter = adapter
        self.cache_salt = cache_salt
        # The prompt and the generated tokens; the slot holds the first ``held`` of them.
        self.tokens = list(tokens)
        self.held = 0
        self.slot: Slot | None = None
        self.ready: deque[Chosen] = deque()
        self.error: Exception | None = None
        self.ended = False
        # The step that last processed it, or the last step before it was admitted.
        self.turn = 0
        self.processed = False
        self._owner = owner
        self._sampler = sampler
        self._most = len(self.tokens) + room
        self._begun = False

    def poll(self) -> Chosen | None:
        """Return the next token; None if one step did not produce it."""
        return self._owner.poll(self)

    def close(self) -> None:
        """Stop producing tokens and free the sequence."""
        self._owner.remove(self)

    @property
    def wants(self) -> bool:
        """True if there is work to do and a reader who waits for it."""
        return not self.ended and len(self.ready) < LOOKAHEAD

    @property
    def missing(self) -> int:
        """Number of tokens to process before the next one can be chosen."""
        return len(self.tokens) - self.held

    def choose(self, logits: Any, is_end: Callable[[int], bool]) -> None:
        """Choose the next token from the logits after the last."""
        try:
            chosen = self._sampler.choose(logits)
        except Exception as error:  # noqa: BLE001 - any error concerns this text only
            self.fail(error)
            return
        self._begun = True
        self.tokens.append(chosen.token)
        self.ready.append(chosen)
        self.ended = is_end(chosen.token) or len(self.tokens) >= self._most

    def spend(self, seconds: float) -> None:
        """Add the duration of a step in which the text was processed or waited for its turn."""
        if self._begun:
            self.decode_seconds += seconds
        else:
            self.prefill_seconds += seconds

    def fail(self, error: Exception) -> None:
        """End the stream with an error for its reader."""
        self.error = error
        self.ended = True
