"""A plan for people: how well it fits, what was chosen and why, how fast it would be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from plm_edge import head_screen
from plm_edge.devices import DeviceProfile
from plm_edge.layouts import data_bytes, file_tensors
from plm_edge.llama_cpp import cache_bytes
from plm_edge.plan import QUANTS, cache_layout
from plm_edge.planned import Plan, mib
from plm_edge.quant_plan import FALLBACK
from plm_edge.spec import ModelSpec
from plm_edge.speed import estimate, why_unknown
from plm_edge.tensors import head_name

COMFORTABLE = 0.8  # of the usable memory, at most: beyond it other programs have little left


@dataclass(frozen=True)
class Choice:
    """One line of a report, and the reasons behind it."""

    name: str
    value: str
    why: tuple[str, ...]

    def lines(self, explain: bool) -> list[str]:
        """The line, and with `explain` one for each reason."""
        reasons = [f"{'':10}because {reason}" for reason in self.why] if explain else []
        return [f"{self.name:10}{self.value}", *reasons]


def level(plan: Plan, profile: DeviceProfile) -> str:
    """How well the plan fits: comfortable, tight, or too tight."""
    if plan.budget.total > profile.usable_bytes:
        return "too tight"
    return "comfortable" if plan.budget.total <= COMFORTABLE * profile.usable_bytes else "tight"


def report(
    plan: Plan, spec: ModelSpec, profile: DeviceProfile, asked: Collection[str] = ()
) -> list[Choice]:
    """Every choice with its reasons; `asked` names what the user chose, or "formats": the file."""
    return [
        Choice(
            "device", plan.target, (f"its memory: {profile.sources.get('ram_bytes', 'given')}",)
        ),
        _fit(plan, profile),
        _memory(plan, spec),
        _backend(plan),
        _layout(plan, asked),
        _quant(plan, spec, asked),
        _cache(plan, spec, asked),
        _context(plan, spec, asked),
        _of_the_cpu("threads", plan.threads, profile, asked),
        _of_the_cpu("kernels", plan.isa, profile, asked),
        Choice(
            "batch",
            f"{plan.prefill_chunk} tokens of a prompt at once",
            (f"each weight is then read once for all of them, for {mib(plan.budget.scratch)}",),
        ),
        Choice(
            "mmap",
            "yes",
            ("weights are read when first needed, shared by processes, and never written back",),
        ),
        _speed(plan, spec, profile),
        _expanded(plan, spec, profile),
    ]


def expanded_bytes(plan: Plan, spec: ModelSpec) -> int:
    """The same weights with the cache that llama.cpp keeps for `plm`: nothing else counted."""
    weights = data_bytes("latent", file_tensors("latent", spec, plan.formats))
    return weights + cache_bytes("plm", spec, "f16", plan.n_ctx)


def _fit(plan: Plan, profile: DeviceProfile) -> Choice:
    left = profile.usable_bytes - plan.budget.total
    return Choice(
        "fits",
        f"{level(plan, profile)}: {mib(plan.budget.total)} of {mib(profile.usable_bytes)} usable, "
        f"{mib(left)} left",
        (
            f"usable is {profile.sources.get('usable_bytes', 'given')}",
            f"comfortable means at most {COMFORTABLE:.0%} of it",
        ),
    )


def _backend(plan: Plan) -> Choice:
    why = ["these kernels keep the cache latent and skip idle units"]
    if plan.backend != "native":
        kept = "expanded" if plan.layout == "plm" else "latent too"
        why = [
            f"layout {plan.layout} is run by llama.cpp, on a GPU where it is built for one; its "
            f"cache is {kept}, and no unit is skipped",
            "scratch and runtime are those of the native backend: llama.cpp allocates its own",
        ]
    return Choice("backend", plan.backend, (*why,))


def _memory(plan: Plan, spec: ModelSpec) -> Choice:
    return Choice(
        "memory",
        str(plan.budget),
        (
            "weights are the file's data section and the cache its rows, both exact; scratch is "
            "the list of buffers that a session allocates",
            f"runtime is measured: interpreter, modules, a tokenizer of {spec.vocab:,} tokens",
        ),
    )


def _layout(plan: Plan, asked: Collection[str]) -> Choice:
    why = "one file for the kernels of every CPU"
    if plan.backend == "llama":
        why = "of the layouts that llama.cpp runs on a graphics card, the one that takes less there"
    if "layout" in asked:
        why = "as asked"
    return Choice("layout", plan.layout, (why,))


def _quant(plan: Plan, spec: ModelSpec, asked: Collection[str]) -> Choice:
    head = plan.formats[head_name(spec)]
    if "quant" in asked:
        why = "as asked"
    elif "formats" in asked:
        why = "the blocks of a GGUF file stay as they are"
    elif plan.quant == QUANTS[0]:
        why = f"the first of {', '.join(QUANTS)}, and it leaves room for the whole context"
    elif "context" in asked or plan.n_ctx == spec.n_ctx_train:
        why = f"the first of {', '.join(QUANTS)} that leaves room for the whole context"
    else:
        why = f"the smallest of {', '.join(QUANTS)}; not even that leaves room for every token"
    counts = Counter(plan.formats.values())
    reasons = [why, "tensors: " + ", ".join(f"{n} {fmt}" for fmt, n in counts.most_common())]
    if head != plan.quant:
        reasons.append(f"{head_name(spec)} makes the logits, where rounding shows first: {head}")
    fallbacks = sum(
        fmt == FALLBACK and plan.quant not in ("F16", "F32") and name not in head_screen.FORMATS
        for name, fmt in plan.formats.items()
    )
    if fallbacks:
        reasons.append(
            f"{fallbacks} tensors {FALLBACK}: their rows are not whole blocks of {plan.quant}"
        )
    return Choice(
        "quant", plan.quant + ("" if head == plan.quant else f", head {head}"), (*reasons,)
    )


def _cache(plan: Plan, spec: ModelSpec, asked: Collection[str]) -> Choice:
    row = cache_layout(spec, plan.cache_type).row_bytes
    if "cache" in asked:
        why = "as asked"
    elif plan.cache_type == "f16":
        why = "f16 is the default, and there is room for it"
    else:
        why = "rows in f16 would leave no room for the whole context"
    return Choice(
        "cache",
        f"{plan.cache_type}, {mib(plan.budget.cache)}",
        (why, f"a row of {row:,} bytes a token in each of {spec.layers} layers"),
    )


def _context(plan: Plan, spec: ModelSpec, asked: Collection[str]) -> Choice:
    if "context" in asked:
        why = f"as asked; trained for {spec.n_ctx_train:,}"
    elif plan.n_ctx == spec.n_ctx_train:
        why = "as trained, and there is room for it"
    else:
        why = f"the longest that fits; trained for {spec.n_ctx_train:,}"
    return Choice("context", f"{plan.n_ctx:,} tokens", (why,))


# A choice that follows from the CPU: the attribute of its profile, and what that is.
_OF_THE_CPU = {
    "threads": ("performance_cores", "fast cores"),
    "kernels": ("isa", "the best set of this CPU"),
}


def _of_the_cpu(name: str, found: object, profile: DeviceProfile, asked: Collection[str]) -> Choice:
    attribute, what = _OF_THE_CPU[name]
    if name in asked:
        why = "as asked"
    elif getattr(profile, attribute) is None:
        why = "the CPU is not known; chosen again when the model is loaded"
    else:
        why = f"{what}: {profile.sources.get(attribute, 'given')}"
    return Choice(name, str(found), (why,))


def _speed(plan: Plan, spec: ModelSpec, profile: DeviceProfile) -> Choice:
    speed = estimate(plan, spec, profile)
    if speed is None:
        how = "its kernels were not measured; on the device itself --target host does that first"
        return Choice("speed", f"unknown: {why_unknown(plan, spec)}", (how,))
    return Choice(
        "speed",
        f"estimate: {speed.empty} tokens/s at first, {speed.full} behind {plan.n_ctx:,} tokens",
        speed.inputs,
    )


def _expanded(plan: Plan, spec: ModelSpec, profile: DeviceProfile) -> Choice:
    cache, total = cache_bytes("plm", spec, "f16", plan.n_ctx), expanded_bytes(plan, spec)
    over = total - profile.usable_bytes
    verdict = f"{mib(over)} more than there is" if over > 0 else "that would fit too"
    return Choice(
        "llama.cpp",
        f"would cache {mib(cache)} of keys and values: {mib(total)} with the weights, {verdict}",
        (
            f"it caches {spec.nope + spec.rope} + {spec.v_head} values for each of {spec.heads} "
            f"heads in F16, {cache / plan.budget.cache:.1f} times this cache",
        ),
    )
