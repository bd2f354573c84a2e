"""llama.cpp's C interface, reduced to the calls that the engines need."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from runtimes.errors import LoadError, RuntimeFault
from runtimes.llama_cpp.batch import Batch, Part
from runtimes.llama_cpp.limits import BATCH_TOKENS, DEFAULT_CONTEXT, MAX_OUTPUTS
from runtimes.llama_cpp.log import LoadLog, listening
from runtimes.llama_cpp.tokenizing import with_stack_for
from runtimes.text.generation import choose_context

MAX_PIECE_BYTES: Final = 1 << 12
NO_ADAPTERS: Final[Mapping[str, Path]] = {}
# Return value of llama_decode if the cells do not suffice.
NO_CELLS: Final = 1


class Model:
    """Weights, vocabulary, adapters and one context of llama.cpp.

    The context's cells are shared: each of ``sequences`` may use all that the others leave free.
    """

    def __init__(
        self,
        path: Path,
        context_length: int,
        threads: int,
        eval_callback: Any = None,
        *,
        sequences: int = 1,
        adapters: Mapping[str, Path] = NO_ADAPTERS,
        embeds: bool = False,
    ) -> None:
        self._context: Any = None
        self._model: Any = None
        self._memory: Any = None
        self._adapters: dict[str, Any] = {}
        load_log = LoadLog()
        with listening(load_log.read):
            params = llama_cpp.llama_model_default_params()
            # With mmap, weights that the CPU repacks would be in memory twice.
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
            if not self._model:
                raise LoadError(
                    f"llama.cpp could not load {path.name}{load_log.first_error}",
                    advice="Check it with `flotilla model inspect`; export it again.",
                )
            try:
                for name, file in adapters.items():
                    self._adapters[name] = self._load_adapter(name, file, load_log)
                trained = llama_cpp.llama_model_n_ctx_train(self._model)
                self.context_length = choose_context(context_length, trained, DEFAULT_CONTEXT)
                # An encoder reads a whole text in one pass.
                self._pass_tokens = self.context_length if embeds else BATCH_TOKENS
                params = self._context_params(threads, eval_callback, sequences)
                if embeds:
                    params.embeddings = True
                    # Every token counts in the mean.
                    params.n_outputs_max = 0
                self._context = self._new_context(params)
            except LoadError:
                self.close()
                raise
        self.buffer_bytes = load_log.bytes + sum(file.stat().st_size for file in adapters.values())
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.cells = llama_cpp.llama_n_ctx(self._context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = Batch(self._pass_tokens)
        self._piece: Any = ctypes.create_string_buffer(MAX_PIECE_BYTES)
        self._adapter = ""
        self._position = 0

    def _context_params(self, threads: int, eval_callback: Any, sequences: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.context_length
        params.n_batch = params.n_ubatch = self._pass_tokens
        # Logits of a whole batch would take 512 times the vocabulary's width.
        params.n_outputs_max = MAX_OUTPUTS
        params.n_seq_max = sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        if eval_callback is not None:
            params.cb_eval = eval_callback
        return params

    def _new_context(self, params: Any) -> Any:
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise LoadError(
                f"llama.cpp could not allocate a context of {self.context_length} tokens",
                advice="Deploy the model with a shorter context.",
            )
        return context

    def _load_adapter(self, name: str, path: Path, load_log: LoadLog) -> Any:
        adapter = llama_cpp.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise LoadError(
                f"llama.cpp could not load the adapter {name!r}{load_log.first_error}",
                advice="Build it for this base with `flotilla model build-adapter`.",
            )
        return adapter

    def close(self) -> None:
        """Free everything, adapters with the model; may be called twice."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = self._memory = None
        self._adapters = {}

    @property
    def closed(self) -> bool:
        return not self._model

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self._adapters)

    @property
    def keeps_prefixes(self) -> bool:
        """True if a sequence can be cut at any position and continued from there.

        Recurrent states and sliding windows lack the earlier state.
        """
        recurrent = llama_cpp.llama_model_is_recurrent(self._model)
        hybrid = llama_cpp.llama_model_is_hybrid(self._model)
        return not recurrent and not hybrid and llama_cpp.llama_model_n_swa(self._model) == 0

    def forget(self) -> None:
        """Clear the KV cache, if the model has one."""
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, False)
        self._position = 0

    def cut(self, sequence: int, position: int) -> None:
        """Remove a sequence's cells from a position on."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let an empty sequence share another's beginning; it takes no cells of its own."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def use_adapter(self, name: str) -> None:
        """Apply one adapter, or none, to later processing."""
        if name == self._adapter:
            return
        count = 1 if name else 0
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 1)()
        if name:
            pointers[0] = self._adapters[name]
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self._context, pointers, count, scales) != 0:
            raise RuntimeFault(f"llama.cpp cannot apply the adapter {name!r}")
        self._adapter = name

    def process(self, parts: Sequence[Part]) -> list[NDArray[np.float32] | None] | None:
        """Process at most BATCH_TOKENS tokens; return the requested logits after each part.

        Returns None, without any change, if the cells do not suffice. The rows are llama.cpp's own
        memory, valid until the next call.
        """
        self._batch.fill(parts)
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        if status == NO_CELLS:
            return None
        if status != 0:
            raise RuntimeFault(
                f"llama.cpp could not process {self._batch.native.n_tokens} tokens: code {status}",
                advice="Restart the model; if the error returns, deploy a shorter context.",
            )
        rows = iter(self._rows(sum(part.logits == "last" for part in parts)))
        return [next(rows) if part.logits == "last" else None for part in parts]

    def decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Process tokens of the only sequence; return logits of the last, or of all.

        All are at most MAX_OUTPUTS.
        """
        part = Part(0, self._position, tokens, "all" if all_logits else "last")
        if self.process([part]) is None:
            raise RuntimeFault(
                f"the context has no room for {len(tokens)} tokens after {self._position}"
            )
        self._position += len(tokens)
        return self._rows(len(tokens) if all_logits else 1)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the pooled embedding of a text; the model must be loaded with ``embeds``."""
        self.forget()
        self._batch.fill([Part(0, 0, tokens, "all")])
        status = llama_cpp.llama_decode(self._context, self._batch.native)
        pointer = llama_cpp.llama_get_embeddings_seq(self._context, 0) if status == 0 else None
        if not pointer:
            raise RuntimeFault(f"llama.cpp could not embed {len(tokens)} tokens: code {status}")
        width = llama_cpp.llama_model_n_embd_out(self._model)
        return np.ctypeslib.as_array(pointer, (width,))

    def _rows(self, count: int) -> NDArray[np.float32]:
        """Return the logits of the batch, a row per requested token, in order."""
        if not count:
            return np.empty((0, self.vocab_size), np.float32)
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self.vocab_size))

    def tokenize(self, text: str) -> list[int]:
        """Tokenize a text with the begin and end tokens of the model; parse special tokens.

        Raises InvalidInputError for a line that is too long (runtimes.llama_cpp.tokenizing).
        """
        return with_stack_for(text, lambda: self._tokenize(text.encode(), True, True))

    def tokenize_part(self, text: str, *, control: bool) -> list[int]:
        """Tokenize a part of a text, without begin and end; ``control`` tokens are parsed or text.

        Raises InvalidInputError for a line that is too long (runtimes.llama_cpp.tokenizing).
        """
        return with_stack_for(text, lambda: self._tokenize(text.encode(), False, control))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self.vocab,
            data,
            len(data),
            tokens,
            room,
            add_special,
            parse_special,
        )
        return list(tokens[: max(count, 0)])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of a token; control tokens have some only with ``special``."""
        buffer = self._piece
        count = llama_cpp.llama_token_to_piece(
            self.vocab, token, buffer, MAX_PIECE_BYTES, 0, special
        )
        piece: bytes = buffer[: max(count, 0)]
        return piece

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def begin_token(self) -> int | None:
        """Return the token that texts begin with; None if the model wants none."""
        if not llama_cpp.llama_vocab_get_add_bos(self.vocab):
            return None
        return int(llama_cpp.llama_vocab_bos(self.vocab))

    def begin_text(self) -> str:
        """Return the text of the begin token, whether or not the model adds it by itself."""
        token = int(llama_cpp.llama_vocab_bos(self.vocab))
        return self.piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def control_tokens(self) -> dict[str, int]:
        """Return the texts and numbers of all tokens that are parsed only as special tokens."""
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes, text_of = llama_cpp.llama_vocab_get_attr, llama_cpp.llama_vocab_get_text
        return {
            text_of(self.vocab, token).decode(errors="replace"): token
            for token in range(self.vocab_size)
            if attributes(self.vocab, token) & special
        }

    def end_token(self) -> int | None:
        token = int(llama_cpp.llama_vocab_eos(self.vocab))
        return token if token >= 0 else None

    def chat_template(self) -> str:
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return template.decode(errors="replace") if template else ""
