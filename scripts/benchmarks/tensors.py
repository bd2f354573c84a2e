"""A tensor of 1 MB through the gateway, as bytes, against the same engine in this process.

In turns of some requests each, of which the first is not counted: it finds the processors' caches
full of the other side's weights, as no box does that serves one model. Measured one by one, the
engine took 0.1 ms longer and the gateway, whose code is pushed out too, 0.1 to 0.4 ms. The client
is Python's own. It sends the tensor as the engine is given it: joining it to the JSON took 0.15 ms.
"""

import asyncio
import http.client
import json
import random
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final

from agent.gateway import Gateway
from agent.serving import Deployment, Serving
from agent.supervisor import Supervisor, WorkerSpec
from agent.telemetry import Collector
from artifact.manifest import Component, File, ModelVersion, Release, Task, Variant
from benchmarks.result import Result
from runtimes.base import LoadSpec, TensorValue
from runtimes.onnx import RUNTIME

RATE_BAR: Final = 0.9
TURNS: Final = 10
# Layers of each stage beside its first.
COUNTED: Final = 5
SHAPE: Final = (1, 3, 296, 296)
CHANNELS: Final = 256
# Channels of the widest convolutions, with GFLOP per image; an image of this size takes 6.3 in
# ResNet-18 and 1.0 in MobileNetV2.
LAYERS: Final = {5: 2.3, 14: 6.1}
NO_DIGEST: Final = "0" * 64


def run(directory: Path) -> list[Result]:
    """Measure the gateway and the engine in turns, on the same file; report medians."""
    directory.mkdir(parents=True)
    return [_row(directory / f"{layers}.onnx", layers, gflop) for layers, gflop in LAYERS.items()]


def _row(model: Path, layers: int, gflop: float) -> Result:
    make_image_network(model, layers)
    data = struct.pack(f"<{prod(SHAPE)}f", *(random.random() for _ in range(prod(SHAPE))))  # noqa: S311 - no secret
    engine = RUNTIME.load(LoadSpec({model.name: model}, Task.TENSOR))
    tensor = TensorValue("image", "FP32", SHAPE, data)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.tensors", str(model)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        connection = http.client.HTTPConnection(server.stdout.readline().strip(), timeout=60)
        here: list[float] = []
        there: list[float] = []
        for _ in range(TURNS):
            there += _turn(lambda: engine.infer([tensor]))
            here += _turn(lambda: _infer(connection, data))
        connection.close()
        server.terminate()
    engine.close()
    ours, peer = statistics.median(here), statistics.median(there)
    ratio = peer / ours
    return Result(
        f"a 1 MB tensor through the gateway, image network of {gflop} GFLOP",
        f"{1 / ours:.1f}/s = {ratio:.3f} x ({(ours - peer) * 1000:+.1f} ms)",
        f"{1 / peer:.1f}/s, same engine in-process",
        f">= {RATE_BAR} x",
        ratio >= RATE_BAR,
    )


def make_image_network(path: Path, layers: int) -> None:
    """Build convolutions with random weights, each 2.25 MiB and 0.43 GFLOP."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    numbers = np.random.default_rng(0)
    nodes, weights, name = [], [], "image"
    channels = [3, CHANNELS // 4, *[CHANNELS] * (layers + 1)]
    for layer, (before, after) in enumerate(pairwise(channels)):
        values = numbers.normal(0, 0.05, (after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        stride = 4 if layer < 2 else 1
        nodes += [
            helper.make_node(
                "Conv", [name, f"w{layer}"], [f"c{layer}"], strides=[stride] * 2, pads=[1] * 4
            ),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        name = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["features"]))
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, (1, CHANNELS, 1, 1))],
        weights,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _turn(call: Callable[[], object]) -> list[float]:
    call()
    return [_seconds(call) for _ in range(COUNTED)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _infer(connection: http.client.HTTPConnection, data: bytes) -> None:
    tensor = {
        "name": "image",
        "shape": SHAPE,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Content-Length": str(len(head) + len(data)),
        "Inference-Header-Content-Length": str(len(head)),
    }
    connection.request("POST", "/v2/models/image/infer", [head, data], headers)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body[:300]


async def serve(model: Path, size: int) -> None:
    """Run the gateway and a worker for this model until terminated; print the address."""
    variant = Variant(
        name="fp32",
        runtime="onnx",
        format="onnx",
        quantization="fp32",
        files=(File(name=model.name, size=size, sha256=NO_DIGEST, index=NO_DIGEST),),
        memory_bytes=size,
    )
    version = ModelVersion(name="acme/image", version="1", task=Task.TENSOR, variants=(variant,))
    component = Component(slot="image", model=version)
    release = Release(schema=1, name="acme/box", version="1", counter=1, components=(component,))
    supervisor = Supervisor()
    serving = Serving(supervisor)
    worker = await supervisor.start(
        WorkerSpec("image", release.reference, version, variant, {model.name: model}, 0, 0)
    )
    await serving.swap(Deployment(release, {"image": worker}))
    print(await Gateway(serving, Collector(), dict).start("127.0.0.1"), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[1]).stat().st_size))
