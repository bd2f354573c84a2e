"""A Llama as an ONNX decoder, in the layout that Optimum and onnx-community publish.

Inputs ``input_ids``, ``attention_mask``, ``position_ids`` and ``past_key_values.N.key|value``;
outputs ``logits`` and ``present.N.key|value``. The float32 weights are the float16 ones widened, so
that GGUF f16 and ONNX fp32 hold equal numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from demo_models.weights import CHAT_TEMPLATE, TOKENIZER, Shape, Weights

OPSET = 17
# ONNX Runtime 1.14 and later read it.
IR_VERSION = 8
END = "<|endoftext|>"


class Graph:
    """A graph under construction; each operation returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[bytes, str] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def split(self, value: str, axis: int) -> tuple[str, str]:
        """Split a tensor into halves along an axis."""
        outputs = [f"split_{len(self.nodes)}_{half}" for half in (0, 1)]
        self.nodes.append(helper.make_node("Split", [value], outputs, outputs[0][:-2], axis=axis))
        return outputs[0], outputs[1]

    def weight(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """Return the name of a small constant, added once."""
        array = np.array(value, dtype=dtype)
        key = array.tobytes() + str((array.dtype, array.shape)).encode()
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)


def write_folder(folder: Path, shape: Shape, weights: Weights, *, encoder: bool = False) -> None:
    """Write model.onnx and its side files.

    As an ``encoder`` it gives the hidden states of a whole text at once, to be pooled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build_encoder(shape, weights) if encoder else build_model(shape, weights)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for name, content in side_files(shape).items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def side_files(shape: Shape) -> dict[str, Any]:
    tokenizer = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    # Texts begin with the end token, as in training.
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": _part("A")}],
        "pair": [{"Sequence": _part("A")}, {"Sequence": _part("B")}],
        "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return {
        "tokenizer.json": tokenizer,
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0},
        "tokenizer_config.json": {
            "bos_token": END,
            "eos_token": END,
            "add_bos_token": True,
            "chat_template": CHAT_TEMPLATE,
        },
    }


def _part(name: str) -> dict[str, Any]:
    return {"id": name, "type_id": 0}


def build_model(shape: Shape, weights: Weights) -> onnx.ModelProto:
    """Build the decoder with a key-value cache."""
    graph = Graph()
    x = _hidden_states(graph, shape, weights, cached=True)
    wide = weights["embed_tokens.weight"].astype(np.float32)
    graph.op("MatMul", x, graph.weight("lm_head.weight", wide.T), name="logits")
    return _finished(graph, *_signature(shape))


def build_encoder(shape: Shape, weights: Weights) -> onnx.ModelProto:
    """Build the decoder without a cache; positions count from the first token."""
    graph = Graph()
    length = graph.op("Shape", "input_ids", start=1, end=2)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    counted = graph.op("Range", zero, graph.op("Squeeze", length), one)
    graph.op("Unsqueeze", counted, graph.ints(0), name="position_ids")
    x = _hidden_states(graph, shape, weights, cached=False)
    graph.op("Identity", x, name="last_hidden_state")
    dims = ("batch_size", "sequence_length")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, dims)
        for name in ("input_ids", "attention_mask")
    ]
    states = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, (*dims, shape.dim)
    )
    return _finished(graph, inputs, [states])


def _hidden_states(graph: Graph, shape: Shape, weights: Weights, *, cached: bool) -> str:
    wide = {name: value.astype(np.float32) for name, value in weights.items()}
    positions = _rotary(graph, shape)
    mask = _mask(graph)
    embeddings = graph.weight("embed_tokens.weight", wide["embed_tokens.weight"])
    x = graph.op("Gather", embeddings, "input_ids")
    for layer in range(shape.layers):
        prefix = f"layers.{layer}."
        normed = _norm(graph, shape, x, wide, f"{prefix}input_layernorm.weight")
        attention = _Attention(graph, shape, wide, layer, cached=cached)
        x = graph.op("Add", x, attention.build(normed, positions, mask))
        normed = _norm(graph, shape, x, wide, f"{prefix}post_attention_layernorm.weight")
        x = graph.op("Add", x, _feed_forward(graph, normed, wide, f"{prefix}mlp."))
    return _norm(graph, shape, x, wide, "norm.weight")


def _finished(
    graph: Graph, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    model = helper.make_model(
        helper.make_graph(graph.nodes, "llama", inputs, outputs, initializer=graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="flotilla",
    )
    onnx.checker.check_model(model)
    return model


def _signature(shape: Shape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def ints(name: str, *dims: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, dims)

    def floats(name: str, *dims: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        dims = ("batch_size", shape.kv_heads, length, shape.head_dim)
        return [
            floats(f"{prefix}.{layer}.{part}", *dims)
            for layer in range(shape.layers)
            for part in ("key", "value")
        ]

    inputs = [
        ints("input_ids", "batch_size", "sequence_length"),
        ints("attention_mask", "batch_size", "total_sequence_length"),
        ints("position_ids", "batch_size", "sequence_length"),
        *cache("past_key_values", "past_sequence_length"),
    ]
    outputs = [
        floats("logits", "batch_size", "sequence_length", shape.vocab),
        *cache("present", "total_sequence_length"),
    ]
    return inputs, outputs


def _rotary(graph: Graph, shape: Shape) -> tuple[str, str]:
    """Add cosine and sine of every position: (batch, 1, sequence, head_dim), halves repeated."""
    half = np.arange(0, shape.head_dim, 2, dtype=np.float32) / shape.head_dim
    frequencies = (1.0 / np.float32(shape.rope_theta) ** half).astype(np.float32)
    at = graph.op("Cast", "position_ids", to=TensorProto.FLOAT)
    at = graph.op("Unsqueeze", at, graph.ints(1, 3))
    angles = graph.op("Mul", at, graph.constant(frequencies, np.float32))
    angles = graph.op("Concat", angles, angles, axis=-1)
    return graph.op("Cos", angles), graph.op("Sin", angles)


def _mask(graph: Graph) -> str:
    """Add the causal mask (batch, 1, sequence, total): 0 or a large negative number."""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    length = graph.op("Gather", graph.op("Shape", "input_ids"), one)
    total = graph.op("Gather", graph.op("Shape", "attention_mask"), one)
    keys = graph.op("Range", zero, total, one)
    queries = graph.op("Range", graph.op("Sub", total, length), total, one)
    causal = graph.op("LessOrEqual", keys, graph.op("Unsqueeze", queries, graph.ints(1)))
    real = graph.op("Cast", "attention_mask", to=TensorProto.BOOL)
    allowed = graph.op("And", causal, graph.op("Unsqueeze", real, graph.ints(1, 2)))
    return graph.op(
        "Where", allowed, graph.constant(0.0, np.float32), graph.constant(-1e30, np.float32)
    )


def _norm(graph: Graph, shape: Shape, x: str, weights: dict[str, Any], name: str) -> str:
    """Add an RMSNorm in the form that ONNX Runtime fuses."""
    square = graph.op("Pow", x, graph.constant(2.0, np.float32))
    mean = graph.op("ReduceMean", square, axes=[-1], keepdims=1)
    root = graph.op("Sqrt", graph.op("Add", mean, graph.constant(shape.epsilon, np.float32)))
    return graph.op("Mul", graph.op("Div", x, root), graph.weight(name, weights[name]))


def _linear(graph: Graph, x: str, weights: dict[str, Any], name: str) -> str:
    return graph.op("MatMul", x, graph.weight(name, weights[name].T))


def _feed_forward(graph: Graph, x: str, weights: dict[str, Any], prefix: str) -> str:
    gate = _linear(graph, x, weights, f"{prefix}gate_proj.weight")
    silu = graph.op("Mul", gate, graph.op("Sigmoid", gate))
    up = _linear(graph, x, weights, f"{prefix}up_proj.weight")
    return _linear(graph, graph.op("Mul", silu, up), weights, f"{prefix}down_proj.weight")


class _Attention:
    """Grouped-query attention of one layer."""

    def __init__(
        self, graph: Graph, shape: Shape, weights: dict[str, Any], layer: int, *, cached: bool
    ) -> None:
        self._graph, self._shape, self._weights, self._layer = graph, shape, weights, layer
        self._cached = cached

    def build(self, x: str, positions: tuple[str, str], mask: str) -> str:
        graph, shape = self._graph, self._shape
        query = _rotate(graph, self._project(x, "q_proj", shape.heads), positions)
        key = _rotate(graph, self._project(x, "k_proj", shape.kv_heads), positions)
        key = self._append("key", key)
        value = self._append("value", self._project(x, "v_proj", shape.kv_heads))
        mixed = self._mix(query, key, value, mask)
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph.op("Reshape", mixed, graph.ints(0, 0, shape.dim))
        return _linear(graph, mixed, self._weights, self._name("o_proj"))

    def _mix(self, query: str, key: str, value: str, mask: str) -> str:
        """Add softmax(q k' / sqrt(d) + mask) v; heads that share keys are one matrix."""
        graph, shape = self._graph, self._shape
        grouped = graph.op("Reshape", query, graph.ints(0, shape.kv_heads, -1, shape.head_dim))
        scores = graph.op("MatMul", grouped, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
        by_head = graph.op("Concat", graph.op("Shape", query, end=3), graph.ints(-1), axis=0)
        scores = graph.op("Reshape", scores, by_head)
        scale = graph.constant(1 / np.sqrt(shape.head_dim), np.float32)
        scores = graph.op("Add", graph.op("Mul", scores, scale), mask)
        shares = graph.op("Softmax", scores, axis=-1)
        total = graph.op("Shape", key, start=2, end=3)
        by_group = graph.op("Concat", graph.ints(0, shape.kv_heads, -1), total, axis=0)
        mixed = graph.op("MatMul", graph.op("Reshape", shares, by_group), value)
        return graph.op("Reshape", mixed, graph.ints(0, shape.heads, -1, shape.head_dim))

    def _append(self, part: str, fresh: str) -> str:
        if not self._cached:
            return fresh
        past, present = f"past_key_values.{self._layer}.{part}", f"present.{self._layer}.{part}"
        return self._graph.op("Concat", past, fresh, name=present, axis=2)

    def _project(self, x: str, name: str, heads: int) -> str:
        """Reshape (batch, sequence, dim) to (batch, heads, sequence, head_dim)."""
        graph = self._graph
        flat = _linear(graph, x, self._weights, self._name(name))
        split = graph.op("Reshape", flat, graph.ints(0, 0, heads, self._shape.head_dim))
        return graph.op("Transpose", split, perm=[0, 2, 1, 3])

    def _name(self, projection: str) -> str:
        return f"layers.{self._layer}.self_attn.{projection}.weight"


def _rotate(graph: Graph, x: str, positions: tuple[str, str]) -> str:
    """Apply rotary embedding on halves."""
    cosine, sine = positions
    first, second = graph.split(x, axis=-1)
    turned = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    return graph.op("Add", graph.op("Mul", x, cosine), graph.op("Mul", turned, sine))
