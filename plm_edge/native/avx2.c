/* AVX2 with FMA and F16C. Integer formats and everything that works value by value give the bits of the scalar
 * set: the sums of a block are exact and the float steps are the same ones in the same order. Only `tile` and `row`
 * of float formats and `dot` add in another order, with fused steps. */
#include "avx2_blend.h"
#include "avx2_rows.h"

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

/* Four registers of two rows by four columns -> the sums of eight rows. */
static inline void store_rows(const __m256 *sum, float *y) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
    __m128 even = _mm256_castps256_ps128(s), odd = _mm256_extractf128_ps(s, 1);
    _mm_storeu_ps(y, _mm_unpacklo_ps(even, odd));
    _mm_storeu_ps(y + 4, _mm_unpackhi_ps(even, odd));
}

static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, float *y, int format) {
    const int size = size_of(format);
    __m256 sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_ps();
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size) {
        __m128 four = cols - c >= 4 ? _mm_loadu_ps(x + c) : _mm256_castps256_ps128(load_end(x + c, cols - c, PLM_F32));
        __m256 twice = _mm256_set_m128(four, four);
        for (int i = 0; i < 8; i++) sum[i] = _mm256_fmadd_ps(load8(w + 8 * i * size, format), twice, sum[i]);
    }
    store_rows(sum, y);
    store_rows(sum + 4, y + 8);
}

void avx2_tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F32);
}
void avx2_tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F16);
}
void avx2_tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_BF16);
}

/* H halves (8 rows) of the tiles at `block`, one block of them. tops: four of a block's top bytes in every 32 bits, from
 * memory, so that the sums of two tiles find room in registers. */
INLINED void halves_q4_0(const uint8_t *block, int64_t bytes, const __m256i *tops, const uint8_t *bottom, int32_t start,
                         float scale, __m256 *y, int H) {
    __m256i of_tops[4], of_bottoms[4];
    for (int i = 0; i < H; i++) of_tops[i] = _mm256_setzero_si256(), of_bottoms[i] = _mm256_set1_epi16(BOTTOM);
#pragma GCC unroll 1
    for (int g = 0; g < 4; g++) {
        const __m256i low_bottoms = four_bytes(bottom + 4 * g), high_bottoms = four_bytes(bottom + 16 + 4 * g);
#pragma GCC unroll 4
        for (int i = 0; i < H; i++) {
            __m256i v = load32(block + i / 2 * bytes + 32 + 64 * g + 32 * (i % 2)), low = nibbles_low(v);
            of_tops[i] = in_place(add_products(of_tops[i], low, tops[g]));
            of_bottoms[i] = in_place(add_products(of_bottoms[i], low_bottoms, low));
            __m256i high = nibbles_high(v);
            of_tops[i] = in_place(add_products(of_tops[i], high, tops[4 + g]));
            of_bottoms[i] = in_place(add_products(of_bottoms[i], high_bottoms, high));
        }
    }
    for (int i = 0; i < H; i++) {
        __m256i sum = _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_madd_epi16(of_tops[i], _mm256_set1_epi16(256)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(of_bottoms[i], _mm256_set1_epi16(1)));
        y[i] = add_scaled(y[i], sum, block + i / 2 * bytes + 16 * (i % 2), scale);
    }
}

/* N tiles behind each other: of several streams memory answers more at once than of one. `next`: as in plm_isa. */
INLINED void tiles_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next,
                        int near, int N) {
    const int64_t bytes = plm_tile_bytes(PLM_Q4_0, cols);
    __m256 out[8];
    for (int i = 0; i < 2 * N; i++) out[i] = _mm256_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++) {
        uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK];
        __m256i tops[8];
        const block_ahead ahead = block_asked(w, bytes, b * 288, 288, next, near, N);
        ask_tiles(&ahead, bytes, 0, 5, 288, near, N);
        split_block(x->q + b * PLM_BLOCK, top, bottom);
        for (int g = 0; g < 8; g++) tops[g] = four_bytes(top + 4 * g);
        for (int i = 0; i < N; i += 2)
            halves_q4_0(w + i * bytes + b * 288, bytes, tops, bottom, -8 * x->sum[b] - 2 * BOTTOM, x->scale[b],
                        out + 2 * i, N == 1 ? 2 : 4);
    }
    for (int i = 0; i < 2 * N; i++) _mm256_storeu_ps(y + 8 * i, out[i]);
}

INLINED void tiles_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next,
                        int near, int N) {
    pairs_tiles_q8_0(w, cols, x, y, next, near, N, add_in_two);
}

