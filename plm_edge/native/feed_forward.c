/* The squared-ReLU pair: down max(up x, 0)^2, idle units skipped. For few tokens both matrices pass in one kernel
 * (FIRE, GATHER), bound by memory; for many, bound by arithmetic, UP keeps the units that fired and DOWN adds them. */
#include "superblocks.h"

enum { GATHER_OUTPUTS = 256, UP_TOKENS = 128 };
enum { DOWN_OUTPUTS = 128 }; /* of an item of DOWN: 64 units of them are 32 KB, an L1 or most of one */

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

size_t plm_fire_items(const void *p) {
    (void)p;
    return PLM_SLICES;
}

/* The units of a slice: h (T, units) of the whole layer, these columns. */
static void fire_up(const plm_fire *a, int32_t first, int32_t last) {
    int64_t bytes = plm_tile_bytes(a->up.format, a->up.cols), units = a->down.cols;
    plm_tile *tile = plm_tile_of(a->isa, a->up.format, a->bytes);
    int32_t tokens = a->step->n_tokens;
    float h[PLM_FEW * PLM_TILE];
    for (int32_t unit = first; unit < last; unit += PLM_TILE) {
        tile(a->up.data + unit / PLM_TILE * bytes, a->up.cols, &a->x, tokens, h, PLM_TILE);
        for (int32_t t = 0; t < tokens; t++)
            for (int32_t i = 0; i < plm_min(PLM_TILE, last - unit); i++)
                a->h[t * units + unit + i] = plm_squared_relu(h[t * PLM_TILE + i]);
    }
}

/* The rows of group g that fired for any token. */
static void find_group(const plm_fire *a, int32_t g, plm_ahead *found) {
    const plm_matrix *down = &a->down;
    const uint8_t *rows, *scales = group_at(down, g, &rows), *end = rows;
    int64_t bytes = unit_bytes(down);
    uint32_t left = 0; /* a bit for each unit */
    for (int64_t t = 0; t < a->step->n_tokens; t++)
        for (int32_t i = 0; i < units_of(down, g); i++)
            left |= (uint32_t)(a->h[t * down->cols + g * PLM_BLOCK + i] != 0.0f) << i;
    for (found->rows = 0; left; left &= left - 1) found->row[found->rows++] = rows + __builtin_ctz(left) * bytes;
    if (plm_is_super(down->format)) plm_scales_of_part(down->format, down->rows, g % PLM_PARTS, &scales, &end);
    found->scales = scales;
    found->row_share = (int32_t)(bytes * PLM_SHARE / down->rows);
    found->scales_share = (int32_t)((end - scales) * PLM_SHARE / down->rows);
}

static inline __attribute__((always_inline)) void ask_for_all(const plm_ahead *next, int32_t width) {
    for (int32_t o = 0; o < width; o += PLM_SHARE) plm_ask(next, o);
}

void plm_fire_item(const void *p, size_t slice, int thread) {
    const plm_fire *a = p;
    int64_t groups = (a->down.cols + PLM_BLOCK - 1) / PLM_BLOCK, width = a->down.rows;
    int32_t first = (int32_t)(groups * (int64_t)slice / PLM_SLICES);
    int32_t last = (int32_t)(groups * ((int64_t)slice + 1) / PLM_SLICES);
    float *y = a->partial + (int64_t)slice * width;
    (void)thread;
    for (int32_t t = 0; t < a->step->n_tokens; t++)
        memset(y + t * PLM_SLICES * width, 0, (size_t)width * sizeof *y);
    if (first == last) return;
    fire_up(a, first * PLM_BLOCK, plm_min(last * PLM_BLOCK, a->down.cols));
    plm_ahead group[2]; /* this one and the next, whose rows come meanwhile */
    find_group(a, first, &group[first % 2]);
    ask_for_all(&group[first % 2], a->down.rows);
    for (int32_t g = first; g < last; g++) {
        plm_ahead *now = &group[g % 2], *next = &group[(g + 1) % 2];
        next->rows = next->scales_share = 0;
        if (g + 1 < last) find_group(a, g + 1, next);
        if (!now->rows || plm_is_super(a->down.format)) ask_for_all(next, a->down.rows);
        for (int32_t t = 0; t < a->step->n_tokens && now->rows; t++)
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

static size_t groups_of(int32_t units) { return plm_ceil_div((size_t)units, PLM_BLOCK); }
static size_t pairs_of(int32_t units) { return plm_ceil_div((size_t)units, PLM_PAIR); }

size_t plm_up_items(const void *p) { return pairs_of(((const plm_up *)p)->down.cols); }

/* The squared ReLU of n units h: those that fired into `fired`, their numbers into `which`. Returns how many. */
static int32_t keep_fired(const float *h, int32_t n, float *fired, uint8_t *which) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) { /* writes every value, keeps those that fired: no branch to guess */
        float value = plm_squared_relu(h[i]);
        fired[count] = value;
        which[count] = (uint8_t)i;
        count += value != 0.0f;
    }
    return count;
}

