/* Latent attention. ABSORB, ATTEND and UNABSORB read the cached rows alone; EXPAND builds keys and values from them,
 * head by head, which is less work for many tokens.
 *
 * A cache of halves or bytes meets the queries in 16-bit integers with a scale for each block of 32 (plm_isa.panel):
 * twice the products of floats in the same instructions. A cache of floats, and keys from float weights, are worked out
 * in floats. */
#include "kernels.h"

enum { CONTEXT_BLOCK = PLM_BLOCK }; /* cached rows taken together: their weights share a scale */

static int in_floats(const plm_attention *a) { return a->stored == PLM_CACHE_F32; }
static int expands_in_floats(const plm_attention *a) { return in_floats(a) || a->kv_b.format < PLM_Q8_0; }
static size_t panels_of(int32_t lanes) { return plm_ceil_div((size_t)lanes, PLM_TILE); }

/* A cached row as integers: the latent, then the rope key, each filled up to whole blocks with zeros. */
static int32_t latent_width(const plm_attention *a) { return plm_whole_blocks(a->rank); }
static int32_t row_width(const plm_attention *a) { return latent_width(a) + plm_whole_blocks(a->rope); }

/* A slice of the context as one thread leaves it: for each head the maximum of its scores, the sum of
 * exp(score - maximum) and the sum of the latents with those weights, filled up to whole blocks. */
size_t plm_partial_floats(int32_t heads, int32_t rank) { return (size_t)heads * ((size_t)plm_whole_blocks(rank) + 2); }

/* ---- what one thread needs ---- */

typedef struct {
    uint8_t *base; /* NULL: only count */
    size_t used;
} room;

static void *take(room *r, size_t count, size_t size) {
    void *at = r->base ? r->base + r->used : NULL;
    r->used += (count * size + 63) / 64 * 64;
    return at;
}

/* A block of cached rows as integers (32, row_width) with scales (32, row_width / 32), and room for a row or a
 * key as floats. */
typedef struct {
    int16_t *q;
    float *scale, *wide;
} row_block;

static row_block take_rows(room *r, const plm_attention *a) {
    size_t width = (size_t)row_width(a), nope = (size_t)plm_whole_blocks(a->nope);
    row_block rows;
    rows.q = take(r, CONTEXT_BLOCK * width, sizeof *rows.q);
    rows.scale = take(r, CONTEXT_BLOCK * width / PLM_BLOCK, sizeof *rows.scale);
    rows.wide = take(r, width > nope ? width : nope, sizeof *rows.wide);
    return rows;
}

typedef struct {
    row_block rows;
    int16_t *q, *panels;      /* the queries (heads, width), and as panels with the heads in the lanes */
    float *q_scale, *scales;  /* (heads, width / 32), (panels, width / 32, 16) */
    float *scores, *by_head;  /* (32, 16 * panels), (heads, 32) */
    int16_t *weight;          /* by_head as integers, scale by head */
    float *weight_scale;
    int16_t *row_weight;      /* scales of the rows' latents as integers (blocks, 32), scale by block */
    float *by_block, *row_weight_scale;
    int16_t *coefficient;     /* weight times row_weight for one block of the latent (heads, 32) */
    float *coefficient_scale;
    int16_t *values;          /* a panel: 16 values of 32 latents */
} attend_room;

static size_t take_attend(attend_room *w, uint8_t *base, const plm_attention *a) {
    room r = {base, 0};
    size_t heads = (size_t)a->heads, width = (size_t)row_width(a), blocks = width / PLM_BLOCK;
    size_t panels = panels_of(a->heads), latents = (size_t)latent_width(a) / PLM_BLOCK;
    w->rows = take_rows(&r, a);
    w->q = take(&r, heads * width, sizeof *w->q);
    w->panels = take(&r, panels * width * PLM_TILE, sizeof *w->panels);
    w->q_scale = take(&r, heads * blocks, sizeof *w->q_scale);
    w->scales = take(&r, panels * blocks * PLM_TILE, sizeof *w->scales);
    w->scores = take(&r, CONTEXT_BLOCK * panels * PLM_TILE, sizeof *w->scores);
    w->by_head = take(&r, heads * CONTEXT_BLOCK, sizeof *w->by_head);
    w->weight = take(&r, heads * CONTEXT_BLOCK, sizeof *w->weight);
    w->weight_scale = take(&r, heads, sizeof *w->weight_scale);
    w->row_weight = take(&r, latents * CONTEXT_BLOCK, sizeof *w->row_weight);
    w->by_block = take(&r, latents * CONTEXT_BLOCK, sizeof *w->by_block);
    w->row_weight_scale = take(&r, latents, sizeof *w->row_weight_scale);
    w->coefficient = take(&r, heads * CONTEXT_BLOCK, sizeof *w->coefficient);
    w->coefficient_scale = take(&r, heads, sizeof *w->coefficient_scale);
    w->values = take(&r, CONTEXT_BLOCK * PLM_TILE, sizeof *w->values);
    return r.used;
}

