/* What the x86-64 sets have in common: the small steps of 256 bits, and the functions of the first set (avx2*.c) that
 * the better ones take over. */
#ifndef PLM_AVX2_H
#define PLM_AVX2_H

#include "x86_super.h"

#include <immintrin.h>

#define INLINED static inline __attribute__((always_inline)) /* so that what is constant in a call is so inside */

enum { LINE = PLM_LINE };
/* Bytes: how far before their use weights of a single stream are asked for; several need less, PLM_SOON. */
enum { AHEAD = 4096 };

/* Ask memory for as many bytes as are used now, AHEAD of them: the CPU's own prefetcher stops at every page. Past the
 * end of the weights this does nothing, but the address must not be made as a pointer. Always inlined: see
 * plm_ask_line. */
INLINED void ask_ahead(const uint8_t *w, int bytes) {
    const uintptr_t first = (uintptr_t)w + AHEAD;
    for (int at = 0; at < bytes; at += LINE) _mm_prefetch((const void *)(first + (unsigned)at), _MM_HINT_T0);
}

/* What tiles ask for during a block: the lines that begin within as many bytes, so far ahead. */
typedef struct {
    uintptr_t first; /* of the first tile; no pointer, for it may lie past the end */
    int lines;
} asked;

/* `n` bytes, `ahead` of those at `at`, of a tile of `bytes`; past its end, of the one at `next`. A block that reaches
 * across the end asks on behind it. */
INLINED asked asked_ahead(const uint8_t *w, int64_t bytes, int64_t at, int n, int ahead, const uint8_t *next) {
    const int64_t line = (at + ahead + LINE - 1) / LINE * LINE, behind = line - bytes;
    const uintptr_t first = behind < 0 ? (uintptr_t)w + (uintptr_t)line : (uintptr_t)next + (uintptr_t)behind;
    return (asked){first, (int)((at + ahead + n - line + LINE - 1) / LINE)};
}

/* A block's requests: `then` is for the second cache where lines come into both, and lies further ahead. */
typedef struct {
    asked soon, then;
} block_ahead;

/* Of N tiles, `near` as in plm_step. */
INLINED block_ahead block_asked(const uint8_t *w, int64_t bytes, int64_t at, int n, const uint8_t *next, int near,
                                int N) {
    const int ahead = N == 1 ? AHEAD : near == PLM_BOTH ? PLM_AT_LAST : PLM_SOON;
    block_ahead a = {asked_ahead(w, bytes, at, n, ahead, next), {0, 0}};
    if (N > 1 && near == PLM_BOTH) a.then = asked_ahead(w, bytes, at, n, PLM_LATER, next);
    return a;
}

/* Asks for lines k .. k + count of a block's, as far as there are so many; all of n bytes but the last are sure. */
INLINED void ask_lines(const asked *a, int64_t bytes, int k, int count, int n, int near, int N) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
        uintptr_t line = a->first + (uintptr_t)(i * bytes);
        __asm__("" : "+r"(line)); /* gcc 12 would keep the address of each line, and spill them */
#pragma GCC unroll 9
        for (int at = k; at < k + count; at++)
            if (at < n / LINE || at < a->lines) plm_ask_line((const uint8_t *)(line + (uintptr_t)(at * LINE)), near);
    }
}

INLINED void ask_tiles(const block_ahead *a, int64_t bytes, int k, int count, int n, int near, int N) {
    ask_lines(&a->soon, bytes, k, count, n, near, N);
    if (N > 1 && near == PLM_BOTH) ask_lines(&a->then, bytes, k, count, n, PLM_SECOND, N);
}

/* A function of `four_tiles` in plm_isa: a loop for each `near`, a constant there. both: whether PLM_BOTH has one, or
 * takes PLM_FIRST's. */
#define FOUR_TILES(name, tiles, both)                                                                      \
    static void name(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next, \
                     int32_t near) {                                                                       \
        if (near == PLM_SECOND)                                                                            \
            tiles(w, cols, x, y, next, PLM_SECOND, 4);                                                     \
        else if (near == PLM_BOTH && both)                                                                 \
            tiles(w, cols, x, y, next, PLM_BOTH, 4);                                                       \
        else                                                                                               \
            tiles(w, cols, x, y, next, PLM_FIRST, 4);                                                      \
    }

