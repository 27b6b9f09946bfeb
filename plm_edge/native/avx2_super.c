/* AVX2: Q4_K and Q6_K. Same bits as the scalar set. */
#include "avx2_super_units.h"

/* ---- several tokens: a superblock of a tile becomes a panel, which all of them meet ---- */

enum { SUPER_PANEL = PLM_SUPER * PLM_TILE };

static void unpack_q4_k(const uint8_t *w, int16_t *panel, float *scales, float *leasts) {
    for (int i = 0; i < 2; i++) {
        const uint8_t *at = w + 32 * i;
        __m256i t0 = load32(at + 64), t1 = load32(at + 128), t2 = load32(at + 192);
        six_bits scale = scales_q4_k(t0, t1, t2), least = leasts_q4_k(t0, t1, t2);
        __m256 d, dmin;
        halves_q4_k(at, &d, &dmin);
        for (int j = 0; j < PLM_PARTS; j++) {
            const int to = PLM_TILE * j + 8 * i;
            _mm256_storeu_ps(scales + to, _mm256_mul_ps(d, unsigned_byte(j < 4 ? scale.first : scale.last, j % 4)));
            _mm256_storeu_ps(leasts + to, _mm256_mul_ps(dmin, unsigned_byte(j < 4 ? least.first : least.last, j % 4)));
        }
        for (int g = 0; g < 32; g++) { /* eight of each two parts */
            __m256i v = load32(at + 256 + 64 * g);
            int16_t *to = panel + g / 8 * 2 * PANEL_BLOCK + g % 8 * 4 * PLM_TILE + PLM_TILE * i;
            store_pairs(nibbles_low(v), to, 1);
            store_pairs(nibbles_high(v), to + PANEL_BLOCK, 1);
        }
    }
}

static void unpack_q6_k(const uint8_t *w, int16_t *panel, float *scales) {
    for (int i = 0; i < 2; i++) {
        __m256 d = scales8(w + 16 * i);
        for (int j = 0; j < 2 * PLM_PARTS; j++) {
            __m256i bytes = load32(w + 32 + j / 4 * 64 + 32 * i);
            _mm256_storeu_ps(scales + PLM_TILE * j + 8 * i, _mm256_mul_ps(d, signed_byte(bytes, j % 4)));
        }
        for (int g = 0; g < 16; g++) {
            const uint8_t *low = w + 288 + g / 8 * 1024 + g % 8 * 64 + 32 * i;
            int16_t *to = panel + g / 8 * 4 * PANEL_BLOCK + g % 8 * 4 * PLM_TILE + PLM_TILE * i;
            __m256i v[4];
            quants_q6_k(load32(low), load32(low + 512), load32(w + 2336 + 64 * g + 32 * i), v);
            for (int k = 0; k < 4; k++) store_pairs(v[k], to + k * PANEL_BLOCK, 1);
        }
    }
}

/* less (tokens, 16) += the leasts of eight parts times the sums of x. */
static void add_leasts(const float *leasts, const float *x_scale, const int32_t *x_sum, int32_t x_blocks,
                       int32_t tokens, float *less) {
    for (int32_t t = 0; t < tokens; t++, x_scale += x_blocks, x_sum += x_blocks, less += PLM_TILE) {
        __m256 low = _mm256_loadu_ps(less), high = _mm256_loadu_ps(less + 8);
        for (int j = 0; j < PLM_PARTS; j++) {
            __m256 factor = _mm256_set1_ps((float)x_sum[j] * x_scale[j]);
            low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(leasts + PLM_TILE * j), factor));
            high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(leasts + PLM_TILE * j + 8), factor));
        }
        _mm256_storeu_ps(less, low);
        _mm256_storeu_ps(less + 8, high);
    }
}

