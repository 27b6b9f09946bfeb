/* What llama.cpp's BLAS backend (ggml-blas.cpp) needs of a BLAS: y = a b and y = a b^T of floats, summed in doubles. */
#ifndef CBLAS_H
#define CBLAS_H

#include <stdint.h>

enum { CblasRowMajor };
typedef enum { CblasNoTrans, CblasTrans } CBLAS_TRANSPOSE;

static inline void cblas_sgemm(int, CBLAS_TRANSPOSE, CBLAS_TRANSPOSE turned, int64_t m, int64_t n, int64_t k, float,
                               const float *a, int64_t lda, const float *b, int64_t ldb, float, float *y, int64_t ldy) {
    const int64_t row = turned == CblasTrans ? ldb : 1, column = turned == CblasTrans ? 1 : ldb;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < k; c++) sum += (double)a[i * lda + c] * b[j * row + c * column];
            y[i * ldy + j] = (float)sum;
        }
}

#endif