typedef struct {
    row_block rows;
    int16_t *w;              /* W_uk and W_uv of the head (nope + v_head, rank), then one row of 16 more as zeros */
    float *w_scale;          /* (nope + v_head, rank / 32) */
    int16_t *panels;         /* of w, 16 rows each */
    float *scales;
    float *kv;               /* (32, 16 * panels): keys and values of a block of rows */
    int16_t *q;              /* the queries (T, key width), scales (T, key width / 32) */
    float *q_scale;
    int16_t *key, *keys;     /* (32, key width), two panels with the rows in the lanes */
    float *key_scale, *keys_scale;
    int16_t *value, *values; /* (v_head, 32), panels with the values in the lanes */
    float *by_value, *value_scale, *values_scale;
    float *scores;           /* (T, 32) */
    int16_t *weight;         /* the same as integers, scale by token */
    float *weight_scale;
    float *most, *sum, *out; /* (T), (T), (T, 16 * panels of v_head) */
} expand_room;

static int32_t key_width(const plm_attention *a) { return plm_whole_blocks(a->nope) + plm_whole_blocks(a->rope); }

static size_t take_expand(expand_room *w, uint8_t *base, const plm_attention *a) {
    room r = {base, 0};
    size_t both = (size_t)(a->nope + a->v_head), rank = (size_t)latent_width(a), keys = (size_t)key_width(a);
    size_t chunk = (size_t)a->chunk, panels = panels_of(a->nope + a->v_head), v_panels = panels_of(a->v_head);
    w->rows = take_rows(&r, a);
    w->w = take(&r, both * rank, sizeof *w->w);
    w->w_scale = take(&r, both * rank / PLM_BLOCK, sizeof *w->w_scale);
    w->panels = take(&r, panels * PLM_TILE * rank, sizeof *w->panels);
    w->scales = take(&r, panels * PLM_TILE * rank / PLM_BLOCK, sizeof *w->scales);
    w->kv = take(&r, CONTEXT_BLOCK * panels * PLM_TILE, sizeof *w->kv);
    w->q = take(&r, chunk * keys, sizeof *w->q);
    w->q_scale = take(&r, chunk * keys / PLM_BLOCK, sizeof *w->q_scale);
    w->key = take(&r, CONTEXT_BLOCK * keys, sizeof *w->key);
    w->keys = take(&r, CONTEXT_BLOCK * keys, sizeof *w->keys);
    w->key_scale = take(&r, CONTEXT_BLOCK * keys / PLM_BLOCK, sizeof *w->key_scale);
    w->keys_scale = take(&r, CONTEXT_BLOCK * keys / PLM_BLOCK, sizeof *w->keys_scale);
    w->value = take(&r, (size_t)a->v_head * CONTEXT_BLOCK, sizeof *w->value);
    w->values = take(&r, v_panels * PLM_TILE * CONTEXT_BLOCK, sizeof *w->values);
    w->by_value = take(&r, (size_t)a->v_head * CONTEXT_BLOCK, sizeof *w->by_value);
    w->value_scale = take(&r, (size_t)a->v_head, sizeof *w->value_scale);
    w->values_scale = take(&r, v_panels * PLM_TILE, sizeof *w->values_scale);
    w->scores = take(&r, chunk * CONTEXT_BLOCK, sizeof *w->scores);
    w->weight = take(&r, chunk * CONTEXT_BLOCK, sizeof *w->weight);
    w->weight_scale = take(&r, chunk, sizeof *w->weight_scale);
    w->most = take(&r, chunk, sizeof *w->most);
    w->sum = take(&r, chunk, sizeof *w->sum);
    w->out = take(&r, chunk * v_panels * PLM_TILE, sizeof *w->out);
    return r.used;
}

/* In floats: ATTEND a row and its scores; EXPAND the head's weights, a block of rows, its keys, values and scores, and
 * the running sums of the chunk. UNABSORB a latent and its packed form. */
static size_t float_bytes(const plm_attention *a) {
    size_t rank = (size_t)a->rank, both = (size_t)(a->nope + a->v_head), block = CONTEXT_BLOCK * (rank + (size_t)a->rope);
    size_t attend = block + (size_t)a->heads * CONTEXT_BLOCK, unabsorb = rank * 3;
    size_t expand = both * rank + block + CONTEXT_BLOCK * both + CONTEXT_BLOCK + (size_t)a->chunk * (size_t)(a->v_head + 2);
    size_t most = attend > expand ? attend : expand;
    return (most > unabsorb ? most : unabsorb) * sizeof(float);
}

