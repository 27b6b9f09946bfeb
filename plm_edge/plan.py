"""Plan: what a model becomes on a device, and whether it fits. Nothing is allocated here.

Two times of planning. `make_plan` runs at export and fixes layout and formats for good. Context,
cache, threads and kernel set are planned again by `replan_for_load`, for the machine that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from plm_edge import head_screen
from plm_edge.cache_layout import BLOCK, CACHE_TYPES, CacheLayout, CacheType
from plm_edge.devices import HOST, ISAS, DeviceProfile, kernel_sets
from plm_edge.devices.memory import OWN_BYTES
from plm_edge.errors import DoesNotFit, UsageError
from plm_edge.formats import format_of
from plm_edge.layouts import data_bytes, file_tensors, layout_of
from plm_edge.llama_cpp import backend_for, cache_bytes, layout_for
from plm_edge.planned import Budget, Plan, mib
from plm_edge.quant_plan import choose_formats, main_format
from plm_edge.spec import ModelSpec
from plm_edge.workspace import MAX_THREADS, PREFILL_CHUNK, workspace_bytes

__all__ = ["Budget", "Overrides", "Plan", "make_plan", "plan_of_file", "replan_for_load"]

# Tried in this order when the user names none: the first that leaves room for the whole context.
QUANTS = ("Q8_0", "Q4_0")
SHORTEST_CONTEXT = 256  # tokens; a context nobody asked for is not made shorter than this
_CONTEXT_STEP = 64  # contexts that are shortened to fit are multiples of this

# A tokenizer, by token. Measured on x86-64 with Python 3.11: 24 MiB for 151,646 tokens; the rest is
# room for a long conversation. The interpreter is OWN_BYTES of devices/memory.py.
_TOKEN_BYTES = 240


@dataclass(frozen=True)
class Overrides:
    """What the user asks for when a bundle is loaded; None leaves the choice to the plan."""

    n_ctx: int | None = None
    cache_type: str | None = None
    threads: int | None = None
    isa: str | None = None
    beyond_trained: bool = False  # a context above the trained one is the user's wish
    backend: str | None = None


def cache_layout(spec: ModelSpec, cache_type: str) -> CacheLayout:
    """The rows a session of this model keeps; refuses an unknown cache type."""
    if cache_type not in CACHE_TYPES:
        raise UsageError(f"cache type {cache_type!r}, expected one of {', '.join(CACHE_TYPES)}")
    return CacheLayout(spec.rank, spec.rope, cast(CacheType, cache_type))


def make_plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    quant: str | None = None,
    layout: str | None = None,
    n_ctx: int | None = None,
    cache_type: str | None = None,
    threads: int | None = None,
    isa: str | None = None,
    pure: bool = False,
    screened: bool = False,
    formats: Mapping[str, str] | None = None,
) -> Plan:
    """Choose what is not given so that the model fits; DoesNotFit says what would.

    `pure`: the head in the format of the rest. `screened`: with a screened head beside it.
    `formats`: of numbers that stay as they are, by canonical name.
    """
    if layout is not None:
        layout_of(layout, UsageError)
    caches = _caches(spec) if cache_type is None else (cache_type,)
    asked = [Overrides(n_ctx, kind, threads, isa) for kind in caches]
    if formats is not None:
        kept = {**formats, **(head_screen.FORMATS if screened else {})}
        name = main_format(spec, formats)
        plans = [_plan_of(spec, profile, name, layout, each, kept) for each in asked]
    else:
        quants = QUANTS if quant is None else (format_of(quant, UsageError).name,)
        plans = [
            _plan(spec, profile, q, layout, each, pure, screened) for q in quants for each in asked
        ]
    for plan in plans:  # the best numbers that leave room for the whole context
        if plan.budget.total <= profile.usable_bytes:
            return plan
    if n_ctx is None:  # then the smallest numbers with the context that is left
        fitting = _largest_context(spec, profile, plans[-1])
        if fitting >= min(SHORTEST_CONTEXT, spec.n_ctx_train):
            return _resized(spec, plans[-1], fitting)
    how = "--quant" if formats is None else "an export of the checkpoint with --quant"
    raise _does_not_fit(spec, profile, plans[0], how)


def check_isa(name: str | None, there: Iterable[str]) -> None:
    """UsageError, naming those that are there, for a kernel set that no machine has."""
    if name is not None and name not in ISAS:
        raise UsageError(f"unknown kernel set {name!r}, expected one of {', '.join(there)}")


def replan_for_load(
    spec: ModelSpec, plan: Plan, profile: DeviceProfile, overrides: Overrides | None = None
) -> tuple[Plan, list[str]]:
    """The plan of an exported model for the machine that is there, and each difference in a line.

    Layout and formats stay. A context the user did not ask for is shortened to what fits here.
    """
    asked = overrides or Overrides()
    merged = Overrides(
        n_ctx=plan.n_ctx if asked.n_ctx is None else asked.n_ctx,
        cache_type=plan.cache_type if asked.cache_type is None else asked.cache_type,
        threads=asked.threads,
        isa=asked.isa,
        beyond_trained=asked.beyond_trained,
    )
    here = _fit(spec, profile, plan.layout, plan.quant, plan.formats, plan.budget.weights, merged)
    if here.budget.total > profile.usable_bytes:
        fitting = _largest_context(spec, profile, here)
        if asked.n_ctx is not None or fitting < min(SHORTEST_CONTEXT, here.n_ctx):
            raise _does_not_fit(spec, profile, here, "an export with --quant")
        here = _resized(spec, here, fitting)
    differences = [
        f"{word} {getattr(here, key)}, not {getattr(plan, key)} as planned for {plan.target}"
        for key, word in (
            ("n_ctx", "context"),
            ("cache_type", "cache"),
            ("threads", "threads"),
            ("isa", "kernels"),
        )
        if getattr(here, key) not in (getattr(plan, key), getattr(asked, key))
    ]
    return here, differences


def plan_of_file(
    spec: ModelSpec,
    profile: DeviceProfile,
    layout: str,
    formats: Mapping[str, str],
    weight_bytes: int,
) -> Plan:
    """The plan of a file that came without one; `replan_for_load` then makes it fit."""
    name = main_format(spec, formats)
    return _fit(spec, profile, layout, name, formats, weight_bytes, Overrides())


def _plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    quant: str,
    layout: str | None,
    asked: Overrides,
    pure: bool,
    screened: bool,
) -> Plan:
    formats = choose_formats(spec, quant, pure, screened)
    return _plan_of(spec, profile, quant, layout, asked, formats)


def _plan_of(
    spec: ModelSpec,
    profile: DeviceProfile,
    quant: str,
    layout: str | None,
    asked: Overrides,
    formats: Mapping[str, str],
) -> Plan:
    layout = layout or layout_for(profile, spec, formats, asked.n_ctx or spec.n_ctx_train)
    weights = data_bytes(layout, file_tensors(layout, spec, formats))
    return _fit(spec, profile, layout, quant, formats, weights, asked)


def _fit(
    spec: ModelSpec,
    profile: DeviceProfile,
    layout: str,
    quant: str,
    formats: Mapping[str, str],
    weights: int,
    asked: Overrides,
) -> Plan:
    """The plan as asked, the trained context if none is; it may be larger than the device."""
    n_ctx = asked.n_ctx if asked.n_ctx is not None else spec.n_ctx_train
    if n_ctx < 1 or (n_ctx > spec.n_ctx_train and not asked.beyond_trained):
        raise UsageError(f"context of {n_ctx} tokens, expected 1..{spec.n_ctx_train} (as trained)")
    cores = min(profile.performance_cores or 1, MAX_THREADS)
    threads = cores if asked.threads is None else asked.threads
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"{threads} threads, expected 1..{MAX_THREADS}")
    sets = kernel_sets(profile)
    check_isa(asked.isa, sets)
    if profile.name != HOST and asked.isa not in (None, *sets):  # find_isa refuses those of a host
        raise UsageError(
            f"kernel set {asked.isa!r} is none of {profile.name}; expected one of {', '.join(sets)}"
        )
    plan = Plan(
        target=profile.name,
        layout=layout,
        quant=quant,
        formats=formats,
        n_ctx=n_ctx,
        cache_type="f16" if asked.cache_type is None else asked.cache_type,
        threads=threads,
        isa=asked.isa or profile.isa or ISAS[0],
        backend=asked.backend or backend_for(profile, layout),
        prefill_chunk=PREFILL_CHUNK,
        budget=Budget(weights, 0, 0, OWN_BYTES + _TOKEN_BYTES * spec.vocab),
    )
    return _resized(spec, plan, n_ctx)


def _resized(spec: ModelSpec, plan: Plan, n_ctx: int) -> Plan:
    """The same plan with another context, and what that takes."""
    cache = cache_layout(spec, plan.cache_type).bytes(n_ctx, spec.layers)
    if plan.backend == "llama":
        cache = cache_bytes(plan.layout, spec, plan.cache_type, n_ctx)
    chunk = min(PREFILL_CHUNK, n_ctx)
    screened = head_screen.COARSE in plan.formats
    scratch = workspace_bytes(spec, n_ctx, chunk, plan.threads, screened)
    budget = replace(plan.budget, cache=cache, scratch=scratch)
    return replace(plan, n_ctx=n_ctx, prefill_chunk=chunk, budget=budget)


def _largest_context(spec: ModelSpec, profile: DeviceProfile, plan: Plan) -> int:
    """Most tokens up to the plan's context that fit, in steps; 0 if not even the shortest."""

    def fits(n_ctx: int) -> bool:
        return _resized(spec, plan, n_ctx).budget.total <= profile.usable_bytes

    if fits(plan.n_ctx):
        return plan.n_ctx
    return _CONTEXT_STEP * _last_true(
        lambda n: fits(n * _CONTEXT_STEP), plan.n_ctx // _CONTEXT_STEP
    )