/* A pair of groups. The units of all tokens together would be too far apart for a cache: kept is what fired. */
void plm_up_item(const void *p, size_t pair, int thread) {
    const plm_up *a = p;
    const int32_t first = (int32_t)pair * PLM_PAIR, units = plm_min(PLM_PAIR, a->down.cols - first);
    const int64_t tokens = a->step->n_tokens, bytes = plm_tile_bytes(a->up.format, a->up.cols);
    plm_tile *tile = plm_tile_of(a->isa, a->up.format, a->bytes);
    float *fired = a->fired + (int64_t)pair * tokens * PLM_PAIR, h[UP_TOKENS * PLM_PAIR];
    uint8_t *which = a->which + (int64_t)pair * tokens * PLM_PAIR, *count = a->count + (int64_t)pair * tokens;
    (void)thread;
    for (int32_t from = 0; from < tokens; from += UP_TOKENS) {
        int32_t now = plm_min(UP_TOKENS, (int32_t)tokens - from);
        plm_vectors x = plm_vector_at(&a->x, from, a->up.cols);
        for (int32_t i = 0; i < units; i += PLM_TILE)
            tile(a->up.data + (first + i) / PLM_TILE * bytes, a->up.cols, &x, now, h + i, PLM_PAIR);
        for (int32_t t = 0; t < now; t++) {
            int32_t kept = keep_fired(h + t * PLM_PAIR, units, fired, which);
            *count++ = (uint8_t)kept;
            fired += kept, which += kept;
        }
    }
}

size_t plm_down_items(const void *p) { return plm_ceil_div((size_t)((const plm_down *)p)->down.rows, DOWN_OUTPUTS); }

/* sum (tokens, n) += the units of a pair of groups that fired, for outputs first .. first + n. */
static void down_pair(const plm_down *a, int32_t pair, int32_t first, int32_t n, float *sum) {
    int32_t tokens = a->step->n_tokens, g = pair * (PLM_PAIR / PLM_BLOCK);
    const float *fired = a->fired + (int64_t)pair * tokens * PLM_PAIR;
    const uint8_t *which = a->which + (int64_t)pair * tokens * PLM_PAIR, *count = a->count + (int64_t)pair * tokens;
    float w[PLM_PAIR * DOWN_OUTPUTS];
    widen_group(a->isa, &a->down, g, first, first + n, w);
    if (g + 1 < (int32_t)groups_of(a->down.cols))
        widen_group(a->isa, &a->down, g + 1, first, first + n, w + PLM_BLOCK * n);
    for (int32_t t = 0; t < tokens; fired += count[t], which += count[t], t++)
        a->isa->mix(fired, which, count[t], w, n, sum + (int64_t)t * n);
}

void plm_down_item(const void *p, size_t item, int thread) {
    const plm_down *a = p;
    int32_t tokens = a->step->n_tokens, first = (int32_t)item * DOWN_OUTPUTS,
            n = plm_min(a->down.rows - first, DOWN_OUTPUTS);
    float *sum = a->sums + (int64_t)tokens * first;
    (void)thread;
    memset(sum, 0, (size_t)(tokens * n) * sizeof *sum);
    for (int32_t pair = 0; pair < (int32_t)pairs_of(a->down.cols); pair++) down_pair(a, pair, first, n, sum);
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t o = 0; o < n; o++) a->y[t * a->down.rows + first + o] += sum[t * n + o];
}
