/* bench_peers.c: forward and training steps beside the limit: the bare products of the experts and
 * the gate, and MPI_Alltoallv of the rows that really travel (each vector once per device, none to
 * the own rank), with all indices given and nothing else: no routing, packing, grouping,
 * activation, adding up, losses, counts or optimizer. The limit is taken twice: with the library
 * that moesim itself chose (run.gemm = auto), on matrices stored as moesim stores them, and with
 * the BLAS as y = x W^T is written. It is a strong reference, not physics: a better kernel passes
 * it.
 *
 * At one rank: the router with all statistics beside a plain double loop.
 *
 * With a shape and a kind of step as arguments (S3 forward, S4 train; or router), and settings more
 * if need be, only moesim runs, for some seconds: for a profile.
 *
 * bench: np=1,2,4,8 */
#include "bare.h"
#include "data/synthetic.h"
#include "model_fixture.h"

typedef struct shape {
    int ranks;
    const char *name, *settings;
    const char *aim[2]; /* of limit / moesim with the BLAS: forward, train */
} shape;

#define TINY                                                                         \
    "data.tokens_per_device=64 model.hidden_size=64 model.moe_intermediate_size=32 " \
    "model.num_experts=16 router.top_k=2"

static const shape shapes[] = {
    {2,
     "S1, T 1024, H 512, F 256, N 64, K 6",
     "data.tokens_per_device=1024 model.hidden_size=512 model.moe_intermediate_size=256 "
     "model.num_experts=64 router.top_k=6",
     {"1.05", "0.95"}},
    {2,
     "S2, T 2048, H 1024, F 512, N 32, K 4",
     "data.tokens_per_device=2048 model.hidden_size=1024 model.moe_intermediate_size=512 "
     "model.num_experts=32 router.top_k=4",
     {"1.05", "0.95"}},
    {8,
     "S3, T 1024, H 640, F 192, N 160, K 6, 3 of 8 groups",
     "data.tokens_per_device=1024 model.hidden_size=640 model.moe_intermediate_size=192 "
     "model.num_experts=160 router.top_k=6 router.num_groups=8 router.topk_group=3 "
     "router.group_limit=max",
     {"1.05", "0.95"}},
    {2, "S4, T 64, H 64, F 32, N 16, K 2", TINY, {"0.5", "0.5"}},
    {2, "S4 by shared memory, T 64, H 64, F 32, N 16, K 2", TINY " exchange.transport=shared", {0}},
    {4, "S4, T 64, H 64, F 32, N 16, K 2", TINY, {"0.4", "0.4"}},
    {4, "S4 by shared memory, T 64, H 64, F 32, N 16, K 2", TINY " exchange.transport=shared", {0}},
};

typedef struct peers {
    model_fixture model; /* one layer */
    int64_t step;
    bool trains;
    enum moe_gemm_library library; /* of the limit */
    bare_exchange exchange;
    bare_experts experts;
    real *logits; /* [T,N] */
    real *dgate;  /* [N,H] */
} peers;

/* --- moesim --- */

static void forward_step(peers *n) {
    model_fixture *m = &n->model;
    moe_layer *layer = &m->stack.layer[0];
    moe_activations *a = &m->stack.activations[0];
    m->context.keep = m->context.trains = false;
    moe_step_metrics_clear(&m->metrics);
    moe_layer_forward(layer, &m->context, m->stack.x[0], m->stack.y, a, &m->metrics.layer[0]);
    moe_tally_layer(layer, &m->context, a, m->stack.y, &m->metrics);
}

static void run_moesim(void *argument) {
    peers *n = argument;
    moe_status st = {0};
    if (!n->trains) {
        forward_step(n);
        return;
    }
    n->model.context.keep = true;
    if (model_fixture_train(&n->model, n->step++, &st)) {
        fprintf(stderr, "%s\n", st.message);
        moe_comm_abort(1);
    }
}

/* --- the limit --- */

/* y = x W^T of the forward pass; turned: W is stored as [in,out]. */
static void limit_forward(bool turned,
                          int64_t rows,
                          int64_t out,
                          int64_t in,
                          const real *x,
                          const real *w,
                          real *y) {
    if (turned) {
        moe_gemm_nn(rows, out, in, x, w, 0, y);
    } else {
        moe_gemm_nt(rows, out, in, x, w, y);
    }
}

static void limit_expert(const bare_experts *e, int64_t i, bool trains, bool turned) {
    const int64_t h = e->ffn->hidden, f = e->ffn->width, begin = e->offset[i];
    const int64_t rows = e->offset[i + 1] - begin, w = i * h * f;
    const real *x = e->x + begin * h, *dy = e->dy + begin * h;
    real *h1 = e->h1 + begin * f, *h3 = e->h3 + begin * f;
    limit_forward(turned, rows, f, h, x, e->ffn->w1 + w, h1);
    limit_forward(turned, rows, f, h, x, e->ffn->w3 + w, h3);
    limit_forward(turned, rows, h, f, h1, e->ffn->w2 + w, e->out + begin * h);
    if (!trains) {
        return;
    }
    moe_gemm_tn(h, f, rows, dy, h1, 0, e->gradient.w2 + w);
    moe_gemm_nn(rows, f, h, dy, e->ffn->w2 + w, 0, h3);
    moe_gemm_tn(f, h, rows, h3, x, 0, e->gradient.w1 + w);
    moe_gemm_nn(rows, h, f, h3, e->ffn->w1 + w, 0, e->dx + begin * h);
    moe_gemm_tn(f, h, rows, h3, x, 0, e->gradient.w3 + w);
    moe_gemm_nn(rows, h, f, h3, e->ffn->w3 + w, 1, e->dx + begin * h);
}

