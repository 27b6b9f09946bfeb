/* The squared-ReLU pair: down max(up x, 0)^2, idle units skipped. For few tokens both matrices pass in one kernel
 * (FIRE, GATHER), bound by memory; for many, bound by arithmetic, UP keeps the units that fired and DOWN adds them. */
#include "superblocks.h"

enum { GATHER_OUTPUTS = 256, UP_TOKENS = 128 };
enum { DOWN_OUTPUTS = 128 }; /* of an item of DOWN: 64 units of them are 32 KB, an L1 or most of one; 32 as words 8 */

static int64_t unit_bytes(const plm_matrix *down) {
    if (plm_is_super(down->format)) return plm_unit_bytes_super(down->format, down->rows);
    if (down->format == PLM_Q4_0) return down->rows / 2;
    return down->format == PLM_Q8_0 ? down->rows : plm_row_bytes(down->format, down->rows);
}

static int32_t units_of(const plm_matrix *down, int32_t g) { return plm_min(PLM_BLOCK, down->cols - g * PLM_BLOCK); }

/* Where group g of 32 units lies; `rows`: where its unit rows begin. Float formats have no scales before them; those of
 * superblocks lie before eight groups. */
static const uint8_t *group_at(const plm_matrix *down, int32_t g, const uint8_t **rows) {
    if (plm_is_super(down->format)) {
        const uint8_t *super = down->data + g / PLM_PARTS * (down->rows * plm_row_bytes(down->format, PLM_SUPER));
        *rows = plm_part_rows_at(super, down->format, down->rows, g % PLM_PARTS);
        return super;
    }
    int64_t scales = down->format >= PLM_Q8_0 ? 2 * (int64_t)down->rows : 0;
    const uint8_t *group = down->data + g * (scales + PLM_BLOCK * unit_bytes(down));
    *rows = group + scales;
    return group;
}

/* y += group g of down times its units a, while `next` is asked for. */
static void add_group(const plm_isa *isa, const plm_matrix *down, int32_t g, const float *a, float *y,
                      const plm_ahead *next) {
    const uint8_t *rows, *group = group_at(down, g, &rows);
    if (plm_is_super(down->format))
        isa->part_units[down->format](group, down->rows, g % PLM_PARTS, a, y);
    else
        isa->units[down->format](group, down->rows, a, units_of(down, g), y, next);
}

/* w = the weights of group g for outputs first .. last. */
static void widen_group(const plm_isa *isa, const plm_matrix *down, int32_t g, int32_t first, int32_t last, float *w) {
    const uint8_t *rows, *group = group_at(down, g, &rows);
    if (plm_is_super(down->format))
        isa->part_rows[down->format](group, down->rows, g % PLM_PARTS, first, last, w);
    else
        isa->unit_rows[down->format](group, down->rows, first, last, units_of(down, g), w);
}

size_t plm_fire_items(const void *p) { return plm_stretches(PLM_SLICES, ((const plm_fire *)p)->step->threads); }

/* Some units: h (T, units) of the whole layer, these columns. */
static void fire_up(const plm_fire *a, int32_t first, int32_t last) {
    const int64_t units = a->down.cols;
    const int32_t tokens = a->step->n_tokens;
    float h[PLM_FEW * PLM_BLOCK];
    if (tokens == 1) {
        float *h1 = a->h + first;
        plm_tiles_of_one(a->isa, &a->up, first, last, &a->x, h1, a->up.rows, a->step->near); /* then it reads `down` */
        for (int32_t i = 0; i < last - first; i++) h1[i] = plm_squared_relu(h1[i]);
        return;
    }
    for (int32_t unit = first; unit < last; unit += PLM_BLOCK) {
        const int32_t n = plm_min(PLM_BLOCK, last - unit);
        plm_tiles_of_several(a->isa, &a->up, unit, unit + n, &a->x, tokens, h, PLM_BLOCK);
        for (int32_t t = 0; t < tokens; t++)
            for (int32_t i = 0; i < n; i++) a->h[t * units + unit + i] = plm_squared_relu(h[t * PLM_BLOCK + i]);
    }
}