size_t plm_attention_scratch(int32_t heads, int32_t nope, int32_t rope, int32_t v_head, int32_t rank, int32_t chunk) {
    plm_attention a = {.heads = heads, .nope = nope, .rope = rope, .v_head = v_head, .rank = rank, .chunk = chunk};
    attend_room attend;
    expand_room expand;
    size_t most = float_bytes(&a), other = take_attend(&attend, NULL, &a);
    most = other > most ? other : most;
    other = take_expand(&expand, NULL, &a);
    return ((other > most ? other : most) + 63) / 64 * 64;
}

static uint8_t *scratch_of(const plm_attention *a, int thread) { return a->scratch + a->scratch_bytes * thread; }

/* ---- cached rows ---- */

static const uint8_t *cached_row(const plm_attention *a, int32_t at) {
    return (const uint8_t *)a->cache + at * plm_cache_row_bytes(a->stored, a->rank, a->rope);
}

/* A cached row of Q8_0: [rank int8 | rank / 32 halves, the scales | rope halves]. */
static void q8_0_to_floats(const plm_attention *a, const uint8_t *row, float *y) {
    for (int32_t b = 0; b < a->rank / PLM_BLOCK; b++) {
        float scale;
        a->isa->widen((const uint16_t *)(const void *)(row + a->rank + 2 * b), 1, &scale);
        for (int i = 0; i < PLM_BLOCK; i++) y[b * PLM_BLOCK + i] = scale * (float)(int8_t)row[b * PLM_BLOCK + i];
    }
    a->isa->widen((const uint16_t *)(const void *)(row + a->rank + 2 * (a->rank / PLM_BLOCK)), a->rope, y + a->rank);
}

/* Cached rows first .. first + n as floats (n, rank + rope): where they lie, or widened into `space`. */
static const float *float_rows(const plm_attention *a, int32_t first, int32_t n, float *space) {
    int32_t width = a->rank + a->rope;
    const uint8_t *rows = cached_row(a, first);
    if (a->stored == PLM_CACHE_F32) return (const float *)(const void *)rows;
    if (a->stored == PLM_CACHE_F16)
        a->isa->widen((const uint16_t *)(const void *)rows, n * width, space);
    else
        for (int32_t r = 0; r < n; r++) q8_0_to_floats(a, cached_row(a, first + r), space + (int64_t)r * width);
    return space;
}

/* x (n) filled up to whole blocks in `wide`, then as integers of PLM_PANEL. */
static void pack_part(const plm_isa *isa, const float *x, int32_t n, float *wide, int16_t *q, float *scale) {
    int32_t whole = plm_whole_blocks(n);
    memmove(wide, x, (size_t)n * sizeof *x);
    memset(wide + n, 0, (size_t)(whole - n) * sizeof *x);
    isa->pack(wide, whole, PLM_PANEL, q, scale, NULL);
}

/* n halves as integers, filled up to whole blocks. */
static void pack_halves(const plm_isa *isa, const uint8_t *x, int32_t n, float *wide, int16_t *q, float *scale) {
    const uint16_t *halves = (const uint16_t *)(const void *)x;
    int32_t whole = n / PLM_BLOCK * PLM_BLOCK;
    isa->pack_halves(halves, whole, PLM_PANEL, q, scale);
    if (whole == n) return;
    isa->widen(halves + whole, n - whole, wide);
    pack_part(isa, wide, n - whole, wide, q + whole, scale + whole / PLM_BLOCK);
}

/* Cached rows first .. first + n <= 32 as integers; the rest of the block is zeros. */
static void integer_rows(const plm_attention *a, int32_t first, int32_t n, const row_block *rows) {
    int32_t width = row_width(a), latents = latent_width(a), blocks = a->rank / PLM_BLOCK;
    for (int32_t r = 0; r < n; r++) {
        const uint8_t *row = cached_row(a, first + r), *rope = row + 2 * a->rank;
        int16_t *q = rows->q + r * width;
        float *scale = rows->scale + r * (width / PLM_BLOCK);
        if (a->stored == PLM_CACHE_Q8_0) {
            for (int32_t i = 0; i < a->rank; i++) q[i] = (int8_t)row[i];
            a->isa->widen((const uint16_t *)(const void *)(row + a->rank), blocks, scale);
            rope = row + a->rank + 2 * blocks;
        } else {
            pack_halves(a->isa, row, a->rank, rows->wide, q, scale);
        }
        pack_halves(a->isa, rope, a->rope, rows->wide, q + latents, scale + latents / PLM_BLOCK);
    }
    memset(rows->q + n * width, 0, (size_t)((CONTEXT_BLOCK - n) * width) * sizeof *rows->q);
    memset(rows->scale + n * (width / PLM_BLOCK), 0, (size_t)((CONTEXT_BLOCK - n) * (width / PLM_BLOCK)) * sizeof(float));
}