/* Left to itself gcc 12 copies a sum to another register before and after every step of a loop, or spills it. */
static inline __m256i in_place(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

static inline __m256i load32(const void *p) { return _mm256_loadu_si256(p); }
static inline __m256 scales8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static inline float scale_at(const uint8_t *p) { return _cvtsh_ss((uint16_t)(p[0] | p[1] << 8)); }
/* 16 bytes in both halves. */
static inline __m256i twice16(const void *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(p)); }
static inline __m256i nibbles_low(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline __m256i nibbles_high(__m256i v) { return nibbles_low(_mm256_srli_epi16(v, 4)); }

/* The scales of eight blocks of a plain row. Each is two bytes longer than a power of two, so the scale of block k is
 * word k of what lies k such powers behind w. */
static inline __m256 eight_scales(const uint8_t *w, int format) {
    const int step = format == PLM_Q8_0 ? PLM_BLOCK : PLM_BLOCK / 2;
    __m128i v = _mm_loadu_si128((const void *)w);
#define WORD(k) v = _mm_blend_epi16(v, _mm_loadu_si128((const void *)(w + (k) * step)), 1 << (k))
    WORD(1), WORD(2), WORD(3), WORD(4), WORD(5), WORD(6), WORD(7);
#undef WORD
    return _mm256_cvtph_ps(v);
}

/* ---- values of float formats, eight at a time ---- */

static inline int size_of(int format) { return format == PLM_F32 ? 4 : 2; }

static inline __m256 load8(const void *p, int format) {
    if (format == PLM_F32) return _mm256_loadu_ps(p);
    __m128i half = _mm_loadu_si128(p);
    if (format == PLM_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* The last n < 8 values of a row, then zeros: nothing is read past the end. */
static inline __m256 load_end(const void *p, int32_t n, int format) {
    uint8_t room[32] = {0};
    memcpy(room, p, (size_t)(n * size_of(format)));
    return load8(room, format);
}

static inline float sum8(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Eight registers of eight, rows and columns exchanged. */
static inline void transpose8(__m256 *v) {
    __m256 a[8], b[8];
    for (int r = 0; r < 8; r += 2)
        a[r] = _mm256_unpacklo_ps(v[r], v[r + 1]), a[r + 1] = _mm256_unpackhi_ps(v[r], v[r + 1]);
    for (int r = 0; r < 8; r += 4)
        for (int k = 0; k < 2; k++) { /* columns 2 k and 2 k + 1, and 4 more of them, of four rows */
            b[r + 2 * k] = _mm256_shuffle_ps(a[r + k], a[r + k + 2], 0x44);
            b[r + 2 * k + 1] = _mm256_shuffle_ps(a[r + k], a[r + k + 2], 0xee);
        }
    for (int c = 0; c < 4; c++) {
        v[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
        v[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
}

static inline int32_t sum8_int(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* y + the exact sums of a block times (scales of the weights times the scale of the activations). */
static inline __m256 add_scaled(__m256 y, __m256i sums, const uint8_t *scales, float scale) {
    __m256 factor = _mm256_mul_ps(scales8(scales), _mm256_set1_ps(scale));
    return _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), factor));
}

static inline __m256i four_bytes(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

static inline __m256i two_bytes(const uint8_t *p) {
    int16_t two;
    memcpy(&two, p, sizeof two);
    return _mm256_set1_epi16(two);
}

/* 4-bit weights take the 16-bit activations as two bytes, q = 256 top + bottom, top signed, bottom not. Eight products
 * of each fit 16 bits: 8 * 2 * 15 * 128 = 30,720; 8 * 2 * 15 * 255 = 61,200, for which the sum starts at BOTTOM. */
enum { BOTTOM = -32768 };

static inline __m256i add_products(__m256i sum, __m256i bytes, __m256i signed_bytes) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(bytes, signed_bytes));
}

/* y[0..8) += sums of outputs whose scales lie at `scales`. */
static inline void add_sums(float *y, __m256i sums, const uint8_t *scales, float scale) {
    _mm256_storeu_ps(y, add_scaled(_mm256_loadu_ps(y), sums, scales, scale));
}

/* y[0..8) += a * values. */
static inline void add8(float *y, __m256 a, __m256 values) {
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(a, values)));
}

static inline void add_float(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const int size = size_of(format);
    const __m256 factor = _mm256_set1_ps(a);
    int32_t c = 0;
    for (; c + 8 <= n; c += 8) add8(y + c, factor, load8(w + (int64_t)c * size, format));
    if (c == n) return;
    float end[8];
    _mm256_storeu_ps(end, load_end(y + c, n - c, PLM_F32));
    add8(end, factor, load_end(w + (int64_t)c * size, n - c, format));
    memcpy(y + c, end, (size_t)(n - c) * sizeof *y);
}

/* Halves without their signs are ordered as integers are. The largest of 32 is among these eight. */
static inline __m128i eight_largest(__m256i a, __m256i b) {
    const __m256i size = _mm256_set1_epi16(0x7fff);
    __m256i most = _mm256_max_epu16(_mm256_and_si256(a, size), _mm256_and_si256(b, size));
    return _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
}

static inline uint16_t largest_half(__m256i a, __m256i b) {
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight_largest(a, b), _mm_set1_epi16(-1)));
    return (uint16_t)~_mm_cvtsi128_si32(least);
}