/* The rows of group g that fired for any token. */
static void find_group(const plm_fire *a, int32_t g, plm_ahead *found) {
    const plm_matrix *down = &a->down;
    const uint8_t *rows, *scales = group_at(down, g, &rows), *end = rows;
    int64_t bytes = unit_bytes(down);
    uint8_t fired[PLM_BLOCK] = {0};
    for (int64_t t = 0; t < a->step->n_tokens; t++)
        for (int32_t i = 0; i < units_of(down, g); i++) fired[i] |= a->h[t * down->cols + g * PLM_BLOCK + i] != 0.0f;
    found->rows = 0;
    for (int32_t i = 0; i < PLM_BLOCK; i++) { /* writes every row, keeps those that fired: no branch to guess */
        found->row[found->rows] = rows + i * bytes;
        found->rows += fired[i];
    }
    if (plm_is_super(down->format)) plm_scales_of_part(down->format, down->rows, g % PLM_PARTS, &scales, &end);
    found->scales = scales;
    found->row_share = (int32_t)(bytes * PLM_SHARE / down->rows);
    found->scales_share = (int32_t)((end - scales) * PLM_SHARE / down->rows);
}

static inline __attribute__((always_inline)) void ask_for_all(const plm_ahead *next, int32_t width) {
    for (int32_t o = 0; o < width; o += PLM_SHARE) plm_ask(next, o);
}

static int32_t first_group(const plm_fire *a, int32_t slice) {
    const int64_t groups = (a->down.cols + PLM_BLOCK - 1) / PLM_BLOCK;
    return (int32_t)(groups * slice / PLM_SLICES);
}

void plm_fire_item(const void *p, size_t item, int thread) {
    const plm_fire *a = p;
    const plm_stretch slices = plm_stretch_at(PLM_SLICES, a->step->threads, item);
    const int32_t first = first_group(a, slices.first), last = first_group(a, slices.end), tokens = a->step->n_tokens;
    const int64_t width = a->down.rows;
    float *y = a->partial + slices.first * width;
    const plm_ahead none = {.near = a->step->near, .ends = a->step->ends};
    plm_ahead group[2] = {none, none}; /* this one and the next, whose rows come meanwhile */
    (void)thread;
    for (int32_t t = 0; t < tokens; t++)
        memset(y + t * PLM_SLICES * width, 0, (size_t)((slices.end - slices.first) * width) * sizeof *y);
    if (first == last) return;
    fire_up(a, first * PLM_BLOCK, plm_min(last * PLM_BLOCK, a->down.cols));
    find_group(a, first, &group[first % 2]);
    ask_for_all(&group[first % 2], a->down.rows);
    for (int32_t slice = slices.first; slice < slices.end; slice++, y += width)
        for (int32_t g = first_group(a, slice); g < first_group(a, slice + 1); g++) {
            plm_ahead *now = &group[g % 2], *next = &group[(g + 1) % 2];
            next->rows = next->scales_share = 0;
            if (g + 1 < last) find_group(a, g + 1, next);
            if (!now->rows || plm_is_super(a->down.format)) ask_for_all(next, a->down.rows);
            for (int32_t t = 0; t < tokens && now->rows; t++)
                add_group(a->isa, &a->down, g, a->h + (int64_t)t * a->down.cols + g * PLM_BLOCK,
                          y + t * PLM_SLICES * width, next);
            a->unit_rows[slice] += now->rows;
        }
}

size_t plm_gather_items(const void *p) {
    const plm_gather *a = p;
    return (size_t)a->step->n_tokens * plm_ceil_div((size_t)a->width, GATHER_OUTPUTS);
}

void plm_gather_item(const void *p, size_t item, int thread) {
    const plm_gather *a = p;
    int32_t parts = (int32_t)plm_ceil_div((size_t)a->width, GATHER_OUTPUTS), t = (int32_t)item / parts;
    int32_t first = (int32_t)item % parts * GATHER_OUTPUTS, last = plm_min(a->width, first + GATHER_OUTPUTS);
    const float *partial = a->partial + (int64_t)t * PLM_SLICES * a->width;
    float *y = a->y + (int64_t)t * a->width;
    (void)thread;
    for (int32_t s = 0; s < PLM_SLICES; s++)
        for (int32_t i = first; i < last; i++) y[i] += partial[(int64_t)s * a->width + i];
}

