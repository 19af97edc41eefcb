/* bench_attention.c: a layer of attention, forward and forward + backward, against the products
 * that it consists of and nothing else: the projections, and of scores and values the tiles that
 * causal attention needs, through the same library. moesim's side also has norms, rotary positions,
 * the softmax over tiles and its backward, the way from tokens to heads and back, and adding up.
 *
 * bench: np=1 */
#include "attention/attention.h"
#include "attention/flash.h"
#include "base/rng.h"
#include "bench.h"

typedef struct attention_bench {
    moe_config c;
    moe_attention_shape s;
    moe_batch batch;
    moe_scratch scratch;
    moe_attention_weights a;
    moe_attention_activations p;
    moe_attention_work w;
    real *x, *y, *dy, *dx;
    real *partial[MOE_ATTENTION_TENSORS];
    real *any, *out; /* operands of the bare products, as large as the largest */
    bool backward;
} attention_bench;

static void run_moesim(void *argument) {
    attention_bench *b = argument;
    moe_attention_forward(&b->s, &b->a, &b->batch, b->x, &b->p, &b->w, b->y);
    if (b->backward) {
        moe_attention_backward(&b->s, &b->a, &b->batch, b->x, &b->p, &b->w, b->dy, b->partial,
                               b->dx);
    }
}

/* --- the bare products --- */

static void bare_projections(attention_bench *b) {
    const int64_t tokens = b->batch.num_tokens;
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&b->s, (enum moe_attention_tensor)i);
        if (t.norm || t.rows == 0) {
            continue;
        }
#pragma omp parallel for schedule(dynamic)
        for (int64_t row = 0; row < tokens; row += 256) {
            const int64_t rows = tokens - row < 256 ? tokens - row : 256;
            moe_gemm_nt(rows, t.rows, t.columns, b->any + row * t.columns, b->a.w[i],
                        b->out + row * t.rows);
            if (b->backward) {
                moe_gemm_nn(rows, t.columns, t.rows, b->any + row * t.rows, b->a.w[i], 0,
                            b->out + row * t.columns);
            }
        }
        if (b->backward) {
            moe_gemm_tn(t.rows, t.columns, tokens, b->any, b->any, 1, b->partial[i]);
        }
    }
}

/* The products of one tile: forward, and backward the scores again and five gradients. */
static void bare_tile(const attention_bench *b, const real *q, const real *k, real *out) {
    enum { N = MOE_FLASH_TILE };
    const int64_t key = b->s.key, value = b->s.value;
    real *s = out, *o = out + N * N;
    moe_gemm_nt(N, N, key, q, k, s);
    moe_gemm_nn(N, value, N, s, k, 1, o);
    if (b->backward) {
        moe_gemm_nt(N, N, key, q, k, s);
        moe_gemm_tn(N, value, N, s, q, 1, o);
        moe_gemm_nt(N, N, value, q, k, s);
        moe_gemm_nn(N, key, N, s, k, 1, o);
        moe_gemm_tn(N, key, N, s, q, 1, o);
    }
}

static void bare_tiles(attention_bench *b) {
    enum { N = MOE_FLASH_TILE };
    const int64_t tiles = b->c.data.sequence_length / N, key = b->s.key;
    const int64_t tasks = b->batch.num_segments * b->s.heads * tiles;
    const int64_t room = N * N + N * (key > b->s.value ? key : b->s.value);
#pragma omp parallel
    {
        real *out = moe_scratch_take(&b->scratch, room, sizeof *out, "bench");
        memset(out, 0, (size_t)room * sizeof *out);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            for (int64_t i = 0; i <= task % tiles; i++) {
                bare_tile(b, b->any + task % tiles * N * key, b->any + i * N * key, out);
            }
        }
        moe_scratch_give(&b->scratch, out);
    }
}

static void run_bare(void *argument) {
    bare_projections(argument);
    bare_tiles(argument);
}

/* --- one line --- */

static real *keyed(int64_t n) {
    real *x = moe_alloc(n, sizeof *x, "bench");
    moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 0, 0, 1, x, n);
    return x;
}

static void set_up(attention_bench *b, const moe_comm *comm, const char *settings) {
    int64_t widest = 0;
    settings_resolve(&b->c, "model.norm=rmsnorm", settings, comm->size);
    b->s = moe_attention_shape_of(&b->c);
    moe_batch_layout(&b->batch, b->c.data.tokens_per_device, b->c.data.sequence_length, 1, 0, 1);
    b->batch.scratch = &b->scratch;
    moe_attention_init(&b->a, &b->s, 1, 0);
    moe_attention_work_init(&b->w, &b->s, b->batch.sequence_length);
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&b->s, (enum moe_attention_tensor)i);
        b->partial[i] = moe_alloc_zero(t.rows * t.columns, sizeof(real), "bench");
        widest = t.rows > widest ? t.rows : widest;
        widest = t.columns > widest ? t.columns : widest;
    }
    const int64_t n = b->batch.num_tokens;
    b->x = keyed(n * b->s.hidden);
    b->dy = keyed(n * b->s.hidden);
    b->y = moe_alloc(n * b->s.hidden, sizeof(real), "bench");
    b->dx = moe_alloc_zero(n * b->s.hidden, sizeof(real), "bench");
    b->any = keyed(n * widest);
    b->out = moe_alloc_zero(n * widest, sizeof(real), "bench");
}

static void tear_down(attention_bench *b) {
    real *arrays[] = {b->x, b->dy, b->y, b->dx, b->any, b->out};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        moe_free(arrays[i]);
    }
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        moe_free(b->partial[i]);
    }
    moe_attention_free(&b->a);
    moe_attention_activations_free(&b->p);
    moe_attention_work_free(&b->w);
    moe_batch_free(&b->batch);
    moe_scratch_free(&b->scratch);
}

static void bench(const moe_comm *comm, const char *what, const char *settings, bool backward) {
    attention_bench b = {.backward = backward};
    char line[160];
    set_up(&b, comm, settings);
    for (int threads = 1; threads <= 2; threads++) {
        if (!bench_fits(comm, threads)) {
            continue;
        }
        omp_set_num_threads(threads);
        snprintf(line, sizeof line, "%s, %s, %d thread%s", backward ? "fwd + bwd" : "forward", what,
                 threads, threads > 1 ? "s" : "");
        bench_row(comm, line, bench_pair(comm, run_moesim, run_bare, &b), "0.7");
    }
    tear_down(&b);
}

int main(int argc, char **argv) {
    static const char *const rows[][2] = {
        {"mha, H 512, 8 heads of 64, 4 x 512 tokens",
         "model.attention=mha model.hidden_size=512 model.num_heads=8 data.tokens_per_device=2048 "
         "data.sequence_length=512"},
        {"mla, H 512, 8 heads of 64 + 32, r 256, 4 x 512 tokens",
         "model.attention=mla model.hidden_size=512 model.num_heads=8 data.tokens_per_device=2048 "
         "data.sequence_length=512"},
        {"mla, H 512, 4 heads of 128 + 64, r 512, 1 x 2048 tokens",
         "model.attention=mla model.hidden_size=512 model.num_heads=4 data.tokens_per_device=2048 "
         "data.sequence_length=2048"},
        {"mla, H 128, 4 heads of 32 + 16, r 64, 8 x 256 tokens",
         "model.attention=mla model.hidden_size=128 model.num_heads=4 model.kv_lora_rank=64 "
         "model.q_lora_rank=96 data.tokens_per_device=2048 data.sequence_length=256"},
    };
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (int backward = 0; backward < 2; backward++) {
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            bench(&comm, rows[i][0], rows[i][1], backward == 1);
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
