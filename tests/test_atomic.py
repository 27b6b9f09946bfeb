"""A file or folder is there whole or not at all, whatever the disk does and whoever else writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from plm_edge import atomic
from plm_edge.atomic import atomic_folder, check_space, is_being_written, remove, write_atomic
from plm_edge.errors import OutputError

LINUX_ROOT = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a small disk"
)


def put(data: bytes):
    return lambda file: file.write(data)


def nothing_strange(_: Path) -> None:
    return None


def make(path: Path, force: bool = False, stranger=nothing_strange, fill=lambda folder: None):
    with atomic_folder(path, force, stranger) as folder:
        fill(folder)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "out"
    write_atomic(path, put(b"one"))
    write_atomic(path, put(b"two"))
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["out"]


def test_modes(tmp_path):
    path = tmp_path / "out"
    seen = []

    def look(file):
        seen.append(stat.S_IMODE((tmp_path / ".out.part").stat().st_mode))

    before = os.umask(0)
    try:
        write_atomic(path, look)
        os.umask(0o077)
        write_atomic(tmp_path / "private", put(b""))
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_half_way_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "out"
    write_atomic(path, put(b"old"))

    def write(file):
        file.write(b"new" * 100_000)
        raise failure

    with pytest.raises(failure):
        write_atomic(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


LIMITED = """
import resource, sys
from pathlib import Path
from plm_edge.atomic import write_atomic
from plm_edge.errors import OutputError
limit, size = int(sys.argv[2]), 300_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def write(file):
    for start in range(0, size, 1000):
        file.write(bytes(1000))
try:
    write_atomic(Path(sys.argv[1]), write)
except OutputError as why:
    print(why)
    sys.exit(why.exit_code)
"""


@pytest.mark.parametrize("limit", [0, 1, 8191, 8192, 8193, 131_072, 299_999, 300_000])
def test_a_limit_on_file_sizes(tmp_path, limit):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit)], capture_output=True, text=True
    )
    assert names(tmp_path) == ["out"]
    if limit < 300_000:
        assert (done.returncode, done.stderr) == (4, "")
        assert "File too large" in done.stdout
        assert done.stdout.count("\n") == 1
        assert path.read_bytes() == b"old"
    else:
        assert done.returncode == 0
        assert path.read_bytes() == bytes(300_000)


@LINUX_ROOT
@pytest.mark.parametrize("size", [200_000, 65_537, 5_000_000])
def test_a_full_disk(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        (disk / "out").write_bytes(b"old")
        with pytest.raises(OutputError, match="No space left on device; free some space"):
            write_atomic(disk / "out", put(bytes(size)))
        assert names(disk) == ["out"]
        assert (disk / "out").read_bytes() == b"old"
        with pytest.raises(OutputError, match="expected 1050000 bytes of free space, found 6"):
            check_space(disk, 1_000_000)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from plm_edge.atomic import atomic_folder, write_atomic
path = Path(sys.argv[1])
def write(file):
    file.write(bytes(100_000)); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    write_atomic(path, write)
with atomic_folder(path, False, lambda _: None) as folder:
    write_atomic(folder / "model", write)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_taken_over(tmp_path, kind):
    path = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), kind])
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.part"]
    if kind == "file":
        write_atomic(path, put(b"new"))
    else:
        with atomic_folder(path, False, nothing_strange) as folder:
            assert names(folder) == []
    assert names(tmp_path) == ["out"]


HOLDING = """
import sys, time
from pathlib import Path
from plm_edge.atomic import atomic_folder, write_atomic
def hold(_=None):
    print("holding", flush=True)
    sys.stdin.read()
path = Path(sys.argv[1])
if sys.argv[2] == "file":
    write_atomic(path, hold)
else:
    with atomic_folder(path, False, lambda _: None) as folder:
        hold()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_second_of_two_writers_is_refused_and_the_first_ends_well(tmp_path, kind):
    path = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout.readline() == b"holding\n"
        second = {"file": lambda: write_atomic(path, put(b"second")), "folder": lambda: make(path)}
        with pytest.raises(OutputError, match="found another process writing it"):
            second[kind]()
        first.communicate(b"")
    assert first.returncode == 0
    assert names(tmp_path) == ["out"]


@contextlib.contextmanager
def looked_at(part, seconds):
    """As `plm-edge cache` does, which sees it for so long."""
    fd = os.open(part, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(seconds, os.close, [fd])
    timer.start()
    yield
    timer.join()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_waits_for_who_only_looks(tmp_path, kind, monkeypatch):
    path, part = tmp_path / "out", tmp_path / ".out.part"
    subprocess.run([sys.executable, "-c", KILLED, str(path), kind])
    write = {"file": lambda: write_atomic(path, put(b"new")), "folder": lambda: make(path)}
    with looked_at(part, 0.3):
        with monkeypatch.context() as without_patience:
            without_patience.setattr(atomic, "_PATIENCE_S", -1.0)
            assert not is_being_written(part), "they do not take each other for writers"
        write[kind]()
    assert names(tmp_path) == ["out"]


def test_what_is_looked_at_may_be_removed(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), "folder"])
    with looked_at(tmp_path / ".out.part", 0.1):
        remove(tmp_path / ".out.part")
        assert names(tmp_path) == []


