"""The sample models that ``jfs demo`` shows: what they are, and how they get into a store.

Owns the files beside this module and the list of them. Small, genuine, trained for jfs by
``tests/bench/train_samples.py``; each file carries its own model card. ``accuracy`` repeats the
card's: for the classifiers the mean over ten random splits, for the language model its share of
right next characters in a text that it never saw. Any thread; ``seed`` blocks.
"""

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from jfs.model import Properties
from jfs.server.runner import EmbeddedServer


@dataclass(frozen=True, slots=True)
class Sample:
    """A file to deploy. *path* is where: ``domain/model/version/file``, as JFrog advises."""

    path: str
    properties: Properties

    @property
    def file(self) -> Traversable:
        """The content, inside the installed package."""
        return files(__name__).joinpath(self.path)


def _sample(path: str, **properties: str) -> Sample:
    return Sample(path, {key.replace("_", "-"): (value,) for key, value in properties.items()})


SAMPLES = (
    _sample(
        "vision/digits-mlp/1.0.0/model.onnx",
        env="production",
        task="image-classification",
        framework="onnx",
        accuracy="0.967",
        approved_by="ml-review",
    ),
    _sample(
        "vision/digits-mlp/1.1.0/model.onnx",
        env="staging",
        task="image-classification",
        framework="onnx",
        accuracy="0.983",
    ),
    _sample(
        "tabular/breast-cancer/1.0.0/model.safetensors",
        env="production",
        task="tabular-classification",
        framework="safetensors",
        accuracy="0.975",
        approved_by="ml-review",
    ),
    _sample("tabular/breast-cancer/1.0.0/config.json", env="production"),
    _sample(
        "llm/licence-char-mlp/v1/model.gguf",
        env="staging",
        task="text-generation",
        framework="gguf",
        accuracy="0.517",
    ),
)


def seed(server: EmbeddedServer, repository: str) -> bool:
    """Deploy the samples to a local repository, made if it is missing.

    Returns False where the repository has content: that is left alone, whatever it is.
    """
    server.create_repository(repository)
    if not server.is_empty(repository):
        return False
    for sample in SAMPLES:
        properties = {key: list(values) for key, values in sample.properties.items()}
        server.deploy(repository, sample.path, sample.file.read_bytes(), properties)
    return True
