"""plm_math.h: half precision against numpy's for every value, the exponential against float64."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest

from plm_edge.native.build import FLAGS, HERE, compiler

# The header is static: each function over an array, in a library of the test.
PROBE = """
#include "plm_math.h"
#define OVER(name, in, out, function) \\
    __attribute__((visibility("default"))) void name(const in *x, int n, out *y) { \\
        for (int i = 0; i < n; i++) y[i] = function(x[i]); \\
    }
OVER(from_f16, uint16_t, float, plm_f16)
OVER(from_bf16, uint16_t, float, plm_bf16)
OVER(to_f16, float, uint16_t, plm_to_f16)
OVER(to_exp, float, float, plm_exp)
"""
EVERY_HALF = np.arange(65536, dtype=np.uint16)


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    folder = tmp_path_factory.mktemp("math")
    (folder / "probe.c").write_text(PROBE)
    made, source = str(folder / "probe.so"), str(folder / "probe.c")
    command = [*compiler().split(), *FLAGS, f"-I{HERE}", "-shared", source, "-o", made, "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(made)

    def over(name, x, dtype):
        x, y = np.ascontiguousarray(x), np.empty(len(x), dtype)
        getattr(library, name)(
            ctypes.c_void_p(x.ctypes.data), len(x), ctypes.c_void_p(y.ctypes.data)
        )
        return y

    return over


def same_halves(got, want):
    """The same bits; of a NaN only that it is one."""
    got, want = got.view(np.float16), want.view(np.float16)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    real = ~np.isnan(want)
    np.testing.assert_array_equal(got[real].view(np.uint16), want[real].view(np.uint16))


def to_half(x):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return x.astype(np.float16)


def widened(halves, dtype):
    with np.errstate(invalid="ignore"):  # ARM flags a signaling NaN that becomes a quiet one
        return halves.view(np.float16).astype(dtype)


def test_every_half_widens_exactly(call):
    got = call("from_f16", EVERY_HALF, np.float32)
    want = widened(EVERY_HALF, np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def test_every_bfloat_widens_exactly(call):
    got = call("from_bf16", EVERY_HALF, np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), EVERY_HALF.astype(np.uint32) << 16)


def test_every_half_comes_back(call):
    same_halves(call("to_f16", widened(EVERY_HALF, np.float32), np.uint16), EVERY_HALF)


def test_ties_and_their_neighbours_round_as_numpy_does(call):
    finite = np.sort(widened(EVERY_HALF, np.float64))
    finite = np.append(finite[np.isfinite(finite)], [65536.0])
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)  # exact in float32
    x = np.concatenate(
        [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -ties - 1)]
    )
    got = call("to_f16", x, np.uint16)
    same_halves(got, to_half(x))
    with pytest.raises(AssertionError):
        same_halves(call("to_f16", x * np.float32(1.001), np.uint16), to_half(x))


def test_any_float_rounds_as_numpy_does(call):
    bits = np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint64)
    x = bits.astype(np.uint32).view(np.float32)  # infinities and NaN among them
    same_halves(call("to_f16", x, np.uint16), to_half(x))


def test_exp_is_as_good_as_its_header_says(call):
    x = np.arange(-87, 0, 1e-4).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    error = np.abs(call("to_exp", x, np.float32) / want - 1).max()
    assert error < 2.6e-7, error
    bent = np.abs(call("to_exp", x * np.float32(1.000001), np.float32) / want - 1).max()
    assert not bent < 2.6e-7


def test_exp_at_its_ends(call):
    x = np.array([0, -0.0, -87.00001, -1e30, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(call("to_exp", x, np.float32), [1, 1, 0, 0, 0, np.nan])