/* Panels of rows x (n, width) with scales (n, width / 32): 16 rows in the lanes of each. */
static void weave_rows(const plm_isa *isa, const int16_t *x, const float *x_scale, int32_t n, int32_t width,
                       int16_t *panels, float *scales) {
    int32_t blocks = width / PLM_BLOCK;
    for (int32_t at = 0; at < n; at += PLM_TILE, panels += width * PLM_TILE, scales += blocks * PLM_TILE) {
        int32_t lanes = plm_min(PLM_TILE, n - at);
        isa->weave(x + (int64_t)at * width, width, 1, lanes, width, panels);
        for (int32_t b = 0; b < blocks; b++)
            for (int32_t r = 0; r < PLM_TILE; r++)
                scales[b * PLM_TILE + r] = r < lanes ? x_scale[(at + r) * blocks + b] : 0.0f;
    }
}

/* Take one query's scores of a block into its running softmax; the scores become weights. Returns by how much the
 * earlier sums shrink. */
static float online_softmax(const plm_isa *isa, float *scores, int32_t n, float *most, float *sum) {
    float top = *most;
    for (int32_t r = 0; r < n; r++)
        if (!(scores[r] <= top)) top = scores[r]; /* a NaN shows in its own weight */
    float shrink = *sum == 0.0f ? 0.0f : plm_exp(*most - top);
    float total = 0.0f;
    for (int32_t r = 0; r < n; r++) scores[r] -= top;
    isa->exps(scores, n);
    for (int32_t r = 0; r < n; r++) total += scores[r];
    *sum = *sum * shrink + total;
    *most = top;
    return shrink;
}

static void scale_by(float *y, int32_t n, float factor) {
    if (factor == 1.0f) return;
    for (int32_t i = 0; i < n; i++) y[i] *= factor;
}

/* ---- absorbed ---- */

static const uint8_t *head_row(const plm_attention *a, int32_t head, int32_t row) {
    return a->kv_b.data + (int64_t)(head * (a->nope + a->v_head) + row) * plm_row_bytes(a->kv_b.format, a->rank);
}

size_t plm_absorb_items(const void *p) {
    const plm_attention *a = p;
    return (size_t)a->step->n_tokens * (size_t)a->heads;
}

void plm_absorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    const float *q = a->q + (int64_t)item * (a->nope + a->rope);
    float *y = a->q_latent + (int64_t)item * a->rank;
    (void)thread;
    memset(y, 0, (size_t)a->rank * sizeof *y);
    a->isa->add_rows[a->kv_b.format](head_row(a, (int32_t)(item % (size_t)a->heads), 0), a->rank, q, a->nope, y);
}

/* Slices of one token's context; a function of the call alone, never of the threads. */
static int32_t slices_of(const plm_attention *a) { return a->step->n_tokens <= PLM_FEW ? PLM_SLICES : 1; }

static float *partial_of(const plm_attention *a, int32_t t, int32_t slice) {
    return a->partial + (t * slices_of(a) + slice) * (int64_t)plm_partial_floats(a->heads, a->rank);
}

size_t plm_attend_items(const void *p) {
    const plm_attention *a = p;
    return (size_t)(a->step->n_tokens * slices_of(a));
}

/* The running softmax of one token over a slice of its context. */
typedef struct {
    const plm_attention *a;
    const float *q, *q_latent; /* (heads, nope + rope), (heads, rank) */
    int32_t first, last;       /* rows */
    float *most, *sum, *latent; /* (heads), (heads), (heads, latent_width) */
} slice;

static void attend_in_floats(const slice *s, float *space) {
    const plm_attention *a = s->a;
    int32_t width = a->rank + a->rope, padded = latent_width(a);
    float *scores = space + (int64_t)CONTEXT_BLOCK * width;
    for (int32_t at = s->first; at < s->last; at += CONTEXT_BLOCK) {
        int32_t rows = plm_min(CONTEXT_BLOCK, s->last - at);
        const float *block = float_rows(a, at, rows, space);
        for (int32_t h = 0; h < a->heads; h++) {
            const float *q_latent = s->q_latent + (int64_t)h * a->rank;
            const float *q_rope = s->q + (int64_t)h * (a->nope + a->rope) + a->nope;
            float *weights = scores + h * CONTEXT_BLOCK, *y = s->latent + (int64_t)h * padded;
            for (int32_t r = 0; r < rows; r++) {
                const float *row = block + (int64_t)r * width;
                weights[r] = a->scale * (a->isa->dot(q_latent, row, a->rank) + a->isa->dot(q_rope, row + a->rank, a->rope));
            }
            scale_by(y, a->rank, online_softmax(a->isa, weights, rows, &s->most[h], &s->sum[h]));
            for (int32_t r = 0; r < rows; r++) a->isa->add(weights[r], block + (int64_t)r * width, a->rank, y);
        }
    }
}

