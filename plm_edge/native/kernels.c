/* The kernels, once for all instruction sets: what is an item, what it reads, what it writes. Here embedding, norm,
 * products and the cache; attend.c, expand.c, feed_forward.c and screen.c have the others. */
#include "superblocks.h"

enum { ROWS_AT_ONCE = 64, TOKENS_PER_TILE = 128 }; /* a tile is unpacked once for so many tokens */

/* ---- embedding ---- */

static size_t embed_items(const void *p) { return (size_t)((const plm_embed *)p)->step->n_tokens; }

static float tile_value(const uint8_t *tile, int format, int r, int32_t c) {
    int32_t i = c % PLM_BLOCK;
    if (format == PLM_Q8_0) {
        const uint8_t *block = tile + (int64_t)(c / PLM_BLOCK) * 544;
        return plm_half_at(block + 2 * r) * (float)(int8_t)block[32 + i / 4 * 64 + 4 * r + i % 4];
    }
    if (format == PLM_Q4_0) {
        const uint8_t *block = tile + (int64_t)(c / PLM_BLOCK) * 288;
        uint8_t byte = block[32 + i % 16 / 4 * 64 + 4 * r + i % 4];
        return plm_half_at(block + 2 * r) * (float)((i < 16 ? byte & 15 : byte >> 4) - 8);
    }
    int64_t at = (int64_t)(c / 4) * 64 + 4 * r + c % 4;
    if (format == PLM_F32) {
        float f;
        memcpy(&f, tile + at * 4, sizeof f);
        return f;
    }
    if (format == PLM_F16) return plm_half_at(tile + at * 2);
    return plm_bf16((uint16_t)(tile[at * 2] | tile[at * 2 + 1] << 8));
}

static void embed_item(const void *p, size_t t, int thread) {
    const plm_embed *a = p;
    const plm_matrix *w = &a->w;
    int32_t id = a->ids[t];
    float *y = a->y + (int64_t)t * w->cols;
    (void)thread;
    if (w->arrangement == PLM_ROWS) {
        memset(y, 0, (size_t)w->cols * sizeof *y);
        const float one = 1.0f;
        a->isa->add_rows[w->format](w->data + id * plm_row_bytes(w->format, w->cols), w->cols, &one, 1, y);
        return;
    }
    const uint8_t *tile = w->data + id / PLM_TILE * plm_tile_bytes(w->format, w->cols);
    if (plm_is_super(w->format)) {
        plm_embed_super(a->isa, w, tile, id % PLM_TILE, y);
        return;
    }
    for (int32_t c = 0; c < w->cols; c++) y[c] = tile_value(tile, w->format, id % PLM_TILE, c);
}

/* ---- norm and packing ---- */

/* y = x / sqrt(mean(x^2) + eps) * w; the mean in double, so that its order of summation hardly matters: eight sums at
 * a time, which a compiler may keep in vectors. */
static void rms_norm(const float *x, const float *w, int32_t width, float eps, float *y) {
    double squares[8] = {0}, square = 0.0;
    int32_t whole = width / 8 * 8;
    for (int32_t i = 0; i < whole; i += 8)
        for (int k = 0; k < 8; k++) squares[k] += (double)x[i + k] * x[i + k];
    for (int32_t i = whole; i < width; i++) square += (double)x[i] * x[i];
    for (int k = 0; k < 8; k++) square += squares[k];
    float inverse = (float)(1.0 / sqrt(square / width + eps));
    for (int32_t i = 0; i < width; i++) y[i] = x[i] * inverse * w[i];
}

/* y (cols) as the integers of x, if those are wanted. */
static void pack_row(const plm_isa *isa, const float *y, int32_t cols, int32_t most, const plm_vectors *x) {
    if (x->q) isa->pack(y, cols, (float)most, x->q, x->scale, x->sum);
    for (int32_t i = 0; x->bytes && i < cols; i++) x->bytes[i] = (int8_t)x->q[i];
}

