"""plm-edge cache lists what lies in its folder as what it is, and removes what is named alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, Run, one_line

import plm_edge
from plm_edge import atomic
from plm_edge.bundle import MANIFEST, MODEL_FILE
from plm_edge.cli.prepare import in_layout

Bundles = Callable[..., Path]
MADE_BY = f"by plm-edge {plm_edge.__version__}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache folder of the fixtures `run` and `inside`, not there yet."""
    return tmp_path / ".cache/plm-edge"


@pytest.fixture
def kept(inside: Run, cache: Path) -> Path:
    """The export of `demo` for this machine, made as a chat makes it."""
    ran = inside("chat", "demo", "-p", "a", "-n", 1)
    assert ran.code == 0, ran.err
    (folder,) = cache.iterdir()
    return folder


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def row_of(listed: str, name: str) -> str:
    (row,) = (line for line in listed.splitlines() if line.split()[0] == name)
    return row


def test_nothing_kept_is_one_line(inside: Run, cache: Path) -> None:
    for _ in ("missing", "empty"):
        for words in ((), ("list",)):
            ran = inside("cache", *words)
            assert (ran.code, ran.out, ran.err) == (0, f"nothing is kept in {cache}\n", "")
        said = json.loads(inside("cache", "--json").out)
        assert said == {"folder": str(cache), "bytes": 0, "entries": []}
        ran = inside("cache", "rm", "--all")
        assert (ran.code, ran.out) == (0, f"freed 0.0 MiB in {cache}\n")
        cache.mkdir(parents=True, exist_ok=True)


def test_an_export_is_listed_with_what_it_was_made_of(inside: Run, kept: Path, cache: Path) -> None:
    os.utime(kept, (1e9, 1e9))
    listed = inside("cache")
    assert (listed.code, listed.err) == (0, "")
    mib = f"{size(kept) / 2**20:.1f} MiB"
    made = f"demo: Q8_0 in layout latent, for host, {MADE_BY}"
    header, row, total = listed.out.splitlines()
    assert header.split() == ["name", "size", "last", "use", "made", "of"]
    assert row == f"{kept.name}  {mib:>12}  2001-09-09  {made}"
    assert total == f"{mib} in {cache}"
    assert inside("cache", "list").out == listed.out
    said = json.loads(inside("cache", "--json").out)
    assert json.loads(inside("cache", "list", "--json").out) == said
    assert said["bytes"] == size(kept)
    (entry,) = said["entries"]
    assert entry["used"].startswith("2001-09-09T")
    assert entry | {"used": None} == {
        **{"name": kept.name, "bytes": size(kept), "used": None, "source": "demo"},
        **{"quant": "Q8_0", "layout": "latent", "target": "host", "remark": None},
        "producer": f"plm-edge {plm_edge.__version__}",
    }


def test_every_kind_of_entry_is_listed_as_what_it_is(
    inside: Run, bundle_of: Bundles, kept: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(cache.parents[1]))
    stock = shutil.copy(bundle_of("blocks", "Q4_0", "plm") / MODEL_FILE, cache.parent / "st.gguf")
    relaid = in_layout(Path(stock), "latent").parent
    shutil.copytree(kept, cache / "cut")
    os.truncate(cache / "cut" / MODEL_FILE, 100)
    other = cache / "other"
    shutil.copytree(kept, other)
    text = (other / MANIFEST).read_text().replace('"schema_version": 1', '"schema_version": 9')
    (other / MANIFEST).write_text(text)
    for left in (".left.part", ".left.old"):
        (cache / left).mkdir()
        (cache / left / MODEL_FILE).write_bytes(bytes(3 << 20))
    (cache / "note.txt").write_text("mine")
    (cache / "link").symlink_to(kept)
    (cache / "nowhere").symlink_to("nothing")

    listed = inside("cache").out
    made = f"st.gguf: Q4_0 in layout latent, for host, {MADE_BY}"
    assert row_of(listed, relaid.name).endswith(made)
    for damaged in ("cut", "other"):
        assert row_of(listed, damaged).endswith(
            "damaged, or of another version: plm-edge verify says more"
        )
    for left in (".left.part", ".left.old"):
        assert "3.0 MiB" in row_of(listed, left)
        assert row_of(listed, left).endswith("left by an interrupted write")
    assert row_of(listed, "note.txt").endswith("no model of plm-edge")
    for link in ("link", "nowhere"):
        assert "0.0 MiB" in row_of(listed, link)
        assert row_of(listed, link).endswith("a link, not followed")
    said = json.loads(inside("cache", "--json").out)
    assert {entry["name"] for entry in said["entries"]} == set(names(cache))
    assert said["bytes"] == sum(entry["bytes"] for entry in said["entries"]) == size(cache)


