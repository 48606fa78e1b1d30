"""Train the sample models that ship in ``jfs/server/samples``. Run by hand, needs no network:

    python -m venv /tmp/train
    /tmp/train/bin/pip install gguf numpy onnx safetensors scikit-learn
    OMP_NUM_THREADS=1 /tmp/train/bin/python tests/bench/train_samples.py jfs/server/samples

A few minutes on one core. Seeds are fixed, so a run on the same library versions gives the same
weights. Each model file carries its own card, and the run prints the held-out inputs that
``tests/unit/test_samples.py`` embeds and the figures that ``jfs/server/samples/__init__.py`` lists.

The ``accuracy`` of the two classifiers is the mean over ten other random splits, retrained on
each: their test sets are small (450 and 143), and the split that the shipped digit weights come
from is an easy one (0.987 and 0.989 there, 0.967 and 0.983 on average). What the shipped weights
reach on it is the card's ``held_out``. The same writers are on both sides of every split. The
language model has one held-out text and one run; nothing was tuned on it.

Data: UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998) and UCI
"Breast Cancer Wisconsin (Diagnostic)" (W. Wolberg, O. Mangasarian, N. Street, W. Street, 1995),
both CC BY 4.0, as scikit-learn ships them; and the licence texts that Debian installs in
``/usr/share/common-licenses``, of which CC0 is held out for testing.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

DIGITS = "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998, CC BY 4.0)"
CANCER = "UCI Breast Cancer Wisconsin Diagnostic (Wolberg et al. 1995, CC BY 4.0)"
LICENCES = Path("/usr/share/common-licenses")
HELD_OUT = "CC0-1.0"  # public domain, and a text that shares no paragraphs with the others
CONTEXT, EMBEDDING, HIDDEN = 12, 32, 512  # rows of every matrix are multiples of Q8_0's block of 32


def _repeated(network: Pipeline, features: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
    """Retrain on ten other splits; return mean and range of the accuracy on what was held out."""
    scores = []
    for seed in range(100, 110):
        train_x, test_x, train_y, test_y = train_test_split(
            features, labels, test_size=0.25, random_state=seed, stratify=labels
        )
        again = clone(network)
        again.set_params(mlpclassifier__random_state=seed)
        scores.append(again.fit(train_x, train_y).score(test_x, test_y))
    spread = f"{min(scores):.3f} to {max(scores):.3f} over 10 random splits of 75/25"
    return f"{np.mean(scores):.3f}", spread


def digits(root: Path, version: str, layers: tuple[int, ...]) -> None:
    """Write one version of the digit classifier as ONNX: scale, Gemm/Relu layers, Softmax."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.25, random_state=7, stratify=labels
    )
    network = MLPClassifier(layers, alpha=1e-3, max_iter=600, tol=1e-5, random_state=7)
    accuracy, spread = _repeated(make_pipeline(network), images / 16, labels)
    network.fit(train_x / 16, train_y)
    right = int((network.predict(test_x / 16) == test_y).sum())

    nodes = [helper.make_node("Div", ["pixels", "full_scale"], ["x0"], name="scale")]
    tensors = [numpy_helper.from_array(np.float32(16), "full_scale")]
    last = len(network.coefs_) - 1
    for i, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        for name, array in ((f"fc{i}.weight", weight.T), (f"fc{i}.bias", bias)):
            tensors.append(numpy_helper.from_array(np.float32(array).copy(), name))
        out = "logits" if i == last else f"h{i}"
        parameters = [f"x{i}", f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", parameters, [out], name=f"fc{i}", transB=1))
        if i < last:
            nodes.append(helper.make_node("Relu", [out], [f"x{i + 1}"], name=f"relu{i}"))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1))
    graph = helper.make_graph(
        nodes,
        "digits-mlp",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    # opset 17 and IR 8 (2022): any onnxruntime since 1.12 runs it
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="jfs-samples",
    )
    model.doc_string = (
        "Classifies 8x8 images of handwritten digits. Input `pixels`: float32 [n, 64], row by row, "
        "0 (paper) to 16 (ink). Output `probabilities`: float32 [n, 10], one column a digit."
    )
    card = {
        "name": "digits-mlp",
        "version": version,
        "task": "image-classification",
        "data": DIGITS,
        "split": f"{len(train_x)} images for training, {len(test_x)} held out, stratified",
        "accuracy": accuracy,
        "accuracy_range": spread,
        "held_out": f"{right} of {len(test_x)} right",
        "architecture": f"MLP 64-{'-'.join(map(str, layers))}-10, ReLU",
        "limits": "a sample to try jfs with: 8x8 images of one collection, nothing else",
    }
    helper.set_model_props(model, card)
    onnx.checker.check_model(model, full_check=True)
    path = root / "vision/digits-mlp" / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    print(
        f"digits-mlp {version}: {accuracy} ({spread}), {right} right, {path.stat().st_size} bytes"
    )
    if version == "1.1.0":
        for image, label in list(zip(test_x, test_y, strict=True))[:20]:
            text = "".join("0123456789abcdefg"[int(pixel)] for pixel in image)
            print(f'    ("{text}", {label}),')


