/* What the comparisons of the instruction sets share: seeded values, memory that ends at a page that must not be
 * touched, comparisons that count themselves. isa_matrix.c has the matrix. */
#ifndef ISA_MATRIX_H
#define ISA_MATRIX_H

#include "kernels.h"

extern const plm_isa *tested;
extern int bend;
extern long compared, differed;

void begin(const plm_isa *isa); /* the same values and none compared */
int32_t below(int32_t n);
float symmetric(void); /* [-1, 1) */

typedef struct {
    uint8_t *at, *map;
    size_t mapped;
} guarded;

guarded take(size_t bytes);
guarded copy_of(const void *p, size_t bytes);
void drop(guarded g);
static inline float *values(guarded g) { return (float *)(void *)g.at; }
static inline int16_t *integers(guarded g) { return (int16_t *)(void *)g.at; }

void judge(const char *what, int32_t size, int32_t more, int equal);
/* The same bits, but for sign and payload of a NaN. */
void same(const char *what, int32_t size, int32_t more, const float *got, const float *want, int32_t n);
void same_bytes(const char *what, int32_t size, int32_t more, const void *got, const void *want, size_t bytes);
/* Sums of floats in another order: the difference against the sum of the sizes of the products. */
void near(const char *what, int32_t size, const float *got, const float *want, const float *sizes, int32_t n);

static inline int is_integer(int format) { return format >= PLM_Q8_0; }
size_t bytes_of(int format, int32_t rows, int32_t cols);
/* Quants of a block, in bytes. */
int32_t quant_bytes(int format);
/* Weights in memory order: `scales` and `quants` of one block, or plain floats. Quants are all `quant` where that is
 * not negative. */
guarded weights(int format, size_t bytes, int32_t scales, int64_t quants, int quant);
/* Blocks of very different sizes; the largest of a block is positive or negative. */
guarded floats(int32_t n);

/* x with q, scale and sum as the scalar set packs them, `tokens` rows of n values; n may be no whole blocks, and is
 * then not packed. */
typedef struct {
    guarded f, q, scale, sum;
    plm_vectors v;
} activations;

activations pack_of(guarded x, int32_t tokens, int32_t n);
void drop_activations(activations a);
/* Change a quant or the exponent of a float by much. */
void bend_at(uint8_t *p, int format);

void tiles_of_tokens(int format); /* isa_matrix_tokens.c */
void units_of_tokens(int format);
void mixes(void);
void extras(int format);
void panels(void); /* isa_matrix_panels.c */
void attention_in_floats(void); /* isa_matrix_attention.c */
void superblocks(int format); /* isa_matrix_super.c */

#endif
