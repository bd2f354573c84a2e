"""Fields of text requests that this gateway does not honour: which may be sent, and which not.

A field that is neither in a request's struct nor in HARMLESS is refused by name, as OpenAI does,
because it may change the answer. Values of OFF leave the answer unchanged and are accepted, since
many clients send their defaults.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.gateway.refusals import RequestRefusedError

MAX_NAME_CHARACTERS: Final = 64

# Labels, accounting and scheduling hints, which no server lets change the text.
HARMLESS: Final = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Values that leave the answer unchanged; null always does.
OFF: Final[dict[str, tuple[Any, ...]]] = {
    # OpenAI
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "suffix": ("",),
    # Without tools these two choices mean the same.
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    # vLLM
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "documents": ([],),
    "early_stopping": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
    # llama.cpp's server
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "id_slot": (-1,),
    "lora": ([],),
    "min_keep": (0,),
    "mirostat": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "repeat_last_n": (-1,),
    "return_tokens": (False,),
    "t_max_predict_ms": (0,),
    "tfs_z": (1,),
    "timings_per_token": (False,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
# What to send instead.
ADVICE: Final = {
    "guided_grammar": "Send grammar (GBNF).",
    "guided_json": "Send response_format with type json_schema.",
    "json_schema": "Send response_format with type json_schema.",
    "n_predict": "Send max_tokens.",
    "repetition_penalty": "Send repeat_penalty, which counts generated tokens only.",
    "structured_outputs": "Send response_format with type json_schema, or grammar (GBNF).",
}


def refuse_other_fields(body: bytes, request: type[Struct]) -> None:
    """Raise RequestRefusedError (400) for a field that is not honoured and may change the answer.

    ``body`` is a JSON object that was decoded as ``request`` before.
    """
    known = request.__struct_fields__
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name, raw in fields.items():
        if name in known or name in HARMLESS:
            continue
        value = msgspec.json.decode(raw)
        if value is None or value in OFF.get(name, ()):
            continue
        shown = f"{name[:MAX_NAME_CHARACTERS]!a}"
        reason = "unsupported" if name in OFF or name in ADVICE else "unknown"
        raise RequestRefusedError(
            400,
            "unsupported_parameter",
            f"the field {shown} is {reason} here, and might change the answer",
            param=name if name.isidentifier() and len(name) <= MAX_NAME_CHARACTERS else None,
            advice=ADVICE.get(name, "Leave it out."),
        )
