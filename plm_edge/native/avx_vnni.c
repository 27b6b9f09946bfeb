/* AVX-VNNI: the registers of AVX2, and two instructions that add products of bytes or of pairs of 16-bit integers to
 * sums of 32 bits, which hold them exactly. The same bits as the scalar set wherever avx2.c gives them. */
#include "avx2_blend.h"
#include "avx2_rows.h"
#include "avx_vnni.h"

/* sum + the two products of 16-bit integers of each 32 bits. */
static inline __m256i add_in_one(__m256i sum, __m256i a, __m256i b) {
    return in_place(_mm256_dpwssd_avx_epi32(sum, a, b));
}

/* A 16-bit q is two bytes, q = 256 top + bottom, top signed, bottom not; a 4-bit weight is both, so it meets either. */
static inline __m256i join(__m256i top, __m256i bottom) { return _mm256_add_epi32(_mm256_slli_epi32(top, 8), bottom); }

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

static void one_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 288) {
        ask_ahead(w, 288);
        uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK];
        split_block(x->q + b * PLM_BLOCK, top, bottom);
        __m256i tops[2], bottoms[2]; /* of rows 0..7 and 8..15 */
        for (int i = 0; i < 2; i++) tops[i] = _mm256_setzero_si256(), bottoms[i] = _mm256_set1_epi32(-8 * x->sum[b]);
        for (int g = 0; g < 4; g++) {
            __m256i top_low = four_bytes(top + 4 * g), top_high = four_bytes(top + 16 + 4 * g);
            __m256i bottom_low = four_bytes(bottom + 4 * g), bottom_high = four_bytes(bottom + 16 + 4 * g);
            for (int i = 0; i < 2; i++) {
                __m256i v = load32(w + 32 + 64 * g + 32 * i), low = nibbles_low(v), high = nibbles_high(v);
                tops[i] = add_bytes(add_bytes(tops[i], low, top_low), high, top_high);
                bottoms[i] = add_bytes(add_bytes(bottoms[i], bottom_low, low), bottom_high, high);
            }
        }
        for (int i = 0; i < 2; i++) sums[i] = add_scaled(sums[i], join(tops[i], bottoms[i]), w + 16 * i, x->scale[b]);
    }
    _mm256_storeu_ps(y, sums[0]);
    _mm256_storeu_ps(y + 8, sums[1]);
}

static void panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    pairs_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, add_in_one);
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        pairs_tiles_q8_0(w, cols, x, y, w + plm_tile_bytes(PLM_Q8_0, cols), PLM_FIRST, 1, add_in_one);
    else
        avx2_several_q8_0(w, cols, x, tokens, y, stride, panel);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_0(w, cols, x, y);
    else
        avx2_several_q4_0(w, cols, x, tokens, y, stride, panel);
}

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q8_0, add_in_one);
}
static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q4_0, add_in_one);
}

static void rows_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                      const uint8_t *next) {
    pairs_rows(w, cols, x, count, y, next, PLM_Q8_0, add_in_one);
}
static void rows_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                      const uint8_t *next) {
    pairs_rows(w, cols, x, count, y, next, PLM_Q4_0, add_in_one);
}

/* ---- groups of units ---- */

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units; /* integer groups are whole */
    pairs_units_q8_0(w, width, a, y, next, add_in_one);
}

/* Sums of the low or the high nibbles of the 32 bytes at `at` of every row (16 if not `both`), four rows a step, byte
 * by byte beside each other. Register i has bytes 4 i .. 4 i + 3 below, those 16 further above. Both nibbles at once
 * would take more sums than there are registers. */
