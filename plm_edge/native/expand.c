/* Latent attention through keys and values built from the cached rows, head by head: less work for many tokens.
 *
 * Integer weights and a cache of halves or bytes are multiplied in 16-bit integers with a scale for each block of 32
 * (plm_isa.panel), all else in floats. */
#include "attention.h"

static int expands_in_floats(const plm_attention *a) { return plm_cache_is_float(a) || a->kv_b.format < PLM_Q8_0; }

typedef struct {
    plm_row_block rows;
    int16_t *w;              /* W_uk and W_uv of the head (nope + v_head, rank) */
    float *w_scale;          /* (nope + v_head, rank / 32) */
    float *wide;             /* (rank): a row of Q4_K or Q6_K on its way there */
    int16_t *panels;         /* of w, 16 rows each */
    float *scales;
    float *kv;               /* (32, 16 * panels): keys and values of a block of rows */
    int16_t *part, *q;       /* (16, key width): 16 queries, and those of all tokens as panels of 16 */
    float *part_scale, *q_scale;
    int16_t *key;            /* (32, key width) */
    float *key_scale;        /* (32, key width / 32) */
    int16_t *value, *values; /* (32, value width), and panels with the values in the lanes and the rows as columns */
    float *value_scale;      /* (32, value width / 32) */
    float *weights;          /* (32, 16): scores of 16 tokens, then their weights */
    float *turned, *scaled;  /* two halves (16, 16), a token in each row; (16, 32): times the scales of a block */
    int16_t *weight;         /* that as integers, scale by token */
    float *weight_scale;
    float *most, *sum, *out; /* (T up to a multiple of 16) twice, (T, value width) */
} expand_room;

static int32_t value_width(const plm_attention *a) { return plm_whole_blocks(a->v_head); }
static int32_t key_width(const plm_attention *a) { return plm_whole_blocks(a->nope) + plm_whole_blocks(a->rope); }

static size_t take_expand(expand_room *w, uint8_t *base, const plm_attention *a) {
    plm_room r = {base, 0};
    size_t both = (size_t)(a->nope + a->v_head), rank = (size_t)plm_latent_width(a), keys = (size_t)key_width(a);
    size_t chunk = (size_t)a->chunk, panels = plm_panels_of(a->nope + a->v_head), values = (size_t)value_width(a);
    size_t tokens = plm_panels_of(a->chunk) * PLM_TILE;
    w->rows = plm_take_rows(&r, a);
    w->w = plm_take(&r, both * rank, sizeof *w->w);
    w->w_scale = plm_take(&r, both * rank / PLM_BLOCK, sizeof *w->w_scale);
    w->wide = plm_take(&r, rank, sizeof *w->wide);
    w->panels = plm_take(&r, panels * PLM_TILE * rank, sizeof *w->panels);
    w->scales = plm_take(&r, panels * PLM_TILE * rank / PLM_BLOCK, sizeof *w->scales);
    w->kv = plm_take(&r, PLM_CONTEXT_BLOCK * panels * PLM_TILE, sizeof *w->kv);
    w->part = plm_take(&r, PLM_TILE * keys, sizeof *w->part);
    w->q = plm_take(&r, tokens * keys, sizeof *w->q);
    w->part_scale = plm_take(&r, PLM_TILE * keys / PLM_BLOCK, sizeof *w->part_scale);
    w->q_scale = plm_take(&r, tokens * keys / PLM_BLOCK, sizeof *w->q_scale);
    w->key = plm_take(&r, PLM_CONTEXT_BLOCK * keys, sizeof *w->key);
    w->key_scale = plm_take(&r, PLM_CONTEXT_BLOCK * keys / PLM_BLOCK, sizeof *w->key_scale);
    w->value = plm_take(&r, PLM_CONTEXT_BLOCK * values, sizeof *w->value);
    w->values = plm_take(&r, PLM_CONTEXT_BLOCK * values, sizeof *w->values);
    w->value_scale = plm_take(&r, PLM_CONTEXT_BLOCK * values / PLM_BLOCK, sizeof *w->value_scale);
    w->weights = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof *w->weights);
    w->turned = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof *w->turned);
    w->scaled = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof *w->scaled);
    w->weight = plm_take(&r, PLM_CONTEXT_BLOCK * PLM_TILE, sizeof *w->weight);
    w->weight_scale = plm_take(&r, PLM_TILE, sizeof *w->weight_scale);
    w->most = plm_take(&r, tokens, sizeof *w->most);
    w->sum = plm_take(&r, tokens, sizeof *w->sum);
    w->out = plm_take(&r, chunk * values, sizeof *w->out);
    return r.used;
}

