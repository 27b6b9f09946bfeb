/* Latent attention from the cached rows alone: ABSORB, ATTEND, UNABSORB.
 *
 * A cache of halves meets the queries in 16-bit integers with a scale for each block of 32 (plm_isa.panel), a cache of
 * floats in floats, a cache of bytes in bytes (attend_bytes.c) or, where a set has nothing for them, as halves do. */
#include "attention.h"

/* Room of ATTEND in floats, with the heads in lanes, 16 a group. */
typedef struct {
    float *queries;               /* (groups, rank + rope, 16) */
    float *weights;               /* (32, 16) */
    float *most, *sum, *shrink;   /* (groups, 16), (groups, 16), (16) */
} float_room;

static size_t take_floats(float_room *w, uint8_t *base, const plm_attention *a) {
    plm_room r = {base, 0};
    size_t width = (size_t)a->rank + (size_t)a->rope, groups = plm_panels_of(a->heads);
    w->queries = plm_take(&r, groups * width * PLM_TILE, sizeof(float));
    w->weights = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof(float));
    w->most = plm_take(&r, groups * PLM_TILE, sizeof(float));
    w->sum = plm_take(&r, groups * PLM_TILE, sizeof(float));
    w->shrink = plm_take(&r, PLM_TILE, sizeof(float));
    return r.used;
}

typedef struct {
    plm_row_block rows;
    int16_t *panels;          /* the queries as panels with the heads in the lanes */
    float *scales;            /* (panels, width / 32, 16) */
    float *scores, *by_head;  /* (panels, 32, 16), (heads, 32) */
    float *most, *sum, *shrink; /* (panels, 16), (panels, 16), (16) */
    int16_t *weight;          /* by_head as integers, scale by head */
    float *weight_scale;
    int16_t *row_weight;      /* scales of the rows' latents as integers (blocks, 32), scale by block */
    float *by_block, *row_weight_scale;
    int16_t *coefficient;     /* weight times row_weight for one block of the latent (heads, 32) */
    float *coefficient_scale;
    int16_t *values;          /* a panel: 16 values of 32 latents */
} attend_room;

static size_t take_attend(attend_room *w, uint8_t *base, const plm_attention *a) {
    plm_room r = {base, 0};
    size_t heads = (size_t)a->heads, width = (size_t)plm_row_width(a), blocks = width / PLM_BLOCK;
    size_t panels = plm_panels_of(a->heads), latents = (size_t)plm_latent_width(a) / PLM_BLOCK;
    w->rows = plm_take_rows(&r, a);
    w->panels = plm_take(&r, panels * width * PLM_TILE, sizeof *w->panels);
    w->scales = plm_take(&r, panels * blocks * PLM_TILE, sizeof *w->scales);
    w->scores = plm_take(&r, PLM_CONTEXT_BLOCK * panels * PLM_TILE, sizeof *w->scores);
    w->most = plm_take(&r, panels * PLM_TILE, sizeof *w->most);
    w->sum = plm_take(&r, panels * PLM_TILE, sizeof *w->sum);
    w->shrink = plm_take(&r, PLM_TILE, sizeof *w->shrink);
    w->by_head = plm_take(&r, heads * PLM_CONTEXT_BLOCK, sizeof *w->by_head);
    w->weight = plm_take(&r, heads * PLM_CONTEXT_BLOCK, sizeof *w->weight);
    w->weight_scale = plm_take(&r, heads, sizeof *w->weight_scale);
    w->row_weight = plm_take(&r, latents * PLM_CONTEXT_BLOCK, sizeof *w->row_weight);
    w->by_block = plm_take(&r, latents * PLM_CONTEXT_BLOCK, sizeof *w->by_block);
    w->row_weight_scale = plm_take(&r, latents, sizeof *w->row_weight_scale);
    w->coefficient = plm_take(&r, heads * PLM_CONTEXT_BLOCK, sizeof *w->coefficient);
    w->coefficient_scale = plm_take(&r, heads, sizeof *w->coefficient_scale);
    w->values = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof *w->values);
    return r.used;
}

/* ABSORB and UNABSORB need a latent and its packed form. */
size_t plm_attend_scratch(const plm_attention *a) {
    attend_room integers;
    float_room floats;
    size_t most = take_attend(&integers, NULL, a), other = take_floats(&floats, NULL, a);
    size_t latent = 3 * (size_t)a->rank * sizeof(float);
    if (other > most) most = other;
    return latent > most ? latent : most;
}

