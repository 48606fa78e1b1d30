"""Everyday tools on a real mount, each with real files; the server is asked what has come of it."""

import contextlib
import io
import sqlite3
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import safetensors.numpy

from jfs.server import EmbeddedServer
from tests.component.server_requests import REPO, Requests
from tests.mount.conftest import MountedServer, Mounter
from tests.mount.suites.running import check, run
from tests.mount.suites.truth import content, on_disk, on_server

pytestmark = pytest.mark.fuse

_DEADLINE_S = 40
_OTHER = "other-local"
_IN_2021 = 1_609_459_200
_TAGS = {"env": ["production"], "accuracy": ["0.9"]}

Shell = Callable[..., str]


@pytest.fixture
def ask(server: EmbeddedServer) -> Requests:
    return Requests(server)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a script in a directory, which is the first argument; return what it wrote."""
    log = tmp_path / "shell.log"

    def run(where: Path, script: str, **environ: str) -> str:
        command = ["sh", "-euc", script]
        return check(command, where, deadline_s=_DEADLINE_S, log=log, environ=environ)

    return run


@pytest.fixture
def source(tmp_path: Path, shell: Shell) -> Path:
    """A tree on the local disk: attributes, links, modes, times, an empty file and folder."""
    root = tmp_path / "source"
    (root / "conf" / "void").mkdir(parents=True)
    (root / "weights.bin").write_bytes(bytes(range(256)) * 1200)
    (root / "conf" / "config.json").write_text('{"layers": 12}\n')
    (root / "conf" / "empty").touch()
    (root / "conf" / "naïve name.txt").write_text("ü\n")
    shell(
        root,
        f"""
        ln -s conf/config.json link
        ln -s nowhere/at-all dangling
        setfattr -n user.env -v production weights.bin
        setfattr -n user.accuracy -v 0.9 weights.bin
        setfattr -n user.team -v nlp conf
        chmod 640 weights.bin; chmod 750 conf
        find . -exec touch -h -d @{_IN_2021} {{}} +
        """,
    )
    return root


def test_cp_keeps_all(
    source: Path, mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path
) -> None:
    """``cp -a`` there and back: contents, attributes, links, modes and times. ``cp -p``."""
    shell(mounted.root, f"cp -a {source} copy")
    _check_tree(source, mounted.root / "copy", ask, shell)
    facts = ask.get(f"/api/storage/{REPO}/copy/weights.bin").json()
    assert facts["lastModified"].startswith("2021-01-01T00:00:00"), "the time is on the server, too"
    shell(mounted.root, f"cp -a copy {tmp_path}/back")
    assert shell(source, f"rsync -aXnc --delete --itemize-changes ./ {tmp_path}/back/") == ""
    shown = shell(mounted.root, f"cp -p {source}/weights.bin . && stat -c '%a %Y %s' weights.bin")
    assert shown == f"640 {_IN_2021} {256 * 1200}\n"
    assert content(ask, "weights.bin") == (source / "weights.bin").read_bytes()
    assert ask.properties("weights.bin") == {}, "cp -p leaves attributes out"


def test_mv_across_repositories(
    source: Path, server: EmbeddedServer, mounter: Mounter, ask: Requests, shell: Shell
) -> None:
    """``mv`` of a file and of a folder; a move on the server takes properties along."""
    server.create_repository(_OTHER)
    root = mounter(server.url, JF_ACCESS_TOKEN=server.token).root
    shell(root, f"cp -a {source} {REPO}/tree")
    server.stats.reset()
    shell(root, f"mv {REPO}/tree/weights.bin {_OTHER}/")
    assert on_server(ask, repo=_OTHER) == {"weights.bin": (source / "weights.bin").read_bytes()}
    reply = ask.get(f"/api/storage/{_OTHER}/weights.bin?properties").json()
    assert reply["properties"] == dict(sorted(_TAGS.items()))
    shell(root, f"mv {REPO}/tree {_OTHER}/")
    assert on_server(ask) == {}
    expected = {name: data for name, data in on_disk(source).items() if name != "weights.bin"}
    assert on_server(ask, "tree", _OTHER) == expected
    reply = ask.get(f"/api/storage/{_OTHER}/tree/conf?properties").json()
    assert reply["properties"] == {"team": ["nlp"]}
    assert server.stats.bytes_received == 0, "moved on the server"


def test_rsync(source: Path, mounted: MountedServer, ask: Requests, shell: Shell) -> None:
    """The second run transfers nothing; the third what has changed, and removes what is gone."""
    sync = f"rsync -aX --delete --itemize-changes {source}/ copy/"
    assert "weights.bin" in shell(mounted.root, sync)
    _check_tree(source, mounted.root / "copy", ask, shell)
    assert shell(mounted.root, sync) == ""
    (source / "conf" / "empty").unlink()
    (source / "weights.bin").write_bytes(b"new")
    assert len(shell(mounted.root, f"{sync} --omit-dir-times").splitlines()) == 2
    assert on_server(ask, "copy") == on_disk(source)
    assert ask.properties("copy/weights.bin") == dict(sorted(_TAGS.items()))


def test_tar(source: Path, mounted: MountedServer, ask: Requests, shell: Shell) -> None:
    """An archive made on the mount is whole; one that is unpacked there brings everything."""
    tar = "tar --xattrs --xattrs-include='user.*'"
    shell(
        mounted.root,
        f"""
        {tar} -cf archive.tar -C {source} .
        mkdir more && echo more > more/appended && tar -rf archive.tar more/appended
        """,
    )
    with tarfile.open(fileobj=io.BytesIO(content(ask, "archive.tar"))) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert names == {".", "more/appended", *on_disk(source)}
    shell(mounted.root, f"mkdir out && {tar} --exclude=more -xpf archive.tar -C out")
    _check_tree(source, mounted.root / "out", ask, shell)


def test_git(mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path) -> None:
    """A repository that lives on the mount; from what the server has, git makes the same."""
    environ = {
        f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environ |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    shown = shell(
        mounted.root,
        """
        git init -q -b main work && cd work
        seq 1000 > numbers && mkdir sub && echo one > sub/file && ln -s numbers link
        git add . && git commit -qm first && git status --porcelain
        sed -i s/500/five/ numbers && git mv sub/file sub/moved && git commit -qam second
        git checkout -qb side HEAD~1 && echo side > side && git add side && git commit -qm side
        git checkout -q main && git merge -q -m merged side
        cd .. && git clone -q work clone && cd clone
        echo more >> numbers && git commit -qam third && git push -q origin HEAD:other
        git status --porcelain && git fsck --strict --no-progress && git log --format=%s
        cd ../work && git gc -q && git fsck --strict --no-progress && git rev-parse other
        """,
        **environ,
    )
    *subjects, head = shown.splitlines()
    assert sorted(subjects) == sorted(["third", "merged", "second", "side", "first"])
    copy = tmp_path / "copy"
    for name, data in on_server(ask, "work/.git").items():
        path = copy / name
        (path if data is None else path.parent).mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)
    shell(
        copy, "git fsck --strict --no-progress && git show other:numbers | grep -q more", **environ
    )
    assert head in shell(copy, "git log --format=%H other", **environ)


def test_pip_installs_into_the_mount(
    mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path
) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny/__init__.py": "from tiny.deep.part import answer\n",
        "tiny/deep/__init__.py": "",
        "tiny/deep/part.py": "answer = 42\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    pip = f"{sys.executable} -m pip install -q --no-index --no-deps --no-cache-dir"
    shell(mounted.root, f"{pip} --root-user-action=ignore --target=site {wheel}")
    shown = shell(
        mounted.root, f"{sys.executable} -c 'import tiny; print(tiny.answer)'", PYTHONPATH="site"
    )
    assert shown == "42\n"
    installed = on_server(ask, "site")
    assert {name: installed[name] for name in files} == {
        name: text.encode() for name, text in files.items()
    }
    assert installed == on_disk(mounted.root / "site")


def test_models_are_saved(
    mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path
) -> None:
    """What libraries write is on the server as they write it to a disk."""
    script = tmp_path / "save.py"
    script.write_text(
        "import numpy, safetensors.numpy, zipfile\n"
        "weights = numpy.arange(100_000, dtype=numpy.float32).reshape(100, 1000)\n"
        "numpy.save('weights.npy', weights)\n"
        "numpy.savez('weights.npz', a=weights, b=weights[0])\n"
        "safetensors.numpy.save_file({'w': weights}, 'weights.safetensors', {'format': 'np'})\n"
        "mapped = numpy.lib.format.open_memmap('mapped.npy', 'w+', weights.dtype, weights.shape)\n"
        "mapped[:] = weights\n"
        "mapped.flush()\n"
        "assert (numpy.load('weights.npy', mmap_mode='r') == weights).all()\n"
        "assert (numpy.load('weights.npz')['b'] == weights[0]).all()\n"
        "with safetensors.safe_open('weights.safetensors', 'np') as file:\n"
        "    assert file.metadata() == {'format': 'np'}\n"
        "    assert (file.get_tensor('w') == weights).all()\n"
        "    assert (file.get_slice('w')[7:9, :5] == weights[7:9, :5]).all()\n"
    )
    local = tmp_path / "local"
    local.mkdir()
    for where in (local, mounted.root):
        shell(where, f"{sys.executable} {script}")
    saved, expected = on_server(ask), on_disk(local)
    archives = [found.pop("weights.npz") for found in (saved, expected)]  # with the time in it
    assert saved == expected
    first, second = (zipfile.ZipFile(io.BytesIO(data or b"")) for data in archives)
    assert [each.CRC for each in first.infolist()] == [each.CRC for each in second.infolist()]
    tensors = safetensors.numpy.load(saved["weights.safetensors"] or b"")
    assert tensors["w"][99, 999] == 99_999


_DATABASE = """
import os, sqlite3, subprocess, sys
mode, role = sys.argv[1:]
database = sqlite3.connect("data.db", timeout=0, isolation_level=None)
if role == "blocked":
    try:
        database.execute("INSERT INTO runs VALUES (-1)")
    except sqlite3.OperationalError as error:
        print(error)
    sys.exit()