/* At most SUPER_TOKENS tokens. */
static void some_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                      avx2_product *product) {
    const int32_t blocks = cols / PLM_BLOCK;
    int16_t panel[SUPER_PANEL];
    float scales[PLM_PARTS * PLM_TILE], leasts[PLM_PARTS * PLM_TILE], less[SUPER_TOKENS * PLM_TILE];
    memset(less, 0, (size_t)tokens * PLM_TILE * sizeof *less);
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += PLM_PARTS, w += PLM_TILE_Q4_K) {
        ask_ahead(w, PLM_TILE_Q4_K);
        unpack_q4_k(w, panel, scales, leasts);
        product(panel, scales, PLM_PARTS, x->q + b * PLM_BLOCK, cols, x->scale + b, blocks, tokens, y, stride);
        add_leasts(leasts, x->scale + b, x->sum + b, blocks, tokens, less);
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int r = 0; r < PLM_TILE; r++) y[t * stride + r] -= less[t * PLM_TILE + r];
}

void avx2_several_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product) {
    for (int32_t t = 0; t < tokens; t += SUPER_TOKENS) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        some_q4_k(w, cols, &at, plm_min(SUPER_TOKENS, tokens - t), y + (int64_t)t * stride, stride, product);
    }
}

void avx2_several_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product) {
    const int32_t blocks = cols / PLM_BLOCK;
    int16_t panel[SUPER_PANEL];
    float scales[2 * PLM_PARTS * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += PLM_PARTS, w += PLM_TILE_Q6_K) {
        ask_ahead(w, PLM_TILE_Q6_K);
        unpack_q6_k(w, panel, scales);
        product(panel, scales, 2 * PLM_PARTS, x->q + b * PLM_BLOCK, cols, x->scale + b, blocks, tokens, y, stride);
    }
}

/* ---- rows added up ---- */

/* sums[0..4) += 32 quants, of which v has the bytes, times a scale for each 16. */
static inline void add_quants(__m256 *sums, float first, float second, __m256i v, int is_signed) {
    const __m128i half[2] = {_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)};
    for (int i = 0; i < 4; i++) {
        __m128i eight = i % 2 ? _mm_srli_si128(half[i / 2], 8) : half[i / 2];
        __m256i wide = is_signed ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
        __m256 scale = _mm256_set1_ps(i < 2 ? first : second);
        sums[i] = _mm256_add_ps(sums[i], _mm256_mul_ps(scale, _mm256_cvtepi32_ps(wide)));
    }
}

/* Parts 2 p and 2 p + 1 of a superblock of all rows. */
static void add_two_parts(const uint8_t *w, int64_t bytes, int p, const float *a, int32_t count, float *y) {
    __m256 sums[8];
    float less[2] = {0.0f, 0.0f};
    for (int i = 0; i < 8; i++) sums[i] = _mm256_loadu_ps(y + 8 * i);
    for (int32_t r = 0; r < count; r++, w += bytes) {
        __m256i v = load32(w + 16 + 32 * p);
        float d = scale_at(w), dmin = scale_at(w + 2);
        for (int k = 0; k < 2; k++) {
            float scale = a[r] * (d * (float)plm_scale_q4_k(w + 4, 2 * p + k));
            add_quants(sums + 4 * k, scale, scale, k ? nibbles_high(v) : nibbles_low(v), 0);
            less[k] += a[r] * (dmin * (float)plm_least_q4_k(w + 4, 2 * p + k));
        }
    }
    for (int i = 0; i < 8; i++) _mm256_storeu_ps(y + 8 * i, _mm256_sub_ps(sums[i], _mm256_set1_ps(less[i / 4])));
}

void avx2_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q4_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q4_K_BYTES)
        for (int p = 0; p < 4; p++, y += 2 * PLM_BLOCK) add_two_parts(w, bytes, p, a, count, y);
}

