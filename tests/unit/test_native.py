"""The native part: used where it was built and fits; what jfs says where it is not."""

import logging
import tomllib
from pathlib import Path

import pytest

from jfs import native
from tests import compiling


def test_it_is_used_where_it_was_built() -> None:
    library = native.library()
    assert library is not None
    assert library.jfs_native_abi() == native.ABI
    native.turn_off()
    try:
        assert native.library() is None
    finally:
        native.turn_off(False)


def test_where_there_is_none_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jfs.native"):
        assert native.load(tmp_path) is None
    assert ["without a C compiler" in each.message for each in caplog.records] == [True]


def test_every_source_is_built_with_the_package() -> None:
    """What the tests build is what an installation has."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    folder = Path(native.__file__).parent
    for names, pattern in ((extension["sources"], "*.c"), (extension["depends"], "*.h")):
        assert sorted(Path(name).name for name in names) == sorted(
            path.name for path in folder.glob(pattern)
        )
    assert extension["optional"] is True


@pytest.mark.parametrize("content", [b"", b"no object", b"\x7fELF" + bytes(60)])
def test_a_damaged_one_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "_native.so").write_bytes(content)
    with caplog.at_level(logging.INFO, "jfs.native"):
        assert native.load(tmp_path) is None
    assert [each.message.count("cannot be used") for each in caplog.records] == [1]


def test_one_of_another_version_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiling.build(tmp_path / "_native.so", "-DJFS_NATIVE_ABI=999")
    with caplog.at_level(logging.INFO, "jfs.native"):
        assert native.load(tmp_path) is None
    assert ["another version" in each.message for each in caplog.records] == [True]
