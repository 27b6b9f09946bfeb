/* AVX-512 VNNI: products of integers in registers of 512 bits, which are 16 lanes of 32 bits: a sum for each row of a
 * tile or each of 16 outputs; those of panels are in avx512_panel.c. avx_vnni.c does the same in 256 bits;
 * avx512_floats.c has what works on floats. The same bits as the scalar set wherever avx2.c gives them. */
#include "avx512.h"

/* ---- tiles: 16 rows interleaved, 4 consecutive values each: a register is 4 values of all rows ---- */

/* N tiles behind each other: of several streams memory answers more at once than of one. `next`: as in plm_isa. */
INLINED void tiles_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next,
                        int near, int N) {
    const int64_t bytes = plm_tile_bytes(PLM_Q4_0, cols);
    __m512 out[4];
    for (int i = 0; i < N; i++) out[i] = _mm512_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++) {
        __m512i q = load64(x->q + b * PLM_BLOCK), tops[4], bottoms[4];
        uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK];
        _mm256_storeu_si256((void *)bottom, _mm512_cvtepi16_epi8(q));
        _mm256_storeu_si256((void *)top, _mm512_cvtepi16_epi8(_mm512_srai_epi16(q, 8)));
        for (int i = 0; i < N; i++) tops[i] = _mm512_setzero_si512(), bottoms[i] = _mm512_set1_epi32(-8 * x->sum[b]);
        const uint8_t *block = w + b * 288;
        const block_ahead ahead = block_asked(w, bytes, b * 288, 288, next, near, N);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) { /* requests spread among the products: docs/decisions.md */
            ask_tiles(&ahead, bytes, g, g < 3 ? 1 : 2, 288, near, N);
            __m512i top_low = in_every(top + 4 * g), top_high = in_every(top + 16 + 4 * g);
            __m512i bottom_low = in_every(bottom + 4 * g), bottom_high = in_every(bottom + 16 + 4 * g);
            for (int i = 0; i < N; i++) {
                __m512i v = load64(block + i * bytes + 32 + 64 * g), low = low_of(v), high = high_of(v);
                tops[i] = add_bytes(add_bytes(tops[i], low, top_low), high, top_high);
                bottoms[i] = add_bytes(add_bytes(bottoms[i], bottom_low, low), bottom_high, high);
            }
        }
        for (int i = 0; i < N; i++)
            out[i] = add_scaled16(out[i], join(tops[i], bottoms[i]), scales16(block + i * bytes), x->scale[b]);
    }
    for (int i = 0; i < N; i++) _mm512_storeu_ps(y + PLM_TILE * i, out[i]);
}

/* The sums of each two lanes that lie side by side: those of a, then those of b. */
static inline __m512i sums_of_two(__m512i a, __m512i b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
}

/* Widened to 16 bits, a register is 8 rows by 4 values; two sums a row are left, which the block's end adds. */
INLINED void tiles_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next,
                        int near, int N) {
    const int64_t bytes = plm_tile_bytes(PLM_Q8_0, cols);
    __m512 out[4];
    for (int i = 0; i < N; i++) out[i] = _mm512_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++) {
        __m512i first[4], second[4];
        for (int i = 0; i < N; i++) first[i] = second[i] = _mm512_setzero_si512();
        const uint8_t *block = w + b * 544;
        const block_ahead ahead = block_asked(w, bytes, b * 544, 544, next, near, N);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) {
            ask_tiles(&ahead, bytes, g, g < 7 ? 1 : 2, 544, near, N);
            __m512i q = four_in_every(x->q + b * PLM_BLOCK + 4 * g);
            for (int i = 0; i < N; i++) {
                const uint8_t *at = block + i * bytes + 32 + 64 * g;
                first[i] = add_words(first[i], _mm512_cvtepi8_epi16(load32(at)), q);
                second[i] = add_words(second[i], _mm512_cvtepi8_epi16(load32(at + 32)), q);
            }
        }
        for (int i = 0; i < N; i++)
            out[i] = add_scaled16(out[i], sums_of_two(first[i], second[i]), scales16(block + i * bytes), x->scale[b]);
    }
    for (int i = 0; i < N; i++) _mm512_storeu_ps(y + PLM_TILE * i, out[i]);
}

