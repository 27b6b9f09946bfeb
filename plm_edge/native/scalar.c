/* The scalar set: plain C, the same bits on every machine, the oracle of every other set. */
#include "superblocks.h"

static inline uint16_t load16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static inline float load_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}

/* Read one value of a float format. */
static inline float load_value(const uint8_t *p, int format) {
    return format == PLM_F32 ? load_f32(p) : format == PLM_F16 ? plm_half_at(p) : plm_bf16(load16(p));
}

static inline int32_t low(uint8_t byte) { return byte & 15; }
static inline int32_t high(uint8_t byte) { return byte >> 4; }

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, float *y, int format) {
    const int size = format == PLM_F32 ? 4 : 2;
    for (int r = 0; r < PLM_TILE; r++) y[r] = 0.0f;
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size)
        for (int r = 0; r < PLM_TILE; r++)
            for (int i = 0; i < 4 && c + i < cols; i++) y[r] += load_value(w + (4 * r + i) * size, format) * x[c + i];
}

static void tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++)
        tile_float(w, cols, x->f + (int64_t)t * cols, y + (int64_t)t * stride, PLM_F32);
}
static void tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++)
        tile_float(w, cols, x->f + (int64_t)t * cols, y + (int64_t)t * stride, PLM_F16);
}
static void tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++)
        tile_float(w, cols, x->f + (int64_t)t * cols, y + (int64_t)t * stride, PLM_BF16);
}

/* 16 f16 scales, then 8 groups of 64 bytes: byte 4 r + i is value 4 g + i of row r. */
static void one_q8_0(const uint8_t *w, int32_t cols, const int16_t *q, const float *scale, float *y) {
    for (int r = 0; r < PLM_TILE; r++) y[r] = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544, q += PLM_BLOCK) {
        for (int r = 0; r < PLM_TILE; r++) {
            int32_t sum = 0;
            for (int g = 0; g < 8; g++)
                for (int i = 0; i < 4; i++) sum += (int8_t)w[32 + 64 * g + 4 * r + i] * q[4 * g + i];
            y[r] += (float)sum * (plm_half_at(w + 2 * r) * scale[b]);
        }
    }
}

/* 16 f16 scales, then 4 groups of 64 bytes: byte 4 r + i holds values 4 g + i (low) and 16 + 4 g + i (high). */
static void one_q4_0(const uint8_t *w, int32_t cols, const int16_t *q, const float *scale, float *y) {
    for (int r = 0; r < PLM_TILE; r++) y[r] = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 288, q += PLM_BLOCK) {
        for (int r = 0; r < PLM_TILE; r++) {
            int32_t sum = 0;
            for (int g = 0; g < 4; g++)
                for (int i = 0; i < 4; i++) {
                    uint8_t byte = w[32 + 64 * g + 4 * r + i];
                    sum += (low(byte) - 8) * q[4 * g + i] + (high(byte) - 8) * q[16 + 4 * g + i];
                }
            y[r] += (float)sum * (plm_half_at(w + 2 * r) * scale[b]);
        }
    }
}

/* Each token of x by itself. */
static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++)
        one_q8_0(w, cols, x->q + t * cols, x->scale + t * (cols / PLM_BLOCK), y + t * stride);
}
static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++)
        one_q4_0(w, cols, x->q + t * cols, x->scale + t * (cols / PLM_BLOCK), y + t * stride);
}

/* ---- plain ggml rows ---- */

static inline float row_float(const uint8_t *w, int32_t cols, const float *x, int format) {
    const int size = format == PLM_F32 ? 4 : 2;
    float y = 0.0f;
    for (int32_t c = 0; c < cols; c++) y += load_value(w + c * size, format) * x[c];
    return y;
}

static float row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F32); }
static float row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F16); }
static float row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_float(w, cols, x->f, PLM_BF16);
}

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    float y = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 34) {
        int32_t sum = 0;
        for (int i = 0; i < PLM_BLOCK; i++) sum += (int8_t)w[2 + i] * x->q[b * PLM_BLOCK + i];
        y += (float)sum * (plm_half_at(w) * x->scale[b]);
    }
    return y;
}