if role == "other":
    print(*database.execute("SELECT count(*) FROM runs").fetchone())
    database.execute("INSERT INTO runs VALUES (1000)")
    sys.exit()
print(*database.execute("PRAGMA journal_mode = " + mode).fetchone())
database.execute("CREATE TABLE runs (loss REAL)")
def another(role):
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__, mode, role], check=True)
database.execute("BEGIN")
database.executemany("INSERT INTO runs VALUES (?)", [(i,) for i in range(1000)])
another("blocked")
database.execute("COMMIT")
another("other")
database.execute("BEGIN")
database.execute("DELETE FROM runs")
database.execute("ROLLBACK")
print(*database.execute("SELECT count(*), sum(loss) FROM runs").fetchone())
database.close()
print(*sorted(os.listdir()))
"""


def test_sqlite(mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path) -> None:
    """Every journal works among the processes of one mount, WAL and its shared memory too.

    Every commit uploads the whole database; once it is closed, the server has one that is sound.
    """
    script = tmp_path / "database.py"
    script.write_text(_DATABASE)
    for mode in ("delete", "truncate", "persist", "wal"):
        local = tmp_path / mode
        local.mkdir()
        (mounted.root / mode).mkdir()
        left = "data.db data.db-journal" if mode in ("truncate", "persist") else "data.db"
        expected = f"{mode}\ndatabase is locked\n1000\n1001 500500.0\n{left}\n"
        for where in (local, mounted.root / mode):
            assert shell(where, f"{sys.executable} {script} {mode} main") == expected, where
        assert sorted(on_server(ask, mode)) == left.split()
        copy = tmp_path / f"{mode}.db"
        copy.write_bytes(content(ask, f"{mode}/data.db"))
        with contextlib.closing(sqlite3.connect(copy)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert database.execute("SELECT sum(loss) FROM runs").fetchone() == (500_500,)


# How editors and trainers save: what becomes of the properties of the file.


_VIM = "vim.tiny -u NONE -i NONE -N -es -c 'set backupskip= backupdir=. writebackup"

# Script that makes b"new\n" of ``f``, and whether the properties of ``f`` are on it afterwards.
_SAVES = {
    # What takes the place of a file is the same artifact to its users.
    "rename over it": ("echo new > .f.tmp && sync .f.tmp && mv -f .f.tmp f", True),
    "sed -i": ("sed -i s/old/new/ f", True),
    "rsync": ("echo new > ../new && rsync --ignore-times ../new f && rm ../new", True),
    "patch": ("printf '1c1\\n< old\\n---\\n> new\\n' | patch -sn f", True),
    # The file itself is written.
    "shell": ("echo new > f", True),
    "append": ("printf ne > f; printf w >> f; echo | tee -a f", True),
    "dd": ("printf new | dd of=f conv=notrunc status=none", True),
    "cp": ("echo new > g && cp g f && rm g", True),
    "backup by copy": ("cp -p f f~ && echo new > f && rm f~", True),
    "vim, backup by copy": (f"{_VIM} backupcopy=yes' -c s/old/new/ -c wq f", True),
    # The old file goes away first, and its properties with it, as on a disk.
    "backup by rename": ("mv f f~ && echo new > f && rm f~", False),
    "remove first": ("rm f && echo new > f", False),
    "install": ("echo new > g && install -m 644 g f && rm g", False),
}


def test_saving_over_a_file_with_properties(
    mounted: MountedServer, server: EmbeddedServer, ask: Requests, shell: Shell
) -> None:
    for name in _SAVES:  # before the mount looks: it believes a listing for a while
        server.deploy(REPO, f"{name}/f", b"old\n", _TAGS)
    for name, (script, kept) in _SAVES.items():
        shell(mounted.root / name, f"{script}\nsync f")
        assert on_server(ask, name) == {"f": b"new\n"}, name
        place = f"{quote(name)}/f"
        shown = ask.get(f"/api/storage/{REPO}/{place}?properties")
        assert (shown.status == 200) is kept, name
        assert not kept or shown.json()["properties"] == dict(sorted(_TAGS.items())), name


def test_vim_saves_as_on_a_disk(
    mounted: MountedServer, server: EmbeddedServer, ask: Requests, shell: Shell, tmp_path: Path
) -> None:
    """By default vim renames the old file to a backup: the backup takes the properties along.

    Later versions of vim give them to the new file as well; the mount does what the disk does.
    """
    local = tmp_path / "local"
    local.mkdir()
    script = f"""
        {_VIM} backup backupcopy=no' -c s/old/new/ -c wq f
        getfattr -d f f~
    """
    shell(local, "echo old > f && setfattr -n user.env -v production f")
    server.deploy(REPO, "f", b"old\n", {"env": ["production"]})
    shown = [shell(where, script) for where in (local, mounted.root)]
    assert shown[0] == shown[1]
    assert on_server(ask) == on_disk(local) == {"f": b"new\n", "f~": b"old\n"}
    assert ask.properties("f~") == {"env": ["production"]}
    assert ("# file: f\n" in shown[0]) is bool(ask.properties("f"))


# Small tools: the same script on a local disk, with the same result and the same words.

_SCRIPTS = {
    "dd": """
        head -c 10000 /dev/zero > f
        printf middle | dd of=f bs=1 seek=5000 conv=notrunc status=none
        printf end | dd of=f oflag=append conv=notrunc status=none
        dd if=f of=g bs=1000 skip=5 count=1 status=none && dd if=f of=h bs=4k conv=fsync status=none
        printf x | dd of=cut bs=1 seek=100 status=none && stat -c %s f g h cut
    """,
    "sed": "seq 100 > f && chmod 600 f && sed -i.bak '/5/d' f && sed -i 1ilines f && stat -c %a f",
    "truncate": """
        seq 1000 > f && truncate -s 100 f && truncate -s +50 f && truncate -s 0 g && stat -c %s f g
        truncate -s 3 new && truncate -r f g && stat -c '%n %s' new g
    """,
    "split": "seq 1000 > f && split -b 1000 f part- && cat part-* | cmp - f && csplit -s f 500",
    "redirections": """
        (echo a; /bin/echo b; cat /dev/null) > f; { echo c; echo d; } >> f; : > empty; echo x >| f2
        exec 5<>f2; read -r line <&5; echo "$line" second >&5; exec 5>&-; cat f f2
        (echo to both 1>&2; echo too) > both 2>&1; cat < both
    """,
    "tee": "echo one | tee f g; echo two | tee -a f g > /dev/null; cat f",
    "patch": """
        seq 20 > f && sed 's/^7$/seven/; /^12$/d' f > g || true
        diff -u f g > change.patch || true
        patch -s f change.patch && cmp f g && patch -sR f change.patch && patch -sb f change.patch
        cat f f.orig; sed -i '/^[-+][-+]/s/\\t.*//' change.patch
    """,
    "install": """
        seq 5 > f && install -m 751 f tool && install -D -m 640 f a/b/c && install -d -m 700 d
        stat -c '%n %a' tool a/b/c d
    """,
    "touch": """
        touch new && touch -d 2020-02-02T02:02:02Z new && touch -r new other && touch -c missing
        touch -a -d 2021-02-02T02:02:02Z new && stat -c '%n %X %Y %s' new other
    """,
    "find": """
        mkdir -p a/b/c d && touch a/x.tmp a/b/y.tmp a/b/keep d/z.tmp && ln -s a/b l
        find . -name '*.tmp' -delete && find . -type d -empty -delete && find . | sort
        find . -type f -size 0 | wc -l
    """,
    "rm": """
        mkdir -p t/u && seq 3000 > t/u/f && echo w > t/w && exec 3< t/u/f 4<> t/w
        rm -rf t && test ! -e t && cat <&3 | cksum && echo gone >&4 && ls -A
    """,
    "mv": """
        mkdir a b && echo 1 > a/f && echo 2 > b/f && mv -f a/f b/f && cat b/f && mv b c && ls a c
        echo 3 > n && echo 4 > m && mv -n n m && mv -b m c/f && ls c
        mv -T c e && mv a e/ && find . | sort
    """,
    "ln": """
        echo 1 > f && ln -s f l && cat l && ln -sfn e l && readlink l
        mkdir d && ln -s d e && touch d/x && ls l/
    """,
    "cp": """
        seq 100 > f && cp f g && cp --sparse=always f s && cp --reflink=auto f r
        cp -r . ../cp-copy
        cp -u f g && cp -n g f && cp --remove-destination f g
        cp -s "$PWD/f" sym && rm sym && rm -r ../cp-copy && cmp f s
    """,
    "sort": "seq 500 | sort -R --random-source=/bin/sh > f && sort -n -o f f && uniq f g",
    "mktemp": "f=$(mktemp -p .) && d=$(mktemp -d -p .) && stat -c '%a' $f $d && rm -r $f $d",
    "xargs": "seq 30 | xargs -P 4 -n 1 sh -c 'echo $0 > f$0' && cat f* | sort -n | cksum",
    "gzip": "seq 1000 > f && gzip -nk f && gunzip -c f.gz | cmp - f && gzip -n f -c > g.gz",
    "shred": "seq 1000 > f && shred -n 1 -u f && ls -A",
    "rsync": """
        seq 9000 > f && rsync --inplace f g && seq 9500 > f && rsync --inplace --no-whole-file f g
        cmp f g && seq 9900 > f && rsync --append-verify f g && cmp f g
        echo x > f && rsync --backup --partial f g && cat g && cksum g~
    """,
    "flock": "flock lock -c 'echo held > f' && flock -n lock true && cat f",
}


def test_small_tools(mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path) -> None:
    """The result is the same as on a disk, and it is on the server."""
    listing = "find . -printf '%P %y %m %l\\n' | sort"
    for name, script in _SCRIPTS.items():
        said = []
        for where in (tmp_path / "local" / name, mounted.root / name):
            shell(tmp_path, f"mkdir -p {where}")
            said.append(shell(where, script) + shell(where, listing))
        assert said[0] == said[1], name
        shell(mounted.root / name, "find . -type f -exec sync {} +")  # what is opened often waits
        assert on_server(ask, name) == on_disk(tmp_path / "local" / name), name


# What Artifactory cannot hold is refused by name, and leaves nothing behind.
_REFUSED = {
    "ln f other": "Operation not permitted",
    "mkfifo pipe": "Operation not permitted",
    "mknod device c 1 3": "Operation not permitted",
    "cp -l f other": "Operation not permitted",
    "mkdir 'a*b'": "Invalid argument",
    "rmdir d": "Directory not empty",
    "mv e d": "Directory not empty",
}


def test_what_is_refused(
    mounted: MountedServer, ask: Requests, tmp_path: Path, shell: Shell
) -> None:
    shell(mounted.root, "echo f > f && mkdir -p d/e e && echo g > d/e/g")
    before = on_server(ask)
    for script, words in _REFUSED.items():
        ran = run(
            ["sh", "-euc", script],
            mounted.root,
            deadline_s=_DEADLINE_S,
            log=tmp_path / "refused.log",
        )
        assert ran.code != 0, script
        assert words in ran.output, script
        assert on_server(ask) == before, script
    shell(mounted.root, 'rm -r d e f && test -z "$(ls -A)"')
    assert on_server(ask) == {}


def test_zip_appends(mounted: MountedServer, ask: Requests, shell: Shell, tmp_path: Path) -> None:
    """An archive grows: in place by Python's append mode, by ``zip`` as a new file."""
    script = tmp_path / "append.py"
    script.write_text(
        "import sys, zipfile\n"
        "with zipfile.ZipFile('a.zip', 'a') as archive:\n"
        "    archive.writestr(sys.argv[1], sys.argv[1] * 5000)\n"
    )
    for name in ("one", "two"):
        shell(mounted.root, f"{sys.executable} {script} {name}")
    shell(mounted.root, "setfattr -n user.env -v production a.zip")
    shell(mounted.root, f"{sys.executable} {script} three")
    assert ask.properties("a.zip") == {"env": ["production"]}
    shell(mounted.root, "echo 4 > four && zip -q a.zip four && zip -qd a.zip one")
    with zipfile.ZipFile(io.BytesIO(content(ask, "a.zip"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["two", "three", "four"]
        assert archive.read("three") == b"three" * 5000
    assert ask.properties("a.zip") == {}, "zip removes the old archive before it renames the new"
    assert sorted(on_server(ask)) == ["a.zip", "four"]


def _check_tree(source: Path, copy: Path, ask: Requests, shell: Shell) -> None:
    """The copy has all that the source has: as rsync sees it, and as the server has it."""
    assert shell(source, f"rsync -aXnc --delete --itemize-changes ./ {copy}/") == ""
    assert on_server(ask, copy.name) == on_disk(source)
    assert ask.properties(f"{copy.name}/weights.bin") == dict(sorted(_TAGS.items()))
    assert ask.properties(f"{copy.name}/conf") == {"team": ["nlp"]}
    assert ask.properties(f"{copy.name}/link") == {"symlink.dest": ["conf/config.json"]}
    assert ask.properties(f"{copy.name}/dangling") == {"symlink.dest": ["nowhere/at-all"]}
