/* The kernels' contract: what the Python side fills in and what each kernel does with it.
 *
 * Plain C11. No allocation, no output, no state of its own: the caller owns every byte, the thread pool
 * lives in memory the caller gives. A kernel is a pair of functions over one struct of arguments: how many
 * independent items there are now, and do item i. What an item holds may depend on how many threads
 * there are, what is computed never, so a session repeats bit for bit on any number of threads.
 *
 * Numbers: activations are float. Against integer weights (Q8_0, Q4_0) they enter as 16-bit integers with
 * one scale for each block of 32 values, so the sums inside a block are exact in 32 bits:
 * 128 * 32767 * 32 < 2^31. Q4_K and Q6_K have superblocks of 256 values, eight parts of 32 that meet one block of
 * activations each. docs/layouts.md draws the weight arrangements.
 */
#ifndef PLM_H
#define PLM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PLM_API __attribute__((visibility("default")))

enum { PLM_BLOCK = 32, PLM_TILE = 16 };
enum { PLM_LINE = 64 }; /* bytes of a cache line: a load of 512 bits across two takes twice as long */

/* The largest size of both sides of a panel product: 32 * 8191^2 < 2^31. */
enum { PLM_PANEL = 8191 };
/* The largest activation against weights of at most 8 bits: 32 * 128 * 32767 < 2^31. */
enum { PLM_LARGEST = 32767 };
/* The largest of the bytes that weigh cached bytes, and how many rows of those share a scale of their weights. */
enum { PLM_WEIGHT = 255, PLM_BYTE_ROWS = 64 };
/* The largest of activations in bytes: half the work and 256 times the rounding error, for who asks for it. Of queries
 * too, where they meet cached bytes. */
enum { PLM_BYTE = 127 };

/* Most tokens of a call that takes the kernels of a decode step: few enough that weights are read once for all. */
enum { PLM_FEW = 8 };

/* Weight formats, in the order of every table below; plm_edge/native/kernels.py has the same order. */
enum { PLM_F32, PLM_F16, PLM_BF16, PLM_Q8_0, PLM_Q4_0, PLM_Q4_K, PLM_Q6_K, PLM_FORMATS };

/* Arrangements. ROWS: ggml rows. TILE16X4: 16 rows interleaved, 4 values each. GROUP32: 32 units, unit by
 * unit, scales of all outputs first; of Q4_K and Q6_K eight such groups behind the scales they share. */
enum { PLM_ROWS, PLM_TILE16X4, PLM_GROUP32 };

/* A weight matrix where it lies in the mapped file. rows x cols as the mathematics has them (y = W x). */
typedef struct {
    const uint8_t *data;
    int32_t rows, cols, format, arrangement;
} plm_matrix;

/* Activations of several tokens, a row each: the floats, and the same rows as integers.
 * q (tokens, cols), 16 bits, and, for each block of 32, scale and sum of q (tokens, cols / 32). bytes (tokens, cols): q
 * once more, where none is above PLM_BYTE, else NULL. */
typedef struct {
    const float *f;
    int16_t *q;
    float *scale;
    int32_t *sum;
    int8_t *bytes;
} plm_vectors;

/* Where memory brings weights ahead of their use: into a core's second cache, into its first, or, tiles, into the
 * second and soon after into the first. docs/decisions.md says why. */
enum { PLM_SECOND, PLM_FIRST, PLM_BOTH };

/* The moving part of a session: everything else in the arguments stays as recorded. */
typedef struct {
    int32_t n_past;   /* rows in the cache before this call */
    int32_t n_tokens; /* tokens of this call */
    int32_t first;    /* row of x that the final norm reads first */
    int32_t threads;  /* at least 1, that share the work: so a token's rows and slices are cut into items */
    int32_t near;     /* where a token's weights are asked for: PLM_SECOND, PLM_FIRST or PLM_BOTH */
    int32_t ends;     /* whether the outputs of a group of units are taken from both ends in turn, or in order */
} plm_step;

/* What the next call of `units` will read. While one computes it asks memory for that, a share with each PLM_SHARE
 * outputs: more requests at once than the CPU can keep track of are dropped. */
