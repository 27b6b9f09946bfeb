/* Superblocks in tiles and groups, and the scalar functions on them.
 *
 * A tile, 256 columns of 16 rows; "group g" is bytes 4 g .. 4 g + 3 of each of the rows, 64 bytes:
 *   Q4_K, 2304 bytes  36 groups: d and dmin | the twelve bytes: 3 | q: 32
 *   Q6_K, 3360 bytes  d of the rows | 52 groups: scales: 4 | low: 32 | high: 16
 *
 * 256 units of `width` outputs:
 *   Q4_K  d of the outputs | their dmin | byte 0 of the twelve of the outputs | byte 1 | ... | units: width / 2 bytes
 *         each, byte 16 c + i holds output 32 c + i in its low, output 32 c + 16 + i in its high nibble
 *   Q6_K  d of the outputs | scale 0 of the outputs | scale 1 | ... | units: the low 4 bits as in Q4_K, then width / 4
 *         bytes: bits 2 k and 2 k + 1 of byte 8 c + i are the high ones of output 32 c + 8 k + i
 */
#ifndef PLM_SUPERBLOCKS_H
#define PLM_SUPERBLOCKS_H

#include "kernels.h"

enum { PLM_PARTS = PLM_SUPER / PLM_BLOCK };
enum { PLM_TILE_Q4_K = PLM_TILE * PLM_Q4_K_BYTES, PLM_TILE_Q6_K = PLM_TILE * PLM_Q6_K_BYTES };

/* Bytes that one unit has, and those of the scales before 256 units. */
static inline int64_t plm_unit_bytes_super(int format, int32_t width) {
    return format == PLM_Q4_K ? width / 2 : width / 4 * 3;
}
static inline int64_t plm_scale_bytes_super(int format, int32_t width) {
    return (int64_t)width * (format == PLM_Q4_K ? 16 : 18);
}

/* Where the units of a part begin. */
static inline const uint8_t *plm_part_rows_at(const uint8_t *super, int format, int32_t width, int32_t part) {
    return super + plm_scale_bytes_super(format, width) + part * (PLM_BLOCK * plm_unit_bytes_super(format, width));
}

/* first .. last: those scales that no part before has looked at. */
void plm_scales_of_part(int format, int32_t width, int32_t part, const uint8_t **first, const uint8_t **last);

/* y (w.cols) = row r of a tile. */
void plm_embed_super(const plm_isa *isa, const plm_matrix *w, const uint8_t *tile, int32_t r, float *y);

void plm_scalar_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                          int32_t stride);
void plm_scalar_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                          int32_t stride);
float plm_scalar_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
float plm_scalar_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x);
void plm_scalar_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void plm_scalar_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void plm_scalar_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void plm_scalar_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
void plm_scalar_part_rows_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last,
                               float *w);
void plm_scalar_part_rows_q6_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last,
                               float *w);

#endif
