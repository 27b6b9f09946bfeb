/* The kernels, once for all instruction sets: what is an item, what it reads, what it writes. */
#include "plm.h"
#include "plm_math.h"

enum { ROWS_PER_ITEM = 64, DOWN_ITEMS = 8, CONTEXT_BLOCK = 32 };

static size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
static int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }

/* Row t of the activations. */
static plm_vectors vector_at(const plm_vectors *x, int64_t t, int32_t cols) {
    int64_t blocks = cols / PLM_BLOCK;
    plm_vectors at = {x->f ? x->f + t * cols : NULL, NULL, NULL, NULL};
    if (x->q) at.q = x->q + t * cols, at.scale = x->scale + t * blocks, at.sum = x->sum + t * blocks;
    return at;
}

static int64_t row_bytes(int format, int32_t cols) {
    static const uint8_t block_bytes[PLM_FORMATS] = {4, 2, 2, 34, 18};
    return (int64_t)block_bytes[format] * (format >= PLM_Q8_0 ? cols / PLM_BLOCK : cols);
}

/* Bytes of 16 rows in TILE16X4; a float tile is padded to whole groups of 4 columns. */
static int64_t tile_bytes(int format, int32_t cols) {
    return PLM_TILE * row_bytes(format, format >= PLM_Q8_0 ? cols : (cols + 3) / 4 * 4);
}

/* ---- embedding ---- */

static size_t embed_items(const void *p) { return (size_t)((const plm_embed *)p)->step->n_tokens; }

static float tile_value(const uint8_t *tile, int format, int r, int32_t c) {
    int32_t i = c % PLM_BLOCK;
    if (format == PLM_Q8_0) {
        const uint8_t *block = tile + (int64_t)(c / PLM_BLOCK) * 544;
        return plm_f16((uint16_t)(block[2 * r] | block[2 * r + 1] << 8)) * (float)(int8_t)block[32 + i / 4 * 64 + 4 * r + i % 4];
    }
    if (format == PLM_Q4_0) {
        const uint8_t *block = tile + (int64_t)(c / PLM_BLOCK) * 288;
        uint8_t byte = block[32 + i % 16 / 4 * 64 + 4 * r + i % 4];
        return plm_f16((uint16_t)(block[2 * r] | block[2 * r + 1] << 8)) * (float)((i < 16 ? byte & 15 : byte >> 4) - 8);
    }
    int64_t at = (int64_t)(c / 4) * 64 + 4 * r + c % 4;
    if (format == PLM_F32) {
        float f;
        memcpy(&f, tile + at * 4, sizeof f);
        return f;
    }
    uint16_t half = (uint16_t)(tile[at * 2] | tile[at * 2 + 1] << 8);
    return format == PLM_F16 ? plm_f16(half) : plm_bf16(half);
}

static void embed_item(const void *p, size_t t, int thread) {
    const plm_embed *a = p;
    const plm_matrix *w = &a->w;
    int32_t id = a->ids[t];
    float *y = a->y + (int64_t)t * w->cols;
    (void)thread;
    if (w->arrangement == PLM_ROWS) {
        memset(y, 0, (size_t)w->cols * sizeof *y);
        a->isa->add_row[w->format](w->data + id * row_bytes(w->format, w->cols), w->cols, 1.0f, y);
        return;
    }
    const uint8_t *tile = w->data + id / PLM_TILE * tile_bytes(w->format, w->cols);
    for (int32_t c = 0; c < w->cols; c++) y[c] = tile_value(tile, w->format, id % PLM_TILE, c);
}

/* ---- norm and packing ---- */

/* y = x / sqrt(mean(x^2) + eps) * w; the mean in double, so that its order of summation does not matter. */
static void rms_norm(const float *x, const float *w, int32_t width, float eps, float *y) {
    double square = 0.0;
    for (int32_t i = 0; i < width; i++) square += (double)x[i] * x[i];
    float inverse = (float)(1.0 / sqrt(square / width + eps));
    for (int32_t i = 0; i < width; i++) y[i] = x[i] * inverse * w[i];
}