static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    float y = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 18) {
        const int16_t *q = x->q + b * PLM_BLOCK;
        int32_t sum = -8 * x->sum[b];
        for (int i = 0; i < 16; i++) sum += low(w[2 + i]) * q[i] + high(w[2 + i]) * q[16 + i];
        y += (float)sum * (plm_half_at(w) * x->scale[b]);
    }
    return y;
}

static void add_row(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const int size = format == PLM_F32 ? 4 : 2;
    if (format < PLM_Q8_0)
        for (int32_t c = 0; c < n; c++) y[c] += a * load_value(w + c * size, format);
    for (; format >= PLM_Q8_0 && n > 0; n -= PLM_BLOCK, y += PLM_BLOCK) {
        float d = a * plm_half_at(w);
        w += 2;
        for (int i = 0; format == PLM_Q8_0 && i < PLM_BLOCK; i++) y[i] += d * (float)(int8_t)w[i];
        for (int i = 0; format == PLM_Q4_0 && i < 16; i++) {
            y[i] += d * (float)(low(w[i]) - 8);
            y[16 + i] += d * (float)(high(w[i]) - 8);
        }
        w += format == PLM_Q8_0 ? 32 : 16;
    }
}

static inline void add_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    for (int32_t i = 0; i < count; i++) add_row(w + i * plm_row_bytes(format, n), n, a[i], y, format);
}

static void add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_rows(w, n, a, count, y, PLM_F32);
}
static void add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_rows(w, n, a, count, y, PLM_F16);
}
static void add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_rows(w, n, a, count, y, PLM_BF16);
}
static void add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_rows(w, n, a, count, y, PLM_Q8_0);
}
static void add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_rows(w, n, a, count, y, PLM_Q4_0);
}

/* ---- groups of 32 units ---- */

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, int format) {
    const int64_t size = format == PLM_F32 ? 4 : 2;
    for (int32_t n = 0; n < units; n++, w += width * size) {
        if (a[n] == 0.0f) continue; /* a NaN is not 0: it flows on and shows */
        for (int32_t o = 0; o < width; o++) y[o] += a[n] * load_value(w + o * size, format);
    }
}

static void units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)next;
    units_float(w, width, a, units, y, PLM_F32);
}
static void units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)next;
    units_float(w, width, a, units, y, PLM_F16);
}
static void units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)next;
    units_float(w, width, a, units, y, PLM_BF16);
}

/* The weight of unit n for output o, without its scale. */
static inline int32_t unit_weight(const uint8_t *rows, int32_t width, int32_t n, int32_t o, int format) {
    if (format == PLM_Q8_0) return (int8_t)rows[(int64_t)n * width + o];
    uint8_t byte = rows[(int64_t)n * (width / 2) + o / 32 * 16 + o % 16];
    return (o % 32 < 16 ? low(byte) : high(byte)) - 8;
}

/* Integers inside the group (the scale belongs to the output, not to the unit), one float step an output. */
static inline void units_int(const uint8_t *w, int32_t width, const float *a, float *y, int format) {
    int16_t q[PLM_BLOCK];
    float scale;
    int32_t active[PLM_BLOCK], count = 0;
    plm_scalar.pack(a, PLM_BLOCK, PLM_LARGEST, q, &scale, NULL);
    for (int32_t n = 0; n < PLM_BLOCK; n++)
        if (a[n] != 0.0f) active[count++] = n;
    if (!count) return;
    for (int32_t o = 0; o < width; o++) {
        int32_t total = 0;
        for (int32_t k = 0; k < count; k++)
            total += unit_weight(w + 2 * (int64_t)width, width, active[k], o, format) * q[active[k]];
        y[o] += (float)total * (plm_half_at(w + 2 * (int64_t)o) * scale);
    }
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units, (void)next; /* integer groups are whole */
    units_int(w, width, a, y, PLM_Q8_0);
}
static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units, (void)next;
    units_int(w, width, a, y, PLM_Q4_0);
}