INLINED void sum_nibbles(const fired *f, int64_t at, int both, int high, __m256i *sum) {
    __m256i top[4], bottom[4];
    for (int i = 0; i < 4; i++) top[i] = _mm256_setzero_si256(), bottom[i] = _mm256_set1_epi32(-8 * f->sum);
    for (int32_t k = 0; k < f->count; k += 4) {
        __m256i w[4], v[4];
        for (int i = 0; i < 4; i++) {
            const uint8_t *p = f->row[k + i] + at;
            w[i] = both ? load32(p) : _mm256_castsi128_si256(_mm_loadu_si128((const void *)p));
        }
        __m256i low01 = _mm256_unpacklo_epi8(w[0], w[1]), low23 = _mm256_unpacklo_epi8(w[2], w[3]);
        __m256i high01 = _mm256_unpackhi_epi8(w[0], w[1]), high23 = _mm256_unpackhi_epi8(w[2], w[3]);
        v[0] = _mm256_unpacklo_epi16(low01, low23), v[1] = _mm256_unpackhi_epi16(low01, low23);
        v[2] = _mm256_unpacklo_epi16(high01, high23), v[3] = _mm256_unpackhi_epi16(high01, high23);
        __m256i q_top = four_bytes(f->top + k), q_bottom = four_bytes(f->bottom + k);
        for (int i = 0; i < 4; i++) {
            __m256i part = high ? nibbles_high(v[i]) : nibbles_low(v[i]);
            top[i] = add_bytes(top[i], part, q_top);
            bottom[i] = add_bytes(bottom[i], q_bottom, part);
        }
    }
    for (int i = 0; i < 4; i++) sum[i] = join(top[i], bottom[i]);
}

/* y[0..16) += the sums of outputs in the lower or upper halves of four registers. */
INLINED void add_halves(float *y, const __m256i *sum, int upper, const uint8_t *scales, float scale) {
    for (int i = 0; i < 2; i++) {
        __m256i eight = upper ? _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x31)
                              : _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x20);
        add_sums(y + 8 * i, eight, scales + 16 * i, scale);
    }
}

INLINED void add_nibbles(const fired *f, const uint8_t *scales, int32_t o, int both, int high, float *y) {
    const int32_t at = o + 16 * high;
    __m256i sum[4];
    sum_nibbles(f, o / 2, both, high, sum);
    add_halves(y + at, sum, 0, scales + 2 * (int64_t)at, f->scale);
    if (both) add_halves(y + at + 32, sum, 1, scales + 2 * (int64_t)(at + 32), f->scale);
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    int32_t o = 0;
    (void)units;
    if (!find_fired_int(w + 2 * (int64_t)width, width / 2, a, 4, &f)) return;
    for (; o + 64 <= width; o += 64) {
        plm_ask(next, o);
        add_nibbles(&f, w, o, 1, 0, y);
        add_nibbles(&f, w, o, 1, 1, y);
    }
    if (o == width) return;
    plm_ask(next, o);
    add_nibbles(&f, w, o, 0, 0, y);
    add_nibbles(&f, w, o, 0, 1, y);
}

static void blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                        const uint8_t *next) {
    pairs_blend_words(weights, x, scales, stride, rows, n, shrink, lanes, y, y_stride, next, add_in_one);
}

const plm_isa plm_avx_vnni = {
    .name = "avx-vnni",
    .tile = {avx2_tile_f32, avx2_tile_f16, avx2_tile_bf16, tile_q8_0, tile_q4_0, avxvnni_tile_q4_k,
             avxvnni_tile_q6_k},
    .row = {avx2_row_f32, avx2_row_f16, avx2_row_bf16, row_q8_0, row_q4_0, avxvnni_row_q4_k, avxvnni_row_q6_k},
    .rows = {[PLM_Q8_0] = rows_q8_0, [PLM_Q4_0] = rows_q4_0},
    .add_rows = {avx2_add_f32, avx2_add_f16, avx2_add_bf16, avx2_add_q8_0, avx2_add_q4_0, avx2_add_q4_k,
                 avx2_add_q6_k},
    .units = {avx2_units_f32, avx2_units_f16, avx2_units_bf16, units_q8_0, units_q4_0},
    .unit_rows = {avx2_rows_f32, avx2_rows_f16, avx2_rows_bf16, avx2_rows_q8_0, avx2_rows_q4_0},
    .part_units = {[PLM_Q4_K] = avxvnni_part_q4_k, [PLM_Q6_K] = avxvnni_part_q6_k},
    .part_rows = {[PLM_Q4_K] = avx2_part_rows_q4_k, [PLM_Q6_K] = avx2_part_rows_q6_k},
    .mix = avx2_mix,
    .pack = avx2_pack,
    .pack_halves = avx2_pack_halves,
    .weave = avx2_weave,
    .panel = panel,
    .weigh = avx2_weigh,
    .exps = avx2_exps,
    .dot = avx2_dot,
    .add = avx2_add,
    .widen = avx2_widen,
    AVX2_ATTENTION,
    .blend_words = blend_words,
    .lay_bytes = avxvnni_lay_bytes,
    .score_bytes = avxvnni_score_bytes,
    .blend_bytes = avxvnni_blend_bytes,
};