static size_t norm_items(const void *p) { return (size_t)((const plm_norm *)p)->step->n_tokens; }

static void norm_item(const void *p, size_t t, int thread) {
    const plm_norm *a = p;
    float *y = a->y + (int64_t)t * a->width;
    (void)thread;
    rms_norm(a->x + (a->step->first + (int64_t)t) * a->width, a->w, a->width, a->eps, y);
    plm_vectors at = vector_at(&a->packed, (int64_t)t, a->width);
    if (at.q) a->isa->pack(y, a->width, at.q, at.scale, at.sum);
}

static size_t pack_items(const void *p) { return (size_t)((const plm_pack *)p)->step->n_tokens; }

static void pack_item(const void *p, size_t t, int thread) {
    const plm_pack *a = p;
    float *x = a->x + (int64_t)t * a->width;
    (void)thread;
    if (a->square) /* a NaN is not <= 0: it flows on and shows */
        for (int32_t i = 0; i < a->width; i++) x[i] = x[i] <= 0.0f ? 0.0f : x[i] * x[i];
    plm_vectors at = vector_at(&a->packed, (int64_t)t, a->width);
    if (at.q) a->isa->pack(x, a->width, at.q, at.scale, at.sum);
}

/* ---- products ---- */

static size_t product_items(const void *p) { return ceil_div((size_t)((const plm_product *)p)->w.rows, ROWS_PER_ITEM); }

static void store(float *y, float value, int32_t add) { *y = add ? *y + value : value; }

