/* AVX-VNNI: Q4_K and Q6_K, with one instruction for a pair of 16-bit integers where AVX2 takes two. */
#include "avx2_super_units.h"

/* See avx_vnni.c. */
static inline __m256i add_in_one(__m256i sum, __m256i a, __m256i b) {
    return in_place(_mm256_dpwssd_avx_epi32(sum, a, b));
}

static void panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    pairs_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, add_in_one);
}
static void panel_of_16(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                        const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    pairs_panel_of_16(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, add_in_one);
}

void avxvnni_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_k(w, cols, x, y, add_in_one);
    else
        avx2_several_q4_k(w, cols, x, tokens, y, stride, panel);
}

void avxvnni_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q6_k(w, cols, x, y, add_in_one);
    else
        avx2_several_q6_k(w, cols, x, tokens, y, stride, panel_of_16);
}

float avxvnni_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_of_q4_k(w, cols, x, add_in_one); }
float avxvnni_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_of_q6_k(w, cols, x); }

void avxvnni_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q4_k(super, width, part, a, y, add_in_one);
}
void avxvnni_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q6_k(super, width, part, a, y, add_in_one);
}