/* Twice as many requests cost more than they bring: docs/decisions.md. */
FOUR_TILES(four_q4_0, tiles_q4_0, 0)
FOUR_TILES(four_q8_0, tiles_q8_0, 0)

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        tiles_q8_0(w, cols, x, y, w + plm_tile_bytes(PLM_Q8_0, cols), PLM_FIRST, 1);
    else
        avx2_several_q8_0(w, cols, x, tokens, y, stride, avx2_panel);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        tiles_q4_0(w, cols, x, y, w + plm_tile_bytes(PLM_Q4_0, cols), PLM_FIRST, 1);
    else
        avx2_several_q4_0(w, cols, x, tokens, y, stride, avx2_panel);
}

/* ---- plain ggml rows ---- */

static inline float row_float(const uint8_t *w, int32_t cols, const float *x, int format) {
    const int size = size_of(format);
    __m256 sum[4];
    int32_t c = 0;
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_ps();
    for (; c + 32 <= cols; c += 32, w += 32 * size)
        for (int i = 0; i < 4; i++)
            sum[i] = _mm256_fmadd_ps(load8(w + 8 * i * size, format), _mm256_loadu_ps(x + c + 8 * i), sum[i]);
    for (; c + 8 <= cols; c += 8, w += 8 * size)
        sum[0] = _mm256_fmadd_ps(load8(w, format), _mm256_loadu_ps(x + c), sum[0]);
    if (c < cols)
        sum[1] = _mm256_fmadd_ps(load_end(w, cols - c, format), load_end(x + c, cols - c, PLM_F32), sum[1]);
    return sum8(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

float avx2_row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F32); }
float avx2_row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F16); }
float avx2_row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_float(w, cols, x->f, PLM_BF16);
}
float avx2_dot(const float *a, const float *b, int32_t n) { return row_float((const void *)a, n, b, PLM_F32); }

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q8_0, add_in_two);
}
static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return pairs_row(w, cols, x, PLM_Q4_0, add_in_two);
}

static void blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                        const uint8_t *next) {
    pairs_blend_words(weights, x, scales, stride, rows, n, shrink, lanes, y, y_stride, next, add_in_two);
}

static void rows_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                      const uint8_t *next) {
    pairs_rows(w, cols, x, count, y, next, PLM_Q8_0, add_in_two);
}
static void rows_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                      const uint8_t *next) {
    pairs_rows(w, cols, x, count, y, next, PLM_Q4_0, add_in_two);
}

const plm_isa plm_avx2 = {
    .name = "avx2",
    .tile_of_bytes = {[PLM_Q4_0] = avx2_several_of_bytes_q4_0},
    .tile = {avx2_tile_f32, avx2_tile_f16, avx2_tile_bf16, tile_q8_0, tile_q4_0, avx2_tile_q4_k,
             avx2_tile_q6_k},
    .four_tiles = {[PLM_Q8_0] = four_q8_0, [PLM_Q4_0] = four_q4_0},
    .row = {avx2_row_f32, avx2_row_f16, avx2_row_bf16, row_q8_0, row_q4_0, avx2_row_q4_k, avx2_row_q6_k},
    .rows = {[PLM_Q8_0] = rows_q8_0, [PLM_Q4_0] = rows_q4_0},
    .add_rows = {avx2_add_f32, avx2_add_f16, avx2_add_bf16, avx2_add_q8_0, avx2_add_q4_0, avx2_add_q4_k,
                 avx2_add_q6_k},
    .units = {avx2_units_f32, avx2_units_f16, avx2_units_bf16, avx2_units_q8_0, avx2_units_q4_0},
    .unit_rows = {avx2_rows_f32, avx2_rows_f16, avx2_rows_bf16, avx2_rows_q8_0, avx2_rows_q4_0},
    .part_units = {[PLM_Q4_K] = avx2_part_q4_k, [PLM_Q6_K] = avx2_part_q6_k},
    .part_rows = {[PLM_Q4_K] = avx2_part_rows_q4_k, [PLM_Q6_K] = avx2_part_rows_q6_k},
    .mix = avx2_mix,
    .pack = avx2_pack,
    .pack_halves = avx2_pack_halves,
    .weave = avx2_weave,
    .panel = avx2_panel,
    .weigh = avx2_weigh,
    .exps = avx2_exps,
    .dot = avx2_dot,
    .add = avx2_add,
    .widen = avx2_widen,
    AVX2_ATTENTION,
    .blend_words = blend_words,
};