static size_t norm_items(const void *p) { return (size_t)((const plm_norm *)p)->step->n_tokens; }

static void norm_item(const void *p, size_t t, int thread) {
    const plm_norm *a = p;
    float *y = a->y + (int64_t)t * a->width;
    (void)thread;
    rms_norm(a->x + (a->step->first + (int64_t)t) * a->width, a->w, a->width, a->eps, y);
    plm_vectors at = plm_vector_at(&a->packed, (int64_t)t, a->width);
    pack_row(a->isa, y, a->width, a->most, &at);
}

static size_t pack_items(const void *p) { return (size_t)((const plm_pack *)p)->step->n_tokens; }

static void pack_item(const void *p, size_t t, int thread) {
    const plm_pack *a = p;
    float *x = a->x + (int64_t)t * a->width;
    (void)thread;
    for (int32_t i = 0; a->square && i < a->width; i++) x[i] = plm_squared_relu(x[i]);
    plm_vectors at = plm_vector_at(&a->packed, (int64_t)t, a->width);
    pack_row(a->isa, x, a->width, a->most, &at);
}

/* ---- products ---- */

static int32_t pieces_of(const plm_product *a) { return (int32_t)plm_ceil_div((size_t)a->w.rows, ROWS_AT_ONCE); }

/* For how many threads its stretches are cut: several tokens are bound by arithmetic and go piece by piece. */
static int32_t sharers_of(const plm_product *a) { return a->step->n_tokens == 1 ? a->step->threads : pieces_of(a); }

static size_t product_items(const void *p) {
    const plm_product *a = p;
    return plm_stretches(pieces_of(a), sharers_of(a));
}

/* y[0..n) of one token, or added to it. */
static void store(float *y, const float *value, int32_t n, int32_t add) {
    for (int32_t i = 0; i < n; i++) y[i] = add ? y[i] + value[i] : value[i];
}

/* `next`: the row with which this thread will probably go on; past the end of w it says nothing. */
static void product_of_rows(const plm_product *a, int32_t first, int32_t last, int32_t next) {
    const plm_matrix *w = &a->w;
    int64_t bytes = plm_row_bytes(w->format, w->cols);
    if (a->step->n_tokens == 1) {
        float out[ROWS_AT_ONCE];
        const uint8_t *then = next + (last - first) <= w->rows ? w->data + next * bytes : NULL;
        plm_rows_of_one(a->isa, w->format, w->data + first * bytes, w->cols, &a->x, last - first, out, then);
        store(a->y + first, out, last - first, a->add);
        return;
    }
    for (int32_t r = first; r < last; r++)
        for (int32_t t = 0; t < a->step->n_tokens; t++) {
            plm_vectors x = plm_vector_at(&a->x, t, w->cols);
            float out = a->isa->row[w->format](w->data + r * bytes, w->cols, &x);
            store(a->y + (int64_t)t * w->rows + r, &out, 1, a->add);
        }
}

static plm_tile *tile_of(const plm_isa *isa, int format, const plm_vectors *x) {
    return x->bytes && isa->tile_of_bytes[format] ? isa->tile_of_bytes[format] : isa->tile[format];
}

void plm_tiles_of_one(const plm_isa *isa, const plm_matrix *w, int32_t first, int32_t last, const plm_vectors *x,
                      float *y, int32_t next, int32_t near) {
    const int64_t bytes = plm_tile_bytes(w->format, w->cols);
    const int32_t four = 4 * PLM_TILE;
    plm_tile *tile = tile_of(isa, w->format, x);
    int32_t r = first;
    /* From x->q, for activations of bytes too: they give the same bits, and memory is what a step waits for. */
    for (; isa->four_tiles[w->format] && r + four <= last; r += four, y += four) {
        int32_t then = r + 2 * four <= last ? r + four : next < w->rows ? next : r; /* nothing past the matrix */
        const uint8_t *behind = w->data + then / PLM_TILE * bytes;
        isa->four_tiles[w->format](w->data + r / PLM_TILE * bytes, w->cols, x, y, behind, near);
    }
    for (; r < last; r += PLM_TILE, y += PLM_TILE) {
        float out[PLM_TILE];
        tile(w->data + r / PLM_TILE * bytes, w->cols, x, 1, out, PLM_TILE);
        memcpy(y, out, (size_t)plm_min(PLM_TILE, last - r) * sizeof *y);
    }
}