/* The queries as panels with the heads in the lanes; the scale of the scores is in their scales. */
static void weave_queries(const slice *s, const attend_room *w) {
    const plm_attention *a = s->a;
    int32_t width = row_width(a), latents = latent_width(a), blocks = width / PLM_BLOCK;
    for (int32_t h = 0; h < a->heads; h++) {
        int16_t *q = w->q + (int64_t)h * width;
        float *scale = w->q_scale + h * blocks;
        pack_part(a->isa, s->q_latent + (int64_t)h * a->rank, a->rank, w->rows.wide, q, scale);
        pack_part(a->isa, s->q + (int64_t)h * (a->nope + a->rope) + a->nope, a->rope, w->rows.wide, q + latents,
                  scale + latents / PLM_BLOCK);
    }
    for (int32_t i = 0; i < a->heads * blocks; i++) w->q_scale[i] *= a->scale;
    weave_rows(a->isa, w->q, w->q_scale, a->heads, width, w->panels, w->scales);
}

/* The weights of a block as integers by head, and the scales of its latents as integers by block of the latent. */
static void pack_weights(const slice *s, int32_t n, const attend_room *w) {
    const plm_attention *a = s->a;
    int32_t blocks = latent_width(a) / PLM_BLOCK, stride = row_width(a) / PLM_BLOCK;
    for (int32_t h = 0; h < a->heads; h++)
        memset(w->by_head + h * CONTEXT_BLOCK + n, 0, (size_t)(CONTEXT_BLOCK - n) * sizeof(float));
    a->isa->pack(w->by_head, a->heads * CONTEXT_BLOCK, PLM_LARGEST, w->weight, w->weight_scale, NULL);
    for (int32_t b = 0; b < blocks; b++)
        for (int32_t r = 0; r < CONTEXT_BLOCK; r++) w->by_block[b * CONTEXT_BLOCK + r] = w->rows.scale[r * stride + b];
    a->isa->pack(w->by_block, blocks * CONTEXT_BLOCK, PLM_PANEL, w->row_weight, w->row_weight_scale, NULL);
}

/* latent (heads, padded) += the latents of the block with their weights. The scale of a latent's block belongs to its
 * row, so it goes into the weights: one product of integers for each block of the latent. */