def _last_true(holds: Callable[[int], bool], end: int) -> int:
    """Largest n in 1..end for which `holds`, 0 if none; it holds up to some n and not beyond."""
    low, high = 0, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _caches(spec: ModelSpec) -> tuple[str, ...]:
    """Cache types that are taken unasked, the wider first; q8_0 wants whole blocks."""
    return ("f16",) if spec.rank % BLOCK else ("f16", "q8_0")


def _does_not_fit(
    spec: ModelSpec, profile: DeviceProfile, plan: Plan, how_quant: str
) -> DoesNotFit:
    """Need, have, and what would fit; `how_quant` is what a user does to change the numbers."""
    lack = plan.budget.total - profile.usable_bytes
    cures = _cures(spec, profile, plan, how_quant)
    if cures:
        cure = f"try {' or '.join(cures)}"
    else:
        shortest = Overrides(min(SHORTEST_CONTEXT, spec.n_ctx_train), _caches(spec)[-1])
        least = _plan(spec, profile, QUANTS[-1], plan.layout, shortest, False, False)
        cure = (
            "no context and no quantization is small enough; "
            f"{least.quant} with {least.n_ctx} tokens needs {mib(least.budget.total)}"
        )
    return DoesNotFit(
        f"{plan.quant} with a context of {plan.n_ctx} needs {plan.budget}; {profile.name} leaves "
        f"{mib(profile.usable_bytes)}, {mib(lack)} less: {cure}"
    )


