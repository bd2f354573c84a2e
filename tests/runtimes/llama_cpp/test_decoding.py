"""Bytes of weights read per generated token."""

from dataclasses import replace

from artifact.manifest import Task
from runtimes.base import Inspection, TensorInfo
from runtimes.llama_cpp.decoding import decode_bytes


def tensor(name: str, kind: str, size: int) -> TensorInfo:
    return TensorInfo(name, kind, (size,), 0, size)


EMBEDDING = tensor("token_embd.weight", "q6_k", 1000)
LAYER = tensor("blk.0.ffn_up.weight", "q4_k", 300)
NORM = tensor("output_norm.weight", "f32", 4)
MODEL = Inspection(
    format="gguf",
    task=Task.TEXT_GENERATION,
    architecture="llama",
    parameters=1,
    quantization="q4_k_m",
    context_length=1,
    tensors=(EMBEDDING, LAYER, NORM),
)


def test_an_embedding_is_read_only_where_it_is_the_head_too() -> None:
    assert decode_bytes(MODEL) == {"q6_k": 1000, "q4_k": 300, "f32": 4}
    head = tensor("output.weight", "q6_k", 700)
    with_head = replace(MODEL, tensors=(*MODEL.tensors, head))
    assert decode_bytes(with_head) == {"q6_k": 700, "q4_k": 300, "f32": 4}


def test_of_a_mixture_only_the_experts_that_wake_are_read() -> None:
    experts = replace(MODEL, tensors=(tensor("blk.0.ffn_up_exps.weight", "q4_k", 800),))
    told = {"llama.expert_count": "8", "llama.expert_used_count": "2"}
    assert decode_bytes(replace(experts, metadata=told)) == {"q4_k": 200}
    for nonsense in (
        {},
        told | {"llama.expert_used_count": "9"},
        told | {"llama.expert_count": "x"},
    ):
        assert decode_bytes(replace(experts, metadata=nonsense)) == {"q4_k": 800}
