"""Settings of sentence-transformers models: pooling, further modules, prompts.

Source: https://github.com/UKPLab/sentence-transformers, ``models/Pooling.py``, and the files that
``SentenceTransformer.save`` writes (modules.json, 1_Pooling/config.json,
config_sentence_transformers.json, sentence_bert_config.json).
"""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from runtimes.errors import UnsafeFileError, UnsupportedModelError
from runtimes.onnx.side_files import MAX_CONFIG_BYTES, read_bounded, read_side_file

POOLING: Final = "pooling.json"
MODULES: Final = "modules.json"
PROMPTS: Final = "config_sentence_transformers.json"
BERT: Final = "sentence_bert_config.json"
# The pooling file of sentence-transformers' layout, which a variant keeps as POOLING.
POOLING_SOURCE: Final = "1_Pooling/config.json"

_PREFIX: Final = "pooling_mode_"
# In the order in which sentence-transformers concatenates several poolings.
MODES: Final = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
_FIELDS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules that the engine applies. It always normalizes, so that Normalize adds nothing.
_KNOWN_MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize"})

Floats = NDArray[np.float32]
Text = Annotated[str, Meta(max_length=4096)]


class Module(Struct, frozen=True):
    """An entry of modules.json."""

    type: Text = ""
    path: Text = ""


class Prompts(Struct, frozen=True):
    """The fields of config_sentence_transformers.json that change vectors."""

    prompts: dict[str, Text | None] | None = None
    default_prompt_name: Text | None = None


class BertConfig(Struct, frozen=True):
    """The fields of sentence_bert_config.json that change vectors."""

    do_lower_case: bool = False


class Settings(Struct, frozen=True):
    """How an encoder's texts are prepared and its token vectors are pooled."""

    modes: tuple[str, ...] = ("mean",)
    prompt: str = ""
    lower_case: bool = False


def read_settings(files: dict[str, Path], *, pooled: bool) -> Settings:
    """Read the settings among a model's files; ``pooled`` if the graph returns text vectors.

    Raises UnsafeFileError for malformed files, and UnsupportedModelError for settings that the
    engine does not apply: ignoring one would give other vectors.
    """
    prompt = _default_prompt(files)
    modes, includes_prompt = _read_pooling(files)
    if not pooled:
        _check_modules(files)
        if prompt and not includes_prompt:
            raise UnsupportedModelError(
                f"{POOLING} excludes the prompt from pooling (include_prompt: false)",
                advice="Export the model with its pooling in the graph.",
            )
    bert = read_side_file(files.get(BERT), BertConfig)
    return Settings(modes, prompt, bert.do_lower_case)


def pool(values: Floats, mask: NDArray[np.int64], modes: tuple[str, ...]) -> Floats:
    """Reduce (texts, tokens, width) to (texts, width x modes), over real tokens only."""
    parts = [_pool_one(values, mask, mode) for mode in MODES if mode in modes]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _pool_one(values: Floats, mask: NDArray[np.int64], mode: str) -> Floats:
    real = mask[:, :, None].astype(np.float32)
    pooled: Floats
    match mode:
        case "cls":
            pooled = values[:, 0]
        case "max":
            pooled = np.where(real > 0, values, -np.inf).max(axis=1)
        case "lasttoken":
            pooled = values[np.arange(len(values)), mask.sum(axis=1) - 1]
        case "weightedmean":
            # Weights grow with the position: 1 for the first token, 2 for the second.
            weights = real * np.arange(1, values.shape[1] + 1, dtype=np.float32)[None, :, None]
            pooled = (values * weights).sum(axis=1) / weights.sum(axis=1)
        case "mean_sqrt_len":
            pooled = (values * real).sum(axis=1) / np.sqrt(real.sum(axis=1))
        case _:
            pooled = (values * real).sum(axis=1) / real.sum(axis=1)
    return pooled


def _read_pooling(files: dict[str, Path]) -> tuple[tuple[str, ...], bool]:
    """Return the pooling modes and ``include_prompt``; the mean if no file states one."""
    path = files.get(POOLING)
    if path is None:
        return ("mean",), True
    try:
        settings = msgspec.json.decode(read_bounded(path, MAX_CONFIG_BYTES), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnsafeFileError(
            f"{path.name} is not a valid pooling configuration: {error}",
            advice="Export the model again.",
        ) from error
    chosen = [key for key, value in settings.items() if key.startswith(_PREFIX) and value is True]
    # Newer versions write one name instead of a field for each mode.
    named = settings.get("pooling_mode")
    modes = {_FIELDS.get(key, key) for key in chosen}
    modes |= {str(named)} if named else set()
    unknown = sorted(modes - set(MODES))
    if unknown or not modes:
        raise UnsupportedModelError(
            f"{path.name} states the pooling {', '.join(unknown)[:200] or 'none'}; supported are "
            f"{', '.join(MODES)}",
            advice="Export the model with its pooling in the graph (output sentence_embedding).",
        )
    return tuple(mode for mode in MODES if mode in modes), settings.get(
        "include_prompt"
    ) is not False


def _check_modules(files: dict[str, Path]) -> None:
    modules = read_side_file(files.get(MODULES), list[Module])
    kinds = [module.type.rpartition(".")[2] for module in modules]
    unknown = [kind for kind in kinds if kind not in _KNOWN_MODULES]
    if unknown:
        raise UnsupportedModelError(
            f"{MODULES} applies {unknown[0][:64]!a} after the encoder, which is not in the graph",
            advice="Export the model with all its modules in the graph (output "
            "sentence_embedding), as sentence-transformers does with backend='onnx'.",
        )
    if "Pooling" in kinds and POOLING not in files:
        raise UnsupportedModelError(
            f"{MODULES} names a pooling, and its configuration {POOLING_SOURCE} is missing",
            advice="Build from the whole folder of the model.",
        )


def _default_prompt(files: dict[str, Path]) -> str:
    """Return the prompt that sentence-transformers puts before every text, if there is one."""
    settings = read_side_file(files.get(PROMPTS), Prompts)
    name = settings.default_prompt_name
    if name is None:
        return ""
    prompts = settings.prompts or {}
    if prompts.get(name) is None:
        raise UnsupportedModelError(
            f"{PROMPTS} has the default prompt {name[:64]!a}, which it does not define",
            advice="Correct the file, or remove default_prompt_name.",
        )
    return prompts[name] or ""
