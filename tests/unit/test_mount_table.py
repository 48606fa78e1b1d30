"""What is mounted where, whatever others have mounted, and by which way a path leads there."""

import os
from pathlib import Path

import pytest

from jfs.mount import table
from jfs.mount.table import MountEntry

_ROOT = b"21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


def places(text: bytes) -> list[str]:
    return [entry.mountpoint for entry in table.parse(text)]


def test_a_mount_is_understood() -> None:
    line = b"99 21 0:53 / /models ro,nosuid shared:7 master:1 - fuse.jfs http://a.example/r ro\n"
    assert list(table.parse(_ROOT + line))[1] == MountEntry(
        mountpoint="/models", fstype="fuse.jfs", source="http://a.example/r", device="0:53"
    )


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b\012c", "/a\tb\nc"),
        (rb"/a\134040b", "/a\\040b"),
        (b"/a\rb", "/a\rb"),
        (b"/a\fb\vc", "/a\fb\vc"),
        ("/a\u2028b\x85".encode(), "/a\u2028b\x85"),
        (b"/a\x1cb", "/a\x1cb"),
        (b"/\xb1\xff", os.fsdecode(b"/\xb1\xff")),
        (rb"/a\040-\040b", "/a - b"),
        ("/modèle".encode(), "/modèle"),
        (b"/gone//deleted", "/gone//deleted"),
        (rb"/a\043,b", "/a#,b"),
    ],
)
def test_a_name_is_read_byte_for_byte(field: bytes, name: str) -> None:
    line = b"99 21 0:53 / " + field + b" rw - tmpfs " + field + b" rw\n"
    (_, entry, last) = table.parse(_ROOT + line + _ROOT)
    assert (entry.mountpoint, entry.source) == (name, name)
    assert last.mountpoint == "/"


@pytest.mark.parametrize(
    "line",
    [
        b"99 21 0:53 / /e rw -\n",
        b"99 21 0:53 / /e rw\n",
        b"99 21 0:53 /\n",
        b"\n",
        b" - \n",
        b"\xff\xfe\n",
    ],
)
def test_a_line_that_is_not_understood_hides_no_other(line: bytes) -> None:
    assert places(_ROOT + line + _ROOT) == ["/", "/"]


def test_a_source_may_be_empty_or_a_hyphen() -> None:
    lines = b"99 21 0:53 / /e rw - tmpfs  rw\n98 21 0:54 / /h rw - tmpfs - rw\n"
    assert [(entry.mountpoint, entry.source) for entry in table.parse(lines)] == [
        ("/e", ""),
        ("/h", "-"),
    ]


def test_links_are_followed_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "far").symlink_to(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("link", "far", "far/..", "link/../deep/no/such", "real//deep/.", "none/../real"):
        assert str(table.resolve(tmp_path / path)) == os.path.realpath(tmp_path / path), path
    assert table.resolve(tmp_path / "loop")  # ends


def test_a_relative_path_starts_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert table.resolve(Path("a/b")) == tmp_path / "a" / "b"
    assert table.resolve(Path()) == tmp_path


def test_a_path_leads_through_a_directory_that_a_link_on_its_way_lies_in(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    (models / "out").symlink_to(elsewhere)
    (elsewhere / "in").symlink_to(models)
    (tmp_path / "alias").symlink_to("models")
    for path in ("models", "models/x", "alias/x/y", "elsewhere/in/x", "models/out/x"):
        assert table.leads_through(tmp_path / path, models), path
        assert table.leads_through(tmp_path / path, tmp_path / "alias"), path
    for path in ("elsewhere/x", "modelsx", ""):
        assert not table.leads_through(tmp_path / path, models), path
