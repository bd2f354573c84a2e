"""A digits classifier in ONNX, trained on the images that scikit-learn brings along.

A small network of one hidden layer: 8 x 8 grey values in, ten class probabilities out. A fifth of
the 1,797 images is held out: it measures each variant's accuracy, and a few of them are the golden
tensors of the demo's probation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from demo_models.onnx_export import IR_VERSION, OPSET

PIXELS, HIDDEN, CLASSES = 64, 128, 10
HELD_OUT = 360
GOLDEN = 16
EPOCHS = 50

Floats = NDArray[np.float32]


def write_digits(folder: Path) -> None:
    """Write digits.onnx, digits-eval.npz (inputs, labels) and digits-golden.json."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    pixels = (images[order] / 16.0).astype(np.float32)
    labels = labels[order].astype(np.int64)
    network = _train(pixels[HELD_OUT:], labels[HELD_OUT:])
    model = _export(network)
    (folder / "digits.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _write_evaluation(folder / "digits-eval.npz", pixels[:HELD_OUT], labels[:HELD_OUT])
    golden = _golden(network, pixels[:GOLDEN])
    (folder / "digits-golden.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")


def _train(pixels: Floats, labels: NDArray[np.int64]) -> MLPClassifier:
    network = MLPClassifier(hidden_layer_sizes=(HIDDEN,), random_state=0)
    # BLAS threads cost more than they save on matrices this small.
    with threadpool_limits(1):
        for _ in range(EPOCHS):
            network.partial_fit(pixels, labels, classes=range(CLASSES))
    return network


def _export(network: MLPClassifier) -> onnx.ModelProto:
    first, second = (weight.astype(np.float32) for weight in network.coefs_)
    first_bias, second_bias = (bias.astype(np.float32) for bias in network.intercepts_)
    nodes = [
        helper.make_node("MatMul", ["image", "hidden.weight"], ["hidden_product"], "hidden"),
        helper.make_node("Add", ["hidden_product", "hidden.bias"], ["hidden_sum"], "hidden_bias"),
        helper.make_node("Relu", ["hidden_sum"], ["hidden"], "relu"),
        helper.make_node("MatMul", ["hidden", "output.weight"], ["output_product"], "output"),
        helper.make_node("Add", ["output_product", "output.bias"], ["scores"], "output_bias"),
        helper.make_node("Softmax", ["scores"], ["probabilities"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        initializer=[
            numpy_helper.from_array(first, "hidden.weight"),
            numpy_helper.from_array(first_bias, "hidden.bias"),
            numpy_helper.from_array(second, "output.weight"),
            numpy_helper.from_array(second_bias, "output.bias"),
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="flotilla",
    )
    helper.set_model_props(model, {"task": "classification"})
    onnx.checker.check_model(model)
    return model


def _write_evaluation(path: Path, pixels: Floats, labels: NDArray[np.int64]) -> None:
    np.savez(path, image=pixels, labels=labels)


def _golden(network: MLPClassifier, pixels: Floats) -> dict[str, Any]:
    """Return inputs and outputs of a TensorCheck; most rows' classes must agree."""
    expected = network.predict_proba(pixels).astype(np.float32)
    return {
        "inputs": [_tensor("image", pixels)],
        "outputs": [_tensor("probabilities", expected)],
        "argmax_only": True,
        "min_match": 0.9,
    }


def _tensor(name: str, values: Floats) -> dict[str, Any]:
    rounded = [round(float(value), 6) for value in values.flatten()]
    return {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": rounded}