static inline void unit_rows(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y,
                             int format) {
    const int size = format == PLM_F32 ? 4 : 2;
    for (int32_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o++)
            *y++ = format < PLM_Q8_0 ? load_value(w + ((int64_t)n * width + o) * size, format)
                                     : plm_half_at(w + 2 * (int64_t)o) *
                                           (float)unit_weight(w + 2 * (int64_t)width, width, n, o, format);
}

static void unit_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows(w, width, first, last, units, y, PLM_F32);
}
static void unit_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows(w, width, first, last, units, y, PLM_F16);
}
static void unit_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows(w, width, first, last, units, y, PLM_BF16);
}
static void unit_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows(w, width, first, last, units, y, PLM_Q8_0);
}
static void unit_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows(w, width, first, last, units, y, PLM_Q4_0);
}

static void mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) {
    for (int32_t k = 0; k < count; k++)
        for (int32_t i = 0; i < n; i++) y[i] += a[k] * w[which[k] * n + i];
}

static int32_t keep_words(const float *x, int16_t *words, uint8_t *which, float *scale) {
    float square[PLM_BLOCK];
    int16_t q[PLM_BLOCK];
    int32_t count = 0;
    for (int32_t i = 0; i < PLM_BLOCK; i++) square[i] = plm_squared_relu(x[i]);
    plm_scalar.pack(square, PLM_BLOCK, PLM_LARGEST, q, scale, NULL);
    for (int32_t i = 0; i < PLM_BLOCK; i++)
        if (square[i] != 0.0f) words[count] = q[i], which[count++] = (uint8_t)i;
    if (count % 2) words[count] = 0, which[count++] = 0;
    return count;
}

static inline void unit_words(const uint8_t *w, int32_t width, int32_t first, int32_t last, int16_t *y, int format) {
    for (int32_t n = 0; n < PLM_BLOCK; n++)
        for (int32_t o = first; o < last; o++) *y++ = (int16_t)unit_weight(w + 2 * (int64_t)width, width, n, o, format);
}

static void unit_words_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int16_t *y) {
    unit_words(w, width, first, last, y, PLM_Q8_0);
}
static void unit_words_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int16_t *y) {
    unit_words(w, width, first, last, y, PLM_Q4_0);
}

static void mix_words(plm_fired_words f, int32_t tokens, const int16_t *w, const float *scales, int32_t n, float *y) {
    for (int32_t i = 0; i < tokens; f.words += f.count[i], f.which += f.count[i], i++)
        for (int32_t o = 0; o < n; o++) {
            int32_t sum = 0;
            for (int32_t k = 0; k < f.count[i]; k++) sum += f.words[k] * w[f.which[k] * n + o];
            y[f.token[i] * n + o] += (float)sum * (scales[o] * f.scale[i]);
        }
}

/* ---- panels: column by column, the 16 lanes of a column side by side ---- */

static void weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < PLM_TILE; r++) *panel++ = r < lanes ? x[r * lane + c * column] : 0;
}

static void panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    for (int64_t t = 0; t < rows; t++)
        for (int32_t b = 0; b < blocks; b++)
            for (int32_t r = 0; r < PLM_TILE; r++) {
                int32_t sum = 0;
                for (int32_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c++)
                    sum += panel[c * PLM_TILE + r] * x[t * x_stride + c];
                y[t * stride + r] += (float)sum * (scales[b * PLM_TILE + r] * x_scale[t * x_blocks + b]);
            }
}

static void weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) {
    for (int32_t i = 0; i < n; i++) {
        int32_t twice = a[i] * b[i] + (1 << 14);
        y[i] = (int16_t)((twice - (twice & 32767)) / 32768);
    }
}

/* ---- vectors ---- */

