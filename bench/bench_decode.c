/* bench_decode.c: one new token of one sequence through the whole model, against reading the
 * weights that it touches once: attention, gate, shared and chosen experts of every layer, and the
 * head. A decode step does two operations for each weight, so that memory is its limit.
 *
 * bench: np=1 */
#include "base/vector.h"
#include "bench.h"
#include "generate/generator.h"

enum { PROMPT = 64, NEW = 700 };

typedef struct decode_bench {
    moe_config c;
    moe_input input;
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_stack stack;
    moe_generator g;
    moe_step_metrics metrics;
    int64_t step, reads, bytes;
    uint64_t sum; /* so that reading is not left out */
} decode_bench;

static void run_moesim(void *argument) {
    decode_bench *b = argument;
    moe_status st = {0};
    moe_step_metrics_clear(&b->metrics);
    b->context.step = b->metrics.step = b->step;
    moe_generator_step(&b->g, b->step++, NULL, &b->metrics, &st);
}

/* --- bare --- */

MOE_CLONES static uint64_t sum_words(const uint64_t *word, int64_t n) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += word[i];
    }
    return sum;
}

static void read_weights(decode_bench *b, const real *w, int64_t n) {
    uint64_t sum = 0;
    const int64_t words = n * (int64_t)sizeof *w / 8;
    enum { PIECE = 4096 };
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (int64_t i = 0; i < words; i += PIECE) {
        sum +=
            sum_words((const uint64_t *)(const void *)w + i, words - i < PIECE ? words - i : PIECE);
    }
    b->sum += sum;
    b->bytes += words * 8;
}

/* As many experts as a token chooses, others in every step. */
static void read_experts(decode_bench *b, const moe_ffn *f, int64_t first, int64_t count) {
    const int64_t n = f->hidden * f->width;
    for (int64_t k = 0; k < count; k++) {
        const int64_t e = (first + 5 * k) % f->count;
        read_weights(b, f->w1 + e * n, n);
        read_weights(b, f->w2 + e * n, n);
        read_weights(b, f->w3 + e * n, n);
    }
}

static void run_bare(void *argument) {
    decode_bench *b = argument;
    b->bytes = 0;
    b->reads++;
    for (int32_t l = 0; l < b->stack.num_layers; l++) {
        const moe_layer *layer = &b->stack.layer[l];
        for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
            const moe_attention_tensor_shape t =
                moe_attention_tensor_of(&b->stack.attention.shape, (enum moe_attention_tensor)i);
            read_weights(b, b->stack.attention.layer[l].w[i], t.rows * t.columns);
        }
        read_weights(b, layer->gate, (int64_t)b->c.model.num_experts * b->c.model.hidden_size);
        read_experts(b, &layer->shared, 0, layer->shared.count);
        read_experts(b, &layer->experts, 7 * b->reads + l, b->c.router.top_k);
    }
    read_weights(b, b->g.task.head, MOE_VOCABULARY * (int64_t)b->c.model.hidden_size);
}

/* --- one line --- */

static void set_up(decode_bench *b, const moe_comm *comm, const char *settings) {
    static uint8_t text[PROMPT];
    static int64_t begin[] = {0, PROMPT};
    const moe_prompts prompts = {1, PROMPT, begin, text};
    for (int i = 0; i < PROMPT; i++) {
        text[i] = (uint8_t)('a' + i % 26);
    }
    settings_resolve(&b->c,
                     "run.mode=generate generate.run=x generate.prompt=x data.source=text "
                     "data.path=x model.norm=rmsnorm train.context=1",
                     settings, comm->size);
    moe_batch_layout(&b->batch, PROMPT, PROMPT, 1, 0, 1);
    moe_context_init(&b->context, comm, &b->c, &b->batch, &b->input, &b->scratch);
    moe_stack_init(&b->stack, &b->context, 1, false);
    moe_step_metrics_init(&b->metrics, b->c.model.num_layers, b->c.model.num_experts, 1);
    moe_generator_init(&b->g, &b->stack, &b->batch, &prompts, NEW);
    b->step = 0;
    run_moesim(b); /* prefill */
}

static void tear_down(decode_bench *b) {
    moe_generator_free(&b->g);
    moe_stack_free(&b->stack);
    moe_step_metrics_free(&b->metrics);
    moe_context_free(&b->context);
    moe_batch_free(&b->batch);
    moe_scratch_free(&b->scratch);
}

static void bench(const moe_comm *comm, const char *what, const char *settings) {
    char line[160];
    decode_bench b = {.step = 0};
    set_up(&b, comm, settings);
    for (int threads = 1; threads <= 2; threads++) {
        if (!bench_fits(comm, threads)) {
            continue;
        }
        omp_set_num_threads(threads);
        const bench_times t = bench_pair(comm, run_moesim, run_bare, &b);
        snprintf(line, sizeof line, "%s, %d thread%s, %.0f MB", what, threads,
                 threads > 1 ? "s" : "", (double)b.bytes / 1e6);
        bench_row(comm, line, t, "0.5");
    }
    tear_down(&b);
}

int main(int argc, char **argv) {
#define MODEL                                                                           \
    "model.num_layers=4 model.hidden_size=1024 model.num_heads=8 model.num_experts=16 " \
    "model.moe_intermediate_size=512 model.num_shared_experts=1 router.top_k=4 "
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    bench(&comm, "mla, H 1024, 4 layers", MODEL "model.attention=mla");
    bench(&comm, "mha, H 1024, 4 layers", MODEL "model.attention=mha");
    moe_comm_finalize(&comm);
    return 0;
}