def test_onnx_files_are_in_no_layout(
    run: Run, inside: Run, checkpoint_of: Callable[[str], Path], cache: Path
) -> None:
    pytest.importorskip("onnxruntime")
    ran = run("chat", checkpoint_of("blocks"), "--backend", "onnx", "-p", "a", "-n", 1)
    assert ran.code == 0, ran.err
    (name,) = names(cache)
    assert name.endswith("-onnx")
    assert " in ONNX files, for host" in row_of(inside("cache").out, name)
    (entry,) = json.loads(inside("cache", "--json").out)["entries"]
    assert (entry["layout"], entry["target"]) == (None, "host")


def test_what_is_used_again_is_listed_last(inside: Run, kept: Path, cache: Path) -> None:
    shutil.copytree(kept, cache / "another")
    os.utime(cache / "another", (2e9, 2e9))
    os.utime(kept, (1e9, 1e9))
    rows = [line.split()[0] for line in inside("cache").out.splitlines()[1:3]]
    assert rows == [kept.name, "another"]
    os.utime(cache / "another", (1.1e9, 1.1e9))
    assert inside("chat", "demo", "-p", "a", "-n", 1).code == 0
    rows = [line.split()[0] for line in inside("cache").out.splitlines()[1:3]]
    assert rows == ["another", kept.name]


def test_rm_removes_what_is_named_and_nothing_else(inside: Run, kept: Path, cache: Path) -> None:
    for name in ("two", "three", ".left.part", ".left.old"):
        shutil.copytree(kept, cache / name)
    (cache / "note.txt").write_text("mine")
    mib = f"{2 * size(kept) / 2**20:.1f} MiB"
    ran = inside("cache", "rm", "two", ".left.part", "two", "note.txt")
    assert ran.code == 0, ran.err
    said = ["removed two", "removed .left.part", "removed note.txt", f"freed {mib} in {cache}"]
    assert ran.out.splitlines() == said
    assert names(cache) == sorted([kept.name, "three", ".left.old"])
    assert inside("cache", "rm", "--all").code == 0
    assert names(cache) == []
    ran = inside("chat", "demo", "-p", "a", "-n", 1)  # is made again
    assert ran.code == 0
    assert names(cache) == [kept.name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("{name}", "nosuch"),
            "found 'nosuch'; nothing was removed; plm-edge cache lists the names",
        ),
        (("{name}", "../outside"), "found '../outside'; nothing was removed"),
        (("{name}", ".."), "found '..'; nothing was removed"),
        (("{name}", "."), "found '.'; nothing was removed"),
        (("{name}", ""), "found ''; nothing was removed"),
        (("{name}/",), "nothing was removed"),
        (("{cache}/{name}",), "nothing was removed"),
        (("{name}/../{name}",), "nothing was removed"),
        ((), "expected names or --all, found neither; plm-edge cache lists the names"),
        (("{name}", "--all"), "expected names or --all, found both"),
    ],
)
def test_an_unknown_name_is_one_line_and_nothing_is_removed(
    inside: Run, bundle_of: Bundles, cache: Path, words: tuple[str, ...], said: str
) -> None:
    shutil.copytree(bundle_of("plain"), cache / "kept")
    (cache.parent / "outside").mkdir()
    before = sorted(cache.parent.rglob("*"))
    asked = (word.format(name="kept", cache=cache) for word in words)
    one_line(inside("cache", "rm", *asked), 2, said)
    assert sorted(cache.parent.rglob("*")) == before


def test_no_link_is_followed(inside: Run, bundle_of: Bundles, cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(bundle_of("plain"), mine)
    (mine / "note.txt").write_text("mine")
    before = names(mine)
    cache.mkdir(parents=True)
    for link in ("link", ".link.part", ".link.old"):
        (cache / link).symlink_to(mine)
    (cache / "file").symlink_to(mine / "note.txt")
    (cache / "folder/below").mkdir(parents=True)
    (cache / "folder/below/link").symlink_to(mine)
    assert inside("cache", "rm", "link").out == f"removed link\nfreed 0.0 MiB in {cache}\n"
    assert inside("cache", "rm", "--all").code == 0
    assert names(cache) == []
    assert names(mine) == before


def test_a_cache_folder_elsewhere_is_the_cache_folder(
    inside: Run, bundle_of: Bundles, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_of("plain"), tmp_path / "disk/kept")
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "disk")
    assert "plain: F32 in layout latent" in row_of(inside("cache").out, "kept")
    assert inside("cache", "rm", "kept").code == 0
    assert names(tmp_path / "disk") == []