/* How `rows` values of eight lanes become integers of at most `largest`: with the scale that `pack` would give them. */
typedef struct {
    __m256 inverse, scale, good; /* good: lanes without NaN and infinity that are not all 0 */
} packing;

static inline packing packing_of(const float *x, int64_t stride, __m256i lanes, int32_t rows, float largest) {
    const __m256 sign = _mm256_set1_ps(-0.0f), most_q = _mm256_set1_ps(largest);
    __m256 most = _mm256_setzero_ps(), whole = most;
    for (int32_t r = 0; r < rows; r++) {
        __m256 v = _mm256_maskload_ps(x + r * stride, lanes);
        most = _mm256_max_ps(_mm256_andnot_ps(sign, v), most);
        whole = _mm256_add_ps(whole, _mm256_sub_ps(v, v)); /* NaN where a value is NaN or infinite */
    }
    __m256 good = _mm256_cmp_ps(whole, whole, _CMP_ORD_Q);
    good = _mm256_and_ps(good, _mm256_cmp_ps(most, _mm256_set1_ps(1e-30f), _CMP_GT_OQ));
    return (packing){_mm256_div_ps(most_q, most), _mm256_add_ps(_mm256_div_ps(most, most_q), whole), good};
}

static inline __m256i packed(packing p, __m256 v) {
    return _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(v, p.inverse)), _mm256_castps_si256(p.good));
}

/* y (8) = y * shrink + sums * factor. */
static inline void blend_into(float *y, __m256i sums, const float *factor, const float *shrink) {
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_broadcast_ss(factor));
    __m256 before = _mm256_mul_ps(_mm256_loadu_ps(y), _mm256_broadcast_ss(shrink));
    _mm256_storeu_ps(y, _mm256_add_ps(before, product));
}

/* plm_exp of eight, step by step the same. */
static inline __m256 exp8(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.0f);
    __m256 n = _mm256_floor_ps(_mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _mm256_set1_ps(0.5f)));
    __m256 r = _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(0.693359375f)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(-2.12194440e-4f)));
    static const float term[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    __m256 p = _mm256_set1_ps(1.0f / 720);
    for (int i = 0; i < 6; i++) p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(term[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)), 23);
    __m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), y); /* below: 0 */
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* Integers of a block of a panel. */
enum { PANEL_BLOCK = PLM_BLOCK * PLM_TILE };

/* q of a block as bytes, q = 256 top + bottom. */
static inline void split_block(const int16_t *q, uint8_t *top, uint8_t *bottom) {
    __m256i q0 = load32(q), q1 = load32(q + 16), byte = _mm256_set1_epi16(255);
    __m256i packed = _mm256_packus_epi16(_mm256_and_si256(q0, byte), _mm256_and_si256(q1, byte));
    _mm256_storeu_si256((void *)bottom, _mm256_permute4x64_epi64(packed, 0xd8));
    packed = _mm256_packs_epi16(_mm256_srai_epi16(q0, 8), _mm256_srai_epi16(q1, 8));
    _mm256_storeu_si256((void *)top, _mm256_permute4x64_epi64(packed, 0xd8));
}

