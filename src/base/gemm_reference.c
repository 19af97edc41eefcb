/* gemm_reference.c: the matrix product as it is defined. It is slow and for tests. */
#include <stdio.h>

#include "base/bf16.h"
#include "base/gemm_internal.h"

void moe_reference_describe(moe_gemm_kernels *out) {
    *out = (moe_gemm_kernels){.library = "plain loops"};
}

/* How far apart the elements of op(a) and op(b) are: from row to row, from column to column. */
typedef struct strides {
    int64_t a_row, a_column, b_row, b_column;
} strides;

static strides strides_of(const moe_product *p) {
    return (strides){p->a_transposed ? 1 : p->k, p->a_transposed ? p->m : 1,
                     p->b_transposed ? 1 : p->n, p->b_transposed ? p->k : 1};
}

void moe_reference_multiply(const moe_product *p) {
    const strides s = strides_of(p);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            real *c = p->c + i * p->n + j;
            double sum = p->beta == 0 ? 0 : (double)*c;
            for (int64_t l = 0; l < p->k; l++) {
                sum += (double)p->a[i * s.a_row + l * s.a_column] *
                       (double)p->b[l * s.b_row + j * s.b_column];
            }
            *c = (real)sum;
        }
    }
}

void moe_reference_multiply_bf16(const moe_product *p, const uint16_t *a, const uint16_t *b) {
    const strides s = strides_of(p);
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            real *c = p->c + i * p->n + j;
            double sum = p->beta == 0 ? 0 : (double)*c;
            for (int64_t l = 0; l < p->k; l++) {
                sum += (double)moe_bf16_value(a[i * s.a_row + l * s.a_column]) *
                       (double)moe_bf16_value(b[l * s.b_row + j * s.b_column]);
            }
            *c = (real)sum;
        }
    }
}

const char *moe_reference_lacking_bf16(void) {
    return NULL;
}
