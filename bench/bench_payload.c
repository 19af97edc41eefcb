/* bench_payload.c: the conversions of payloads against memcpy of the same fp32 numbers, on one
 * core: a batch of vectors that fits into L2, and one that does not.
 *
 * bench: np=1 */
#include "bare.h"
#include "exchange/payload.h"

typedef struct payload_bench {
    moe_payload_format format;
    bool back; /* bytes to numbers */
    int64_t vectors, hidden;
    real *x, *copy;
    char *rows;
} payload_bench;

static void run_moesim(void *argument) {
    payload_bench *b = argument;
    if (b->back) {
        moe_payload_decode_all(b->format, b->rows, b->vectors, b->hidden, b->copy);
    } else {
        moe_payload_encode_all(b->format, b->x, b->vectors, b->hidden, b->rows);
    }
}

static void run_bare(void *argument) {
    payload_bench *b = argument;
    for (int64_t i = 0; i < b->vectors; i++) {
        memcpy(b->copy + i * b->hidden, b->x + i * b->hidden, (size_t)b->hidden * sizeof(real));
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        moe_payload_format format;
    } formats[] = {{"bf16", {MOE_PAYLOAD_BF16, MOE_FP8_SCALE_FP32}},
                   {"fp8, fp32 scales", {MOE_PAYLOAD_FP8, MOE_FP8_SCALE_FP32}},
                   {"fp8, ue8m0 scales", {MOE_PAYLOAD_FP8, MOE_FP8_SCALE_UE8M0}}};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    omp_set_num_threads(1);
    for (int64_t vectors = 16; vectors <= 4096; vectors *= 256) {
        payload_bench b = {.vectors = vectors, .hidden = 7168};
        int64_t n = vectors * b.hidden;
        b.x = moe_alloc(n, sizeof(real), "bench");
        b.copy = moe_alloc_zero(n, sizeof(real), "bench");
        b.rows = moe_alloc_zero(2 * n, 1, "bench");
        for (int64_t i = 0; i < n; i++) {
            b.x[i] = (real)((double)(i * 2654435761 % 1000003) / 1e6 - 0.5);
        }
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            for (int back = 0; back < 2; back++) {
                char what[128];
                b.format = formats[f].format;
                b.back = back == 1;
                snprintf(what, sizeof what, "%s, %s, %lld x 7168, bare: memcpy", formats[f].name,
                         back ? "to numbers" : "to bytes", (long long)vectors);
                run_moesim(&b);
                bench_row(&comm, what, bench_pair(&comm, run_moesim, run_bare, &b), "0.5");
            }
        }
        moe_free(b.x);
        moe_free(b.copy);
        moe_free(b.rows);
    }
    moe_comm_finalize(&comm);
    return 0;
}