static int in_words(const plm_isa *isa, const plm_matrix *down) { return isa->unit_words[down->format] != NULL; }

/* Where `fired` has the tokens of a span, from one token on. */
typedef struct {
    float *floats;
    int16_t *words;
    float *scale;
    uint8_t *which, *count;
    uint16_t *token;
} fired_at;

static fired_at span_at(const plm_fired *f, int32_t first, int32_t span, int64_t tokens) {
    int64_t at = first * tokens, nth = first / span * tokens;
    return (fired_at){(float *)f->value + at, (int16_t *)f->value + at, f->scale + nth,
                      f->which + at,          f->count + nth,           f->token + nth};
}

static inline void next_token(fired_at *f) {
    f->floats += *f->count, f->words += *f->count, f->which += *f->count;
    f->count++, f->scale++, f->token++;
}

/* What fired of a span, token by token, before it is put into order. */
typedef struct {
    float floats[UP_TOKENS][PLM_PAIR];
    int16_t words[UP_TOKENS][PLM_BLOCK];
    float scale[UP_TOKENS];
    uint8_t which[UP_TOKENS][PLM_PAIR], count[UP_TOKENS];
} kept;

/* Of the squared ReLU of n units h what is not 0. Writes every value, keeps those that fired: no branch to guess. */
static void keep_floats(const float *h, int32_t n, kept *k, int32_t t) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        float value = plm_squared_relu(h[i]);
        k->floats[t][count] = value;
        k->which[t][count] = (uint8_t)i;
        count += value != 0.0f;
    }
    k->count[t] = (uint8_t)count;
}

/* `n` tokens from `from` on to where f points, by their count. Copies all `units` of a span, fired or not: the next
 * token, or the next call, writes over the rest. */
static void put_in_order(const kept *k, int32_t from, int32_t n, int32_t units, int32_t words, fired_at *f) {
    int32_t start[PLM_PAIR + 2] = {0};
    uint16_t order[UP_TOKENS];
    for (int32_t t = 0; t < n; t++) start[k->count[t] + 1]++;
    for (int32_t c = 0; c <= PLM_PAIR; c++) start[c + 1] += start[c];
    for (int32_t t = 0; t < n; t++) order[start[k->count[t]]++] = (uint16_t)t;
    for (int32_t i = 0; i < n; i++, next_token(f)) {
        int32_t t = order[i];
        if (words)
            memcpy(f->words, k->words[t], (size_t)units * 2);
        else
            memcpy(f->floats, k->floats[t], (size_t)units * 4);
        memcpy(f->which, k->which[t], (size_t)units);
        *f->scale = k->scale[t], *f->count = k->count[t], *f->token = (uint16_t)(from + t);
    }
}

size_t plm_up_items(const void *p) { return plm_ceil_div((size_t)((const plm_up *)p)->down.cols, PLM_PAIR); }

/* A pair of groups. The units of all tokens together would be too far apart for a cache: kept is what fired. */
void plm_up_item(const void *p, size_t pair, int thread) {
    const plm_up *a = p;
    const int32_t first = (int32_t)pair * PLM_PAIR, units = plm_min(PLM_PAIR, a->down.cols - first);
    const int32_t words = in_words(a->isa, &a->down), span = words ? PLM_BLOCK : PLM_PAIR;
    const int64_t tokens = a->step->n_tokens;
    fired_at fired[PLM_PAIR / PLM_BLOCK];
    _Alignas(PLM_LINE) float h[UP_TOKENS * PLM_PAIR];
    kept k;
    (void)thread;
    for (int32_t u = 0; u < units; u += span) fired[u / span] = span_at(&a->fired, first + u, span, tokens);
    for (int32_t from = 0; from < tokens; from += UP_TOKENS) {
        int32_t now = plm_min(UP_TOKENS, (int32_t)tokens - from);
        plm_vectors x = plm_vector_at(&a->x, from, a->up.cols);
        plm_tiles_of_several(a->isa, &a->up, first, first + units, &x, now, h, PLM_PAIR);
        for (int32_t u = 0; u < units; u += span) {
            for (int32_t t = 0; t < now; t++)
                if (words)
                    k.count[t] = (uint8_t)a->isa->keep_words(h + t * PLM_PAIR + u, k.words[t], k.which[t], &k.scale[t]);
                else
                    keep_floats(h + t * PLM_PAIR, units, &k, t);
            put_in_order(&k, from, now, plm_min(span, units), words, &fired[u / span]);
        }
    }
}


