/* The x86-64 sets' functions of Q4_K and Q6_K: avx2_super.c, avx_vnni_super.c, avx512_super.c and
 * avx512_super_units.c. Rows of a table that a better set does not name are those of the first. */
#ifndef PLM_X86_SUPER_H
#define PLM_X86_SUPER_H

#include "superblocks.h"

void avx2_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx2_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
float avx2_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avx2_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
void avx2_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void avx2_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void avxvnni_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avxvnni_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
float avxvnni_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avxvnni_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
void avxvnni_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void avxvnni_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void avx512_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx512_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
float avx512_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
void avx512_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void avx512_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);

void avx2_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx2_part_rows_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w);
void avx2_part_rows_q6_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w);

#endif