def test_names_that_would_disturb_a_terminal(inside: Run, cache: Path) -> None:
    odd = [b"two\nlines", b"\x1b[31mred", b"\xff\xfe", "größe".encode(), b"-rf", b"a b"]
    for name in odd:
        os.makedirs(os.path.join(os.fsencode(cache), name))
    listed = inside("cache").out
    assert listed.count("\n") == 2 + len(odd)
    assert "\x1b" not in listed
    for shown in ("'two\\nlines'", "'\\x1b[31mred'", "'\\udcff\\udcfe'", "größe", "-rf", "a b"):
        assert f"\n{shown} " in listed
    assert len(json.loads(inside("cache", "--json").out)["entries"]) == len(odd)
    assert inside("cache", "rm", "--", *map(os.fsdecode, odd)).code == 0
    assert names(cache) == []


@pytest.fixture
def writer(kept: Path, cache: Path) -> Iterator[None]:
    """Another process that writes `.KEY.part` and does not end."""
    code = (
        "import sys, time; from pathlib import Path; from plm_edge.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), False, lambda folder: None) as folder:\n"
        "    (folder / 'model.gguf').write_bytes(bytes(1 << 20)); print(flush=True)\n"
        "    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, cache / "key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_what_is_being_written_stays(inside: Run, kept: Path, cache: Path, writer: None) -> None:
    mib = f"{size(kept) / 2**20:.1f} MiB"
    listed = inside("cache").out
    assert row_of(listed, ".key.part").endswith("being written")
    ran = inside("cache", "rm", "--all")
    assert ran.code == 4
    assert ran.out.splitlines()[0] == f"removed {kept.name}"
    assert ran.out.splitlines()[1].startswith(f"freed {mib}")
    assert "found another process writing it; wait for it to end" in ran.err
    assert ran.err.count("\n") == 1
    assert names(cache) == [".key.part"]
    assert (cache / ".key.part" / MODEL_FILE).stat().st_size == 1 << 20


def test_a_model_in_use_answers_on(
    inside: Run, env: dict[str, str], kept: Path, cache: Path
) -> None:
    process = subprocess.Popen(
        [PROGRAM, "chat", "demo", "-p", "Once", "--temp", "0", "-n", "200"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGSTOP)  # so that most of its answer is still to come
    assert inside("cache", "rm", kept.name).code == 0
    assert names(cache) == []
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err.count(b"\n")) == (0, 1), err
    assert first + out


def test_a_removal_that_ends_half_way_leaves_no_model(
    inside: Run, kept: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = f"{size(kept) / 2**20:.1f} MiB"
    shutil.copytree(kept, cache / "zzz")
    os.utime(cache / "zzz", (2e9, 2e9))  # is removed last
    rmtree = shutil.rmtree

    def fails(path: Path, *arguments: object, **options: object) -> None:
        if kept.name in path.name:
            (path / MODEL_FILE).unlink()
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", fails)
        ran = inside("cache", "rm", "--all")
    assert ran.code == 4
    assert ran.out.startswith(f"removed zzz\nfreed {mib}")
    assert f"{kept}: cannot be removed: Permission denied; " in ran.err
    assert ran.err.count("\n") == 1
    assert names(cache) == [f".{kept.name}.old"]
    assert row_of(inside("cache").out, f".{kept.name}.old").endswith("left by an interrupted write")
    assert inside("chat", "demo", "-p", "a", "-n", 1).code == 0  # made again beside it
    assert inside("cache", "rm", kept.name).code == 0  # takes the rest with it
    assert names(cache) == []


def test_a_cache_folder_that_is_a_file_is_one_line(inside: Run, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("")
    said = f"the cache folder {cache} cannot be read: Not a directory; set XDG_CACHE_HOME"
    one_line(inside("cache"), 4, said)
    one_line(inside("cache", "rm", "--all"), 4, said)
    assert cache.exists()