static void pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        float most = 0.0f, whole = 0.0f;
        for (int i = 0; i < PLM_BLOCK; i++) {
            float size = fabsf(x[i]);
            if (size > most) most = size;
            whole += x[i] - x[i]; /* NaN where a value is NaN or infinite, else 0 */
        }
        /* Below 1e-30 a block counts as zeros: 32767 / most would leave the range of a float. */
        float inverse = most > 1e-30f && whole == 0.0f ? most_q / most : 0.0f;
        int32_t total = 0;
        for (int i = 0; i < PLM_BLOCK; i++) {
            /* NaN and infinity must not reach the conversion: the scale carries them. */
            q[i] = inverse > 0.0f ? (int16_t)lrintf(fminf(fmaxf(x[i] * inverse, -most_q), most_q)) : 0;
            total += q[i];
        }
        scale[b] = most / most_q + whole;
        if (sum) sum[b] = total;
    }
}

static void pack_halves(const uint16_t *x, int32_t cols, float most, int16_t *q, float *scale) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++) {
        float wide[PLM_BLOCK];
        for (int i = 0; i < PLM_BLOCK; i++) wide[i] = plm_f16(x[b * PLM_BLOCK + i]);
        pack(wide, PLM_BLOCK, most, q + b * PLM_BLOCK, scale + b, NULL);
    }
}

static void exps(float *x, int32_t n) {
    for (int32_t i = 0; i < n; i++) x[i] = plm_exp(x[i]);
}

static float dot(const float *a, const float *b, int32_t n) {
    float y = 0.0f;
    for (int32_t i = 0; i < n; i++) y += a[i] * b[i];
    return y;
}

static void add(float a, const float *x, int32_t n, float *y) {
    for (int32_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void widen(const uint16_t *f16, int32_t n, float *y) {
    for (int32_t i = 0; i < n; i++) y[i] = plm_f16(f16[i]);
}

void plm_scalar_words(const int8_t *q, int32_t n, int16_t *y) {
    for (int32_t i = 0; i < n; i++) y[i] = q[i];
}

void plm_scalar_widen_bytes(const int8_t *q, const uint16_t *scales, int32_t blocks, float *y) {
    for (int32_t i = 0; i < blocks * PLM_BLOCK; i++) y[i] = plm_f16(scales[i / PLM_BLOCK]) * (float)q[i];
}

const plm_isa plm_scalar = {
    .name = "scalar",
    .tile = {tile_f32, tile_f16, tile_bf16, tile_q8_0, tile_q4_0, plm_scalar_tile_q4_k, plm_scalar_tile_q6_k},
    .row = {row_f32, row_f16, row_bf16, row_q8_0, row_q4_0, plm_scalar_row_q4_k, plm_scalar_row_q6_k},
    .add_rows = {add_f32, add_f16, add_bf16, add_q8_0, add_q4_0, plm_scalar_add_q4_k, plm_scalar_add_q6_k},
    .units = {units_f32, units_f16, units_bf16, units_q8_0, units_q4_0},
    .unit_rows = {unit_rows_f32, unit_rows_f16, unit_rows_bf16, unit_rows_q8_0, unit_rows_q4_0},
    .part_units = {[PLM_Q4_K] = plm_scalar_part_q4_k, [PLM_Q6_K] = plm_scalar_part_q6_k},
    .part_rows = {[PLM_Q4_K] = plm_scalar_part_rows_q4_k, [PLM_Q6_K] = plm_scalar_part_rows_q6_k},
    .mix = mix,
    .keep_words = keep_words,
    .unit_words = {[PLM_Q8_0] = unit_words_q8_0, [PLM_Q4_0] = unit_words_q4_0},
    .mix_words = mix_words,
    .pack = pack,
    .pack_halves = pack_halves,
    .weave = weave,
    .panel = panel,
    .weigh = weigh,
    .exps = exps,
    .dot = dot,
    .add = add,
    .widen = widen,
    .words = plm_scalar_words,
    .widen_bytes = plm_scalar_widen_bytes,
    .lanes = plm_scalar_lanes,
    .scores = plm_scalar_scores,
    .softmax = plm_scalar_softmax,
    .blend = plm_scalar_blend,
    .blend_words = plm_scalar_blend_words,
    .lay_bytes = plm_scalar_lay_bytes,
    .score_bytes = plm_scalar_score_bytes,
    .blend_bytes = plm_scalar_blend_bytes,
};