size_t plm_absorb_items(const void *p) {
    const plm_attention *a = p;
    return (size_t)a->step->n_tokens * (size_t)a->heads;
}

/* A head's query as integers, once for all slices of the context that will meet it. */
static void pack_query(const plm_attention *a, int32_t h, const float *latent, const float *rope, uint8_t *queries) {
    const int32_t width = plm_row_width(a), blocks = width / PLM_BLOCK, latents = plm_latent_width(a);
    int16_t *q = (int16_t *)(void *)queries + (int64_t)h * width;
    float *scale = plm_query_scales(a, queries) + h * blocks;
    plm_pack_part(a->isa, latent, a->rank, q, scale);
    plm_pack_part(a->isa, rope, a->rope, q + latents, scale + latents / PLM_BLOCK);
    for (int32_t b = 0; b < blocks; b++) scale[b] *= a->scale;
}

void plm_absorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    const int32_t h = (int32_t)(item % (size_t)a->heads);
    const float *q = a->q + (int64_t)item * (a->nope + a->rope);
    uint8_t *queries = plm_queries_of(a, (int64_t)(item / (size_t)a->heads));
    float *latent = plm_cache_is_float(a) ? (float *)(void *)queries + (int64_t)h * a->rank
                                          : (float *)(void *)plm_scratch_of(a, thread);
    memset(latent, 0, (size_t)a->rank * sizeof *latent);
    a->isa->add_rows[a->kv_b.format](plm_head_row(a, h, 0), a->rank, q, a->nope, latent);
    if (plm_attends_in_bytes(a))
        plm_pack_byte_query(a, h, latent, (int16_t *)(void *)(latent + a->rank), queries);
    else if (!plm_cache_is_float(a))
        pack_query(a, h, latent, q + a->nope, queries);
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

static void attend_in_floats(const plm_slice *s, uint8_t *scratch) {
    const plm_attention *a = s->a;
    int32_t width = a->rank + a->rope, each = a->nope + a->rope, padded = plm_latent_width(a);
    int32_t groups = (int32_t)plm_panels_of(a->heads);
    float_room w;
    take_floats(&w, scratch, a);
    for (int32_t g = 0; g < groups; g++) {
        int32_t h = g * PLM_TILE, lanes = plm_min(PLM_TILE, a->heads - h);
        float *queries = w.queries + (int64_t)g * width * PLM_TILE;
        const float *latents = (const float *)(const void *)s->queries + (int64_t)h * a->rank;
        a->isa->lanes(latents, a->rank, lanes, a->rank, queries);
        a->isa->lanes(s->q + (int64_t)h * each + a->nope, each, lanes, a->rope, queries + a->rank * PLM_TILE);
    }
    for (int32_t i = 0; i < groups * PLM_TILE; i++) w.most[i] = -INFINITY, w.sum[i] = 0.0f;
    for (int32_t at = s->first; at < s->last; at += PLM_CONTEXT_BLOCK) {
        int32_t rows = plm_min(PLM_CONTEXT_BLOCK, s->last - at);
        const float *block = (const float *)(const void *)plm_cached_row(a, at);
        const uint8_t *next = plm_rows_ahead(s, at + rows);
        for (int32_t g = 0; g < groups; g++) {
            int32_t h = g * PLM_TILE;
            const float *queries = w.queries + (int64_t)g * width * PLM_TILE;
            a->isa->scores(queries, block, width, rows, width, a->scale, w.weights, g ? NULL : next);
            a->isa->softmax(w.weights, rows, w.most + h, w.sum + h, w.shrink);
            a->isa->blend(w.weights, block, width, rows, a->rank, w.shrink, plm_min(PLM_TILE, a->heads - h),
                          s->latent + (int64_t)h * padded, padded);
        }
    }
    memcpy(s->most, w.most, (size_t)a->heads * sizeof *w.most);
    memcpy(s->sum, w.sum, (size_t)a->heads * sizeof *w.sum);
}

/* The weights of a block as integers by head, and the scales of its latents as integers by block of the latent. */
static void pack_weights(const plm_slice *s, int32_t n, const attend_room *w) {
    const plm_attention *a = s->a;
    int32_t blocks = plm_latent_width(a) / PLM_BLOCK, stride = plm_row_width(a) / PLM_BLOCK;
    for (int32_t h = 0; h < a->heads; h++)
        memset(w->by_head + h * PLM_CONTEXT_BLOCK + n, 0, (size_t)(PLM_CONTEXT_BLOCK - n) * sizeof(float));
    a->isa->pack(w->by_head, a->heads * PLM_CONTEXT_BLOCK, PLM_LARGEST, w->weight, w->weight_scale, NULL);
    for (int32_t b = 0; b < blocks; b++)
        for (int32_t r = 0; r < PLM_CONTEXT_BLOCK; r++)
            w->by_block[b * PLM_CONTEXT_BLOCK + r] = w->rows.scale[r * stride + b];
    a->isa->pack(w->by_block, blocks * PLM_CONTEXT_BLOCK, PLM_PANEL, w->row_weight, w->row_weight_scale, NULL);
}

