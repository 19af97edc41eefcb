/* gemm_onednn.c: the matrix product by oneDNN, which chooses its kernels by what the processor
 * offers when it runs and compiles them at its first call. It has no product in double. */
#include "base/gemm_internal.h"

#if defined(MOE_HAVE_ONEDNN) && !defined(MOE_REAL_DOUBLE)
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>

/* The product of matrices in bf16, added up in fp32. The library exports it beside dnnl_sgemm, but
 * its header does not name it: a later one may be without. It has it for AVX-512 only. */
extern dnnl_status_t dnnl_gemm_bf16bf16f32(char transpose_a,
                                           char transpose_b,
                                           dnnl_dim_t m,
                                           dnnl_dim_t n,
                                           dnnl_dim_t k,
                                           float alpha,
                                           const uint16_t *a,
                                           dnnl_dim_t stride_a,
                                           const uint16_t *b,
                                           dnnl_dim_t stride_b,
                                           float beta,
                                           float *c,
                                           dnnl_dim_t stride_c) __attribute__((weak));

/* Inside a parallel region with several threads oneDNN computes with the calling thread alone.
 * Elsewhere it would share the product among threads, and on some processors that changes bits.
 * Returns what end_alone has to set again. */
static int begin_alone(void) {
    const int threads = omp_get_max_threads();
    if (threads != 1) {
        omp_set_num_threads(1);
    }
    return threads;
}

static void end_alone(int threads) {
    if (threads != 1) {
        omp_set_num_threads(threads);
    }
}

void moe_onednn_multiply(const moe_product *p) {
    const int threads = begin_alone();
    dnnl_status_t status = dnnl_sgemm(p->a_transposed ? 'T' : 'N', p->b_transposed ? 'T' : 'N',
                                      p->m, p->n, p->k, 1, p->a, moe_product_stride_a(p), p->b,
                                      moe_product_stride_b(p), p->beta, p->c, p->n);
    end_alone(threads);
    MOE_ASSERT(status == dnnl_success);
}

static dnnl_status_t multiply_bf16(const moe_product *p, const uint16_t *a, const uint16_t *b) {
    const int threads = begin_alone();
    dnnl_status_t status = dnnl_gemm_bf16bf16f32(
        p->a_transposed ? 'T' : 'N', p->b_transposed ? 'T' : 'N', p->m, p->n, p->k, 1, a,
        moe_product_stride_a(p), b, moe_product_stride_b(p), p->beta, p->c, p->n);
    end_alone(threads);
    return status;
}

void moe_onednn_multiply_bf16(const moe_product *p, const uint16_t *a, const uint16_t *b) {
    MOE_ASSERT(multiply_bf16(p, a, b) == dnnl_success);
}

const char *moe_onednn_lacking_bf16(void) {
    const uint16_t one = 0x3f80;
    float c;
    if (!dnnl_gemm_bf16bf16f32) {
        return "this version of oneDNN has no products in bf16";
    }
    if (multiply_bf16(&(moe_product){.m = 1, .n = 1, .k = 1, .c = &c}, &one, &one) !=
        dnnl_success) {
        return "oneDNN has products in bf16 for processors with AVX-512 only";
    }
    return NULL;
}

/* Instruction sets, the richest first. Each one's number has the bits of those it includes. */
static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
    enum moe_gemm_vectors vectors;
} sets[] = {
    {dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx", MOE_VECTORS_AVX512},
    {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16", MOE_VECTORS_AVX512},
    {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni", MOE_VECTORS_AVX512},
    {dnnl_cpu_isa_avx512_core, "avx512_core", MOE_VECTORS_AVX512},
    {dnnl_cpu_isa_avx2_vnni, "avx2_vnni", MOE_VECTORS_AVX2},
    {dnnl_cpu_isa_avx2, "avx2", MOE_VECTORS_AVX2},
    {dnnl_cpu_isa_avx, "avx", MOE_VECTORS_AVX},
};

void moe_onednn_describe(moe_gemm_kernels *out) {
    const dnnl_version_t *version = dnnl_version();
    unsigned isa = dnnl_get_effective_cpu_isa();
    *out = (moe_gemm_kernels){.library = "oneDNN", .kernels = "sse41"};
    snprintf(out->version, sizeof out->version, "%d.%d.%d", version->major, version->minor,
             version->patch);
    enum moe_gemm_vectors vectors = MOE_VECTORS_128;
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        if ((isa & (unsigned)sets[i].isa) == (unsigned)sets[i].isa) {
            snprintf(out->kernels, sizeof out->kernels, "%s", sets[i].name);
            vectors = sets[i].vectors;
            break;
        }
    }
    out->slow = vectors < moe_gemm_processor();
}
#endif
