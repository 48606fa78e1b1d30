"""The sample models that ship with jfs: they load, have cards, and do what their cards say.

The inputs below were held out of training; ``tests/bench/train_samples.py`` prints them (the first
of the held-out set, not picked). Sources and licences of the data: there. The models run from the
installed package's files; ``tests/mount/test_loaders.py`` runs them from a mount.
"""

import json

import numpy as np
import onnxruntime
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

from jfs.server.samples import SAMPLES

# 8x8 pixels, 0 to g (16); the digit
DIGITS = [
    ("000fc100005gg600002gg300002gg100006gd000001gg200003gf300000fg100", 1),
    ("002ffgb0008gb30000d9000005g39b300affggb006ga7g500034f800004f7000", 5),
    ("0019eb1000af9d5003g7000005ggga0007gbag5002g50c8000afdg500009c700", 6),
    ("0038cfg200ceadf000112e600028dg80009gga500018c100000e8000002g5000", 7),
    ("008dc30006f79c0000007b000004f300000ag90000004f7000b21f70008ggc00", 3),
    ("01cf500004f8f3000031e400004eg100001aef4000000c800484ag4002cgd600", 3),
    ("007ff60004ggbf0007gaag1003bgg60001fga00005g5e00001d3e100005ff200", 8),
    ("0068ce0005gfc70008gd400002b8eb0000000f1000000e500198ce1000afc300", 5),
    ("000fb000006gg20000agg10002ggg30007gge000003fa000000f7000000e4000", 1),
    ("004eg50004ggg8000af9g400012de000002g6000007g0570008gdg60002fg600", 2),
    ("008cec3000c5030000g2410004gecf400040088001000b5006e12f10008eg400", 5),
    ("006a940000eagg1004f19g0003ggg80000ceg50000c19c0000g6e900008c6100", 8),
    ("02gcce7003g9884002ga400004gdg4000030ca0006309b000bb9g30003cf7000", 5),
    ("003bgf2004ga4g4007605g100000ac000009gga00006f610000d9000001f2000", 7),
    ("018aea000ca66g2003007e1000009b0000002g10000008c000402b9000cgec40", 3),
    ("002agb1000ddag8004e18e1004fcf8000067e5000120c50008f6d400005bg300", 9),
    ("000ee100003ge00000ag200000gg830003gf8e2000gb0ba0009e7ga0000cge10", 6),
    ("008ff20002gdca0003f19b000001f800000ad100008g700006ggd7610075cgf2", 2),
    ("001add1001da4e4008d07c0002cef200005ff20000873d3000880d40001bgg20", 8),
    ("006fe10000dgg2000038g200026cg7200dgggg900adg7100006e000000a80000", 7),
]

# the 30 features in the order of config.json; 1 = benign
CASES = [
    (
        "12.4 17.68 81.47 467.8 0.1054 0.1316 0.07741 0.02799 0.1811 0.07102 "
        "0.1767 1.46 2.204 15.43 0.01 0.03295 0.04861 0.01167 0.02187 0.006005 "
        "12.88 22.91 89.61 515.8 0.145 0.2629 0.2403 0.0737 0.2556 0.09359",
        1,
    ),
    (
        "20.92 25.09 143 1347 0.1099 0.2236 0.3174 0.1474 0.2149 0.06879 "
        "0.9622 1.026 8.758 118.8 0.006399 0.0431 0.07845 0.02624 0.02057 0.006213 "
        "24.29 29.41 179.1 1819 0.1407 0.4186 0.6599 0.2542 0.2929 0.09873",
        0,
    ),
    (
        "11.45 20.97 73.81 401.5 0.1102 0.09362 0.04591 0.02233 0.1842 0.07005 "
        "0.3251 2.174 2.077 24.62 0.01037 0.01706 0.02586 0.007506 0.01816 0.003976 "
        "13.11 32.16 84.53 525.1 0.1557 0.1676 0.1755 0.06127 0.2762 0.08851",
        1,
    ),
    (
        "11.34 18.61 72.76 391.2 0.1049 0.08499 0.04302 0.02594 0.1927 0.06211 "
        "0.243 1.01 1.491 18.19 0.008577 0.01641 0.02099 0.01107 0.02434 0.001217 "
        "12.47 23.03 79.15 478.6 0.1483 0.1574 0.1624 0.08542 0.306 0.06783",
        1,
    ),
    (
        "14.53 13.98 93.86 644.2 0.1099 0.09242 0.06895 0.06495 0.165 0.06121 "
        "0.306 0.7213 2.143 25.7 0.006133 0.01251 0.01615 0.01136 0.02207 0.003563 "
        "15.8 16.93 103.1 749.9 0.1347 0.1478 0.1373 0.1069 0.2606 0.0781",
        1,
    ),
    (
        "11.37 18.89 72.17 396 0.08713 0.05008 0.02399 0.02173 0.2013 0.05955 "
        "0.2656 1.974 1.954 17.49 0.006538 0.01395 0.01376 0.009924 0.03416 0.002928 "
        "12.36 26.14 79.29 459.3 0.1118 0.09708 0.07529 0.06203 0.3267 0.06994",
        1,
    ),
    (
        "16.02 23.24 102.7 797.8 0.08206 0.06669 0.03299 0.03323 0.1528 0.05697 "
        "0.3795 1.187 2.466 40.51 0.004029 0.009269 0.01101 0.007591 0.0146 0.003042 "
        "19.19 33.88 123.8 1150 0.1181 0.1551 0.1459 0.09975 0.2948 0.08452",
        0,
    ),
    (
        "14.05 27.15 91.38 600.4 0.09929 0.1126 0.04462 0.04304 0.1537 0.06171 "
        "0.3645 1.492 2.888 29.84 0.007256 0.02678 0.02071 0.01626 0.0208 0.005304 "
        "15.3 33.17 100.2 706.7 0.1241 0.2264 0.1326 0.1048 0.225 0.08321",
        1,
    ),
]

