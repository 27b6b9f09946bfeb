/* See isa_matrix.h. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "isa_matrix.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static const int32_t block_bytes[PLM_FORMATS] = {4, 2, 2, 34, 18};

const plm_isa *tested;
int bend;
long compared, differed;

/* ---- seeded values ---- */

static uint64_t state = 1;

static uint32_t random32(void) { /* Knuth's MMIX constants */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
void begin(const plm_isa *isa) {
    tested = isa;
    state = 1, compared = differed = 0;
}

int32_t below(int32_t n) { return (int32_t)(random32() % (uint32_t)n); }
float symmetric(void) { return (float)(int32_t)random32() * 0x1p-31f; } /* [-1, 1) */

/* ---- memory that ends where a page ends that nobody may touch ---- */

guarded take(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page * page;
    guarded g = {NULL, NULL, pages + page};
    g.map = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + pages, page, PROT_NONE)) {
        perror("isa_matrix");
        exit(2);
    }
    g.at = g.map + pages - bytes;
    return g;
}

guarded copy_of(const void *p, size_t bytes) {
    guarded g = take(bytes);
    memcpy(g.at, p, bytes);
    return g;
}

void drop(guarded g) { munmap(g.map, g.mapped); }

/* ---- comparisons ---- */

/* One comparison. It says what should not be: a difference, or that a bent value makes none. */
void judge(const char *what, int32_t size, int32_t more, int equal) {
    compared++;
    differed += !equal;
    if (equal == bend)
        printf("%s: %s, size %d (%d) %s\n", tested->name, what, (int)size, (int)more, bend ? "is equal" : "differs");
}

void same(const char *what, int32_t size, int32_t more, const float *got, const float *want, int32_t n) {
    int equal = 1;
    for (int32_t i = 0; i < n; i++)
        equal &= plm_to_bits(got[i]) == plm_to_bits(want[i]) || (isnan(got[i]) && isnan(want[i]));
    judge(what, size, more, equal);
}

void same_bytes(const char *what, int32_t size, int32_t more, const void *got, const void *want, size_t bytes) {
    judge(what, size, more, !memcmp(got, want, bytes));
}

void near(const char *what, int32_t size, const float *got, const float *want, const float *sizes, int32_t n) {
    int equal = 1;
    for (int32_t i = 0; i < n; i++)
        equal &= got[i] == want[i] || (isnan(got[i]) && isnan(want[i])) || fabsf(got[i] - want[i]) <= 3e-6f * sizes[i];
    judge(what, size, 0, equal);
}

/* ---- weights and activations ---- */

size_t bytes_of(int format, int32_t rows, int32_t cols) {
    return (size_t)rows * (size_t)block_bytes[format] * (size_t)(is_integer(format) ? cols / PLM_BLOCK : cols);
}

/* n values or scales of a float format, of size 1 or so. */
static void fill_floats(uint8_t *p, int32_t n, int format) {
    for (int32_t i = 0; i < n; i++) {
        float f = symmetric() * 2;
        uint16_t half = format == PLM_F16 ? plm_to_f16(f) : (uint16_t)(plm_to_bits(f) >> 16);
        if (format == PLM_F32)
            memcpy(p + 4 * i, &f, sizeof f);
        else
            memcpy(p + 2 * i, &half, sizeof half);
    }
}

/* `scales` f16 values, then `quants` bytes, or bytes that are all `quant` where it is not negative. */
static uint8_t *fill_block(uint8_t *p, int32_t scales, int64_t quants, int quant) {
    fill_floats(p, scales, PLM_F16);
    for (int64_t i = 0; i < quants; i++) p[2 * scales + i] = (uint8_t)(quant < 0 ? below(256) : quant);
    return p + 2 * scales + quants;
}

guarded weights(int format, size_t bytes, int32_t scales, int64_t quants, int quant) {
    guarded g = take(bytes);
    if (!is_integer(format))
        fill_floats(g.at, (int32_t)(bytes / (size_t)block_bytes[format]), format);
    else
        for (uint8_t *p = g.at; p < g.at + bytes;) p = fill_block(p, scales, quants, quant);
    return g;
}

guarded floats(int32_t n) {
    guarded g = take((size_t)n * sizeof(float));
    float *x = (float *)(void *)g.at, size = 1.0f;
    for (int32_t i = 0; i < n; i++) {
        if (i % PLM_BLOCK == 0) size = ldexpf(1.0f, below(24) - 12);
        x[i] = size * symmetric();
    }
    return g;
}

int32_t quant_bytes(int format) { return block_bytes[format] - 2; }

activations pack_of(guarded x, int32_t tokens, int32_t n) {
    size_t blocks = (size_t)tokens * (size_t)(n / PLM_BLOCK);
    activations a = {x, take(blocks * PLM_BLOCK * 2), take(blocks * 4), take(blocks * 4), {0}};
    a.v = (plm_vectors){values(x), (void *)a.q.at, (void *)a.scale.at, (void *)a.sum.at, NULL};
    plm_scalar.pack(a.v.f, (int32_t)blocks * PLM_BLOCK, PLM_LARGEST, a.v.q, a.v.scale, a.v.sum);
    return a;
}

void drop_activations(activations a) { drop(a.f), drop(a.q), drop(a.scale), drop(a.sum); }

void bend_at(uint8_t *p, int format) {
    if (bend) p[is_integer(format) ? 0 : block_bytes[format] - 1] ^= is_integer(format) ? 0x47 : 0x40;
}