/* latent (heads, padded) += the latents of the block with their weights. The scale of a latent's block belongs to its
 * row, so it goes into the weights: one product of integers for each block of the latent. */
static void add_latents(const plm_slice *s, const attend_room *w) {
    const plm_attention *a = s->a;
    int32_t padded = plm_latent_width(a), width = plm_row_width(a);
    for (int32_t b = 0; b < padded / PLM_BLOCK; b++) {
        for (int32_t h = 0; h < a->heads; h++) {
            a->isa->weigh(w->weight + h * PLM_CONTEXT_BLOCK, w->row_weight + b * PLM_CONTEXT_BLOCK, PLM_CONTEXT_BLOCK,
                          w->coefficient + h * PLM_CONTEXT_BLOCK);
            w->coefficient_scale[h] = w->weight_scale[h] * w->row_weight_scale[b] * 0x1p15f;
        }
        for (int32_t i = b * PLM_BLOCK; i < (b + 1) * PLM_BLOCK; i += PLM_TILE) {
            a->isa->weave(w->rows.q + i, 1, width, PLM_TILE, PLM_CONTEXT_BLOCK, w->values);
            a->isa->panel(w->values, plm_ones, 1, w->coefficient, PLM_CONTEXT_BLOCK, w->coefficient_scale, 1, a->heads,
                          s->latent + i, padded);
        }
    }
}

/* A block of n rows with a head in each lane: scores (panels, 32, 16) become weights. next: the next block. */
static void blend_in_lanes(const plm_slice *s, int32_t n, const uint8_t *next, const attend_room *w) {
    const plm_attention *a = s->a;
    int32_t padded = plm_latent_width(a), width = plm_row_width(a);
    for (int32_t h = 0; h < a->heads; h += PLM_TILE) {
        float *weights = w->scores + h * PLM_CONTEXT_BLOCK;
        a->isa->softmax(weights, n, w->most + h, w->sum + h, w->shrink);
        a->isa->blend_words(weights, w->rows.q, w->rows.scale, width, n, padded, w->shrink,
                            plm_min(PLM_TILE, a->heads - h), s->latent + (int64_t)h * padded, padded, h ? NULL : next);
    }
}

/* The same head by head. */
static void blend_in_panels(const plm_slice *s, int32_t n, const attend_room *w) {
    const plm_attention *a = s->a;
    for (int32_t h = 0; h < a->heads; h++) {
        float *weights = w->by_head + h * PLM_CONTEXT_BLOCK;
        const float *scores = w->scores + h / PLM_TILE * PLM_TILE * PLM_CONTEXT_BLOCK + h % PLM_TILE;
        for (int32_t r = 0; r < n; r++) weights[r] = scores[r * PLM_TILE];
        float shrink = plm_online_softmax(a->isa, weights, n, &w->most[h], &w->sum[h]);
        plm_scale_by(s->latent + (int64_t)h * plm_latent_width(a), plm_latent_width(a), shrink);
    }
    pack_weights(s, n, w);
    add_latents(s, w);
}

static void attend_in_integers(const plm_slice *s, uint8_t *scratch) {
    const plm_attention *a = s->a;
    attend_room w;
    take_attend(&w, scratch, a);
    int32_t width = plm_row_width(a), blocks = width / PLM_BLOCK, panels = (int32_t)plm_panels_of(a->heads);
    plm_weave_rows(a->isa, (const int16_t *)(const void *)s->queries, plm_query_scales(a, s->queries), a->heads, width,
                   w.panels, w.scales);
    for (int32_t i = 0; i < panels * PLM_TILE; i++) w.most[i] = -INFINITY, w.sum[i] = 0.0f;
    for (int32_t at = s->first; at < s->last; at += PLM_CONTEXT_BLOCK) {
        int32_t n = plm_min(PLM_CONTEXT_BLOCK, s->last - at);
        plm_integer_rows(a, at, n, &w.rows);
        memset(w.scores, 0, (size_t)(panels * PLM_CONTEXT_BLOCK * PLM_TILE) * sizeof *w.scores);
        for (int32_t g = 0; g < panels; g++)
            a->isa->panel(w.panels + (int64_t)g * width * PLM_TILE, w.scales + g * blocks * PLM_TILE, blocks, w.rows.q,
                          width, w.rows.scale, blocks, n, w.scores + g * PLM_CONTEXT_BLOCK * PLM_TILE, PLM_TILE);
        if (a->isa->blend_words)
            blend_in_lanes(s, n, plm_rows_ahead(s, at + n), &w);
        else
            blend_in_panels(s, n, &w);
    }
    memcpy(s->most, w.most, (size_t)a->heads * sizeof *w.most);
    memcpy(s->sum, w.sum, (size_t)a->heads * sizeof *w.sum);
}