enum { PLM_SHARE = 128 };
typedef struct {
    const uint8_t *row[PLM_BLOCK]; /* of the units that fired */
    const uint8_t *scales;
    int32_t rows, row_share, scales_share; /* how many rows; bytes of each share */
    int32_t near, ends;                    /* as in plm_step */
} plm_ahead;

/* Units of a group that fired, as integers, token after token: `count`, an even number, of `words` and of `which` (the
 * unit), and the scale of the words. */
typedef struct {
    const int16_t *words;
    const uint8_t *which, *count;
    const float *scale;
    const uint16_t *token;
} plm_fired_words;

/* What an instruction set must be able to do. kernels.c and its sisters say everything else once, for all
 * of them. */
typedef struct {
    const char *name;
    /* y[t * stride + r] = row r of the 16 of a tile times token t of x. Every token gets the bits it would get alone.
     */
    void (*tile[PLM_FORMATS])(const uint8_t *tile, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                              int32_t stride);
    /* y (64) = the rows of four tiles that lie behind each other times one token, the bits of `tile`. Meanwhile memory
     * is asked for what they are about to read and, at their end, for as many tiles at `next`; `near` as in plm_step.
     * NULL where that is no faster than one after the other. */
    void (*four_tiles[PLM_FORMATS])(const uint8_t *tiles, int32_t cols, const plm_vectors *x, float *y,
                                    const uint8_t *next, int32_t near);
    /* `tile` from x->bytes; NULL where `tile` is all there is. */
    void (*tile_of_bytes[PLM_FORMATS])(const uint8_t *tile, int32_t cols, const plm_vectors *x, int32_t tokens,
                                       float *y, int32_t stride);
    /* The same of two tiles that lie behind each other: y[t * stride + r], r < 32. NULL where that is no faster than
     * one after the other. */
    void (*two_of_bytes[PLM_FORMATS])(const uint8_t *tiles, int32_t cols, const plm_vectors *x, int32_t tokens,
                                      float *y, int32_t stride);
    /* A plain row times x. */
    float (*row[PLM_FORMATS])(const uint8_t *row, int32_t cols, const plm_vectors *x);
    /* y (count) = plain rows that lie behind each other times x, the bits of `row`. Meanwhile memory is asked for rows
     * that come next, at the end for the first ones of `count` others at `next`, unless that is NULL. NULL where that
     * is no faster than one after the other. */
    void (*rows[PLM_FORMATS])(const uint8_t *rows, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                              const uint8_t *next);
    /* y[0..n) += sum over i < count of a[i] * plain row i of n values. */
    void (*add_rows[PLM_FORMATS])(const uint8_t *rows, int32_t n, const float *a, int32_t count, float *y);
    /* y[o] += sum over the units n of one group of a[n] * w[n][o]. A unit whose a[n] is 0 is not read.
     * width: outputs of the matrix. A set may leave `next` alone. */
    void (*units[PLM_FORMATS])(const uint8_t *group, int32_t width, const float *a, int32_t units, float *y,
                               const plm_ahead *next);
    /* w[n * (last - first) + o - first] = weight of unit n of a group for output o, first <= o < last (both multiples
     * of 32 unless last is the end). */
    void (*unit_rows[PLM_FORMATS])(const uint8_t *group, int32_t width, int32_t first, int32_t last, int32_t units,
                                   float *w);
    /* `units` and `unit_rows` of Q4_K and Q6_K, NULL for the others: group `part` (0..7) of the 256 units that begin at
     * `super`. */
    void (*part_units[PLM_FORMATS])(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
    void (*part_rows[PLM_FORMATS])(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last,
                                   float *w);
    /* y[0..n) += sum over k < count of a[k] * row which[k] of w (rows of n floats). */
    void (*mix)(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y);
    /* The same in integers, for many tokens: three functions, NULL where `mix` is all there is.
     * Of 32 sums x those whose max(x, 0)^2 is not 0, that rounded to integers, and which they are. Returns how many: a
     * 0 of unit 0 makes an odd number even. All 32 places may be written. */
    int32_t (*keep_words)(const float *x, int16_t *words, uint8_t *which, float *scale);
    /* w[n * (last - first) + ...] = weight of unit n of a whole group without its scale, the outputs of each 32 in an
     * order of the set's own. */
    void (*unit_words[PLM_FORMATS])(const uint8_t *group, int32_t width, int32_t first, int32_t last, int16_t *w);
    /* For each of `tokens` entries of f: y[token * n + o] += (sum over k < count of words[k] * row which[k] of w) *
     * (scales[o] * scale). n is a multiple of 32. */
    void (*mix_words)(plm_fired_words f, int32_t tokens, const int16_t *w, const float *scales, int32_t n, float *y);
    /* One row of floats to integers: q = round(x / scale), scale = max|x| / most of its block; `sum` may be NULL. A NaN
     * or an infinity makes the scale NaN, so that it shows in every product. */
    void (*pack)(const float *x, int32_t cols, float most, int16_t *q, float *scale, int32_t *sum);
    /* The same of a row of halves. Meanwhile memory may be asked for what lies behind it. */
    void (*pack_halves)(const uint16_t *x, int32_t cols, float most, int16_t *q, float *scale);
    /* Panels: 16 lanes of 16-bit integers, in an order of the set's own. Column c of lane r is x[r * lane + c *
     * column]; lanes from `lanes` on are 0. columns is a multiple of 32. */
    void (*weave)(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel);
    /* y[t * stride + r] += sum over blocks b of (lane r of the panel times row t of x, in block b) * scales[16 b + r] *
     * x_scale[t * x_blocks + b]; row t of x begins at t * x_stride. The sum of a block is exact where the products fit:
     * |panel| <= PLM_PANEL and |x| <= PLM_PANEL, or |panel| <= 128 and any x. */
    void (*panel)(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride);
    /* y = a b / 2^15, rounded: floor((a b + 2^14) / 2^15), of numbers that are not both -2^15. */
    void (*weigh)(const int16_t *a, const int16_t *b, int32_t n, int16_t *y);
    void (*exps)(float *x, int32_t n); /* x = e^x for x <= 0: plm_exp of each */
    float (*dot)(const float *a, const float *b, int32_t n);
    void (*add)(float a, const float *x, int32_t n, float *y); /* y += a x */
    void (*widen)(const uint16_t *f16, int32_t n, float *y);
    /* y = q. Meanwhile memory may be asked for what lies behind it. */
    void (*words)(const int8_t *q, int32_t n, int16_t *y);
    /* y = blocks of 32 bytes, each times its scale, a half. */
    void (*widen_bytes)(const int8_t *q, const uint16_t *scales, int32_t blocks, float *y);
    /* Attention in floats, 16 heads at a time, one in each lane. The sums may be taken in any order.
     * lanes: y (n, 16) = x (n_lanes, n) transposed, its rows `stride` apart, zeros in the other lanes. Bit by bit, so x
     *   may be any values of 32 bits.
     * scores: y (rows, 16) = scale * (x (rows, n) . q (n, 16)), rows of x `stride` apart. Meanwhile memory may be asked
     *   for rows * n halves at `next`, unless that is NULL.
     * softmax: for each lane, most = the maximum of it and of x (rows, 16); x = e^(x - most); shrink = e^(most before -
     * most), 0 while sum is 0; sum = sum * shrink + the sum of x. A NaN shows in its own lane.
     * blend: for each lane l < lanes, y (lanes, n) = y * shrink[l] + the sum over rows of weights[r][l] * x (rows, n).
     */
    void (*lanes)(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y);
    void (*scores)(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                   const uint8_t *next);
    void (*softmax)(float *x, int32_t rows, float *most, float *sum, float *shrink);
    void (*blend)(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n, const float *shrink,
                  int32_t lanes, float *y, int32_t y_stride);
    /* `blend` of 16-bit integers of at most PLM_PANEL: block b of row r of x counts times scales[r * stride / 32 + b].
     * rows <= 32, and x has 32 rows; stride and n are multiples of 32. The weights of a lane and the scales of a block
     * become integers first, as `pack` makes them of PLM_LARGEST and PLM_PANEL, and meet in `weigh`: a sum is exact.
     * Meanwhile memory may be asked for some rows * stride halves at `next`. NULL where panels do all this. */
    void (*blend_words)(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                        const uint8_t *next);
    /* A prompt's tokens in the lanes: for each lane l < lanes, y (lanes, n) = y * shrink[l] + the sum over 32 rows of
     * weights[r][l] * scales[r * n / 32 + b] * x (32, n) in block b. Weights times scales, none negative, become
     * integers first, those of a lane together as `pack` makes them of PLM_PANEL: a sum is exact. A row of weight 0
     * does not count, whatever its scale. NULL where `pack` and `panel` do it. */
    void (*blend_rows)(const float *weights, const int16_t *x, const float *scales, int32_t n, const float *shrink,
                       int32_t lanes, float *y, int32_t y_stride);
    /* Attention in bytes, a head in each of 16 lanes; n is a multiple of 32. NULL where integers of 16 bits do it.
     * lay_bytes: what the other two read of rows of n bytes that lie `stride` apart, both in a way of the set's own:
     *   `row` (rows, n) row by row, and `four` (rows up to a multiple of four, n), each four rows side by side.
     * score_bytes: y (rows, 16) += the sum over blocks b of (lane l of the panel times row r, in block b) * (scales[16
     *   b + l] * x_scale[r * x_stride + b]). panel (n / 4, 16, 4): four bytes of each lane side by side; start (n / 32,
     *   16): -128 times the sum of a block of the lane, for sets that raise the bytes of a row by 128.
     * blend_bytes: for each lane l < lanes, y (lanes, n) = y * shrink[l] + the sum over rows <= PLM_BYTE_ROWS of
     *   weights[r][l] * x_scale[r * x_stride + b] * bytes of block b of row r; weights (rows, 16), shrink (16). The
     *   weights of a lane and the scales of a block become integers first, as `pack` makes them of PLM_LARGEST, and
     *   meet in `weigh`, and so do they and PLM_WEIGHT: a byte counts an integer of 0 .. PLM_WEIGHT times, so no scale
     *   may be negative. Meanwhile memory may be asked for `ahead` bytes at `next`, unless that is NULL. */
    void (*lay_bytes)(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four);
    void (*score_bytes)(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                        const float *x_scale, int32_t x_stride, int32_t rows, float *y);
    void (*blend_bytes)(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                        int32_t ahead);
} plm_isa;

extern const plm_isa plm_scalar;
#if defined(__x86_64__)
extern const plm_isa plm_avx2, plm_avx_vnni, plm_avx512_vnni;
#elif defined(__aarch64__)
extern const plm_isa plm_neon, plm_neon_dotprod, plm_neon_i8mm;
#endif

/* ---- kernels: each struct is the argument of the kernel of its name. T = step->n_tokens. ---- */

/* y (T, w.cols) = rows of w by id. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix w;
    const int32_t *ids;
    float *y;
} plm_embed;

/* y (T, width) = x / rms(x) * w, and y packed where y_packed.q is set. x starts at row step->first. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    const float *x, *w;
    float *y;
    plm_vectors packed;
    int32_t width, most; /* most: PLM_LARGEST or PLM_BYTE */
    float eps;
} plm_norm;