/* There and back; in training dy and dx too. */
static void limit_exchange(const peers *n) {
    const bare_exchange *e = &n->exchange;
    const MPI_Comm comm = n->model.context.comm->comm;
    for (int i = 0; i < (n->trains ? 2 : 1); i++) {
        MPI_Alltoallv(e->out, e->send_count, e->send_offset, BARE_REAL, e->in, e->recv_count,
                      e->recv_offset, BARE_REAL, comm);
        MPI_Alltoallv(e->in, e->recv_count, e->recv_offset, BARE_REAL, e->out, e->send_count,
                      e->send_offset, BARE_REAL, comm);
    }
}

static void limit_gate(const peers *n) {
    const moe_layer *layer = &n->model.stack.layer[0];
    const int64_t tokens = n->model.batch.num_tokens, h = n->model.c.model.hidden_size;
    const int64_t experts = n->model.c.model.num_experts;
    real *x = n->model.stack.x[0], *dx = n->model.stack.y;
    moe_gemm_nt(tokens, experts, h, x, layer->gate, n->logits);
    if (n->trains) {
        moe_gemm_tn(experts, h, tokens, n->logits, x, 0, n->dgate);
        moe_gemm_nn(tokens, h, experts, n->logits, layer->gate, 1, dx);
    }
}

static void run_limit(void *argument) {
    peers *n = argument;
    moe_status st = {0};
    if (n->library != MOE_GEMM_AUTO) {
        moe_gemm_choose(n->library, &st);
    }
    limit_gate(n);
    for (int64_t i = 0; i < n->experts.ffn->count; i++) {
        limit_expert(&n->experts, i, n->trains, n->library == MOE_GEMM_AUTO && !n->trains);
    }
    limit_exchange(n);
    if (n->library != MOE_GEMM_AUTO) {
        moe_gemm_choose(MOE_GEMM_AUTO, &st);
    }
}

/* --- one shape --- */

static void prepare(peers *n, const moe_comm *comm, const char *settings) {
    model_fixture *m = &n->model;
    model_fixture_init(
        m, comm, n->trains ? "run.mode=train train.learning_rate=0.0001 " : "run.mode=forward ",
        settings, 0);
    if (!n->trains) {
        moe_stack_turn_weights(&m->stack);
    }
    const moe_config *c = &m->c;
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, &m->batch, 0, m->stack.x[0],
                          NULL);
    forward_step(n);
}

static void prepare_limit(peers *n, const moe_comm *comm) {
    const model_fixture *m = &n->model;
    const moe_config *c = &m->c;
    moe_activations *a = &m->stack.activations[0];
    n->logits = moe_alloc(m->batch.num_tokens * c->model.num_experts, sizeof(real), "bench");
    n->dgate = moe_alloc(c->model.num_experts * c->model.hidden_size, sizeof(real), "bench");
    bare_exchange_init(&n->exchange, comm, &a->plan, c->model.hidden_size, true);
    bare_experts_init(&n->experts, &m->stack.layer[0].experts, a->exchange.inbox.slot_offset, true);
}

/* The plan and the inbox of the first step are what the limit goes by; moesim makes its own anew in
 * each step. */
static void copy_indices(peers *n, int64_t **offset) {
    const int64_t count = n->experts.ffn->count;
    *offset = moe_alloc(count + 1, sizeof **offset, "bench");
    memcpy(*offset, n->experts.offset, (size_t)(count + 1) * sizeof **offset);
    n->experts.offset = *offset;
}

/* A forward or a training step beside both limits. */
static void bench(const moe_comm *comm, const shape *s, bool trains) {
    static const enum moe_gemm_library library[] = {MOE_GEMM_AUTO, MOE_GEMM_BLAS};
    static const char *const library_name[] = {"own library", "BLAS"};
    peers n = {.trains = trains};
    int64_t *offset;
    prepare(&n, comm, s->settings);
    prepare_limit(&n, comm);
    copy_indices(&n, &offset);
    for (int i = 0; i < 2; i++) {
        char what[160];
        n.library = library[i];
        snprintf(what, sizeof what, "%s, %s, limit: %s", s->name, trains ? "train" : "forward",
                 library_name[i]);
        bench_row(comm, what, bench_pair(comm, run_moesim, run_limit, &n),
                  library[i] == MOE_GEMM_BLAS && s->aim[trains] ? s->aim[trains] : "-");
    }
    bare_exchange_free(&n.exchange);
    bare_experts_free(&n.experts);
    moe_free(n.logits);
    moe_free(n.dgate);
    moe_free(offset);
    model_fixture_free(&n.model);
}