/* In floats: the head's weights, a block of rows, its keys, values and scores, and the running sums of the chunk. */
size_t plm_expand_scratch(const plm_attention *a) {
    size_t rank = (size_t)a->rank, both = (size_t)(a->nope + a->v_head);
    size_t floats = both * rank + PLM_CONTEXT_BLOCK * (rank + (size_t)a->rope + both + 1);
    floats = (floats + (size_t)a->chunk * (size_t)(a->v_head + 2)) * sizeof(float);
    expand_room w;
    size_t integers = take_expand(&w, NULL, a);
    return integers > floats ? integers : floats;
}

size_t plm_expand_items(const void *p) { return (size_t)((const plm_attention *)p)->heads; }

static void expand_in_floats(const plm_attention *a, int32_t h, float *space) {
    int32_t both = a->nope + a->v_head, width = a->rank + a->rope, T = a->step->n_tokens, n = a->step->n_past + T;
    float *w = space;                                   /* (nope + v_head, rank): the head's W_uk and W_uv */
    float *rows_space = w + (int64_t)both * a->rank;    /* (block, rank + rope) */
    float *kv = rows_space + (int64_t)PLM_CONTEXT_BLOCK * width; /* (block, nope + v_head): keys and values */
    float *scores = kv + (int64_t)PLM_CONTEXT_BLOCK * both; /* (block) */
    float *most = scores + PLM_CONTEXT_BLOCK, *sum = most + a->chunk, *out = sum + a->chunk; /* (T) (T) (T, v_head) */
    const float one = 1.0f;

    memset(w, 0, (size_t)both * (size_t)a->rank * sizeof *w);
    for (int32_t i = 0; i < both; i++)
        a->isa->add_rows[a->kv_b.format](plm_head_row(a, h, i), a->rank, &one, 1, w + (int64_t)i * a->rank);
    for (int32_t t = 0; t < T; t++) most[t] = -INFINITY, sum[t] = 0.0f;
    memset(out, 0, (size_t)T * (size_t)a->v_head * sizeof *out);

    for (int32_t at = 0; at < n; at += PLM_CONTEXT_BLOCK) {
        int32_t rows = plm_min(PLM_CONTEXT_BLOCK, n - at);
        const float *block = plm_float_rows(a, at, rows, rows_space);
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
            plm_scale_by(y, a->v_head, plm_online_softmax(a->isa, scores, seen, &most[t], &sum[t]));
            for (int32_t r = 0; r < seen; r++) a->isa->add(scores[r], kv + r * both + a->nope, a->v_head, y);
        }
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < a->v_head; i++)
            a->y[((int64_t)t * a->heads + h) * a->v_head + i] = out[(int64_t)t * a->v_head + i] / sum[t];
}

/* A plain row of an integer format as integers and scales. */
static void row_to_integers(const uint8_t *w, int format, int32_t cols, int16_t *q, float *scale) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, q += PLM_BLOCK) {
        scale[b] = plm_half_at(w);
        w += 2;
        if (format == PLM_Q8_0) {
            for (int i = 0; i < PLM_BLOCK; i++) q[i] = (int8_t)w[i];
            w += PLM_BLOCK;
        } else {
            for (int i = 0; i < PLM_BLOCK / 2; i++)
                q[i] = (int16_t)((w[i] & 15) - 8), q[i + PLM_BLOCK / 2] = (int16_t)((w[i] >> 4) - 8);
            w += PLM_BLOCK / 2;
        }
    }
}

/* Of Q4_K and Q6_K no part of 32 is integers times one scale: rounded as the cached rows are. */
static void super_row_to_integers(const plm_attention *a, const uint8_t *row, float *wide, int16_t *q, float *scale) {
    const float one = 1.0f;
    memset(wide, 0, (size_t)a->rank * sizeof *wide);
    a->isa->add_rows[a->kv_b.format](row, a->rank, &one, 1, wide);
    a->isa->pack(wide, a->rank, PLM_PANEL, q, scale, NULL);
}

