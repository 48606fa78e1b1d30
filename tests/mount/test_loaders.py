"""Model libraries load genuine models from a mount and compute what they compute from a copy."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from jfs.server import EmbeddedServer
from jfs.server.samples import SAMPLES
from tests.mount.conftest import MountedServer, Mounter

pytestmark = pytest.mark.fuse

REPOSITORY = "ml-models-local"
LOADER = Path(__file__).with_name("load_model.py")
MODELS = {
    entry.path: Path(str(entry.file)) for entry in SAMPLES if not entry.path.endswith("config.json")
}
# published by Google on PyPI, 3 MB: larger than a read-ahead window's first requests
MAGIKA = "nlp/magika/standard_v3_3/model.onnx"
MODELS[MAGIKA] = Path(str(files("magika"))) / "models/standard_v3_3/model.onnx"


def load(path: Path) -> dict[str, str]:
    """Return the digests of what the model at *path* holds or computes."""
    result = subprocess.run(
        [sys.executable, str(LOADER), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, str] = json.loads(result.stdout)
    assert found
    return found


@pytest.mark.parametrize("path", MODELS)
def test_a_model_gives_the_same_numbers(path: str, mounted: MountedServer) -> None:
    local = MODELS[path]
    mounted.server.deploy(REPOSITORY, path, local.read_bytes())
    first = load(mounted.root / path)
    assert first == load(local)
    assert load(mounted.root / path) == first  # from the caches now


def test_a_model_that_the_kernel_reads_gives_the_same_numbers(
    server: EmbeddedServer, mounter: Mounter
) -> None:
    local = MODELS[MAGIKA]
    server.deploy(REPOSITORY, MAGIKA, local.read_bytes())
    root = mounter(
        f"{server.url}/{REPOSITORY}", "--fetch", "whole", JF_ACCESS_TOKEN=server.token
    ).root
    assert load(root / MAGIKA) == load(local)
    told = json.loads((root / ".jfs/stats.json").read_text())
    assert bool(told["counters"].get("passthrough_opens")) == (told["passthrough"]["state"] == "on")


def test_all_models_at_once(mounted: MountedServer) -> None:
    for path, local in MODELS.items():
        mounted.server.deploy(REPOSITORY, path, local.read_bytes())
    loaders = {
        path: subprocess.Popen(
            [sys.executable, str(LOADER), str(mounted.root / path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in MODELS
    }
    for path, loader in loaders.items():
        output, _ = loader.communicate(timeout=120)
        assert loader.returncode == 0
        assert json.loads(output) == load(MODELS[path])