def _cures(spec: ModelSpec, profile: DeviceProfile, plan: Plan, how_quant: str) -> list[str]:
    """What would fit: one change of cache, context or numbers each; else as many as it takes."""
    small_cache = _resized(spec, replace(plan, cache_type=_caches(spec)[-1]), plan.n_ctx)
    asked = Overrides(plan.n_ctx, plan.cache_type, plan.threads, beyond_trained=True)
    screened = head_screen.COARSE in plan.formats
    smaller = _plan(spec, profile, QUANTS[-1], plan.layout, asked, False, screened)
    smallest = _resized(spec, replace(smaller, cache_type=small_cache.cache_type), plan.n_ctx)
    cache, quant = f"-ctk {small_cache.cache_type}", f"{how_quant} {QUANTS[-1]}"
    cures = []
    if small_cache.budget.total <= profile.usable_bytes:
        cures.append(cache)
    if context := _largest_context(spec, profile, plan):
        cures.append(f"-c {context}")
    can_shrink = smaller.budget.weights < plan.budget.weights
    if can_shrink and smaller.budget.total <= profile.usable_bytes:
        cures.append(quant)
    if cures:
        return cures
    ways = [([], plan), ([cache], small_cache)]
    if can_shrink:
        ways += [([quant], smaller), ([quant, cache], smallest)]
    for words, way in ways:
        if context := _largest_context(spec, profile, way):
            shorter = [f"-c {context}"] if context < plan.n_ctx else []
            return [" ".join([*words, *shorter])]
    return []