static void add_latents(const slice *s, const attend_room *w) {
    static const float ones[PLM_TILE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const plm_attention *a = s->a;
    int32_t padded = latent_width(a), width = row_width(a);
    for (int32_t b = 0; b < padded / PLM_BLOCK; b++) {
        for (int32_t h = 0; h < a->heads; h++) {
            a->isa->weigh(w->weight + h * CONTEXT_BLOCK, w->row_weight + b * CONTEXT_BLOCK, CONTEXT_BLOCK,
                          w->coefficient + h * CONTEXT_BLOCK);
            w->coefficient_scale[h] = w->weight_scale[h] * w->row_weight_scale[b] * 0x1p15f;
        }
        for (int32_t i = b * PLM_BLOCK; i < (b + 1) * PLM_BLOCK; i += PLM_TILE) {
            a->isa->weave(w->rows.q + i, 1, width, PLM_TILE, CONTEXT_BLOCK, w->values);
            a->isa->panel(w->values, ones, 1, w->coefficient, CONTEXT_BLOCK, w->coefficient_scale, 1, a->heads,
                          s->latent + i, padded);
        }
    }
}

static void attend_in_integers(const slice *s, uint8_t *scratch) {
    const plm_attention *a = s->a;
    attend_room w;
    take_attend(&w, scratch, a);
    int32_t width = row_width(a), blocks = width / PLM_BLOCK, lanes = (int32_t)panels_of(a->heads) * PLM_TILE;
    weave_queries(s, &w);
    for (int32_t at = s->first; at < s->last; at += CONTEXT_BLOCK) {
        int32_t n = plm_min(CONTEXT_BLOCK, s->last - at);
        integer_rows(a, at, n, &w.rows);
        memset(w.scores, 0, (size_t)(n * lanes) * sizeof *w.scores);
        for (int32_t g = 0; g < lanes / PLM_TILE; g++)
            a->isa->panel(w.panels + (int64_t)g * width * PLM_TILE, w.scales + g * blocks * PLM_TILE, blocks, w.rows.q, width,
                          w.rows.scale, blocks, n, w.scores + g * PLM_TILE, lanes);
        for (int32_t h = 0; h < a->heads; h++) {
            float *weights = w.by_head + h * CONTEXT_BLOCK;
            for (int32_t r = 0; r < n; r++) weights[r] = w.scores[r * lanes + h];
            float shrink = online_softmax(a->isa, weights, n, &s->most[h], &s->sum[h]);
            scale_by(s->latent + (int64_t)h * latent_width(a), latent_width(a), shrink);
        }
        pack_weights(s, n, &w);
        add_latents(s, &w);
    }
}

void plm_attend_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)item / slices, part = (int32_t)item % slices;
    int32_t n = a->step->n_past + t + 1, each = plm_whole_blocks((n + slices - 1) / slices);
    float *partial = partial_of(a, t, part);
    slice s = {a, a->q + (int64_t)t * a->heads * (a->nope + a->rope), a->q_latent + (int64_t)t * a->heads * a->rank,
               plm_min(n, part * each), plm_min(n, (part + 1) * each), partial, partial + a->heads, partial + 2 * a->heads};
    for (int32_t h = 0; h < a->heads; h++) s.most[h] = -INFINITY, s.sum[h] = 0.0f;
    if (s.first == s.last) return;
    memset(s.latent, 0, (size_t)a->heads * (size_t)latent_width(a) * sizeof *s.latent);
    if (in_floats(a))
        attend_in_floats(&s, (float *)(void *)scratch_of(a, thread));
    else
        attend_in_integers(&s, scratch_of(a, thread));
}

size_t plm_unabsorb_items(const void *p) { return plm_absorb_items(p); }

void plm_unabsorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)(item / (size_t)a->heads), h = (int32_t)(item % (size_t)a->heads);
    float top = -INFINITY, sum = 0.0f, *latent = (float *)(void *)scratch_of(a, thread);

    for (int32_t s = 0; s < slices; s++)
        if (!(partial_of(a, t, s)[h] <= top)) top = partial_of(a, t, s)[h];
    memset(latent, 0, (size_t)a->rank * sizeof *latent);
    for (int32_t s = 0; s < slices; s++) {
        const float *slice = partial_of(a, t, s);
        if (slice[a->heads + h] == 0.0f) continue; /* no row fell into it */
        float weight = plm_exp(slice[h] - top);
        sum += weight * slice[a->heads + h];
        a->isa->add(weight, slice + 2 * a->heads + (int64_t)h * latent_width(a), a->rank, latent);
    }
    for (int32_t i = 0; i < a->rank; i++) latent[i] /= sum;

    plm_vectors x = {latent, NULL, NULL, NULL};
    if (a->kv_b.format >= PLM_Q8_0) {
        x.q = (int16_t *)(void *)(latent + a->rank);
        x.scale = latent + 2 * (int64_t)a->rank;
        x.sum = (int32_t *)(void *)(x.scale + a->rank / PLM_BLOCK);
        a->isa->pack(latent, a->rank, PLM_LARGEST, x.q, x.scale, x.sum);
    }
    float *y = a->y + ((int64_t)t * a->heads + h) * a->v_head;
    for (int32_t i = 0; i < a->v_head; i++) y[i] = a->isa->row[a->kv_b.format](head_row(a, h, a->nope + i), a->rank, &x);
}

/* ---- expanded ---- */

size_t plm_expand_items(const void *p) { return (size_t)((const plm_attention *)p)->heads; }