/* Part k of half h of a superblock of Q6_K: 32 values with two scales, of all rows. */
static inline __attribute__((always_inline)) void add_part_q6_k(const uint8_t *w, int64_t bytes, int h, int k,
                                                                const float *a, int32_t count, float *y) {
    __m256 sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm256_loadu_ps(y + 8 * i);
    for (int32_t r = 0; r < count; r++, w += bytes) {
        const int8_t *scales = (const int8_t *)w + 192 + 8 * h + 2 * k;
        const float d = scale_at(w + 208);
        __m256i v[4];
        quants_q6_k(load32(w + 64 * h), load32(w + 64 * h + 32), load32(w + 128 + 32 * h), v);
        add_quants(sums, a[r] * (d * (float)scales[0]), a[r] * (d * (float)scales[1]), v[k], 1);
    }
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(y + 8 * i, sums[i]);
}

void avx2_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q6_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q6_K_BYTES)
        for (int h = 0; h < 2; h++, y += 4 * PLM_BLOCK) {
            add_part_q6_k(w, bytes, h, 0, a, count, y);
            add_part_q6_k(w, bytes, h, 1, a, count, y + PLM_BLOCK);
            add_part_q6_k(w, bytes, h, 2, a, count, y + 2 * PLM_BLOCK);
            add_part_q6_k(w, bytes, h, 3, a, count, y + 3 * PLM_BLOCK);
        }
}

/* ---- units as floats, for many tokens ---- */

void avx2_part_rows_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q4_K, width, part), *twelve = super + 4 * (int64_t)width;
    const int32_t n = last - first;
    for (int32_t o = first; o < last; o += 8) {
        __m256 scale = _mm256_mul_ps(scales8(super + 2 * (int64_t)o), outputs_scale_q4_k(twelve + o, width, part));
        __m256 least = outputs_least_q4_k(twelve + o, width, part);
        least = _mm256_mul_ps(scales8(super + 2 * ((int64_t)width + o)), least);
        for (int64_t unit = 0; unit < PLM_BLOCK; unit++) {
            __m128i v = eight_at(rows + unit * (width / 2) + o / 32 * 16 + o % 16);
            v = _mm_and_si128(o % 32 < 16 ? v : _mm_srli_epi16(v, 4), _mm_set1_epi8(15));
            _mm256_storeu_ps(w + unit * n + o - first, _mm256_sub_ps(_mm256_mul_ps(scale, bytes8(v)), least));
        }
    }
}

void avx2_part_rows_q6_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part), *scales = super + 2 * (int64_t)width;
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    for (int32_t o = first; o < last; o += PLM_BLOCK)
        for (int64_t unit = 0; unit < PLM_BLOCK; unit++) {
            const uint8_t *row = rows + unit * bytes, *of_unit = scales + (2 * part + unit / 16) * (int64_t)width + o;
            float *to = w + unit * (last - first) + o - first;
            __m128i v[2];
            unit_of_q6_k(row + o / 2, row + width / 2 + o / 4, v);
            for (int i = 0; i < 4; i++) {
                __m128i eight = i % 2 ? _mm_srli_si128(v[i / 2], 8) : v[i / 2];
                __m256 scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_at(of_unit + 8 * i)));
                scale = _mm256_mul_ps(scales8(super + 2 * (int64_t)(o + 8 * i)), scale);
                _mm256_storeu_ps(to + 8 * i, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))));
            }
        }
}

/* ---- the set ---- */

static void panel_of_16(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                        const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    pairs_panel_of_16(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, add_in_two);
}

void avx2_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_k(w, cols, x, y, add_in_two);
    else
        avx2_several_q4_k(w, cols, x, tokens, y, stride, avx2_panel);
}

void avx2_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q6_k(w, cols, x, y, add_in_two);
    else
        avx2_several_q6_k(w, cols, x, tokens, y, stride, panel_of_16);
}

float avx2_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_of_q4_k(w, cols, x, add_in_two); }
float avx2_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_of_q6_k(w, cols, x); }

void avx2_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q4_k(super, width, part, a, y, add_in_two);
}
void avx2_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q6_k(super, width, part, a, y, add_in_two);
}