/* x (T, width) packed; with square set, x = max(x, 0)^2 first. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    float *x;
    plm_vectors packed;
    int32_t width, square, most;
} plm_pack;

/* y (T, w.rows) = w x, or y += w x. w in ROWS or TILE16X4. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix w;
    plm_vectors x;
    float *y;
    int32_t add;
} plm_product;

/* Rotate the last `rope` values of every head of q (T, heads, nope + rope) by its position, adjacent pairs.
 * turns (n_ctx, rope / 2, 2): cosine and sine. */
typedef struct {
    const plm_step *step;
    float *q;
    const float *turns;
    int32_t heads, nope, rope;
} plm_rotate;

/* How a row of the cache is stored: [latent: rank | rope key: rope] as floats or halves; or, for Q8_0,
 * [int8: rank | f16 scale of each 32 of them: rank / 32 | rope key as halves: rope]. */
enum { PLM_CACHE_F32, PLM_CACHE_F16, PLM_CACHE_Q8_0 };

/* Append T rows to one layer's cache (n_ctx rows): [latent after its norm | rotated rope key].
 * kv_a (T, rank + rope). stored: one of PLM_CACHE_. */
typedef struct {
    const plm_step *step;
    float *kv_a; /* normed and rotated in place: nobody reads it again */
    const float *w, *turns;
    void *cache;
    int32_t rank, rope, stored;
    float eps;
} plm_remember;