def test_who_looks_for_ever_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_PATIENCE_S", 0.05)
    (tmp_path / ".out.part").mkdir()
    said = "found another process using it; wait for it to end"
    with looked_at(tmp_path / ".out.part", 2), pytest.raises(OutputError, match=said):
        make(tmp_path / "out")


def test_ctrl_c_removes_the_temporary_file_within_two_seconds(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "out"), "folder"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"holding\n"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=2 + start - time.monotonic())
        process.stdin.close()
    assert names(tmp_path) == []


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path, False, nothing_strange) as folder:
        (folder / "a").write_bytes(b"a")
        assert names(tmp_path) == [".out.part"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(path) == ["a"]
    assert names(tmp_path) == ["out"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_a_folder_of_ours_only(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on a system that cannot exchange two names
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OutputError, match="--force replaces it"):
        make(path)
    with pytest.raises(OutputError, match=r"found thesis\.tex; it will not be deleted"):
        make(path, force=True, stranger=lambda _: "thesis.tex")
    assert names(path) == ["old"]
    with pytest.raises(ZeroDivisionError):
        make(path, force=True, fill=lambda folder: (folder / "new").touch() or 1 / 0)
    assert names(path) == ["old"]
    make(path, force=True, fill=lambda folder: (folder / "new").touch())
    assert names(path) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out"

    def another_comes(_: Path) -> None:
        path.mkdir()
        (path / "theirs").touch()

    with pytest.raises(OutputError, match="--force replaces it"):
        make(path, fill=another_comes)
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_needs_no_force(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    make(path, fill=lambda folder: (folder / "new").touch())
    assert names(path) == ["new"]


def test_links_are_not_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        link = tmp_path / f"{name}-link"
        link.symlink_to(tmp_path / name)
        with pytest.raises(OutputError, match="found a symbolic link"):
            write_atomic(link, put(b"new"))
        with pytest.raises(OutputError, match="found a symbolic link"):
            make(link, force=True)
    (tmp_path / ".out.part").symlink_to(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / "out", put(b"new"))
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_takes_nothing_new_is_not_to_be_created(tmp_path, monkeypatch):
    def refuse(part: Path) -> int:  # as mkdir and open do in /proc
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(part))

    monkeypatch.setattr(atomic, "_open_file", refuse)
    monkeypatch.setattr(atomic, "_open_folder", refuse)
    said = f"No such file or directory; {tmp_path} takes nothing new, or .* choose another folder"
    with pytest.raises(OutputError, match=said):
        write_atomic(tmp_path / "out", put(b""))
    with pytest.raises(OutputError, match=said):
        make(tmp_path / "out")


def test_one_line_for_every_mistake(tmp_path):
    (tmp_path / "file").touch()
    for path, text in (
        (tmp_path / "none" / "out", "No such file or directory; create the folder first"),
        (tmp_path / "file" / "out", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long; choose a shorter name"),
        (Path("/"), "expected a name"),
    ):
        with pytest.raises(OutputError, match=text) as caught:
            write_atomic(path, put(b""))
        assert "\n" not in str(caught.value)
        with pytest.raises(OutputError, match=text):
            make(path)
    with pytest.raises(OutputError, match="found something else"):
        write_atomic(tmp_path, put(b""))
    with pytest.raises(OutputError, match="expected a folder or nothing"):
        make(tmp_path / "file", force=True)
    check_space(tmp_path, 1)


@pytest.mark.parametrize("call", ["open", "ftruncate", "fchmod", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_any_call_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "out"
    write_atomic(path, put(b"old"))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, call, fail)
        with pytest.raises(OutputError, match=os.strerror(number)) as caught:
            write_atomic(path, put(b"new"))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_file_system_without_modes_and_folder_sync(tmp_path, monkeypatch):
    sync = os.fsync

    def no_modes(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def files_only(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(fd)

    monkeypatch.setattr(atomic.os, "fchmod", no_modes)
    monkeypatch.setattr(atomic.os, "fsync", files_only)
    make(tmp_path / "out", fill=lambda folder: write_atomic(folder / "a", put(b"a")))
    assert (tmp_path / "out" / "a").read_bytes() == b"a"


KILLED_AT = """
import contextlib, os, signal, sys
from pathlib import Path
from plm_edge import atomic
from plm_edge.atomic import atomic_folder, write_atomic
CALLS = "open ftruncate fchmod fsync replace rename close rmdir unlink".split()
out = Path(sys.argv[1])

def fill(text):
    with atomic_folder(out, True, lambda _: None) as folder:
        for name in ("a", "b"):
            write_atomic(folder / name, lambda file: file.write(text))

def dying(call, left):
    def counted(*args, **more):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)
    return counted

fill(b"old")
for at in range(1, 1000):
    child = os.fork()
    if child == 0:
        left = [at]
        for name in CALLS:
            setattr(os, name, dying(getattr(os, name), left))
        atomic._exchange = dying(atomic._exchange, left)
        fill(b"new")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    texts = {(out / name).read_bytes() for name in ("a", "b")}
    assert texts in ({b"old"}, {b"new"}), (at, texts)
    fill(b"old")
    assert sorted(os.listdir(out.parent)) == ["out"], at
print(at)
"""


def test_killed_at_any_call_the_folder_is_the_old_or_the_new_one(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, str(out)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 20  # calls, each of which was the last one once
