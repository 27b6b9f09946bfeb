/* Which instruction sets were compiled in, which of them this CPU has, and how it reads. */
#define _POSIX_C_SOURCE 200809L
#include "plm.h"

#include <unistd.h>

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
#if !defined(PLM_WITHOUT_AVX_VNNI)
        &plm_avx_vnni,
#endif
#if !defined(PLM_WITHOUT_AVX512_VNNI)
        &plm_avx512_vnni,
#endif
#elif defined(__aarch64__)
        &plm_neon,
        &plm_neon_dotprod,
        &plm_neon_i8mm,
#endif
    };
    return index >= 0 && index < (int)(sizeof sets / sizeof *sets) ? sets[index] : NULL;
}

const plm_isa *plm_isa_for(const plm_isa *isa, int format) {
    for (int i = 0; plm_isa_at(i); i++)
        if (plm_isa_at(i)->tile[format] == isa->tile[format]) return plm_isa_at(i);
    return isa;
}

const char *plm_isa_name(const plm_isa *isa) { return isa->name; }

#if defined(__x86_64__)
/* Answers of CPUID; zeros where the CPU does not know the leaf. */
typedef struct {
    unsigned a, b, c, d;
} leaf;

static leaf ask(unsigned number, unsigned part) {
    leaf l = {0, 0, 0, 0};
    __get_cpuid_count(number, part, &l.a, &l.b, &l.c, &l.d); /* leaves l alone where the leaf is unknown */
    return l;
}

static int is_amd(void) {
    leaf vendor = ask(0, 0);
    return vendor.b == signature_AMD_ebx && vendor.c == signature_AMD_ecx && vendor.d == signature_AMD_edx;
}

int plm_alternates_ends(void) { return is_amd(); }
static int asks_both(void) { return !is_amd(); }

static int all_of(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

/* Bits as in Intel's manual: volume 2, CPUID; volume 1, XCR0. */
enum { FMA = 1 << 12, F16C = 1 << 29, XSAVE_IN_USE = 1 << 27 };  /* leaf 1, c */
enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30 }; /* leaf 7, b */
enum { VL = 31, VNNI_512 = 1 << 11, VNNI_256 = 1 << 4 };         /* leaf 7: bit of b, c; part 1 of it: a */
enum { XMM_YMM = 6, MASKS_ZMM = 0xe0 };                          /* XCR0: both kinds of zmm, as every CPU has them */

/* The registers that the operating system saves, as bits of XCR0. */
static unsigned saved(void) {
    unsigned low = 0, high;
    if (all_of(ask(1, 0).c, XSAVE_IN_USE)) __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has_avx2(void) {
    return all_of(ask(1, 0).c, FMA | F16C) && all_of(ask(7, 0).b, AVX2) && all_of(saved(), XMM_YMM);
}

#if !defined(PLM_WITHOUT_AVX512_VNNI)
static int has_avx512_vnni(void) {
    leaf seven = ask(7, 0);
    return all_of(seven.b, F | DQ | BW | 1u << VL) && all_of(seven.c, VNNI_512) && all_of(saved(), MASKS_ZMM);
}
#endif
#else
int plm_alternates_ends(void) { return 0; }
static int asks_both(void) { return 0; }
#endif

int plm_asks_into(void) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const long first_cache = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
    const long first_cache = 0;
#endif
    if (first_cache < 48 << 10) return PLM_SECOND;
    return asks_both() ? PLM_BOTH : PLM_FIRST;
}

int plm_isa_runs(const plm_isa *isa) {
    if (isa == &plm_scalar) return 1;
#if defined(__x86_64__)
    if (isa == &plm_avx2) return has_avx2();
#if !defined(PLM_WITHOUT_AVX_VNNI)
    if (isa == &plm_avx_vnni) return has_avx2() && all_of(ask(7, 1).a, VNNI_256);
#endif
#if !defined(PLM_WITHOUT_AVX512_VNNI)
    if (isa == &plm_avx512_vnni) return has_avx2() && has_avx512_vnni();
#endif
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