/* Geometry and operands that the attention kernels share. Rows of a cache of halves meet the queries as 16-bit
 * integers of PLM_PANEL with a scale for each block of 32, a cache of floats as floats; a cache of bytes as bytes in
 * ATTEND where the set has `blend_bytes`, else as halves do. kv_b (heads * (nope + v_head), rank) in ROWS: for each
 * head nope rows of W_uk, then v_head rows of W_uv. scale: of the scores. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix kv_b;
    const float *q;       /* (T, heads, nope + rope), rotated */
    const void *cache;    /* n_ctx rows as `stored` says */
    uint8_t *queries;     /* T times plm_query_bytes(): W_uk^T q as it meets cached rows; attention.h says how */
    float *partial;       /* slices of the context: plm_partial_floats() each, max(T, PLM_FEW * PLM_SLICES) of them */
    float *y;             /* (T, heads * v_head) */
    uint8_t *scratch;     /* plm_attention_scratch() bytes for each thread */
    int64_t scratch_bytes;
    int32_t heads, nope, rope, v_head, rank, stored, chunk;
    float scale;
} plm_attention;

/* The fused squared-ReLU pair for T <= PLM_FEW tokens: h (T, down.cols) = max(up x, 0)^2 and partial (T, 16,
 * down.rows) = slices of down h. A unit that fired for no token is a row that is not read; unit_rows (16) counts up
 * those that are, slice by slice. up TILE16X4, down GROUP32. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix up, down;
    plm_vectors x;
    float *h, *partial;
    int64_t *unit_rows;
} plm_fire;

/* y (T, width) += the 16 slices of partial (T, 16, width), in their order. */
typedef struct {
    const plm_step *step;
    const float *partial;
    float *y;
    int32_t width;
} plm_gather;

