"""Load a model as its users do and print a digest of every number: ``python load_model.py PATH``.

A program of its own, since a loader that maps a file dies of SIGBUS, and hangs unkillably, where a
mount under test goes wrong: that must fail one test, not the test process.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np


def _digest(array: np.ndarray) -> str:
    whole = np.ascontiguousarray(array)
    return f"{whole.dtype} {whole.shape} {hashlib.sha256(whole.tobytes()).hexdigest()}"


def load_safetensors(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as model:  # maps the file
        names = list(model.keys())
        return {name: _digest(model.get_tensor(name)) for name in names} | model.metadata()


def load_gguf(path: Path) -> dict[str, str]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)  # a numpy.memmap
    found = {
        tensor.name: _digest(dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    return found | {"description": reader.fields["general.description"].contents()}


def load_onnx(path: Path) -> dict[str, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order: equal numbers to the last bit
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    inputs = {}
    for wanted in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in wanted.shape]
        whole = rng.integers(0, 16, shape)  # pixels of the digits, and bytes for magika
        inputs[wanted.name] = whole.astype(np.float32 if "float" in wanted.type else np.int32)
    outputs = session.run(None, inputs)
    names = [output.name for output in session.get_outputs()]
    return {name: _digest(output) for name, output in zip(names, outputs, strict=True)}


LOADERS = {".safetensors": load_safetensors, ".gguf": load_gguf, ".onnx": load_onnx}

if __name__ == "__main__":
    model = Path(sys.argv[1])
    print(json.dumps(LOADERS[model.suffix](model)))