def breast_cancer(root: Path) -> None:
    """Write a 30-16-1 MLP with its normalisation as safetensors, and its config beside it."""
    data = load_breast_cancer()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data, data.target, test_size=0.25, random_state=7, stratify=data.target
    )
    mean, std = np.float32(train_x.mean(0)), np.float32(train_x.std(0))
    network = MLPClassifier((16,), alpha=1e-2, max_iter=400, random_state=7)
    accuracy, spread = _repeated(make_pipeline(StandardScaler(), network), data.data, data.target)
    network.fit((train_x - mean) / std, train_y)
    tensors = {
        "normalization.mean": mean,
        "normalization.std": std,
        "hidden.weight": np.ascontiguousarray(np.float32(network.coefs_[0].T)),
        "hidden.bias": np.float32(network.intercepts_[0]),
        "output.weight": np.ascontiguousarray(np.float32(network.coefs_[1].T)),
        "output.bias": np.float32(network.intercepts_[1]),
    }
    hidden = np.float32(test_x) - mean
    hidden = np.maximum(hidden / std @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    logit = hidden @ tensors["output.weight"].T + tensors["output.bias"]
    right = int(((logit[:, 0] > 0) == test_y).sum())
    card = {
        "name": "breast-cancer-mlp",
        "version": "1.0.0",
        "task": "tabular-classification",
        "data": CANCER,
        "split": f"{len(train_x)} cases for training, {len(test_x)} held out, stratified",
        "accuracy": accuracy,
        "accuracy_range": spread,
        "held_out": f"{right} of {len(test_x)} right",
        "architecture": "standardise, MLP 30-16-1, ReLU; sigmoid of the output = P(benign)",
        "limits": "a sample to try jfs with: not for medical use",
    }
    folder = root / "tabular/breast-cancer/1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata=card)
    (folder / "model.safetensors").chmod(0o644)  # the library writes a private file
    config = {
        "architecture": "mlp",
        "activation": "relu",
        "layers": [30, 16, 1],
        "features": list(data.feature_names),
        "labels": list(data.target_names),
        "threshold": 0.5,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = (folder / "model.safetensors").stat().st_size
    print(f"breast-cancer 1.0.0: {accuracy} ({spread}), {right} right, {size} bytes")
    for row, label in list(zip(test_x, test_y, strict=True))[:8]:
        print(f"    (({', '.join(f'{value:.6g}' for value in row)}), {label}),")


def _windows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    contexts = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT)[:-1]
    return contexts, ids[CONTEXT:]


def _logits(weights: dict[str, np.ndarray], contexts: np.ndarray) -> tuple[np.ndarray, ...]:
    x = weights["token_embd.weight"][contexts].reshape(len(contexts), -1)
    hidden = np.tanh(x @ weights["hidden.weight"].T + weights["hidden.bias"])
    return x, hidden, hidden @ weights["output.weight"].T + weights["output.bias"]


def character_model(root: Path) -> None:
    """Train a character-level language model (Bengio et al. 2003) and write it as GGUF."""
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(LICENCES.iterdir())
        if path.is_file() and not path.is_symlink()
    }
    vocabulary = sorted(set("".join(texts.values())) & {"\n", *map(chr, range(32, 127))})
    number = {character: i for i, character in enumerate(vocabulary)}

    def encode(text: str) -> np.ndarray:
        return np.array([number[character] for character in text if character in number])

    test_x, test_y = _windows(encode(texts.pop(HELD_OUT)))
    pairs = [_windows(encode(text)) for text in texts.values()]
    train_x = np.concatenate([pair[0] for pair in pairs])
    train_y = np.concatenate([pair[1] for pair in pairs])

    rng = np.random.default_rng(7)
    width = CONTEXT * EMBEDDING

    def initial(*shape: int, scale: float) -> np.ndarray:
        return np.float32(rng.normal(0, scale, shape))

    weights = {
        "token_embd.weight": initial(len(vocabulary), EMBEDDING, scale=0.5),
        "hidden.weight": initial(HIDDEN, width, scale=width**-0.5),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": initial(len(vocabulary), HIDDEN, scale=HIDDEN**-0.5),
        "output.bias": np.zeros(len(vocabulary), np.float32),
    }
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    steps, batch = 6000, 512
    for step in range(1, steps + 1):
        picked = rng.integers(0, len(train_x), batch)
        contexts, targets = train_x[picked], train_y[picked]
        x, hidden, logits = _logits(weights, contexts)
        gradient = np.exp(logits - logits.max(1, keepdims=True))
        gradient /= gradient.sum(1, keepdims=True)
        gradient[np.arange(batch), targets] -= 1
        gradient /= batch
        back = (gradient @ weights["output.weight"]) * (1 - hidden**2)
        embedding = np.zeros_like(weights["token_embd.weight"])
        np.add.at(
            embedding, contexts.ravel(), (back @ weights["hidden.weight"]).reshape(-1, EMBEDDING)
        )
        gradients = {
            "token_embd.weight": embedding,
            "hidden.weight": back.T @ x,
            "hidden.bias": back.sum(0),
            "output.weight": gradient.T @ hidden,
            "output.bias": gradient.sum(0),
        }
        rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        for name, grad in gradients.items():  # Adam with decoupled weight decay
            first[name] += 0.1 * (grad - first[name])
            second[name] += 0.01 * (grad**2 - second[name])
            mean = first[name] / (1 - 0.9**step)
            spread = second[name] / (1 - 0.99**step)
            weights[name] -= np.float32(rate) * (
                mean / (np.sqrt(spread) + 1e-8) + 1e-2 * weights[name]
            )

    kind = gguf.GGMLQuantizationType
    stored = {
        name: kind.Q8_0 if name in ("hidden.weight", "output.weight") else kind.F32
        for name in weights
    }
    packed = {name: gguf.quants.quantize(weights[name], stored[name]) for name in weights}
    as_read = {name: gguf.quants.dequantize(packed[name], stored[name]) for name in weights}
    logits = _logits(as_read, test_x)[2]
    accuracy = float((logits.argmax(1) == test_y).mean())
    peak = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    bits = float((log_sum - logits[np.arange(len(test_y)), test_y]).mean() / np.log(2))

    path = root / "llm/licence-char-mlp/v1/model.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "char-mlp")
    writer.add_name("licence-char-mlp")
    writer.add_version("v1")
    writer.add_description(
        "Character-level language model (Bengio-style MLP) of software licences, trained on "
        f"the texts in Debian's /usr/share/common-licenses without {HELD_OUT}. "
        f"On {HELD_OUT}, never seen in training: next character right {accuracy:.1%}, "
        f"{bits:.2f} bits per character. A sample to try jfs with: it does not give legal advice."
    )
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_vocab_size(len(vocabulary))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_string("char-mlp.activation", "tanh")
    writer.add_float32("char-mlp.evaluation.accuracy", accuracy)
    writer.add_float32("char-mlp.evaluation.bits_per_character", bits)
    writer.add_tokenizer_model("char")
    writer.add_token_list(vocabulary)
    for name, array in packed.items():
        writer.add_tensor(name, array, raw_dtype=stored[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(
        f"licence-char-mlp v1: accuracy {accuracy:.4f}, {bits:.3f} bits per character, "
        f"{len(vocabulary)} characters, {path.stat().st_size} bytes"
    )

    ids = list(encode("This License "))[-CONTEXT:]
    said = []
    for _ in range(120):
        logits = _logits(as_read, np.array([ids[-CONTEXT:]]))[2][0]
        odds = np.exp((logits - logits.max()) / 0.6)
        ids.append(int(rng.choice(len(odds), p=odds / odds.sum())))
        said.append(vocabulary[ids[-1]])
    print(f"  it says: This License {''.join(said)!r}")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    digits(target, "1.0.0", (12,))
    digits(target, "1.1.0", (96, 48))
    breast_cancer(target)
    character_model(target)