FOUR_TILES(four_q4_0, tiles_q4_0, 1)
FOUR_TILES(four_q8_0, tiles_q8_0, 1)

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        tiles_q8_0(w, cols, x, y, w + plm_tile_bytes(PLM_Q8_0, cols), PLM_FIRST, 1);
    else
        avx512_several_q8_0(w, cols, x, tokens, y, stride);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        tiles_q4_0(w, cols, x, y, w + plm_tile_bytes(PLM_Q4_0, cols), PLM_FIRST, 1);
    else
        avx512_several_q4_0(w, cols, x, tokens, y, stride);
}

static void weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 32 <= n; i += 32) _mm512_storeu_si512(y + i, _mm512_mulhrs_epi16(load64(a + i), load64(b + i)));
    if (i < n) avx2_weigh(a + i, b + i, n - i, y + i);
}

/* ---- plain ggml rows: a block of 32 values is no more than 256 bits of nibbles ---- */

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q8_0, add_in_one);
}
static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q4_0, add_in_one);
}

/* ---- groups of units ---- */

/* y[0..16) += sums of outputs whose scales lie at `scales`. */
static inline void add_sums16(float *y, __m512i sums, const uint8_t *scales, float scale) {
    _mm512_storeu_ps(y, add_scaled16(_mm512_loadu_ps(y), sums, scales16(scales), scale));
}

/* 32 outputs times `n`, two units a step: a pair is what they have for one output. */
INLINED void add_outputs_q8_0(const fired *f, const uint8_t *scales, int32_t o, int n, float *y) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i sum[4]; /* 0: outputs 0..3, 8..11, 16..19, 24..27, 1: the others of 32; 2 and 3: 32 more */
    for (int i = 0; i < 2 * n; i++) sum[i] = _mm512_setzero_si512();
    for (int32_t k = 0; k < f->count; k += 2) {
        __m512i q = in_every(f->q + k);
        for (int i = 0; i < n; i++) {
            __m512i w0 = _mm512_cvtepi8_epi16(load32(f->row[k] + o + 32 * i));
            __m512i w1 = _mm512_cvtepi8_epi16(load32(f->row[k + 1] + o + 32 * i));
            sum[2 * i] = add_words(sum[2 * i], _mm512_unpacklo_epi16(w0, w1), q);
            sum[2 * i + 1] = add_words(sum[2 * i + 1], _mm512_unpackhi_epi16(w0, w1), q);
        }
    }
    for (int i = 0; i < n; i++) {
        const int32_t at = o + 32 * i;
        __m512i sums = _mm512_permutex2var_epi64(sum[2 * i], first, sum[2 * i + 1]);
        add_sums16(y + at, sums, scales + 2 * (int64_t)at, f->scale);
        sums = _mm512_permutex2var_epi64(sum[2 * i], second, sum[2 * i + 1]);
        add_sums16(y + at + 16, sums, scales + 2 * (int64_t)(at + 16), f->scale);
    }
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    int32_t o = 0;
    (void)units; /* integer groups are whole */
    if (!find_fired_int(w + 2 * (int64_t)width, width, a, 2, &f)) return;
    for (; o + 64 <= width; o += 64) {
        plm_ask(next, o);
        add_outputs_q8_0(&f, w, o, 2, y);
    }
    plm_ask(next, o);
    if (o < width) add_outputs_q8_0(&f, w, o, 1, y);
}

/* The sums of 128 outputs, or of as many as there are 16 bytes in `bytes`. Four rows a step, byte by byte beside each
 * other: register i has bytes 4 i .. 4 i + 3 of each 16, their low nibbles in low[i], the high ones in high[i]. */
INLINED void sum_q4_0(const fired *f, int64_t at, __mmask16 bytes, __m512i *low, __m512i *high) {
    __m512i top[8], bottom[8]; /* of the low nibbles, then of the high ones */
    for (int i = 0; i < 8; i++) top[i] = _mm512_setzero_si512(), bottom[i] = _mm512_set1_epi32(-8 * f->sum);
    for (int32_t k = 0; k < f->count; k += 4) {
        __m512i w[4], v[4];
        for (int i = 0; i < 4; i++) {
            const uint8_t *p = f->row[k + i] + at;
            w[i] = bytes == 0xffff ? load64(p) : _mm512_maskz_loadu_epi32(bytes, p);
        }
        __m512i low01 = _mm512_unpacklo_epi8(w[0], w[1]), low23 = _mm512_unpacklo_epi8(w[2], w[3]);
        __m512i high01 = _mm512_unpackhi_epi8(w[0], w[1]), high23 = _mm512_unpackhi_epi8(w[2], w[3]);
        v[0] = _mm512_unpacklo_epi16(low01, low23), v[1] = _mm512_unpackhi_epi16(low01, low23);
        v[2] = _mm512_unpacklo_epi16(high01, high23), v[3] = _mm512_unpackhi_epi16(high01, high23);
        __m512i q_top = in_every(f->top + k), q_bottom = in_every(f->bottom + k);
        for (int i = 0; i < 4; i++) {
            __m512i part = low_of(v[i]);
            top[i] = add_bytes(top[i], part, q_top);
            bottom[i] = add_bytes(bottom[i], q_bottom, part);
            part = high_of(v[i]);
            top[4 + i] = add_bytes(top[4 + i], part, q_top);
            bottom[4 + i] = add_bytes(bottom[4 + i], q_bottom, part);
        }
    }
    for (int i = 0; i < 4; i++) low[i] = join(top[i], bottom[i]), high[i] = join(top[4 + i], bottom[4 + i]);
}