void plm_tiles_of_several(const plm_isa *isa, const plm_matrix *w, int32_t first, int32_t last, const plm_vectors *x,
                          int32_t tokens, float *y, int32_t stride) {
    const int64_t bytes = plm_tile_bytes(w->format, w->cols);
    plm_tile *one = tile_of(isa, w->format, x), *two = x->bytes ? isa->two_of_bytes[w->format] : NULL;
    for (int32_t r = first, rows; r < last; r += rows, y += rows) {
        rows = two && r + PLM_TILE < last ? 2 * PLM_TILE : PLM_TILE;
        (rows == PLM_TILE ? one : two)(w->data + r / PLM_TILE * bytes, w->cols, x, tokens, y, stride);
    }
}

/* `next`: as in product_of_rows. */
static void product_of_tiles(const plm_product *a, int32_t first, int32_t last, int32_t next) {
    const plm_matrix *w = &a->w;
    _Alignas(PLM_LINE) float out[TOKENS_PER_TILE * ROWS_AT_ONCE];
    if (a->step->n_tokens == 1) {
        plm_tiles_of_one(a->isa, w, first, last, &a->x, out, next, a->step->near);
        store(a->y + first, out, last - first, a->add);
        return;
    }
    for (int32_t from = 0; from < a->step->n_tokens; from += TOKENS_PER_TILE) {
        int32_t tokens = plm_min(TOKENS_PER_TILE, a->step->n_tokens - from);
        plm_vectors x = plm_vector_at(&a->x, from, w->cols);
        plm_tiles_of_several(a->isa, w, first, last, &x, tokens, out, ROWS_AT_ONCE);
        for (int32_t t = 0; t < tokens; t++)
            store(a->y + (int64_t)(from + t) * w->rows + first, out + t * ROWS_AT_ONCE, last - first, a->add);
    }
}

static void product_item(const void *p, size_t item, int thread) {
    const plm_product *a = p;
    const int32_t pieces = pieces_of(a), sharers = sharers_of(a);
    const plm_stretch mine = plm_stretch_at(pieces, sharers, item);
    const plm_stretch then = plm_stretch_at(pieces, sharers, item + (size_t)sharers); /* threads take items in turn */
    (void)thread;
    for (int32_t piece = mine.first; piece < mine.end; piece++) {
        const int32_t first = piece * ROWS_AT_ONCE, last = plm_min(a->w.rows, first + ROWS_AT_ONCE);
        const int32_t next = (piece + 1 < mine.end ? piece + 1 : then.first) * ROWS_AT_ONCE;
        (a->w.arrangement == PLM_TILE16X4 ? product_of_tiles : product_of_rows)(a, first, last, next);
    }
}

/* ---- positions and the cache ---- */

