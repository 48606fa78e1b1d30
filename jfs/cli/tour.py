"""The tour of ``jfs demo``: what is printed for a person is what ``--check`` runs. Any thread."""

import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DIGITS = "vision/digits-mlp/1.1.0/model.onnx"
CANCER = "tabular/breast-cancer/1.0.0/model.safetensors"
LICENCES = "llm/licence-char-mlp/v1/model.gguf"

# A seven from UCI's handwritten digits that the model never saw: 8x8 pixels, 0 to g (16).
_SEVEN = "0038cfg200ceadf000112e600028dg80009gga500018c100000e8000002g5000"


@dataclass(frozen=True, slots=True)
class Step:
    """One stop: a shell command, and text that its standard output holds if it worked."""

    title: str
    command: str
    expected: str
    of_mount: bool = False  # what only a mount can show, no copy of the files


def _have(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def steps(root: Path, sha256_of_digits: str, *, have: Callable[..., bool] = _have) -> list[Step]:
    """Return the tour of the samples mounted at *root*.

    Model libraries are used where this interpreter has them; otherwise the same files are read
    by hand.

    Args:
        sha256_of_digits: of ``DIGITS``, as the server states it.
        have: says whether all the modules named can be imported.
    """

    def place(path: str) -> str:
        return shlex.quote(f"{root}/{path}")

    return [
        Step(
            "The repository is a directory",
            f"find {place('')} -type f | sort",
            str(root / DIGITS),
        ),
        Step(
            "Files are the server's, byte for byte",
            f"sha256sum {place(DIGITS)}",
            sha256_of_digits,
        ),
        Step("Two versions, side by side", f"ls {place('vision/digits-mlp')}", "1.1.0"),
        _safetensors(root / CANCER, have("safetensors", "numpy")),
        _gguf(root / LICENCES, have("gguf")),
        _onnx(root / DIGITS, have("onnxruntime", "numpy")),
        Step(
            "Read at any place, without the rest",
            f"tail -c 3 {place('tabular/breast-cancer/1.0.0/config.json')}",
            "}",
        ),
        Step(
            "The production model, without knowing its version",
            f"readlink {place('vision/digits-mlp/@env=production')}",
            "1.0.0",
            of_mount=True,
        ),
        Step(
            "Everything that is approved for production",
            f"find {place('.by/env=production/approved-by=ml-review')} -type f | sort",
            str(root / ".by/env=production/approved-by=ml-review" / CANCER),
            of_mount=True,
        ),
        Step(
            "Tag a model (setfattr -n user.reviewed -v yes FILE does the same)",
            _program(
                "import os",
                f"p = {_literal(root / DIGITS)}",
                'os.setxattr(p, "user.reviewed", b"yes")',
                "print(*os.listxattr(p))",
            ),
            "user.reviewed",
            of_mount=True,
        ),
        Step(
            "Upload a new version: it is on the server when cp ends",
            f"mkdir -p {place('vision/digits-mlp/1.2.0')}"
            f" && cp {place(DIGITS)} {place('vision/digits-mlp/1.2.0/')}"
            f" && readlink {place('vision/digits-mlp/@latest')}",
            "1.2.0",
            of_mount=True,
        ),
        Step(
            "Take it back",
            f"rm -r {place('vision/digits-mlp/1.2.0')}"
            f" && readlink {place('vision/digits-mlp/@latest')}",
            "1.1.0",
            of_mount=True,
        ),
    ]


def _safetensors(path: Path, library: bool) -> Step:
    title = "Map the tensors of a safetensors file"
    expected = "hidden.weight (16, 30)"
    if library:
        return Step(
            title,
            _program(
                "from safetensors import safe_open",
                f'm = safe_open({_literal(path)}, "np")',
                'print(m.metadata()["name"], m.metadata()["accuracy"])',
                "[print(k, m.get_tensor(k).shape) for k in m.keys()]",
            ),
            expected,
        )
    return Step(
        "Read the header of a safetensors file",
        _program(
            "import json",
            f'f = open({_literal(path)}, "rb")',
            'h = json.loads(f.read(int.from_bytes(f.read(8), "little")))',
            'print(h.pop("__metadata__")["name"])',
            '[print(k, tuple(h[k]["shape"])) for k in h]',
        ),
        expected,
    )


def _gguf(path: Path, library: bool) -> Step:
    if library:
        return Step(
            "Open a language model in GGUF",
            _program(
                "from gguf import GGUFReader",
                f"r = GGUFReader({_literal(path)})",
                'print(r.fields["general.name"].contents())',
                "[print(t.name, t.tensor_type.name) for t in r.tensors]",
            ),
            "hidden.weight Q8_0",
        )
    return Step("Look at a language model in GGUF", f"head -c 4 {shlex.quote(str(path))}", "GGUF")


def _onnx(path: Path, library: bool) -> Step:
    if library:
        return Step(
            "Recognise a handwritten digit with an ONNX model",
            _program(
                "import numpy, onnxruntime",
                f"m = onnxruntime.InferenceSession({_literal(path)})",
                f'seven = [[int(p, 17) for p in "{_SEVEN}"]]',
                'print("a", m.run(None, {"pixels": numpy.float32(seven)})[0].argmax())',
            ),
            "a 7",
        )
    return Step(
        "Look at an image classifier in ONNX",
        f"grep -ao jfs-samples {shlex.quote(str(path))}",
        "jfs-samples",
    )


def _literal(path: Path) -> str:
    """Quote for Python with double quotes, which the shell's single ones leave readable."""
    return json.dumps(str(path), ensure_ascii=False)


def _program(*lines: str) -> str:
    return f"{_python()} -c {shlex.quote('; '.join(lines))}"


def _python() -> str:
    """Name this interpreter, whose libraries were looked at: shortly if the shell finds it."""
    found = shutil.which("python3")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "python3"
    return shlex.quote(sys.executable)
