/* Number formats: float rows to ggml blocks and back, the same bits as the public gguf package.
 *
 *   F32, F16, BF16   one value after the other; F16 and BF16 rounded to nearest, ties to even
 *   Q8_0             32 values: f16 scale d = max|x| / 127, 32 int8 round(x / d), halves away from zero
 *   Q4_0             32 values: f16 scale d = (x of the largest |x|) / -8, 16 bytes; byte j holds
 *                    value j in its low and value j + 16 in its high nibble; x = d * (nibble - 8)
 *   Q4_K, Q6_K       256 values as quantize_k.h says; read here, not made
 *
 * Little-endian machines only, as everything here. Rows are contiguous: x is (rows, cols) float32,
 * the packed side (rows, row bytes); cols is whole blocks (the caller checks).
 * Plain C without an instruction set of its own: f16 is rounded in software and the same everywhere.
 *
 * Both return how many rows were done: `rows`, or the index of the first row that holds NaN, an
 * infinity or a number its format cannot hold (what was written of it then means nothing).
 * PLM_FORMAT_UNKNOWN for a type that is not here, or that can only be read. Allocates nothing.
 */
#ifndef PLM_QUANTIZE_H
#define PLM_QUANTIZE_H

#include <stddef.h>
#include <stdint.h>

#ifndef PLM_API
#define PLM_API __attribute__((visibility("default")))
#endif

#define PLM_FORMAT_UNKNOWN SIZE_MAX

/* ggml's numbers */
enum { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q8_0 = 8, GGML_Q4_K = 12, GGML_Q6_K = 14, GGML_BF16 = 30 };

PLM_API size_t plm_quantize(int format, const float *x, size_t rows, size_t cols, uint8_t *packed);
PLM_API size_t plm_dequantize(int format, const uint8_t *packed, size_t rows, size_t cols, float *x);

#endif
