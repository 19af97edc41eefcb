/* gemm_onednn.c: the matrix product by oneDNN, which chooses its kernels by what the processor
 * offers when it runs and compiles them at its first call. It has no product in double. */
#include "base/gemm_internal.h"

#if defined(MOE_HAVE_ONEDNN) && !defined(MOE_REAL_DOUBLE)
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>

/* Inside a parallel region with several threads oneDNN computes with the calling thread alone.
 * Elsewhere it would share the product among threads, and on some processors that changes bits. */
void moe_onednn_multiply(const moe_product *p) {
    const int threads = omp_get_max_threads();
    if (threads != 1) {
        omp_set_num_threads(1);
    }
    dnnl_status_t status = dnnl_sgemm(p->a_transposed ? 'T' : 'N', p->b_transposed ? 'T' : 'N',
                                      p->m, p->n, p->k, 1, p->a, moe_product_stride_a(p), p->b,
                                      moe_product_stride_b(p), p->beta, p->c, p->n);
    if (threads != 1) {
        omp_set_num_threads(threads);
    }
    MOE_ASSERT(status == dnnl_success);
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
