/* The scalar set's functions of Q4_K and Q6_K, and where superblocks lie in tiles and groups.
 *
 * Every set takes these steps in floats, in this order. A row times x, with block b of x for part b of the row:
 *   Q4_K  y = sum over b of float(q . x) * ((d * scale) * x_scale), less the sum over b of (dmin * least) * (float(sum
 *         of x) * x_scale)
 *   Q6_K  y = sum over parts of 16 of float((q - 32) . x) * ((d * scale) * x_scale)
 * The integers are exact: 15 * 32767 * 32 and 32 * 32767 * 16 are both below 2^24. */
#include "superblocks.h"

void plm_scales_of_part(int format, int32_t width, int32_t part, const uint8_t **first, const uint8_t **last) {
    const int64_t rows = format == PLM_Q4_K ? 12 : 16, halves = format == PLM_Q4_K ? 4 : 2;
    const uint8_t *scales = *first + halves * width;
    *first = part ? scales + rows * part / PLM_PARTS * width : *first;
    *last = scales + rows * (part + 1) / PLM_PARTS * width;
}

/* ---- a superblock as ggml has it ---- */

/* y, and what is to be taken off it in the end, of one superblock. */
static void add_q4_k(const uint8_t *w, const int16_t *q, const float *scale, const int32_t *sum, float *y,
                     float *less) {
    const float d = plm_half_at(w), dmin = plm_half_at(w + 2);
    for (int j = 0; j < PLM_PARTS; j++, q += PLM_BLOCK) {
        int32_t total = 0;
        for (int i = 0; i < PLM_BLOCK; i++) total += plm_quant_q4_k(w + 16, PLM_BLOCK * j + i) * q[i];
        *y += (float)total * ((d * (float)plm_scale_q4_k(w + 4, j)) * scale[j]);
        *less += (dmin * (float)plm_least_q4_k(w + 4, j)) * ((float)sum[j] * scale[j]);
    }
}

static void add_q6_k(const uint8_t *w, const int16_t *q, const float *scale, float *y) {
    const float d = plm_half_at(w + 208);
    for (int j = 0; j < 2 * PLM_PARTS; j++, q += 16) {
        int32_t total = 0;
        for (int i = 0; i < 16; i++) total += (plm_quant_q6_k(w, w + 128, 16 * j + i) - 32) * q[i];
        *y += (float)total * ((d * (float)(int8_t)w[192 + j]) * scale[j / 2]);
    }
}

float plm_scalar_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    float y = 0.0f, less = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q4_K_BYTES)
        add_q4_k(w, x->q + b * PLM_BLOCK, x->scale + b, x->sum + b, &y, &less);
    return y - less;
}

float plm_scalar_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    float y = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q6_K_BYTES)
        add_q6_k(w, x->q + b * PLM_BLOCK, x->scale + b, &y);
    return y;
}

/* y += the sum of a times rows; what Q4_K takes off is added up for all of them first. */
void plm_scalar_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q4_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q4_K_BYTES)
        for (int j = 0; j < PLM_PARTS; j++, y += PLM_BLOCK) {
            float less = 0.0f;
            for (int32_t r = 0; r < count; r++) {
                const uint8_t *row = w + r * bytes;
                const float scale = a[r] * (plm_half_at(row) * (float)plm_scale_q4_k(row + 4, j));
                less += a[r] * (plm_half_at(row + 2) * (float)plm_least_q4_k(row + 4, j));
                for (int i = 0; i < PLM_BLOCK; i++) y[i] += scale * (float)plm_quant_q4_k(row + 16, PLM_BLOCK * j + i);
            }
            for (int i = 0; i < PLM_BLOCK; i++) y[i] -= less;
        }
}

void plm_scalar_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q6_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q6_K_BYTES, y += PLM_SUPER)
        for (int32_t r = 0; r < count; r++) {
            const uint8_t *row = w + r * bytes;
            for (int i = 0; i < PLM_SUPER; i++)
                y[i] += (a[r] * (plm_half_at(row + 208) * (float)(int8_t)row[192 + i / 16])) *
                        (float)(plm_quant_q6_k(row, row + 128, i) - 32);
        }
}

/* ---- tiles ---- */

/* `groups` groups of row r, one after the other. */
static const uint8_t *from_groups(const uint8_t *tile, int32_t r, int groups, uint8_t *to) {
    for (int g = 0; g < groups; g++) memcpy(to + 4 * g, tile + 64 * g + 4 * r, 4);
    return tile + 64 * groups;
}

/* Row r of 256 columns of a tile, as ggml has it. */
static void from_tile(const uint8_t *tile, int format, int32_t r, uint8_t *block) {
    if (format == PLM_Q4_K) {
        from_groups(tile, r, 36, block);
        return;
    }
    memcpy(block + 208, tile + 2 * r, 2);
    from_groups(from_groups(tile + 32, r, 4, block + 192), r, 48, block);
}

void plm_embed_super(const plm_isa *isa, const plm_matrix *w, const uint8_t *tile, int32_t r, float *y) {
    uint8_t block[PLM_Q6_K_BYTES];
    const float one = 1.0f;
    memset(y, 0, (size_t)w->cols * sizeof *y);
    for (int32_t c = 0; c < w->cols; c += PLM_SUPER, tile += plm_tile_bytes(w->format, PLM_SUPER)) {
        from_tile(tile, w->format, r, block);
        isa->add_rows[w->format](block, PLM_SUPER, &one, 1, y + c);
    }
}