void plm_attend_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)item / slices, part = (int32_t)item % slices;
    /* Whole blocks, in each slice as many or one more: threads end together. */
    const int64_t n = a->step->n_past + t + 1, blocks = (n + PLM_CONTEXT_BLOCK - 1) / PLM_CONTEXT_BLOCK;
    const int64_t first = part * blocks / slices, last = (part + 1) * blocks / slices;
    const int64_t next = part + a->step->threads, then = next < slices ? next * blocks / slices * PLM_CONTEXT_BLOCK : n;
    float *partial = partial_of(a, t, part);
    plm_slice s = {a,
                   a->q + (int64_t)t * a->heads * (a->nope + a->rope),
                   plm_queries_of(a, t),
                   (int32_t)(first * PLM_CONTEXT_BLOCK),
                   plm_min((int32_t)n, (int32_t)(last * PLM_CONTEXT_BLOCK)),
                   (int32_t)then,
                   (int32_t)n,
                   partial,
                   partial + a->heads,
                   partial + 2 * a->heads};
    for (int32_t h = 0; h < a->heads; h++) s.most[h] = -INFINITY, s.sum[h] = 0.0f;
    if (s.first == s.last) return;
    memset(s.latent, 0, (size_t)a->heads * (size_t)plm_latent_width(a) * sizeof *s.latent);
    if (plm_cache_is_float(a))
        attend_in_floats(&s, plm_scratch_of(a, thread));
    else if (plm_attends_in_bytes(a))
        plm_attend_in_bytes(&s, plm_scratch_of(a, thread));
    else
        attend_in_integers(&s, plm_scratch_of(a, thread));
}

size_t plm_unabsorb_items(const void *p) { return plm_absorb_items(p); }

void plm_unabsorb_item(const void *p, size_t item, int thread) {
    const plm_attention *a = p;
    int32_t slices = slices_of(a), t = (int32_t)(item / (size_t)a->heads), h = (int32_t)(item % (size_t)a->heads);
    float top = -INFINITY, sum = 0.0f, *latent = (float *)(void *)plm_scratch_of(a, thread);

    for (int32_t s = 0; s < slices; s++)
        if (!(partial_of(a, t, s)[h] <= top)) top = partial_of(a, t, s)[h];
    memset(latent, 0, (size_t)a->rank * sizeof *latent);
    for (int32_t s = 0; s < slices; s++) {
        const float *slice = partial_of(a, t, s);
        if (slice[a->heads + h] == 0.0f) continue; /* no row fell into it */
        float weight = plm_exp(slice[h] - top);
        sum += weight * slice[a->heads + h];
        a->isa->add(weight, slice + 2 * a->heads + (int64_t)h * plm_latent_width(a), a->rank, latent);
    }
    for (int32_t i = 0; i < a->rank; i++) latent[i] /= sum;

    plm_vectors x = {.f = latent};
    if (a->kv_b.format >= PLM_Q8_0) {
        x.q = (int16_t *)(void *)(latent + a->rank);
        x.scale = latent + 2 * (int64_t)a->rank;
        x.sum = (int32_t *)(void *)(x.scale + a->rank / PLM_BLOCK);
        a->isa->pack(latent, a->rank, PLM_LARGEST, x.q, x.scale, x.sum);
    }
    float *y = a->y + ((int64_t)t * a->heads + h) * a->v_head;
    /* A thread's next head is probably as many behind as there are threads. */
    const size_t next = item + (size_t)a->step->threads;
    const int32_t next_h = (int32_t)(next % (size_t)a->heads);
    plm_rows_of_one(a->isa, a->kv_b.format, plm_head_row(a, h, a->nope), a->rank, &x, a->v_head, y,
                    next < plm_unabsorb_items(a) ? plm_head_row(a, next_h, a->nope) : NULL);
}