/* --- the router --- */

typedef struct router_bench {
    bench_layer layer;
    real *logits;
    moe_routing routing;
    moe_stats stats;
    int32_t *expert;
    double *weight;
} router_bench;

static void route(void *argument) {
    router_bench *b = argument;
    const moe_context *c = &b->layer.context;
    moe_draw draw = {0};
    int64_t bad;
    moe_stats_reserve(&b->stats, c->router.num_experts, b->layer.batch.devices,
                      b->layer.batch.num_segments);
#ifdef MOE_REAL_DOUBLE
    moe_logits logits = {.f64 = b->logits};
#else
    moe_logits logits = {.f32 = b->logits};
#endif
    moe_router_route(&c->router, &draw, &b->layer.batch, b->layer.layer.placement, logits, NULL,
                     &b->routing, &b->stats, &bad);
}

static void route_bare(void *argument) {
    router_bench *b = argument;
    bare_router(&b->layer, b->logits, b->expert, b->weight);
}

static void prepare_route(router_bench *b, const moe_comm *comm) {
    bench_layer_init(&b->layer, comm,
                     "data.tokens_per_device=8192 model.hidden_size=64 "
                     "model.moe_intermediate_size=32 model.num_experts=256 router.top_k=8 "
                     "router.num_groups=8 router.topk_group=4 router.group_limit=max");
    const int64_t tokens = b->layer.batch.num_tokens;
    b->logits = moe_alloc(tokens * 256, sizeof(real), "bench");
    b->expert = moe_alloc(tokens * 8, sizeof(int32_t), "bench");
    b->weight = moe_alloc(tokens * 8, sizeof(double), "bench");
    bare_gate(&b->layer, b->logits);
}

static void free_route(router_bench *b) {
    moe_free(b->logits);
    moe_free(b->expert);
    moe_free(b->weight);
    moe_routing_free(&b->routing);
    moe_stats_free(&b->stats);
    bench_layer_free(&b->layer);
}

static const char router_name[] = "router, T 8192, N 256, K 8, 4 of 8 groups, all statistics";

static void bench_route(const moe_comm *comm) {
    router_bench b = {0};
    char what[128];
    prepare_route(&b, comm);
    snprintf(what, sizeof what, "%s, bare: plain top-k", router_name);
    bench_row(comm, what, bench_pair(comm, route, route_bare, &b), "-");
    free_route(&b);
}

/* --- moesim alone --- */

/* Collective. Steps for some seconds; prints the median of their times. */
static void run_alone(const moe_comm *comm, const char *what, bench_function step, void *argument) {
    enum { MOST_STEPS = 20000 };
    const double seconds = 2 * BENCH_SECONDS;
    double *time = moe_alloc(MOST_STEPS, sizeof *time, "bench"), sum = 0;
    int n = 0;
    for (; n < MOST_STEPS && sum < seconds; sum += time[n++]) {
        time[n] = bench_once(comm, step, argument);
    }
    if (comm->rank == 0) {
        printf("%s\t%.4f\t-\tms\t-\t%.4f-%.4f\t-\n", what, 1e3 * bench_quantile(time, n, 0.5),
               1e3 * bench_quantile(time, n, 0.25), 1e3 * bench_quantile(time, n, 0.75));
    }
    moe_free(time);
}

static void router_alone(const moe_comm *comm) {
    router_bench b = {0};
    prepare_route(&b, comm);
    run_alone(comm, router_name, route, &b);
    free_route(&b);
}

/* words: the first word of a shape's name, the kind of step, and more settings or NULL. */
static void step_alone(const moe_comm *comm, char **words) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const shape *s = &shapes[i];
        if (s->ranks == comm->size && strncmp(s->name, words[0], strlen(words[0])) == 0 &&
            s->name[strlen(words[0])] == ',') {
            peers n = {.trains = strcmp(words[1], "train") == 0};
            char settings[512];
            snprintf(settings, sizeof settings, "%s %s", s->settings, words[2] ? words[2] : "");
            prepare(&n, comm, settings);
            run_alone(comm, s->name, run_moesim, &n);
            model_fixture_free(&n.model);
        }
    }
}

static void bench_all(const moe_comm *comm) {
    if (comm->size == 1) {
        bench_route(comm);
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (shapes[i].ranks == comm->size) {
            bench(comm, &shapes[i], false);
            bench(comm, &shapes[i], true);
        }
    }
}

static void print_kernels(const moe_comm *comm) {
    moe_gemm_kernels kernels[2];
    int num = moe_gemm_kernels_of(kernels);
    for (int i = 0; i < num && comm->rank == 0; i++) {
        printf("products by %s %s, kernels %s\n", kernels[i].library, kernels[i].version,
               kernels[i].kernels);
    }
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    print_kernels(&comm);
    if (argc > 2) {
        step_alone(&comm, argv + 1);
    } else if (argc == 2) {
        router_alone(&comm);
    } else {
        bench_all(&comm);
    }
    moe_comm_finalize(&comm);
    return 0;
}