INLINED void add_outputs_q4_0(const fired *f, const uint8_t *scales, int32_t o, int blocks, float *y) {
    __m512i low[4], high[4];
    sum_q4_0(f, o / 2, first_of(4 * blocks), low, high);
    transpose(low);
    transpose(high);
    for (int i = 0; i < blocks; i++) {
        const int32_t at = o + PLM_BLOCK * i;
        add_sums16(y + at, low[i], scales + 2 * (int64_t)at, f->scale);
        add_sums16(y + at + 16, high[i], scales + 2 * (int64_t)(at + 16), f->scale);
    }
}

/* The first output of share i of `shares`: in order, or from both ends in turn. Rows read from one end to the other
 * look like streams to a CPU: one reads on within them, which helps, another behind them, into rows that did not
 * fire. */
static inline int32_t share_at(int32_t i, int32_t shares, int32_t ends) {
    return PLM_SHARE * (!ends ? i : i % 2 ? shares - 1 - i / 2 : i / 2);
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y,
                       const plm_ahead *next) {
    const int32_t shares = width / PLM_SHARE;
    fired f;
    (void)units;
    if (!find_fired_int(w + 2 * (int64_t)width, width / 2, a, 4, &f)) return;
    for (int32_t i = 0; i < shares; i++) {
        const int32_t o = share_at(i, shares, next->ends);
        plm_ask(next, o);
        add_outputs_q4_0(&f, w, o, PLM_SHARE / PLM_BLOCK, y);
    }
    const int32_t o = PLM_SHARE * shares;
    if (o == width) return; /* what lies behind is another row's */
    plm_ask(next, o);
    add_outputs_q4_0(&f, w, o, (width - o) / PLM_BLOCK, y);
}

/* Words in the order in which two rows unpacked give the sums of 16 outputs, and of the 16 behind: four of each 16 in
 * turn. */
static void unit_words_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int16_t *y) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t n = 0; n < PLM_BLOCK; n++)
        for (int32_t o = first; o < last; o += PLM_BLOCK, y += PLM_BLOCK) {
            __m512i words = _mm512_cvtepi8_epi16(load32(w + 2 * (int64_t)width + n * width + o));
            _mm512_storeu_si512(y, _mm512_permutexvar_epi64(order, words));
        }
}

static void unit_words_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int16_t *y) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t n = 0; n < PLM_BLOCK; n++)
        for (int32_t o = first; o < last; o += PLM_BLOCK, y += PLM_BLOCK) {
            __m128i both = _mm_loadu_si128((const void *)(w + 2 * (int64_t)width + (n * width + o) / 2));
            __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
            __m512i words = _mm512_sub_epi16(_mm512_cvtepi8_epi16(nibbles_low(bytes)), _mm512_set1_epi16(8));
            _mm512_storeu_si512(y, _mm512_permutexvar_epi64(order, words));
        }
}

/* `blocks` times 32 of n outputs, from those on at which w, scales and y begin; two units a step. Loads are what a core
 * has too few of, even those of a byte: both units in one, and a row that is unpacked in two ways is loaded once. */