static void expand_in_floats(const plm_attention *a, int32_t h, float *space) {
    int32_t both = a->nope + a->v_head, width = a->rank + a->rope, T = a->step->n_tokens, n = a->step->n_past + T;
    float *w = space;                                   /* (nope + v_head, rank): the head's W_uk and W_uv */
    float *rows_space = w + (int64_t)both * a->rank;    /* (block, rank + rope) */
    float *kv = rows_space + (int64_t)CONTEXT_BLOCK * width; /* (block, nope + v_head): keys and values */
    float *scores = kv + (int64_t)CONTEXT_BLOCK * both; /* (block) */
    float *most = scores + CONTEXT_BLOCK, *sum = most + a->chunk, *out = sum + a->chunk; /* (T) (T) (T, v_head) */
    const float one = 1.0f;

    memset(w, 0, (size_t)both * (size_t)a->rank * sizeof *w);
    for (int32_t i = 0; i < both; i++) a->isa->add_rows[a->kv_b.format](head_row(a, h, i), a->rank, &one, 1, w + (int64_t)i * a->rank);
    for (int32_t t = 0; t < T; t++) most[t] = -INFINITY, sum[t] = 0.0f;
    memset(out, 0, (size_t)T * (size_t)a->v_head * sizeof *out);

    for (int32_t at = 0; at < n; at += CONTEXT_BLOCK) {
        int32_t rows = plm_min(CONTEXT_BLOCK, n - at);
        const float *block = float_rows(a, at, rows, rows_space);
        for (int32_t r = 0; r < rows; r++)
            for (int32_t i = 0; i < both; i++)
                kv[r * both + i] = a->isa->dot(block + (int64_t)r * width, w + (int64_t)i * a->rank, a->rank);
        int32_t t0 = at > a->step->n_past ? at - a->step->n_past : 0; /* the first token that sees the block */
        for (int32_t t = t0; t < T; t++) {
            const float *q = a->q + ((int64_t)t * a->heads + h) * (a->nope + a->rope);
            int32_t seen = plm_min(rows, a->step->n_past + t + 1 - at);
            float *y = out + (int64_t)t * a->v_head;
            for (int32_t r = 0; r < seen; r++)
                scores[r] = a->scale * (a->isa->dot(q, kv + r * both, a->nope) +
                                        a->isa->dot(q + a->nope, block + (int64_t)r * width + a->rank, a->rope));
            scale_by(y, a->v_head, online_softmax(a->isa, scores, seen, &most[t], &sum[t]));
            for (int32_t r = 0; r < seen; r++) a->isa->add(scores[r], kv + r * both + a->nope, a->v_head, y);
        }
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < a->v_head; i++)
            a->y[((int64_t)t * a->heads + h) * a->v_head + i] = out[(int64_t)t * a->v_head + i] / sum[t];
}

/* A plain row of an integer format as integers and scales. */
static void row_to_integers(const plm_isa *isa, const uint8_t *w, int format, int32_t cols, int16_t *q, float *scale) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, q += PLM_BLOCK) {
        isa->widen((const uint16_t *)(const void *)w, 1, scale + b);
        w += 2;
        if (format == PLM_Q8_0) {
            for (int i = 0; i < PLM_BLOCK; i++) q[i] = (int8_t)w[i];
            w += PLM_BLOCK;
        } else {
            for (int i = 0; i < PLM_BLOCK / 2; i++) q[i] = (int16_t)((w[i] & 15) - 8), q[i + PLM_BLOCK / 2] = (int16_t)((w[i] >> 4) - 8);
            w += PLM_BLOCK / 2;
        }
    }
}

/* The head's weights as panels, and the queries of all tokens as integers. */
static void begin_expand(const plm_attention *a, int32_t h, const expand_room *w) {
    int32_t both = a->nope + a->v_head, rank = a->rank, T = a->step->n_tokens, keys = key_width(a);
    int32_t nope = plm_whole_blocks(a->nope);
    for (int32_t i = 0; i < both; i++)
        row_to_integers(a->isa, head_row(a, h, i), a->kv_b.format, rank, w->w + (int64_t)i * rank, w->w_scale + i * (rank / PLM_BLOCK));
    weave_rows(a->isa, w->w, w->w_scale, both, rank, w->panels, w->scales);
    for (int32_t t = 0; t < T; t++) {
        const float *q = a->q + ((int64_t)t * a->heads + h) * (a->nope + a->rope);
        int16_t *to = w->q + (int64_t)t * keys;
        float *scale = w->q_scale + (int64_t)t * (keys / PLM_BLOCK);
        pack_part(a->isa, q, a->nope, w->kv, to, scale);
        pack_part(a->isa, q + a->nope, a->rope, w->kv, to + nope, scale + nope / PLM_BLOCK);
        for (int32_t b = 0; b < keys / PLM_BLOCK; b++) scale[b] *= a->scale;
        w->most[t] = -INFINITY, w->sum[t] = 0.0f;
    }
}

/* Keys and values of a block of n rows, the keys as panels with the rows in the lanes, the values as panels with the
 * values in the lanes and the rows as columns. */