static void product_item(const void *p, size_t item, int thread) {
    const plm_product *a = p;
    const plm_matrix *w = &a->w;
    int32_t first = (int32_t)item * ROWS_PER_ITEM, last = min32(w->rows, first + ROWS_PER_ITEM);
    int32_t tile = w->arrangement == PLM_TILE16X4 ? PLM_TILE : 1;
    int64_t bytes = tile == 1 ? row_bytes(w->format, w->cols) : tile_bytes(w->format, w->cols);
    (void)thread;
    for (int32_t r = first; r < last; r += tile) {
        const uint8_t *data = w->data + r / tile * bytes;
        for (int32_t t = 0; t < a->step->n_tokens; t++) {
            plm_vectors x = vector_at(&a->x, t, w->cols);
            float *y = a->y + (int64_t)t * w->rows + r, out[PLM_TILE];
            if (tile == 1)
                out[0] = a->isa->row[w->format](data, w->cols, &x);
            else
                a->isa->tile[w->format](data, w->cols, &x, out);
            for (int32_t i = 0; i < min32(tile, last - r); i++) store(y + i, out[i], a->add);
        }
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

static int64_t cache_row_bytes(int stored, int32_t rank, int32_t rope) {
    if (stored == PLM_CACHE_Q8_0) return rank + 2 * (rank / PLM_BLOCK + rope);
    return (int64_t)(rank + rope) * (stored == PLM_CACHE_F16 ? 2 : 4);
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
    uint8_t *to = (uint8_t *)a->cache + position * cache_row_bytes(a->stored, a->rank, a->rope);
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

/* ---- latent attention ---- */

/* A slice of the context as one thread leaves it: for each head the maximum of its scores, the sum of
 * exp(score - maximum) and the sum of the latents with those weights. */
size_t plm_partial_floats(int32_t heads, int32_t rank) { return (size_t)heads * ((size_t)rank + 2); }

/* What one thread needs: ATTEND a block of rows and its scores; UNABSORB a latent and its packed form; EXPAND the
 * head's weights, a block of rows, its keys, values and scores, and the running sums of the chunk. */
size_t plm_attention_scratch(int32_t heads, int32_t nope, int32_t rope, int32_t v_head, int32_t rank, int32_t chunk) {
    size_t block = (size_t)CONTEXT_BLOCK * (size_t)(rank + rope);
    size_t attend = block + (size_t)heads * CONTEXT_BLOCK;
    size_t expand = (size_t)(nope + v_head) * (size_t)rank + block + (size_t)CONTEXT_BLOCK * (size_t)(nope + v_head) +
                    CONTEXT_BLOCK + (size_t)chunk * (size_t)(v_head + 2);
    size_t unabsorb = (size_t)rank * 3;
    size_t most = attend > expand ? attend : expand;
    return ((most > unabsorb ? most : unabsorb) * sizeof(float) + 63) / 64 * 64;
}

static float *scratch_of(const plm_attention *a, int thread) {
    return (float *)(void *)(a->scratch + a->scratch_bytes * thread);
}

/* Cached rows first .. first + n as floats: where they lie, or widened into `room`. */
static const float *cached_rows(const plm_attention *a, int32_t first, int32_t n, float *room) {
    int32_t width = a->rank + a->rope, blocks = a->rank / PLM_BLOCK;
    int64_t bytes = cache_row_bytes(a->stored, a->rank, a->rope);
    const uint8_t *rows = (const uint8_t *)a->cache + first * bytes;
    if (a->stored == PLM_CACHE_F32) return (const float *)(const void *)rows;
    if (a->stored == PLM_CACHE_F16) {
        a->isa->widen((const uint16_t *)(const void *)rows, n * width, room);
        return room;
    }
    for (int32_t r = 0; r < n; r++, rows += bytes) {
        float *y = room + (int64_t)r * width;
        for (int32_t b = 0; b < blocks; b++) {
            float scale = plm_f16((uint16_t)(rows[a->rank + 2 * b] | rows[a->rank + 2 * b + 1] << 8));
            for (int i = 0; i < PLM_BLOCK; i++) y[b * PLM_BLOCK + i] = scale * (float)(int8_t)rows[b * PLM_BLOCK + i];
        }
        a->isa->widen((const uint16_t *)(const void *)(rows + a->rank + 2 * blocks), a->rope, y + a->rank);
    }
    return room;
}

/* Slices of one token's context; a function of the call alone, never of the threads. */
static int32_t slices_of(const plm_attention *a) { return a->step->n_tokens >= PLM_SLICES ? 1 : PLM_SLICES / a->step->n_tokens; }

static const uint8_t *head_row(const plm_attention *a, int32_t head, int32_t row) {
    return a->kv_b.data + (int64_t)(head * (a->nope + a->v_head) + row) * row_bytes(a->kv_b.format, a->rank);
}

static size_t absorb_items(const void *p) {
    const plm_attention *a = p;
    return (size_t)a->step->n_tokens * (size_t)a->heads;
}

static void absorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    const float *q = a->q + (int64_t)item * (a->nope + a->rope);
    float *y = a->q_latent + (int64_t)item * a->rank;
    int32_t head = (int32_t)(item % (size_t)a->heads);
    (void)thread;
    memset(y, 0, (size_t)a->rank * sizeof *y);
    for (int32_t i = 0; i < a->nope; i++) a->isa->add_row[a->kv_b.format](head_row(a, head, i), a->rank, q[i], y);
}

static size_t attend_items(const void *p) {
    const plm_attention *a = p;
    return (size_t)(a->step->n_tokens * slices_of(a));
}

/* Take one head's scores of a block into its running softmax; the scores become weights. Returns by how much the
 * earlier sums shrink. */
static float online_softmax(float *scores, int32_t n, float *most, float *sum) {
    float top = *most;
    for (int32_t r = 0; r < n; r++)
        if (!(scores[r] <= top)) top = scores[r]; /* a NaN becomes the maximum and shows */
    float shrink = *sum == 0.0f ? 0.0f : plm_exp(*most - top);
    float total = 0.0f;
    for (int32_t r = 0; r < n; r++) total += scores[r] = plm_exp(scores[r] - top);
    *sum = *sum * shrink + total;
    *most = top;
    return shrink;
}

static void attend_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)item / slices, slice = (int32_t)item % slices;
    int32_t n = a->step->n_past + t + 1, each = (n + slices - 1) / slices;
    int32_t first = min32(n, slice * each), last = min32(n, first + each), width = a->rank + a->rope;
    float *partial = a->partial + (int64_t)item * (int64_t)plm_partial_floats(a->heads, a->rank);
    float *most = partial, *sum = partial + a->heads, *latent = partial + 2 * a->heads;
    float *room = scratch_of(a, thread), *scores = room + (int64_t)CONTEXT_BLOCK * width;

    for (int32_t h = 0; h < a->heads; h++) most[h] = -INFINITY, sum[h] = 0.0f;
    memset(latent, 0, (size_t)a->heads * (size_t)a->rank * sizeof *latent);
    for (int32_t at = first; at < last; at += CONTEXT_BLOCK) {
        int32_t rows = min32(CONTEXT_BLOCK, last - at);
        const float *block = cached_rows(a, at, rows, room);
        for (int32_t h = 0; h < a->heads; h++) {
            const float *q_latent = a->q_latent + ((int64_t)t * a->heads + h) * a->rank;
            const float *q_rope = a->q + ((int64_t)t * a->heads + h) * (a->nope + a->rope) + a->nope;
            float *weights = scores + h * CONTEXT_BLOCK, *y = latent + (int64_t)h * a->rank;
            for (int32_t r = 0; r < rows; r++) {
                const float *row = block + (int64_t)r * width;
                weights[r] = a->scale * (a->isa->dot(q_latent, row, a->rank) + a->isa->dot(q_rope, row + a->rank, a->rope));
            }
            float shrink = online_softmax(weights, rows, &most[h], &sum[h]);
            if (shrink != 1.0f)
                for (int32_t i = 0; i < a->rank; i++) y[i] *= shrink;
            for (int32_t r = 0; r < rows; r++) a->isa->add(weights[r], block + (int64_t)r * width, a->rank, y);
        }
    }
}