# from the statement of purpose of CC0 1.0 (public domain)
TEXT = """\
Certain owners wish to permanently relinquish those rights to a Work for
the purpose of contributing to a commons of creative, cultural and
scientific works ("Commons") that the public can reliably and without fear
of later claims of infringement build upon, modify, incorporate in other
works, reuse and redistribute as freely as possible in any form whatsoever
and for any purposes, including without limitation commercial purposes.
These owners may contribute to the Commons to promote the ideal of a free
culture and the further production of creative, cultural and scientific
works, or to gain reputation or greater distribution for their Work in
part through the use and efforts of others.
"""


def sample(path):
    return next(entry for entry in SAMPLES if entry.path == path)


def stated_accuracy(entry):
    return float(entry.properties["accuracy"][0])


@pytest.mark.parametrize("entry", SAMPLES, ids=lambda entry: entry.path)
def test_files_are_small_and_lie_as_domain_model_version_file(entry):
    domain, model, version, name = entry.path.split("/")
    assert all((domain, model, version, name))
    assert 0 < len(entry.file.read_bytes()) < 1024 * 1024
    assert entry.properties["env"][0] in ("production", "staging")


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_digits(version):
    entry = sample(f"vision/digits-mlp/{version}/model.onnx")
    session = onnxruntime.InferenceSession(entry.file.read_bytes())
    card = session.get_modelmeta().custom_metadata_map
    assert card["version"] == version
    assert card["data"]
    assert float(card["accuracy"]) == stated_accuracy(entry)

    pixels = np.array([[int(pixel, 17) for pixel in text] for text, _ in DIGITS], np.float32)
    (probabilities,) = session.run(None, {"pixels": pixels})
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    right = sum(probabilities.argmax(1) == [digit for _, digit in DIGITS])
    assert right >= int(stated_accuracy(entry) * len(DIGITS))


def test_breast_cancer():
    entry = sample("tabular/breast-cancer/1.0.0/model.safetensors")
    with safe_open(str(entry.file), framework="np") as model:
        card = model.metadata()
        tensors = {name: model.get_tensor(name) for name in model.keys()}  # noqa: SIM118 - not a dict
    assert card["data"]
    assert float(card["accuracy"]) == stated_accuracy(entry)
    config = json.loads(sample("tabular/breast-cancer/1.0.0/config.json").file.read_text())
    assert config["layers"] == [30, *tensors["hidden.bias"].shape, *tensors["output.bias"].shape]
    assert len(config["features"]) == 30

    cases = np.array([row.split() for row, _ in CASES], np.float32)
    x = (cases - tensors["normalization.mean"]) / tensors["normalization.std"]
    hidden = np.maximum(x @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    logits = hidden @ tensors["output.weight"].T + tensors["output.bias"]
    right = sum((logits[:, 0] > 0) == [bool(label) for _, label in CASES])
    assert right >= int(stated_accuracy(entry) * len(CASES))


def test_language_model():
    entry = sample("llm/licence-char-mlp/v1/model.gguf")
    reader = GGUFReader(str(entry.file))
    card = {name: field.contents() for name, field in reader.fields.items()}
    assert card["general.architecture"] == "char-mlp"
    assert "never seen in training" in card["general.description"]
    assert round(card["char-mlp.evaluation.accuracy"], 3) == stated_accuracy(entry)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"F32", "Q8_0"}

    weights = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    characters = card["tokenizer.ggml.tokens"]
    ids = np.array([characters.index(character) for character in TEXT])
    width = card["char-mlp.context_length"]
    contexts = np.lib.stride_tricks.sliding_window_view(ids, width)[:-1]
    x = weights["token_embd.weight"][contexts].reshape(len(contexts), -1)
    hidden = np.tanh(x @ weights["hidden.weight"].T + weights["hidden.bias"])
    logits = hidden @ weights["output.weight"].T + weights["output.bias"]
    accuracy = (logits.argmax(1) == ids[width:]).mean()
    assert accuracy > stated_accuracy(entry) - 0.05  # 2.5 standard errors of 690 characters