/* Units that many tokens take together, a span: in floats a pair of groups, for a loop over those that fired is worth
 * its beginning and its end; in integers a group, which has one scale for each output. */
enum { PLM_PAIR = 2 * PLM_BLOCK };

/* The units of h = max(up x, 0)^2 that fired. For each span and each of T tokens in turn: count (spans, T) of them, and
 * which token (spans, T) that is; behind each other their values and their numbers in the span, in `value` and `which`
 * (spans, up to span * T). Values are floats, or integers with a scale (spans, T), an even number of them: the last may
 * be a 0. Tokens of equal count follow each other: a loop whose length changes with each token takes as long to guess
 * as to do. */
typedef struct {
    void *value;
    float *scale;
    uint8_t *which, *count;
    uint16_t *token;
} plm_fired;

/* fired = the units of max(up x, 0)^2. up TILE16X4; down, whose groups they are, GROUP32. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix up, down;
    plm_vectors x;
    plm_fired fired;
} plm_up;

/* y (T, down.rows) += down h, with `fired` as UP leaves it. sums: room for (T, down.rows), where the outputs of an item
 * lie together: rows of y are too far apart for a cache. down GROUP32. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step;
    plm_matrix down;
    plm_fired fired;
    float *sums, *y;
} plm_down;

/* The screened head, for one token. Beforehand logits (w.rows) = the coarse head's. Afterwards: the rows of the `count`
 * tiles with the largest coarse logits hold what PRODUCT with w gives, all others the coarse logit plus one number
 * for all, estimated from the rows that were read. docs/layouts.md has the coarse head. */
typedef struct {
    const plm_isa *isa;
    const plm_step *step; /* n_tokens 1 */
    plm_matrix w;         /* the head, TILE16X4 */
    plm_vectors x;        /* the last hidden state after its norm, packed */
    float *logits;        /* (w.rows) */
    int32_t *peaks;       /* (tiles + 1): the best coarse logit of each tile as an ordered integer, the lowest chosen */
    int32_t *chosen;      /* (count) tiles, ascending; ties go to the lower one */
    float *tails;         /* (count, 4): sums of exponentials of rows that were read beside the promising ones */
    int64_t tile_bytes;   /* of 16 rows of w */
    int32_t count;        /* 1 .. tiles */
} plm_screen;

