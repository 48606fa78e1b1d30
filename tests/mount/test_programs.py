"""What programs write is uploaded once: the quick ones of ``tests.bench.programs``."""

import sys
from pathlib import Path

import pytest

from tests.bench.programs import Programs
from tests.mount.conftest import MountedServer

pytestmark = pytest.mark.fuse

_QUICK = (
    "torch.save: a zip of records",
    "distributed checkpoint: 4 ranks, a temporary name and a rename",
    "TFRecord: 20,000 records",
    "8 threads with descriptors of their own",
    "a downloader: fallocate, ranges, rename",
    "cp inside of it",
)
_MOST = 1.05  # times the size of what is there in the end


def test_programs_upload_what_they_write_once(mounted: MountedServer, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    programs = Programs(sys.executable, work)
    titles = [title for title, _ in programs.commands()]
    found = {}
    for title in _QUICK:
        run = programs.run(titles.index(title), mounted.root, mounted.server)
        assert not run.error, (title, run.error)
        assert run.size > 0
        found[title] = run.uploaded / run.size
    assert {title: ratio for title, ratio in found.items() if ratio > _MOST} == {}
    assert found["cp inside of it"] == 0
