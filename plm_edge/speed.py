"""How fast a plan would decode: a roofline of bytes and products, as a range, with its inputs.

A token reads every weight once (of idle units only the scales) and the cached rows of all tokens
before it, and multiplies with each of those rows for every head. Three kinds of inputs, the best
that the profile has:

measured   this package's kernels on that very machine (runtime/probe.py), a fifth either way
observed   what engines were seen to read while they decoded; attention's products are added at the
           low end, at the measured float rate, where one is known
nominal    the bandwidth of the memory alone (a plain read, where that is all that is known): nobody
           reaches it, so it is only an upper bound
"""

from __future__ import annotations

from dataclasses import dataclass

from plm_edge.devices import DeviceProfile
from plm_edge.layouts import file_tensors
from plm_edge.planned import Plan, mib
from plm_edge.spec import ModelSpec
from plm_edge.token_bytes import attention_macs, token_bytes

# Of the feed-forward units. PLM's authors count about 1.40 of 1.83 billion parameters as activated,
# which is 0.8 of `ffn_down` idle (arXiv 2503.12167; chart in davendw49.github.io, plm/).
IDLE = 0.8
MARGIN = 0.2  # either way of a measured rate, and of the middle of what was observed, at least
# Weights that may stay in a CPU's cache: the bandwidth of the memory says nothing about them.
CACHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Range:
    """Tokens a second, least and most; without a least it is an upper bound."""

    low: float | None
    high: float

    def __str__(self) -> str:
        if self.low is None:
            return f"at most {_digits(self.high)}"
        return f"{_digits(self.low)} to {_digits(self.high)}"


@dataclass(frozen=True)
class Speed:
    """An estimate of decode speed: without a context, behind a full one, and its inputs."""

    empty: Range
    full: Range
    inputs: tuple[str, ...]  # a line each


def estimate(plan: Plan, spec: ModelSpec, profile: DeviceProfile) -> Speed | None:
    """None where the profile knows no bandwidth, or where the weights fit into a CPU's cache."""
    weights = _weights_read(plan, spec)
    work = _Work(weights, plan.budget.cache, attention_macs(spec) * plan.n_ctx)
    inputs = [
        f"a token reads {weights / 1e6:,.0f} MB of weights ({IDLE:.0%} of the feed-forward units "
        "idle, as PLM's authors report; nothing is skipped in layouts of plain rows), behind "
        f"{plan.n_ctx:,} tokens {work.cache / 1e6:,.0f} MB of cache and {work.macs / 1e9:.2f} G "
        "products"
    ]
    found = _from_kernels(plan, profile, work)
    if found is None and weights < CACHED_BYTES:
        return None
    found = found or _from_engines(plan, profile, work) or _from_memory(profile, work)
    if found is None:
        return None
    return Speed(found.empty, found.full, (*inputs, *found.inputs))


def why_unknown(plan: Plan, spec: ModelSpec) -> str:
    """Of a plan without an estimate."""
    if _weights_read(plan, spec) < CACHED_BYTES:
        return (
            f"a token reads less than {mib(CACHED_BYTES)} of weights: a CPU's cache may hold "
            "them, and the bandwidth of the memory says nothing about its speed"
        )
    return "no bandwidth of the device is known"


def _weights_read(plan: Plan, spec: ModelSpec) -> int:
    """Bytes that a token reads, with idle units."""
    tensors = file_tensors(plan.layout, spec, plan.formats)
    return token_bytes({tensor.name: tensor for tensor in tensors}, spec, IDLE)


@dataclass(frozen=True)
class _Work:
    """Of one token: bytes of weights, bytes of a full cache, products with a full cache."""

    weights: int
    cache: int
    macs: int


def _from_kernels(plan: Plan, profile: DeviceProfile, work: _Work) -> Speed | None:
    step = profile.step_bytes_per_s.get(plan.quant)
    attend = profile.attend_mac_per_s.get(plan.cache_type)
    if step is None or attend is None or plan.backend != "native":
        return None
    empty = work.weights / step
    inputs = [
        f"measured on the device: {plan.quant} decodes {step / 1e9:.1f} GB/s of weights"
        + (
            f", {step / profile.read_bytes_per_s:.0%} of a plain read ("
            f"{profile.read_bytes_per_s / 1e9:.1f} GB/s)"
            if profile.read_bytes_per_s
            else ""
        ),
        f"attention multiplies {attend / 1e9:.1f} G times a second with {plan.cache_type} rows",
        f"the range is {MARGIN:.0%} either way",
    ]
    both = (empty, empty + work.macs / attend)
    empties, fulls = (Range((1 - MARGIN) / s, (1 + MARGIN) / s) for s in both)
    return Speed(empties, fulls, tuple(inputs))


def _from_engines(plan: Plan, profile: DeviceProfile, work: _Work) -> Speed | None:
    native = plan.backend == "native"
    attribute = "decode_bytes_per_s" if native else "gpu_decode_bytes_per_s"
    seen: tuple[float, float] | None = getattr(profile, attribute)
    if seen is None:
        return None
    middle = sum(seen) / 2
    low, high = min(seen[0], (1 - MARGIN) * middle), max(seen[1], (1 + MARGIN) * middle)
    share = ""
    if profile.nominal_bytes_per_s:
        ends = (value / profile.nominal_bytes_per_s for value in seen)
        share = f" ({' to '.join(f'{end:.0%}' for end in ends)} of the nominal bandwidth)"
    inputs = [
        f"engines were seen to read {seen[0] / 1e9:.1f} to {seen[1] / 1e9:.1f} GB/s{share}: "
        f"{profile.sources.get(attribute, 'given')}",
        f"the range is that, and at least {MARGIN:.0%} either way of its middle",
    ]
    products = 0.0
    if native and profile.f32_flop_per_s:
        products = 2 * work.macs / profile.f32_flop_per_s
        inputs.append(
            f"at the low end attention's products take {1e3 * products:.0f} ms more, at "
            f"{profile.f32_flop_per_s / 1e9:.1f} GFLOP/s"
        )
    elif native:
        inputs.append("attention's products are not counted: no float rate is known")
    return Speed(
        Range(low / work.weights, high / work.weights),
        Range(
            1 / ((work.weights + work.cache) / low + products),
            high / (work.weights + work.cache),
        ),
        tuple(inputs),
    )


def _from_memory(profile: DeviceProfile, work: _Work) -> Speed | None:
    # nominal first: a bound of one machine and a measurement of its sister would not compare
    rate, attribute = profile.nominal_bytes_per_s, "nominal_bytes_per_s"
    if rate is None:
        rate, attribute = profile.read_bytes_per_s, "read_bytes_per_s"
    if rate is None:
        return None
    kind = "a plain read of" if attribute == "read_bytes_per_s" else "the nominal bandwidth,"
    return Speed(
        Range(None, rate / work.weights),
        Range(None, rate / (work.weights + work.cache)),
        (
            f"only an upper bound, at {kind} {rate / 1e9:.1f} GB/s: no engine was measured "
            f"({profile.sources.get(attribute, 'given')})",
        ),
    )


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