enum {
    PLM_OP_EMBED,
    PLM_OP_NORM,
    PLM_OP_PACK,
    PLM_OP_PRODUCT,
    PLM_OP_ROTATE,
    PLM_OP_REMEMBER,
    PLM_OP_ABSORB,   /* queries = W_uk^T q, for ATTEND */
    PLM_OP_ATTEND,   /* partial = slices of the softmax over the cached rows */
    PLM_OP_UNABSORB, /* y = W_uv of the slices put together */
    PLM_OP_EXPAND,   /* y = attention over keys and values built from the cached rows, head by head */
    PLM_OP_FIRE,
    PLM_OP_GATHER,
    PLM_OP_UP,
    PLM_OP_DOWN,
    PLM_OP_PEAK,    /* peaks of the coarse logits */
    PLM_OP_CHOOSE,  /* the best tiles */
    PLM_OP_RESCORE, /* their exact logits */
    PLM_OP_LEVEL,   /* the rows outside, raised or lowered together */
    PLM_OPS
};

typedef struct {
    size_t (*items)(const void *args);
    void (*item)(const void *args, size_t item, int thread);
} plm_kernel;

typedef struct {
    plm_kernel kernel;
    const void *args;
} plm_op;

/* Slices of the units (FIRE) and of the context (ATTEND of few tokens; of more tokens each is one slice). */
enum { PLM_SLICES = 16 };

PLM_API plm_kernel plm_kernel_of(int op);
plm_kernel plm_screen_kernel_of(int op); /* PLM_OP_PEAK .. PLM_OP_LEVEL: screen.c */
PLM_API size_t plm_partial_floats(int32_t heads, int32_t rank);
PLM_API size_t plm_query_bytes(int32_t heads, int32_t rank, int32_t rope);
PLM_API size_t plm_attention_scratch(int32_t heads, int32_t nope, int32_t rope, int32_t v_head, int32_t rank,
                                     int32_t chunk);

/* Instruction sets that were compiled in, best last; plm_isa_runs says whether this CPU has it. */
PLM_API const plm_isa *plm_isa_at(int index); /* NULL past the end */
PLM_API const char *plm_isa_name(const plm_isa *isa);
PLM_API int plm_isa_runs(const plm_isa *isa);
/* The set whose kernels do a token's products of that format: isa, or the earlier one that it takes them from. */
PLM_API const plm_isa *plm_isa_for(const plm_isa *isa, int format);

/* plm_step.near for this CPU; PLM_SECOND where the system does not tell how large a core's first cache is. */
PLM_API int plm_asks_into(void);
/* Whether this CPU reads on behind rows whose outputs are taken in order, into rows that did not fire: there too. */
PLM_API int plm_alternates_ends(void);

/* ---- the bandwidth of memory (bandwidth.c) ---- */

/* Reads `bytes` of data, in whole lines of 64. Returns the sum of the first 64-bit word of each, so that every line
 * must be read. */
PLM_API uint64_t plm_read(const uint8_t *data, size_t bytes);

/* ---- the pool ---- */

typedef struct plm_pool plm_pool;

PLM_API size_t plm_pool_bytes(int threads);
/* Starts threads - 1 workers in `memory` (plm_pool_bytes, on a multiple of 64). Returns NULL where a thread cannot be
 * had. Workers without work sleep after some milliseconds. */
PLM_API plm_pool *plm_pool_start(void *memory, int threads);
PLM_API void plm_pool_stop(plm_pool *pool);
/* Runs the list in order, the items of each op (fewer than 2^31) shared by all threads; an op's `items` is asked once,
 * when all before it is done. Returns how many ops were done: fewer than n where *cancel became nonzero in between.
 * After that no thread touches the list, its arguments or `cancel`. */
PLM_API int plm_run(plm_pool *pool, const plm_op *ops, int n, const atomic_int *cancel);

#endif