static size_t unabsorb_items(const void *p) { return absorb_items(p); }

static void unabsorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)(item / (size_t)a->heads), h = (int32_t)(item % (size_t)a->heads);
    int64_t size = (int64_t)plm_partial_floats(a->heads, a->rank);
    const float *partial = a->partial + t * slices * size;
    float top = -INFINITY, sum = 0.0f, *latent = scratch_of(a, thread);

    for (int32_t s = 0; s < slices; s++)
        if (!(partial[s * size + h] <= top)) top = partial[s * size + h];
    memset(latent, 0, (size_t)a->rank * sizeof *latent);
    for (int32_t s = 0; s < slices; s++) {
        const float *slice = partial + s * size;
        if (slice[a->heads + h] == 0.0f) continue; /* no row fell into it */
        float weight = plm_exp(slice[h] - top);
        sum += weight * slice[a->heads + h];
        a->isa->add(weight, slice + 2 * a->heads + (int64_t)h * a->rank, a->rank, latent);
    }
    for (int32_t i = 0; i < a->rank; i++) latent[i] /= sum;

    plm_vectors x = {latent, NULL, NULL, NULL};
    if (a->kv_b.format >= PLM_Q8_0) {
        x.q = (int16_t *)(void *)(latent + a->rank);
        x.scale = latent + 2 * (int64_t)a->rank;
        x.sum = (int32_t *)(void *)(x.scale + a->rank / PLM_BLOCK);
        a->isa->pack(latent, a->rank, x.q, x.scale, x.sum);
    }
    float *y = a->y + ((int64_t)t * a->heads + h) * a->v_head;
    for (int32_t i = 0; i < a->v_head; i++) y[i] = a->isa->row[a->kv_b.format](head_row(a, h, a->nope + i), a->rank, &x);
}

static size_t expand_items(const void *p) { return (size_t)((const plm_attention *)p)->heads; }