/* ---- functions of the set ---- */

void avx2_tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx2_tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx2_tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
float avx2_row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avx2_row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avx2_row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x);
void avx2_add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx2_units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx2_units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx2_units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx2_units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx2_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx2_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx2_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx2_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx2_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx2_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y);
void avx2_pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum);
void avx2_pack_halves(const uint16_t *x, int32_t cols, float most_q, int16_t *q, float *scale);
void avx2_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel);
void avx2_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride);
void avx2_weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y);
void avx2_exps(float *x, int32_t n);
float avx2_dot(const float *a, const float *b, int32_t n);
void avx2_add(float a, const float *x, int32_t n, float *y);
void avx2_widen(const uint16_t *f16, int32_t n, float *y);
void avx2_words(const int8_t *q, int32_t n, int16_t *y);
void avx2_widen_bytes(const int8_t *q, const uint16_t *scales, int32_t blocks, float *y);
void avx2_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y);
void avx2_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                 const uint8_t *next);
void avx2_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink);
void avx2_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n, const float *shrink,
                int32_t lanes, float *y, int32_t y_stride);
#define AVX2_ATTENTION                                                    \
    .words = avx2_words, .widen_bytes = avx2_widen_bytes,                 \
    .lanes = avx2_lanes,                                                  \
    .scores = avx2_scores, .softmax = avx2_softmax, .blend = avx2_blend

typedef void avx2_product(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                          const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride);
typedef void avx2_unpack(const uint8_t *block, int16_t *panel, float *scales);
/* A tile of several tokens by way of panels: `unpack` makes one of each block, `product` multiplies them. */
void avx2_several(const uint8_t *w, int format, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                  int32_t stride, avx2_unpack *unpack, avx2_product *product);
/* With the panels of avx2_weave. */
void avx2_several_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product);
void avx2_several_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product);

/* Activations of 8 bits. */
void avx2_several_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                                int32_t stride);

/* ---- groups of units ---- */

/* The rows of the units of a group that fired. */
typedef struct {
    const uint8_t *row[PLM_BLOCK];
    float a[PLM_BLOCK];
    int16_t q[PLM_BLOCK];
    uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK]; /* of q */
    int32_t count, sum;                        /* of q */
    float scale;
} fired;

static inline void find_fired(const uint8_t *rows, int64_t bytes, const float *a, int32_t units, fired *f) {
    f->count = 0;
    for (int32_t n = 0; n < units; n++) {
        if (a[n] == 0.0f) continue; /* a NaN is not 0: it flows on and shows */
        f->row[f->count] = rows + n * bytes;
        f->a[f->count++] = a[n];
    }
}

/* Integer groups: the scale belongs to the output, so the activations of the group share one. The number is filled up
 * to a multiple of `step` (2 or 4) with a row that is read anyway and coefficients of 0. */
static inline int find_fired_int(const uint8_t *rows, int64_t bytes, const float *a, int step, fired *f) {
    int16_t q[PLM_BLOCK];
    uint32_t left = 0; /* a bit for each unit that fired; a NaN is not 0: it flows on and shows */
    avx2_pack(a, PLM_BLOCK, PLM_LARGEST, q, &f->scale, &f->sum);
    for (int i = 0; i < PLM_BLOCK; i += 8) {
        __m256 differs = _mm256_cmp_ps(_mm256_loadu_ps(a + i), _mm256_setzero_ps(), _CMP_NEQ_UQ);
        left |= (uint32_t)_mm256_movemask_ps(differs) << i;
    }
    for (f->count = 0; left; left &= left - 1, f->count++) {
        int n = __builtin_ctz(left);
        f->row[f->count] = rows + n * bytes;
        f->q[f->count] = q[n];
        f->top[f->count] = (uint8_t)(q[n] >> 8), f->bottom[f->count] = (uint8_t)q[n];
    }
    for (; f->count % step; f->count++) {
        f->row[f->count] = f->row[f->count - 1];
        f->q[f->count] = f->top[f->count] = f->bottom[f->count] = 0;
    }
    return f->count;
}

#endif
