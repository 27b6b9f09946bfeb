/* Which instruction sets were compiled in, and which of them this CPU has. */
#include "plm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

const plm_isa *plm_isa_at(int index) {
    static const plm_isa *const sets[] = {
        &plm_scalar,
#if defined(__x86_64__)
        &plm_avx2,
#elif defined(__aarch64__)
        &plm_neon,
        &plm_neon_dotprod,
        &plm_neon_i8mm,
#endif
    };
    return index >= 0 && index < (int)(sizeof sets / sizeof *sets) ? sets[index] : NULL;
}

const char *plm_isa_name(const plm_isa *isa) { return isa->name; }

int plm_isa_runs(const plm_isa *isa) {
    if (isa == &plm_scalar) return 1;
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (isa == &plm_avx2) /* the built-in asks the operating system too; F16C is bit 29 of ecx of leaf 1 */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
               (c >> 29 & 1);
#elif defined(__aarch64__)
    if (isa == &plm_neon) return 1; /* every 64-bit ARM CPU has it */
#if defined(__linux__)
    int dotprod = getauxval(AT_HWCAP) >> 20 & 1, i8mm = getauxval(AT_HWCAP2) >> 13 & 1; /* asimddp, i8mm */
    if (isa == &plm_neon_dotprod) return dotprod;
    if (isa == &plm_neon_i8mm) return dotprod && i8mm;
#endif
#endif
    return 0;
}