static void expand_item(const void *p, size_t head, int thread) {
    const plm_attention *a = p;
    int32_t h = (int32_t)head, both = a->nope + a->v_head, width = a->rank + a->rope, T = a->step->n_tokens;
    int32_t n = a->step->n_past + T;
    float *w = scratch_of(a, thread);                    /* (nope + v_head, rank): the head's W_uk and W_uv */
    float *room = w + (int64_t)both * a->rank;           /* (block, rank + rope) */
    float *kv = room + (int64_t)CONTEXT_BLOCK * width;   /* (block, nope + v_head): keys and values */
    float *scores = kv + (int64_t)CONTEXT_BLOCK * both;  /* (block) */
    float *most = scores + CONTEXT_BLOCK, *sum = most + a->chunk, *out = sum + a->chunk; /* (T) (T) (T, v_head) */

    memset(w, 0, (size_t)both * (size_t)a->rank * sizeof *w);
    for (int32_t i = 0; i < both; i++) a->isa->add_row[a->kv_b.format](head_row(a, h, i), a->rank, 1.0f, w + (int64_t)i * a->rank);
    for (int32_t t = 0; t < T; t++) most[t] = -INFINITY, sum[t] = 0.0f;
    memset(out, 0, (size_t)T * (size_t)a->v_head * sizeof *out);

    for (int32_t at = 0; at < n; at += CONTEXT_BLOCK) {
        int32_t rows = min32(CONTEXT_BLOCK, n - at);
        const float *block = cached_rows(a, at, rows, room);
        for (int32_t r = 0; r < rows; r++)
            for (int32_t i = 0; i < both; i++)
                kv[r * both + i] = a->isa->dot(block + (int64_t)r * width, w + (int64_t)i * a->rank, a->rank);
        int32_t t0 = at > a->step->n_past ? at - a->step->n_past : 0; /* the first token that sees the block */
        for (int32_t t = t0; t < T; t++) {
            const float *q = a->q + ((int64_t)t * a->heads + h) * (a->nope + a->rope);
            int32_t seen = min32(rows, a->step->n_past + t + 1 - at);
            float *y = out + (int64_t)t * a->v_head;
            for (int32_t r = 0; r < seen; r++)
                scores[r] = a->scale * (a->isa->dot(q, kv + r * both, a->nope) +
                                        a->isa->dot(q + a->nope, block + (int64_t)r * width + a->rank, a->rope));
            float shrink = online_softmax(scores, seen, &most[t], &sum[t]);
            if (shrink != 1.0f)
                for (int32_t i = 0; i < a->v_head; i++) y[i] *= shrink;
            for (int32_t r = 0; r < seen; r++) a->isa->add(scores[r], kv + r * both + a->nope, a->v_head, y);
        }
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < a->v_head; i++)
            a->y[((int64_t)t * a->heads + h) * a->v_head + i] = out[(int64_t)t * a->v_head + i] / sum[t];
}

/* ---- the squared-ReLU pair ---- */

/* Where the group of units `first / 32` begins. Float formats have no scales: unit rows of `width` values. */
static const uint8_t *group_at(const plm_matrix *down, int32_t first) {
    int64_t width = down->rows;
    if (down->format < PLM_Q8_0) return down->data + first * row_bytes(down->format, down->rows);
    int64_t unit = down->format == PLM_Q8_0 ? width : width / 2;
    return down->data + first / PLM_BLOCK * (2 * width + PLM_BLOCK * unit);
}

static size_t fire_items(const void *p) {
    (void)p;
    return PLM_SLICES;
}