static void rotate_pairs(float *x, const float *turns, int32_t rope) {
    for (int32_t i = 0; i < rope; i += 2) {
        float a = x[i], b = x[i + 1], c = turns[i], s = turns[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

static size_t rotate_items(const void *p) { return (size_t)((const plm_rotate *)p)->step->n_tokens; }

static void rotate_item(const void *p, size_t t, int thread) {
    const plm_rotate *a = p;
    int32_t width = a->nope + a->rope;
    const float *turns = a->turns + (a->step->n_past + (int64_t)t) * a->rope;
    (void)thread;
    for (int32_t h = 0; h < a->heads; h++)
        rotate_pairs(a->q + ((int64_t)t * a->heads + h) * width + a->nope, turns, a->rope);
}

static void store_halves(const float *x, int32_t n, uint8_t *to) {
    for (int32_t i = 0; i < n; i++) {
        uint16_t half = plm_to_f16(x[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

/* Blocks of 32 to int8 with the scale max|x| / 127, rounded to f16 before it divides. A NaN or an infinity makes
 * the scale NaN, so that it shows. */
static void store_latent_q8_0(const float *x, int32_t rank, uint8_t *to) {
    for (int32_t b = 0; b < rank / PLM_BLOCK; b++, x += PLM_BLOCK) {
        float most = 0.0f, whole = 0.0f;
        for (int i = 0; i < PLM_BLOCK; i++) {
            most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
            whole += x[i] - x[i]; /* NaN where a value is NaN or infinite, else 0 */
        }
        float scale = most / 127.0f + whole;
        store_halves(&scale, 1, to + rank + 2 * b);
        uint16_t half = plm_to_f16(scale);
        float inverse = plm_f16(half) > 0.0f ? 1.0f / plm_f16(half) : 0.0f;
        for (int i = 0; i < PLM_BLOCK; i++) {
            float q = x[i] * inverse; /* rounding the scale down can carry it past 127 */
            to[b * PLM_BLOCK + i] = (uint8_t)(int8_t)lrintf(q > 127.0f ? 127.0f : q >= -127.0f ? q : -127.0f);
        }
    }
}

static size_t remember_items(const void *p) { return (size_t)((const plm_remember *)p)->step->n_tokens; }

static void remember_item(const void *p, size_t t, int thread) {
    const plm_remember *a = p;
    int64_t position = a->step->n_past + (int64_t)t, width = a->rank + a->rope;
    float *row = a->kv_a + (int64_t)t * width;
    uint8_t *to = (uint8_t *)a->cache + position * plm_cache_row_bytes(a->stored, a->rank, a->rope);
    (void)thread;
    rms_norm(row, a->w, a->rank, a->eps, row);
    rotate_pairs(row + a->rank, a->turns + position * a->rope, a->rope);
    if (a->stored == PLM_CACHE_Q8_0) {
        store_latent_q8_0(row, a->rank, to);
        store_halves(row + a->rank, a->rope, to + a->rank + 2 * (a->rank / PLM_BLOCK));
    } else if (a->stored == PLM_CACHE_F16) {
        store_halves(row, (int32_t)width, to);
    } else {
        memcpy(to, row, (size_t)width * sizeof *row);
    }
}

/* ---- the table ---- */

plm_kernel plm_kernel_of(int op) {
    static const plm_kernel table[PLM_OPS] = {
        [PLM_OP_EMBED] = {embed_items, embed_item},
        [PLM_OP_NORM] = {norm_items, norm_item},
        [PLM_OP_PACK] = {pack_items, pack_item},
        [PLM_OP_PRODUCT] = {product_items, product_item},
        [PLM_OP_ROTATE] = {rotate_items, rotate_item},
        [PLM_OP_REMEMBER] = {remember_items, remember_item},
        [PLM_OP_ABSORB] = {plm_absorb_items, plm_absorb_item},
        [PLM_OP_ATTEND] = {plm_attend_items, plm_attend_item},
        [PLM_OP_UNABSORB] = {plm_unabsorb_items, plm_unabsorb_item},
        [PLM_OP_EXPAND] = {plm_expand_items, plm_expand_item},
        [PLM_OP_FIRE] = {plm_fire_items, plm_fire_item},
        [PLM_OP_GATHER] = {plm_gather_items, plm_gather_item},
        [PLM_OP_UP] = {plm_up_items, plm_up_item},
        [PLM_OP_DOWN] = {plm_down_items, plm_down_item},
    };
    if (op >= PLM_OP_PEAK && op <= PLM_OP_LEVEL) return plm_screen_kernel_of(op);
    return op >= 0 && op < PLM_OPS ? table[op] : (plm_kernel){NULL, NULL};
}