void plm_scalar_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                          int32_t stride) {
    uint8_t block[PLM_Q4_K_BYTES];
    for (int64_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        for (int32_t r = 0; r < PLM_TILE; r++) {
            float *out = y + t * stride + r, less = 0.0f;
            *out = 0.0f;
            for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS) {
                from_tile(w + b / PLM_PARTS * PLM_TILE_Q4_K, PLM_Q4_K, r, block);
                add_q4_k(block, at.q + b * PLM_BLOCK, at.scale + b, at.sum + b, out, &less);
            }
            *out -= less;
        }
    }
}

void plm_scalar_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                          int32_t stride) {
    uint8_t block[PLM_Q6_K_BYTES];
    for (int64_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        for (int32_t r = 0; r < PLM_TILE; r++) {
            float *out = y + t * stride + r;
            *out = 0.0f;
            for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS) {
                from_tile(w + b / PLM_PARTS * PLM_TILE_Q6_K, PLM_Q6_K, r, block);
                add_q6_k(block, at.q + b * PLM_BLOCK, at.scale + b, out);
            }
        }
    }
}

/* ---- groups of units ---- */

/* Scale (or least) of a part for output o. */
static void twelve_of(const uint8_t *super, int32_t width, int32_t o, uint8_t *twelve) {
    for (int64_t i = 0; i < 12; i++) twelve[i] = super[(4 + i) * width + o];
}

/* Quant of output o in the row of a unit: its nibble; in Q6_K 6 bits. */
static int32_t unit_nibble(const uint8_t *row, int32_t o) {
    uint8_t byte = row[o / 32 * 16 + o % 16];
    return o % 32 < 16 ? byte & 15 : byte >> 4;
}
static int32_t unit_q6_k(const uint8_t *row, int32_t width, int32_t o) {
    int32_t high = row[width / 2 + o / 32 * 8 + o % 8] >> o % 32 / 8 * 2 & 3;
    return unit_nibble(row, o) | high << 4;
}

/* The activations of a part as integers, idle units as 0. Returns whether any unit fired. */
static int pack_units(const float *a, int16_t *q, float *scale, int32_t *sum) {
    int fired = 0;
    for (int n = 0; n < PLM_BLOCK; n++) fired |= a[n] != 0.0f;
    if (fired) plm_scalar.pack(a, PLM_BLOCK, PLM_LARGEST, q, scale, sum);
    return fired;
}

void plm_scalar_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q4_K, width, part);
    uint8_t twelve[12];
    int16_t q[PLM_BLOCK];
    float scale;
    int32_t sum;
    if (!pack_units(a, q, &scale, &sum)) return;
    for (int32_t o = 0; o < width; o++) {
        const float d = plm_half_at(super + 2 * (int64_t)o), dmin = plm_half_at(super + 2 * ((int64_t)width + o));
        int32_t total = 0;
        for (int64_t n = 0; n < PLM_BLOCK; n++)
            if (a[n] != 0.0f) total += unit_nibble(rows + n * (width / 2), o) * q[n];
        twelve_of(super, width, o, twelve);
        y[o] += (float)total * ((d * (float)plm_scale_q4_k(twelve, part)) * scale);
        y[o] -= (dmin * (float)plm_least_q4_k(twelve, part)) * ((float)sum * scale);
    }
}

void plm_scalar_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part), *scales = super + 2 * (int64_t)width;
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    int16_t q[PLM_BLOCK];
    float scale;
    int32_t sum;
    if (!pack_units(a, q, &scale, &sum)) return;
    for (int32_t o = 0; o < width; o++)
        for (int64_t half = 0; half < 2; half++) {
            int8_t of_output = (int8_t)scales[(2 * part + half) * width + o];
            int32_t total = 0;
            for (int64_t n = 16 * half; n < 16 * (half + 1); n++)
                if (a[n] != 0.0f) total += (unit_q6_k(rows + n * bytes, width, o) - 32) * q[n];
            y[o] += (float)total * ((plm_half_at(super + 2 * (int64_t)o) * (float)of_output) * scale);
        }
}

void plm_scalar_part_rows_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last,
                               float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q4_K, width, part);
    uint8_t twelve[12];
    for (int64_t n = 0; n < PLM_BLOCK; n++)
        for (int32_t o = first; o < last; o++) {
            const float d = plm_half_at(super + 2 * (int64_t)o), dmin = plm_half_at(super + 2 * ((int64_t)width + o));
            twelve_of(super, width, o, twelve);
            *w++ = (d * (float)plm_scale_q4_k(twelve, part)) * (float)unit_nibble(rows + n * (width / 2), o) -
                   dmin * (float)plm_least_q4_k(twelve, part);
        }
}

void plm_scalar_part_rows_q6_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last,
                               float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part), *scales = super + 2 * (int64_t)width;
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    for (int64_t n = 0; n < PLM_BLOCK; n++)
        for (int32_t o = first; o < last; o++) {
            int8_t scale = (int8_t)scales[(2 * part + n / 16) * width + o];
            *w++ = (plm_half_at(super + 2 * (int64_t)o) * (float)scale) *
                   (float)(unit_q6_k(rows + n * bytes, width, o) - 32);
        }
}