static void fire_item(const void *p, size_t slice, int thread) {
    const plm_fire *a = p;
    int32_t groups = (a->down.cols + PLM_BLOCK - 1) / PLM_BLOCK;
    int32_t first = (int32_t)((int64_t)groups * (int64_t)slice / PLM_SLICES);
    int32_t last = (int32_t)((int64_t)groups * ((int64_t)slice + 1) / PLM_SLICES);
    int64_t tile = tile_bytes(a->up.format, a->up.cols);
    float *y = a->partial + (int64_t)slice * a->down.rows, h[PLM_BLOCK];
    (void)thread;
    memset(y, 0, (size_t)a->down.rows * sizeof *y);
    for (int32_t g = first; g < last; g++) {
        int32_t unit = g * PLM_BLOCK, units = min32(PLM_BLOCK, a->down.cols - unit), active = 0;
        for (int32_t i = 0; i < units; i += PLM_TILE)
            a->isa->tile[a->up.format](a->up.data + (unit + i) / PLM_TILE * tile, a->up.cols, &a->x, h + i);
        for (int32_t i = 0; i < units; i++) { /* a NaN is not <= 0: it flows on and shows */
            h[i] = h[i] <= 0.0f ? 0.0f : h[i] * h[i];
            active += h[i] != 0.0f;
        }
        if (active) a->isa->units[a->down.format](group_at(&a->down, unit), a->down.rows, 0, a->down.rows, h, units, y);
    }
}

static size_t gather_items(const void *p) { return ceil_div((size_t)((const plm_gather *)p)->width, 256); }

static void gather_item(const void *p, size_t item, int thread) {
    const plm_gather *a = p;
    int32_t first = (int32_t)item * 256, last = min32(a->width, first + 256);
    (void)thread;
    for (int32_t s = 0; s < PLM_SLICES; s++)
        for (int32_t i = first; i < last; i++) a->y[i] += a->partial[(int64_t)s * a->width + i];
}

/* Outputs of one item of DOWN. Every item packs the activations again: an eighth of the outputs keeps that below the
 * work itself (64 outputs took 2.0 times as long at 2,048, prefill of 256 tokens, AVX2) and feeds 8 threads. */
static int32_t down_outputs(int32_t width) { return (width + DOWN_ITEMS * PLM_BLOCK - 1) / (DOWN_ITEMS * PLM_BLOCK) * PLM_BLOCK; }

static size_t down_items(const void *p) {
    int32_t width = ((const plm_down *)p)->down.rows;
    return ceil_div((size_t)width, (size_t)down_outputs(width));
}

static void down_item(const void *p, size_t item, int thread) {
    const plm_down *a = p;
    int32_t width = a->down.rows, cols = a->down.cols, each = down_outputs(width);
    int32_t first = (int32_t)item * each, last = min32(width, first + each);
    (void)thread;
    for (int32_t unit = 0; unit < cols; unit += PLM_BLOCK) {
        const uint8_t *group = group_at(&a->down, unit);
        for (int32_t t = 0; t < a->step->n_tokens; t++)
            a->isa->units[a->down.format](group, width, first, last, a->h + (int64_t)t * cols + unit,
                                          min32(PLM_BLOCK, cols - unit), a->y + (int64_t)t * width);
    }
}

/* ---- the table ---- */

plm_kernel plm_kernel_of(int op) {
    static const plm_kernel table[PLM_OPS] = {
        [PLM_OP_EMBED] = {embed_items, embed_item},       [PLM_OP_NORM] = {norm_items, norm_item},
        [PLM_OP_PACK] = {pack_items, pack_item},          [PLM_OP_PRODUCT] = {product_items, product_item},
        [PLM_OP_ROTATE] = {rotate_items, rotate_item},    [PLM_OP_REMEMBER] = {remember_items, remember_item},
        [PLM_OP_ABSORB] = {absorb_items, absorb_item},    [PLM_OP_ATTEND] = {attend_items, attend_item},
        [PLM_OP_UNABSORB] = {unabsorb_items, unabsorb_item}, [PLM_OP_EXPAND] = {expand_items, expand_item},
        [PLM_OP_FIRE] = {fire_items, fire_item},          [PLM_OP_GATHER] = {gather_items, gather_item},
        [PLM_OP_DOWN] = {down_items, down_item},
    };
    if (op >= PLM_OP_PEAK && op <= PLM_OP_LEVEL) return plm_screen_kernel_of(op);
    return op >= 0 && op < PLM_OPS ? table[op] : (plm_kernel){NULL, NULL};
}
