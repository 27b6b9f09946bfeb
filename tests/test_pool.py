"""The pool: tests/native/pool_stress.c under sanitizers and on spoiled pools; sleep and cancel."""

from __future__ import annotations

import subprocess
import time
from ctypes import c_int, pointer
from pathlib import Path

import pytest

from plm_edge.native import kernels
from plm_edge.native.build import HERE, WARNINGS, compiler

STRESS = Path(__file__).parent / "native" / "pool_stress.c"
POOL = HERE / "pool.c"
THREADS = (1, 2, 3, 8)


def compiled(folder, pool=POOL, sanitize=None):
    """The program with this pool; skips where the compiler lacks the sanitizer."""
    program = folder / f"stress-{sanitize}"
    command = [*compiler().split(), "-std=c11", "-O1", "-g", "-pthread", *WARNINGS, f"-I{HERE}"]
    if sanitize:
        command += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
        nothing = folder / "nothing.c"
        nothing.write_text("int main(void) { return 0; }\n")
        tried = [*command, str(nothing), "-o", str(program)]
        if subprocess.run(tried, capture_output=True).returncode:
            pytest.skip(f"{compiler()} has no -fsanitize={sanitize}")
    subprocess.run([*command, str(STRESS), str(pool), "-o", str(program)], check=True)
    return program


def stress(program, threads, lists, patience=600.0):
    """What the program said on stderr; None where it ended well, "hangs" where it did not end."""
    command = [str(program), str(threads), str(lists), "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return "hangs"
    return None if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("sanitize", ["thread", "address,undefined"])
def test_random_lists_under_sanitizers(tmp_path, sanitize):
    program = compiled(tmp_path, sanitize=sanitize)
    for threads in THREADS:
        assert stress(program, threads, 1000) is None


# Faults of a pool: what is replaced in pool.c, and by what.
FAULTS = {
    "an item twice": ("<< 32 | 1)", "<< 32)"),
    "an item dropped": ("<< 32 | 1)", "<< 32 | 2)"),
    "an item taken by two": (
        "atomic_fetch_add_explicit(&pool->open, 1, memory_order_acquire)",
        "atomic_load(&pool->open); atomic_store(&pool->open, open + 1)",
    ),
    "the next op begins before the last report": ("+ mine != items)", "+ mine < items - 1)"),
    "the caller leaves before the end": (
        "memory_order_acquire) == RUNNING) {",
        "memory_order_acquire) == RUNNING && any_left(atomic_load(&pool->open))) {",
    ),
    "one index for all": ("worker->index = i;", "worker->index = 1;"),
    "an op left out": ("go_on(pool, index + 1, thread)", "go_on(pool, index + 2, thread)"),
    "deaf to cancel": ("atomic_load_explicit(pool->cancel, memory_order_relaxed)", "0"),
    "sleepers not woken": ("pthread_cond_broadcast(&pool->wake);", ""),
}
# Faults that this CPU may cover up by ordering memory itself: ThreadSanitizer sees them.
RACES = {
    "an item begins before what it reads": ("1, memory_order_acquire", "1, memory_order_relaxed"),
    "a report comes before its items": ("mine, memory_order_acq_rel", "mine, memory_order_relaxed"),
}


def spoiled(folder, fault):
    """pool.c with a fault."""
    old, new = fault
    text = POOL.read_text()
    assert text.count(old) == 1, old
    (folder / "pool.c").write_text(text.replace(old, new))
    return folder / "pool.c"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(tmp_path, fault):
    program = compiled(tmp_path, spoiled(tmp_path, FAULTS[fault]))
    assert any(stress(program, threads, 2000, patience=5) for threads in THREADS[1:])


@pytest.mark.parametrize("fault", RACES)
def test_a_race_is_noticed(tmp_path, fault):
    program = compiled(tmp_path, spoiled(tmp_path, RACES[fault]), sanitize="thread")
    said = [stress(program, threads, 500) or "" for threads in THREADS[1:]]
    assert any("ThreadSanitizer: data race" in each for each in said), said


def empty_ops(items, n):
    """A list of n ops of `items` items that do nothing, and what it lives on."""
    step = kernels.Step(n_tokens=items)
    args = kernels.Rotate(step=pointer(step), heads=0)
    return kernels.op_array([kernels.op("rotate", args)] * n), (step, args)


def test_idle_threads_take_no_cpu():
    pool, (ops, _kept) = kernels.Pool(4), empty_ops(8, 100)
    assert pool.run(ops, 0, len(ops), c_int(0))
    time.sleep(0.1)  # they wait awake for some milliseconds, should the next step come
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1  # one thread awake would take 0.4 s
    assert pool.run(ops, 0, len(ops), c_int(0))
    pool.close()


def test_a_list_that_is_cancelled_before_it_begins_does_nothing():
    pool, (ops, _kept) = kernels.Pool(2), empty_ops(8, 3)
    assert not pool.run(ops, 0, len(ops), c_int(1))
    assert pool.run(ops, 3, 3, c_int(1))  # of nothing, all is done
    pool.close()


def test_many_pools_at_once_come_and_go():
    ops, _kept = empty_ops(8, 50)
    pools = [kernels.Pool(threads) for threads in (1, 2, 3, 4) * 4]
    for _ in range(20):
        assert all(pool.run(ops, 0, len(ops), c_int(0)) for pool in pools)
    for pool in pools:
        pool.close()
        pool.close()