static void expand_rows(const plm_attention *a, int32_t n, const expand_room *w) {
    int32_t panels = (int32_t)panels_of(a->nope + a->v_head), stride = panels * PLM_TILE, rank = latent_width(a);
    int32_t nope = plm_whole_blocks(a->nope), rope = plm_whole_blocks(a->rope), keys = key_width(a), width = row_width(a);
    memset(w->kv, 0, (size_t)(CONTEXT_BLOCK * stride) * sizeof *w->kv);
    for (int32_t g = 0; g < panels; g++)
        a->isa->panel(w->panels + (int64_t)g * PLM_TILE * rank, w->scales + g * PLM_TILE * (rank / PLM_BLOCK), rank / PLM_BLOCK,
                      w->rows.q, width, w->rows.scale, width / PLM_BLOCK, n, w->kv + g * PLM_TILE, stride);
    for (int32_t i = 0; i < a->v_head; i++)
        for (int32_t r = 0; r < CONTEXT_BLOCK; r++) w->by_value[i * CONTEXT_BLOCK + r] = w->kv[r * stride + a->nope + i];
    a->isa->pack(w->by_value, a->v_head * CONTEXT_BLOCK, PLM_PANEL, w->value, w->value_scale, NULL);
    weave_rows(a->isa, w->value, w->value_scale, a->v_head, CONTEXT_BLOCK, w->values, w->values_scale);
    for (int32_t r = 0; r < CONTEXT_BLOCK; r++) {
        int16_t *key = w->key + r * keys;
        float *scale = w->key_scale + r * (keys / PLM_BLOCK);
        pack_part(a->isa, w->kv + r * stride, a->nope, w->rows.wide, key, scale);
        memcpy(key + nope, w->rows.q + r * width + rank, (size_t)rope * sizeof *key);
        memcpy(scale + nope / PLM_BLOCK, w->rows.scale + (r * width + rank) / PLM_BLOCK, (size_t)(rope / PLM_BLOCK) * sizeof *scale);
    }
    weave_rows(a->isa, w->key, w->key_scale, CONTEXT_BLOCK, keys, w->keys, w->keys_scale);
}

static void expand_in_integers(const plm_attention *a, int32_t h, uint8_t *scratch) {
    expand_room w;
    take_expand(&w, scratch, a);
    int32_t T = a->step->n_tokens, n = a->step->n_past + T, keys = key_width(a), blocks = keys / PLM_BLOCK;
    int32_t wide = (int32_t)panels_of(a->v_head) * PLM_TILE;
    begin_expand(a, h, &w);
    memset(w.out, 0, (size_t)(T * wide) * sizeof *w.out);
    for (int32_t at = 0; at < n; at += CONTEXT_BLOCK) {
        int32_t rows = plm_min(CONTEXT_BLOCK, n - at);
        int32_t t0 = at > a->step->n_past ? at - a->step->n_past : 0; /* the first token that sees the block */
        integer_rows(a, at, rows, &w.rows);
        expand_rows(a, rows, &w);
        memset(w.scores, 0, (size_t)(T * CONTEXT_BLOCK) * sizeof *w.scores);
        for (int32_t g = 0; g < CONTEXT_BLOCK / PLM_TILE; g++)
            a->isa->panel(w.keys + g * PLM_TILE * keys, w.keys_scale + g * PLM_TILE * blocks, blocks, w.q + (int64_t)t0 * keys, keys,
                          w.q_scale + t0 * blocks, blocks, T - t0, w.scores + t0 * CONTEXT_BLOCK + g * PLM_TILE, CONTEXT_BLOCK);
        for (int32_t t = t0; t < T; t++) {
            float *scores = w.scores + t * CONTEXT_BLOCK;
            int32_t seen = plm_min(rows, a->step->n_past + t + 1 - at);
            scale_by(w.out + (int64_t)t * wide, a->v_head, online_softmax(a->isa, scores, seen, &w.most[t], &w.sum[t]));
            memset(scores + seen, 0, (size_t)(CONTEXT_BLOCK - seen) * sizeof *scores);
        }
        a->isa->pack(w.scores + t0 * CONTEXT_BLOCK, (T - t0) * CONTEXT_BLOCK, PLM_PANEL, w.weight, w.weight_scale, NULL);
        for (int32_t g = 0; g < wide / PLM_TILE; g++)
            a->isa->panel(w.values + g * PLM_TILE * CONTEXT_BLOCK, w.values_scale + g * PLM_TILE, 1, w.weight, CONTEXT_BLOCK,
                          w.weight_scale, 1, T - t0, w.out + (int64_t)t0 * wide + g * PLM_TILE, wide);
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < a->v_head; i++)
            a->y[((int64_t)t * a->heads + h) * a->v_head + i] = w.out[(int64_t)t * wide + i] / w.sum[t];
}

void plm_expand_item(const void *p, size_t head, int thread) {
    const plm_attention *a = p;
    if (expands_in_floats(a))
        expand_in_floats(a, (int32_t)head, (float *)(void *)scratch_of(a, thread));
    else
        expand_in_integers(a, (int32_t)head, scratch_of(a, thread));
}
