/* gemm_reference.c: the matrix product as it is defined. It is slow and for tests. */
#include <stdio.h>

#include "base/gemm_internal.h"

void moe_reference_describe(moe_gemm_kernels *out) {
    *out = (moe_gemm_kernels){.library = "plain loops"};
}

void moe_reference_multiply(const moe_product *p) {
    const int64_t a_row = p->a_transposed ? 1 : p->k, a_column = p->a_transposed ? p->m : 1;
    const int64_t b_row = p->b_transposed ? 1 : p->n, b_column = p->b_transposed ? p->k : 1;
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            real *c = p->c + i * p->n + j;
            double sum = p->beta == 0 ? 0 : (double)*c;
            for (int64_t l = 0; l < p->k; l++) {
                sum +=
                    (double)p->a[i * a_row + l * a_column] * (double)p->b[l * b_row + j * b_column];
            }
            *c = (real)sum;
        }
    }
}