INLINED void mix_blocks(plm_fired_words f, int32_t tokens, const int16_t *w, const float *scales, int32_t n, float *y,
                        int blocks) {
    __m512 of_output[8];
    for (int b = 0; b < 2 * blocks; b++) of_output[b] = _mm512_loadu_ps(scales + 16 * b);
    for (int32_t i = 0; i < tokens; i++) {
        const int32_t count = f.count[i];
        __m512i sum[8];
        for (int b = 0; b < 2 * blocks; b++) sum[b] = _mm512_setzero_si512();
        for (int32_t k = 0; k < count; k += 2) {
            uint16_t two;
            memcpy(&two, f.which + k, sizeof two);
            const int16_t *first = w + (two & 255) * (int64_t)n, *second = w + (two >> 8) * (int64_t)n;
            __m512i pair = in_every(f.words + k);
            for (int b = 0; b < blocks; b++) {
                __m512i u = in_place16(load64(first + PLM_BLOCK * b)), v = in_place16(load64(second + PLM_BLOCK * b));
                sum[2 * b] = add_words(sum[2 * b], _mm512_unpacklo_epi16(u, v), pair);
                sum[2 * b + 1] = add_words(sum[2 * b + 1], _mm512_unpackhi_epi16(u, v), pair);
            }
        }
        f.words += count, f.which += count;
        float *to = y + (int64_t)f.token[i] * n;
        for (int b = 0; b < 2 * blocks; b++) {
            __m512 after = add_scaled16(_mm512_loadu_ps(to + 16 * b), sum[b], of_output[b], f.scale[i]);
            _mm512_storeu_ps(to + 16 * b, after);
        }
    }
}

static void mix_words(plm_fired_words f, int32_t tokens, const int16_t *w, const float *scales, int32_t n, float *y) {
    if (n == 128) { /* the usual: a row of w is found by a shift */
        mix_blocks(f, tokens, w, scales, 128, y, 4);
        return;
    }
    for (int32_t o = 0; o < n; o += PLM_BLOCK) mix_blocks(f, tokens, w + o, scales + o, n, y + o, 1);
}

const plm_isa plm_avx512_vnni = {
    .name = "avx512-vnni",
    .tile = {avx512_tile_f32, avx512_tile_f16, avx512_tile_bf16, tile_q8_0, tile_q4_0, avx512_tile_q4_k,
             avx512_tile_q6_k},
    .four_tiles = {[PLM_Q8_0] = four_q8_0, [PLM_Q4_0] = four_q4_0},
    .tile_of_bytes = {[PLM_Q8_0] = avx512_tile_of_bytes_q8_0, [PLM_Q4_0] = avx512_tile_of_bytes_q4_0},
    .two_of_bytes = {[PLM_Q8_0] = avx512_two_of_bytes_q8_0, [PLM_Q4_0] = avx512_two_of_bytes_q4_0},
    .row = {avx512_row_f32, avx512_row_f16, avx512_row_bf16, row_q8_0, row_q4_0, avx512_row_q4_k, avx2_row_q6_k},
    .rows = {[PLM_Q8_0] = avx512_several_rows_q8_0, [PLM_Q4_0] = avx512_several_rows_q4_0},
    .add_rows = {avx512_add_f32, avx512_add_f16, avx512_add_bf16, avx512_add_q8_0, avx512_add_q4_0, avx512_add_q4_k,
                 avx512_add_q6_k},
    .units = {avx512_units_f32, avx512_units_f16, avx512_units_bf16, units_q8_0, units_q4_0},
    .unit_rows = {avx512_rows_f32, avx512_rows_f16, avx512_rows_bf16, avx512_rows_q8_0, avx512_rows_q4_0},
    .part_units = {[PLM_Q4_K] = avx512_part_q4_k, [PLM_Q6_K] = avx512_part_q6_k},
    .part_rows = {[PLM_Q4_K] = avx2_part_rows_q4_k, [PLM_Q6_K] = avx2_part_rows_q6_k},
    .mix = avx512_mix,
    .keep_words = avx512_keep_words,
    .unit_words = {[PLM_Q8_0] = unit_words_q8_0, [PLM_Q4_0] = unit_words_q4_0},
    .mix_words = mix_words,
    .pack = avx512_pack,
    .pack_halves = avx512_pack_halves,
    .weave = avx512_weave,
    .panel = avx512_panel,
    .weigh = weigh,
    .exps = avx512_exps,
    .dot = avx512_dot,
    .add = avx512_add,
    .widen = avx512_widen,
    .words = avx512_words,
    .widen_bytes = avx2_widen_bytes,
    .lanes = avx512_lanes,
    .scores = avx512_scores,
    .softmax = avx512_softmax,
    .blend = avx512_blend,
    .blend_words = avx512_blend_words,
    .blend_rows = avx512_blend_rows,
    .lay_bytes = avx512_lay_bytes,
    .score_bytes = avx512_score_bytes,
    .blend_bytes = avx512_blend_bytes,
};