/* The head's weights and the queries of all tokens, both as panels. */
static void begin_expand(const plm_attention *a, int32_t h, const expand_room *w) {
    int32_t both = a->nope + a->v_head, rank = a->rank, T = a->step->n_tokens, keys = key_width(a);
    int32_t nope = plm_whole_blocks(a->nope);
    for (int32_t i = 0; i < both; i++) {
        const uint8_t *row = plm_head_row(a, h, i);
        int16_t *q = w->w + (int64_t)i * rank;
        float *scale = w->w_scale + i * (rank / PLM_BLOCK);
        if (plm_is_super(a->kv_b.format))
            super_row_to_integers(a, row, w->wide, q, scale);
        else
            row_to_integers(row, a->kv_b.format, rank, q, scale);
    }
    plm_weave_rows(a->isa, w->w, w->w_scale, both, rank, w->panels, w->scales);
    for (int32_t t = 0; t < T; t++) {
        const float *q = a->q + ((int64_t)t * a->heads + h) * (a->nope + a->rope);
        int32_t l = t % PLM_TILE, first = t - l;
        int16_t *to = w->part + l * keys;
        float *scale = w->part_scale + l * (keys / PLM_BLOCK);
        plm_pack_part(a->isa, q, a->nope, to, scale);
        plm_pack_part(a->isa, q + a->nope, a->rope, to + nope, scale + nope / PLM_BLOCK);
        for (int32_t b = 0; b < keys / PLM_BLOCK; b++) scale[b] *= a->scale;
        if (l == PLM_TILE - 1 || t == T - 1)
            plm_weave_rows(a->isa, w->part, w->part_scale, l + 1, keys, w->q + (int64_t)first * keys,
                           w->q_scale + first * (keys / PLM_BLOCK));
    }
    for (size_t t = 0; t < plm_panels_of(T) * PLM_TILE; t++) w->most[t] = -INFINITY, w->sum[t] = 0.0f;
}

/* Keys and values of a block of n rows; the values also as panels where the set blends those. */
static void expand_rows(const plm_attention *a, int32_t n, const expand_room *w) {
    int32_t panels = (int32_t)plm_panels_of(a->nope + a->v_head), stride = panels * PLM_TILE,
            rank = plm_latent_width(a);
    int32_t nope = plm_whole_blocks(a->nope), rope = plm_whole_blocks(a->rope), keys = key_width(a),
            width = plm_row_width(a), values = value_width(a);
    memset(w->kv, 0, (size_t)(PLM_CONTEXT_BLOCK * stride) * sizeof *w->kv);
    for (int32_t g = 0; g < panels; g++)
        a->isa->panel(w->panels + (int64_t)g * PLM_TILE * rank, w->scales + g * PLM_TILE * (rank / PLM_BLOCK),
                      rank / PLM_BLOCK, w->rows.q, width, w->rows.scale, width / PLM_BLOCK, n, w->kv + g * PLM_TILE,
                      stride);
    for (int32_t r = 0; r < PLM_CONTEXT_BLOCK; r++)
        plm_pack_part(a->isa, w->kv + r * stride + a->nope, a->v_head, w->value + r * values,
                      w->value_scale + r * (values / PLM_BLOCK));
    for (int32_t i = 0; !a->isa->blend_rows && i < values; i += PLM_TILE)
        a->isa->weave(w->value + i, 1, values, PLM_TILE, PLM_CONTEXT_BLOCK, w->values + i * PLM_CONTEXT_BLOCK);
    for (int32_t r = 0; r < PLM_CONTEXT_BLOCK; r++) {
        int16_t *key = w->key + r * keys;
        float *scale = w->key_scale + r * (keys / PLM_BLOCK);
        plm_pack_part(a->isa, w->kv + r * stride, a->nope, key, scale);
        memcpy(key + nope, w->rows.q + r * width + rank, (size_t)rope * sizeof *key);
        memcpy(scale + nope / PLM_BLOCK, w->rows.scale + (r * width + rank) / PLM_BLOCK,
               (size_t)(rope / PLM_BLOCK) * sizeof *scale);
    }
}

/* The weights of the block of n rows at `at` for 16 tokens from t on, a token in each lane, and by how much the earlier
 * sums shrink. A row that a token does not see has no weight. */
static void weigh_rows(const plm_attention *a, int32_t at, int32_t n, int32_t t, const expand_room *w, float *shrink) {
    int32_t keys = key_width(a), blocks = keys / PLM_BLOCK, own = a->step->n_past + t - at; /* the row of token t */
    memset(w->weights, 0, PLM_CONTEXT_BLOCK * PLM_TILE * sizeof *w->weights);
    a->isa->panel(w->q + (int64_t)t * keys, w->q_scale + t * blocks, blocks, w->key, keys, w->key_scale, blocks, n,
                  w->weights, PLM_TILE);
    for (int32_t r = own < 0 ? 0 : own + 1; r < n; r++)
        for (int32_t l = 0; l < plm_min(PLM_TILE, r - own); l++) w->weights[r * PLM_TILE + l] = -INFINITY;
    a->isa->softmax(w->weights, n, w->most + t, w->sum + t, shrink);
}

