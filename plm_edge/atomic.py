"""Files and folders that are there whole or not at all.

What is written stands beside its target as `.NAME.part`, locked, until it is complete and on the
disk; then it is renamed. A crash, a full disk or Ctrl-C leaves what was there before. The lock goes
with the process, so what a dead one left is taken over by the next, and a living one is respected.
Who only asks whether it is held shares it, and a writer that comes meanwhile waits for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from plm_edge.errors import OutputError

_PART, _OLD = ".part", ".old"
_MARGIN = 0.05  # of the bytes to be written, beyond them: what file systems need for themselves
_PATIENCE_S, _PAUSE_S = 10.0, 0.001  # of a writer, with those who look
CURES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EFBIG: "raise the limit on file sizes or choose another file system",
    errno.EIO: "check the disk or choose another",
    errno.EACCES: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.ENOENT: "create the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call write(file) on a temporary neighbour, then rename it to `path`, replacing a file there.

    Any failure leaves `path` as it was. Trouble with the disk is raised as OutputError.
    """
    path = Path(os.path.abspath(path))
    part = _neighbour(path)
    with _one_line(path):
        _refuse_unless(path, stat.S_ISREG, "a file")
        with _locked(part, _open_file, path) as fd, _removed_on_failure(part):
            os.ftruncate(fd, 0)
            _set_mode(fd, 0o600)
            _write_all(fd, write)
            _set_mode(fd, 0o644 & ~_umask())
            os.fsync(fd)
            os.replace(part, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(
    path: Path, force: bool, stranger: Callable[[Path], str | None]
) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `path` when the block ends well.

    A folder with something in it is replaced with `force` only, and only if `stranger(path)` finds
    nothing in it that is not ours; it gives the name of what it found.
    """
    path = Path(os.path.abspath(path))
    part = _neighbour(path)
    with _one_line(path):
        _refuse_folder(path, force, stranger)
        lock = contextlib.ExitStack()
        fd = lock.enter_context(_locked(part, _open_folder, path))
    with lock, _removed_on_failure(part):
        with _one_line(path):
            for left in part.iterdir():
                _remove(left)
        yield part
        with _one_line(path):
            _sync_folder(part)
            _set_mode(fd, 0o755 & ~_umask())
            _refuse_folder(path, force, stranger)
            _swap(part, path)
            _sync_folder(path.parent)


def check_space(folder: Path, need: int) -> None:
    """Raise OutputError unless the disk of `folder` has `need` bytes and 5 % more."""
    with _one_line(folder):
        have = shutil.disk_usage(folder).free
    need += int(need * _MARGIN)
    if have < need:
        raise OutputError(
            f"{folder}: expected {need} bytes of free space, found {have}; "
            "free some or choose another folder"
        )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; links are not followed.

    A crash leaves a folder as `.NAME.old`, never as a part of itself. What another process writes
    now is left as it is. What cannot be removed is raised as OutputError.
    """
    path = Path(os.path.abspath(path))
    try:
        link = path.is_symlink()
        unfinished = path.name.endswith(_PART) and not link
        with _locked(path, _open_there, path) if unfinished else contextlib.nullcontext():
            if link or not path.is_dir():
                path.unlink()
                return
            gone = path
            if not is_leftover(path.name):
                gone = path.with_name(f".{path.name}{_OLD}")
                _remove(gone)
                os.rename(path, gone)
            shutil.rmtree(gone)
    except FileNotFoundError:  # another process was faster
        return
    except OSError as why:
        cause = why.strerror or why
        raise OutputError(f"{path}: cannot be removed: {cause}; check whose it is") from why


def is_leftover(name: str) -> bool:
    """Whether this is the name of what is being written, or of what a crash left."""
    return name.startswith(".") and name.endswith((_PART, _OLD))


def is_being_written(part: Path) -> bool:
    """Whether a process that lives holds the lock of `part`."""
    if not part.name.endswith(_PART):
        return False
    try:
        with _locked(part, _open_there, part, fcntl.LOCK_SH):
            return False
    except OutputError:
        return True
    except OSError:
        return False


def _neighbour(path: Path) -> Path:
    if not path.name:
        raise OutputError(f"{path}: expected a name to write to, found a root folder")
    return path.with_name(f".{path.name}{_PART}")


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the system says about the disk, as OutputError."""
    try:
        yield
    except OSError as why:
        cure = CURES.get(why.errno or 0, "choose another place")
        if why.errno == errno.ENOENT and path.parent.is_dir():  # as /proc says it
            cure = (
                f"{path.parent} takes nothing new, or what was written there was removed: choose "
                "another folder"
            )
        raise OutputError(f"{path}: cannot be written: {why.strerror or why}; {cure}") from why


def _refuse_unless(path: Path, wanted: Callable[[int], bool], what: str) -> None:
    """`path` is nothing, or what is wanted. Symbolic links are not followed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not wanted(mode):
        found = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
        raise OutputError(f"{path}: expected {what} or nothing, found {found}; choose another name")


def _refuse_folder(path: Path, force: bool, stranger: Callable[[Path], str | None]) -> None:
    _refuse_unless(path, stat.S_ISDIR, "a folder")
    if not path.exists() or not any(path.iterdir()):
        return
    found = stranger(path)
    if found is not None:
        raise OutputError(
            f"{path}: expected a bundle and nothing else, found {found}; "
            "it will not be deleted: choose another folder"
        )
    if not force:
        raise OutputError(f"{path}: expected nothing there, found a bundle; --force replaces it")


def _open_file(part: Path) -> int:
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _open_folder(part: Path) -> int:
    with contextlib.suppress(FileExistsError):
        part.mkdir(mode=0o700)
    return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_there(part: Path) -> int:
    return os.open(part, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextlib.contextmanager
def _locked(
    part: Path, open_part: Callable[[Path], int], path: Path, kind: int = fcntl.LOCK_EX
) -> Iterator[int]:
    """`part` opened and locked, for this process alone or (LOCK_SH) with others that only look.

    Of two that want it alone at once the second gets an error.
    """
    patience = time.monotonic() + _PATIENCE_S
    while True:
        fd = open_part(part)
        try:
            if _lock(fd, kind):
                if _is_still(part, fd):
                    yield fd
                    return
            else:
                written = not _lock(fd, fcntl.LOCK_SH)
                if written or time.monotonic() > patience:
                    raise OutputError(
                        f"{path}: expected to be the only writer, found another process "
                        f"{'writing' if written else 'using'} it; wait for it to end"
                    )
        finally:
            os.close(fd)
        time.sleep(_PAUSE_S)


def _lock(fd: int, kind: int) -> bool:
    """Whether it could be had at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(part: Path, fd: int) -> bool:
    """Whether the name still means the open file: its last owner may have just renamed it."""
    try:
        return os.path.samestat(part.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _removed_on_failure(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _write_all(fd: int, write: Callable[[BinaryIO], None]) -> None:
    file = os.fdopen(fd, "wb", closefd=False)
    try:
        write(file)
        file.flush()
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk refuses what is left in the buffer too
            file.close()
        raise
    file.close()


def _set_mode(fd: int, mode: int) -> None:
    with contextlib.suppress(PermissionError):  # a USB stick's file system has no modes to set
        os.fchmod(fd, mode)


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as why:
        if why.errno != errno.EINVAL:  # what file systems say that cannot sync a folder
            raise
    finally:
        os.close(fd)


def _swap(part: Path, path: Path) -> None:
    """Rename `part` to `path` and remove what was there before, if anything.

    Where names cannot be exchanged, a crash between two renames leaves the old one as `.NAME.old`.
    """
    if not path.exists() or not any(path.iterdir()):
        os.rename(part, path)  # onto an empty folder too
        return
    if _exchange(part, path):
        _remove(part)
        return
    old = path.with_name(f".{path.name}{_OLD}")
    _remove(old)
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step, where the system can (Linux: renameat2)."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
