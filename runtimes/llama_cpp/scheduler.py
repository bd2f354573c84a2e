"""Continuous batching: several texts in one context, step by step.

Every step is one batch: a token of each generating text, or of some in turn where that is faster
(runtimes.llama_cpp.pace), and a bounded share of the prompts being read, so that a long prompt does
not delay the others. The readers of tokens drive the steps; there is no thread. Texts with
different adapters take turns, since an adapter applies to a whole batch.

The context's cells are shared. A text is admitted when its prompt fits beside the others. If the
cells run out later, the youngest text gives up its place and is read again, so the oldest can
always fill the context. The cells of an ended text serve the next one with the same beginning.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from runtimes.errors import RuntimeFault
from runtimes.llama_cpp.batch import Part
from runtimes.llama_cpp.limits import BATCH_TOKENS
from runtimes.llama_cpp.pace import Pace
from runtimes.llama_cpp.streams import Slot, Stream
from runtimes.text.generation import Chosen
from runtimes.text.sampling import Sampler

# Shorter prefixes do not justify a different order of computing the same logits.
SHORTEST_PREFIX: Final = 32
# Free cells for a text's next tokens that admission requires.
GROWTH_TOKENS: Final = 64


class Context(Protocol):
    """Interface of Model (runtimes.llama_cpp.native) that the scheduler needs."""

    cells: int

    @property
    def keeps_prefixes(self) -> bool: ...
    def cut(self, sequence: int, position: int) -> None: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def forget(self) -> None: ...
    def use_adapter(self, name: str) -> None: ...
    def process(self, parts: Sequence[Part]) -> list[Any] | None: ...
    def is_end(self, token: int) -> bool: ...


class Scheduler:
    """Owns the context's sequences; every method may be called from any thread."""

    def __init__(
        self, context: Context, parallel: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._context = context
        self._clock = clock
        self._lock = threading.RLock()
        self._slots = [Slot(number) for number in range(parallel)]
        # In order of arrival: streams in a slot, and streams that wait for one.
        self._live: list[Stream] = []
        self._waiting: list[Stream] = []
        # True while the context is in another use.
        self.lent = False
        self._steps = 0
        self._pace = Pace()

    def open(
        self,
        tokens: Sequence[int],
        room: int,
        sampler: Sampler,
        adapter: str = "",
        cache_salt: str = "",
    ) -> Stream:
        """Open a text of at most ``room`` tokens after a prompt."""
        stream = Stream(self, tokens, room, sampler, adapter, cache_salt=cache_salt)
        with self._lock:
            self._waiting.append(stream)
        return stream

    def poll(self, stream: Stream) -> Chosen | None:
        """Return the stream's next token, after one step if none is ready; None without one."""
        with self._lock:
            if not stream.ready and stream.error is None and not self.lent:
                self._step()
            if stream.ready:
                return stream.ready.popleft()
            if stream.error is not None:
                raise stream.error
            return None

    def remove(self, stream: Stream) -> None:
        """End a stream; may be called twice."""
        with self._lock:
            stream.ended = True
            if stream in self._waiting:
                self._waiting.remove(stream)
            if stream in self._live:
                self._live.remove(stream)
                self._leave(stream)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Provide the context for another use, emptied before and after, without an adapter.

        Streams are read again later; polling them returns None until then.
        """
        with self._lock:
            # First, since it may raise.
            self._context.use_adapter("")
            self.lent = True
            while self._live:
                self._preempt(self._live[-1])
            for slot in self._slots:
                self._empty(slot)
        try:
            yield
        finally:
            with self._lock:
                self._context.forget()
                self.lent = False

    def _step(self) -> None:
        """Admit waiting texts that fit, and process one batch."""
        self._admit()
        wanting = [stream for stream in self._live if stream.wants]
        if not wanting:
            if self._live and self._waiting:
                # The streams with slots have no reader, so others are admitted first.
                self._waiting.append(self._yield_place(self._live[-1]))
            return
        self._steps += 1
        group = self._group(wanting)
        generating = all(stream.missing == 1 for stream in group)
        if generating:
            group = group[: self._pace.width(group[0].adapter, len(group))]
        parts = self._parts(group)
        started = self._clock()
        try:
            self._context.use_adapter(group[0].adapter)
            rows = self._context.process(parts)
        except RuntimeFault as error:
            self._fail(group, error)
            return
        if rows is None:
            self._make_room()
            return
        seconds = self._clock() - started
        if generating:
            self._pace.generated(group[0].adapter, len(group), seconds)
        else:
            self._pace.read(sum(len(part.tokens) for part in parts), seconds)
        for stream in wanting:
            stream.spend(seconds)
        for stream, part, logits in zip(group, parts, rows, strict=True):
            stream.turn = self._steps
            stream.processed = True
            self._advance(stream, part, logits)

    def _group(self, wanting: list[Stream]) -> list[Stream]:
        """Return the streams of the next adapter in turn; the last processed adapter is last."""
        waiting = sorted(wanting, key=lambda stream: stream.turn)
        return [stream for stream in waiting if stream.adapter == waiting[0].adapter]

    def _parts(self, group: list[Stream]) -> list[Part]:
        """Return the work of each stream of a group: one token, or a share of its prompt."""
        reading = [stream for stream in group if stream.missing > 1]
        generating = len(group) - len(reading)
        room = BATCH_TOKENS - generating
        if any(stream.missing == 1 for stream in self._live):
            room = min(room, self._pace.prompt_share())
        share = max(room // max(len(reading), 1), 1)
        parts = []
        for stream in group:
            assert stream.slot is not None  # noqa: S101 - it is live
            count = min(stream.missing, share)
            tokens = stream.tokens[stream.held : stream.held + count]
            logits = "last" if count == stream.missing else "none"
            parts.append(Part(stream.slot.number, stream.held, tokens, logits))
        return parts

    def _advance(self, stream: Stream, part: Part, logits: Any) -> None:
        assert stream.slot is not None  # noqa: S101 - it is live
        stream.held += len(part.tokens)
        stream.slot.tokens += part.tokens
        stream.slot.used = self._steps
        if part.logits == "last":
            stream.choose(logits, self._context.is_end)

    def _admit(self) -> None:
        """Assign slots to waiting streams, first come, first served, while they fit."""
        while self._waiting:
            free = [slot for slot in self._slots if not slot.taken]
            expected = sum(len(each.tokens) + GROWTH_TOKENS for each in self._live)
            expected += len(self._waiting[0].tokens) + GROWTH_TOKENS
            if not free or (self._live and expected > self._context.cells):
                return
            stream = self._waiting.pop(0)
            stream.slot = self._place(stream, free)
            stream.slot.taken = True
            stream.slot.adapter = stream.adapter
            stream.slot.cache_salt = stream.cache_salt
            # Behind every stream that had a turn: endless newcomers would otherwise delay the
            # others.
            stream.turn = self._steps
            self._live.append(stream)

    def _place(self, stream: Stream, free: list[Slot]) -> Slot:
        """Return a free slot for a stream, with the longest beginning that any slot holds."""
        # At least one token must be processed to get its logits.
        wanted = stream.tokens[:-1]
        # With the salt of another caller, the time of a prefill and ``cached_tokens`` would reveal
        # what that caller asked.
        alike = [
            slot
            for slot in self._slots
            if slot.tokens
            and (slot.adapter, slot.cache_salt) == (stream.adapter, stream.cache_salt)
        ]
        best = max(alike, key=lambda slot: _common(slot.tokens, wanted), default=None)
        length = _common(best.tokens, wanted) if best else 0
        if best is None or length < SHORTEST_PREFIX or not self._context.keeps_prefixes:
            slot = min(free, key=lambda slot: (bool(slot.tokens), slot.used))
            self._empty(slot)
            length = 0
        elif best.taken:
            slot = min(free, key=lambda slot: (bool(slot.tokens), slot.used))
            self._empty(slot)
            self._context.copy(best.number, slot.number, length)
            slot.tokens = best.tokens[:length]
        else:
            slot = best
            self._context.cut(slot.number, length)
            del slot.tokens[length:]
        stream.held = length
        if not stream.processed:
            stream.cached_tokens = length
        return slot

    def _make_room(self) -> None:
        """Free cells: of an ended text, or else of the youngest text."""
        idle = [slot for slot in self._slots if slot.tokens and not slot.taken]
        if idle:
            self._empty(min(idle, key=lambda slot: slot.used))
        elif len(self._live) > 1:
            self._preempt(self._live[-1])
        else:
            error = RuntimeFault(
                f"one text does not fit into the context's {self._context.cells} cells",
                advice="Restart the model; if the error returns, deploy a shorter context.",
            )
            self._fail(list(self._live), error)

    def _preempt(self, stream: Stream) -> None:
        """Return a text to the head of the queue."""
        self._waiting.insert(0, self._yield_place(stream))

    def _yield_place(self, stream: Stream) -> Stream:
        self._live.remove(stream)
        self._empty(self._leave(stream))
        stream.held = 0
        return stream

    def _fail(self, streams: list[Stream], error: Exception) -> None:
        for stream in streams:
            stream.fail(error)
            self._live.remove(stream)
            self._empty(self._leave(stream))

    def _leave(self, stream: Stream) -> Slot:
        slot = stream.slot
        assert slot is not None  # noqa: S101 - it is live
        slot.taken = False
        stream.slot = None
        return slot

    def _empty(self, slot: Slot) -> None:
        if slot.tokens:
            self._context.cut(slot.number, 0)
            slot.tokens = []


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return the length of the common prefix of two texts."""
    for position, (one, other) in enumerate(zip(held, wanted, strict=False)):
        if one != other:
            return position
    return min(len(held), len(wanted))