/* y (16) = weights times scales, and 0 where the weight is: by bits, which needs no branch. Unrolled it would not
 * become vectors. */
static inline void scale_weights(const float *restrict weights, const float *restrict scale, float *restrict y) {
#pragma GCC unroll 1
    for (int r = 0; r < PLM_TILE; r++)
        y[r] = plm_from_bits(plm_to_bits(weights[r] * scale[r]) & -(uint32_t)(plm_to_bits(weights[r]) != 0));
}

/* `blend_rows` by panels: out (lanes, values). */
static void blend_panels(const plm_attention *a, const expand_room *w, const float *shrink, int32_t lanes, float *out) {
    enum { HALVES = PLM_CONTEXT_BLOCK / PLM_TILE };
    int32_t values = value_width(a), blocks = values / PLM_BLOCK;
    for (int32_t l = 0; l < lanes; l++) plm_scale_by(out + l * values, values, shrink[l]);
    for (int32_t k = 0; k < HALVES; k++)
        a->isa->lanes(w->weights + k * PLM_TILE * PLM_TILE, PLM_TILE, PLM_TILE, PLM_TILE,
                      w->turned + k * PLM_TILE * PLM_TILE);
    for (int32_t b = 0; b < blocks; b++) {
        float scale[PLM_CONTEXT_BLOCK];
        for (int32_t r = 0; r < PLM_CONTEXT_BLOCK; r++) scale[r] = w->value_scale[r * blocks + b];
        for (int32_t l = 0; l < lanes; l++)
            for (int32_t k = 0; k < HALVES; k++)
                scale_weights(w->turned + (k * PLM_TILE + l) * PLM_TILE, scale + k * PLM_TILE,
                              w->scaled + (l * HALVES + k) * PLM_TILE);
        a->isa->pack(w->scaled, lanes * PLM_CONTEXT_BLOCK, PLM_PANEL, w->weight, w->weight_scale, NULL);
        for (int32_t i = b * PLM_BLOCK; i < (b + 1) * PLM_BLOCK; i += PLM_TILE)
            a->isa->panel(w->values + i * PLM_CONTEXT_BLOCK, plm_ones, 1, w->weight, PLM_CONTEXT_BLOCK, w->weight_scale,
                          1, lanes, out + i, values);
    }
}

/* A token in each lane of 16: their scores leave the panel as `softmax` reads them, and all that 16 tokens and a block
 * of rows need stays in the first cache. */
static void expand_in_integers(const plm_attention *a, int32_t h, uint8_t *scratch) {
    expand_room w;
    take_expand(&w, scratch, a);
    int32_t T = a->step->n_tokens, n = a->step->n_past + T, values = value_width(a);
    begin_expand(a, h, &w);
    memset(w.out, 0, (size_t)(T * values) * sizeof *w.out);
    for (int32_t at = 0; at < n; at += PLM_CONTEXT_BLOCK) {
        int32_t rows = plm_min(PLM_CONTEXT_BLOCK, n - at);
        int32_t t0 = at > a->step->n_past ? at - a->step->n_past : 0; /* the first token that sees the block */
        plm_integer_rows(a, at, rows, &w.rows);
        expand_rows(a, rows, &w);
        for (int32_t t = t0 / PLM_TILE * PLM_TILE; t < T; t += PLM_TILE) {
            float shrink[PLM_TILE], *out = w.out + (int64_t)t * values;
            int32_t lanes = plm_min(PLM_TILE, T - t);
            weigh_rows(a, at, rows, t, &w, shrink);
            if (a->isa->blend_rows)
                a->isa->blend_rows(w.weights, w.value, w.value_scale, values, shrink, lanes, out, values);
            else
                blend_panels(a, &w, shrink, lanes, out);
        }
    }
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < a->v_head; i++)
            a->y[((int64_t)t * a->heads + h) * a->v_head + i] = w.out[(int64_t)t * values + i] / w.sum[t];
}

void plm_expand_item(const void *p, size_t head, int thread) {
    const plm_attention *a = p;
    if (expands_in_floats(a))
        expand_in_floats(a, (int32_t)head, (float *)(void *)plm_scratch_of(a, thread));
    else
        expand_in_integers(a, (int32_t)head, plm_scratch_of(a, thread));
}