size_t plm_down_items(const void *p) {
    const plm_down *a = p;
    return plm_ceil_div((size_t)a->down.rows, (size_t)DOWN_OUTPUTS);
}

/* Asks memory for outputs first .. first + n of group g, of each row a part so short that no CPU guesses it. Always
 * inlined: see plm_ask_line. */
static inline __attribute__((always_inline)) void ask_for_outputs(const plm_matrix *down, int32_t g, int32_t first,
                                                                  int32_t n) {
    if (g * PLM_BLOCK >= down->cols || plm_is_super(down->format)) return;
    const uint8_t *rows, *group = group_at(down, g, &rows);
    const int64_t bytes = unit_bytes(down), begin = first * bytes / down->rows, end = (first + n) * bytes / down->rows;
    for (int32_t i = 0; i < units_of(down, g); i++)
        for (int64_t at = begin; at < end; at += PLM_LINE) __builtin_prefetch(rows + i * bytes + at);
    for (int64_t at = 2 * first; group < rows && at < 2 * (first + n); at += PLM_LINE) __builtin_prefetch(group + at);
}

/* sum (T, n) += the units of a pair of groups that fired, for outputs first .. first + n. */
static void down_floats(const plm_down *a, int32_t unit, int32_t first, int32_t n, float *sum) {
    int32_t tokens = a->step->n_tokens, g = unit / PLM_BLOCK;
    fired_at f = span_at(&a->fired, unit, PLM_PAIR, tokens);
    _Alignas(PLM_LINE) float w[PLM_PAIR * DOWN_OUTPUTS];
    widen_group(a->isa, &a->down, g, first, first + n, w);
    if (unit + PLM_BLOCK < a->down.cols) widen_group(a->isa, &a->down, g + 1, first, first + n, w + PLM_BLOCK * n);
    for (int32_t next = g + 2; next < g + 4; next++) ask_for_outputs(&a->down, next, first, n);
    for (int32_t i = 0; i < tokens; i++, next_token(&f))
        a->isa->mix(f.floats, f.which, *f.count, w, n, sum + (int64_t)*f.token * n);
}

/* The same of one group, in integers. */
static void down_words(const plm_down *a, int32_t unit, int32_t first, int32_t n, float *sum) {
    const uint8_t *rows, *group = group_at(&a->down, unit / PLM_BLOCK, &rows);
    int32_t tokens = a->step->n_tokens;
    fired_at f = span_at(&a->fired, unit, PLM_BLOCK, tokens);
    _Alignas(PLM_LINE) int16_t w[PLM_BLOCK * DOWN_OUTPUTS];
    _Alignas(PLM_LINE) float scales[DOWN_OUTPUTS];
    a->isa->unit_words[a->down.format](group, a->down.rows, first, first + n, w);
    for (int32_t o = 0; o < n; o++) scales[o] = plm_half_at(group + 2 * (first + o));
    ask_for_outputs(&a->down, unit / PLM_BLOCK + 1, first, n);
    const plm_fired_words fired = {f.words, f.which, f.count, f.scale, f.token};
    a->isa->mix_words(fired, tokens, w, scales, n, sum);
}

void plm_down_item(const void *p, size_t item, int thread) {
    const plm_down *a = p;
    const int words = in_words(a->isa, &a->down);
    int32_t tokens = a->step->n_tokens, first = (int32_t)item * DOWN_OUTPUTS,
            n = plm_min(a->down.rows - first, DOWN_OUTPUTS);
    float *sum = a->sums + (int64_t)tokens * first;
    (void)thread;
    memset(sum, 0, (size_t)(tokens * n) * sizeof *sum);
    for (int32_t unit = 0; unit < a->down.cols; unit += words ? PLM_BLOCK : PLM_PAIR)
        (words ? down_words : down_floats)(a, unit, first, n, sum);
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t o = 0; o < n; o++) a->y[t * a->down.rows + first + o] += sum[t * n + o];
}
