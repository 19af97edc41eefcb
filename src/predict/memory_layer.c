/* memory_layer.c: the bytes of the layers: activations and working memory. The symbols are those of
 * memory.c. */
#include "balance/balance.h"
#include "base/alloc.h"
#include "base/sparse.h"
#include "capacity/cut.h"
#include "experts/experts.h"
#include "measure/matrix_size.h"
#include "predict/internal.h"
#include "predict/memory.h"

/* --- one layer's activations --- */

/* What a routing holds of so many tokens and selections: offsets; expert, score and weight. */
static int64_t routing(int64_t tokens, int64_t selections) {
    return add(mul(tokens, WORD), mul(selections, INT + DOUBLE + REAL));
}

/* The router writes the selections of each token where there is room for the most that it may have,
 * and moves them together afterwards: all of it is touched (moe_routing_close_gaps). */
static int64_t routing_with_gaps(const moe_memory_sizes *s, int64_t tokens) {
    return routing(tokens, mul(tokens, s->most));
}

/* Working memory of GEMM calls (experts.c): x and dy of a call, hidden vectors and LoRA's low ones.
 * Without w3, those of h3 stay untouched. Shared experts go backward in one thread. */
static int64_t scratch_of(const moe_memory_sizes *s,
                          int64_t rows,
                          int64_t h,
                          int64_t width,
                          int64_t rank) {
    const bool gated = s->matrices > 2;
    const int64_t widths = s->matrices == 0 ? 0 : s->backward ? (gated ? 5 : 3) : (gated ? 2 : 1);
    const int64_t streams = s->backward ? 2 : 1;
    return mul(min64(MOE_GEMM_ROWS, rows), add(add(mul(streams, h), mul(widths, width)), 2 * rank));
}
/* Factors of a product in bf16, which are half as long as floats (moe_ffn_codes). */
static int64_t codes_of(const moe_config *c, int64_t rows, int64_t h, int64_t width, int64_t rank) {
    if (c->model.compute == MOE_COMPUTE_FP32 || c->model.expert_type == MOE_EXPERT_IDENTITY) {
        return 0;
    }
    const int64_t of_rows = mul(min64(MOE_GEMM_ROWS, rows), add(add(h, width), rank));
    const int64_t weights = add(mul(h, width), mul(rank, add(h, width)));
    return mul(add(of_rows, weights), sizeof(uint16_t)) / (int64_t)REAL;
}
/* Working memory of `rows` rows of a thread. */
static int64_t work_of(const moe_config *c,
                       const moe_memory_sizes *s,
                       int64_t rows,
                       int64_t width,
                       int64_t rank) {
    const int64_t h = c->model.hidden_size;
    return mul(add(scratch_of(s, rows, h, width, rank), codes_of(c, rows, h, width, rank)), REAL);
}

/* A block with a part of `whole` bytes for each thread, of which `used` are touched: of a large
 * block whole huge pages. */
static int64_t of_threads(int64_t threads, int64_t used, int64_t whole) {
    const int64_t block = mul(threads, whole);
    const int64_t pages = min64(mul(div_up(used, HUGE_PAGE), HUGE_PAGE), whole);
    return mul(threads, add(block, block / 4) >= 2 * HUGE_PAGE ? max64(used, pages) : used);
}

/* There is room for twice the mean number of rows of an expert, if not for more (order_slots). */
static int64_t expert_scratch(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t f = c->model.moe_intermediate_size;
    const int64_t rank = c->model.expert_type == MOE_EXPERT_LORA ? c->model.lora_rank : 0;
    const int64_t shared = c->model.num_shared_experts;
    const int64_t rows = moe_memory_rows_of_call(c, s);
    const int64_t room = max64(rows, mul(2, s->in_pairs / s->slots + 1));
    const int64_t experts =
        of_threads(s->threads, work_of(c, s, rows, f, rank), work_of(c, s, room, f, rank));
    const int64_t wide = shared > 0 ? work_of(c, s, s->device_tokens, mul(shared, f), 0) : 0;
    return max64(experts, of_threads(s->backward ? 1 : s->threads, wide, wide));
}

/* Whether a loss looks at the logits before noise. */
static bool keeps_clean(const moe_config *c) {
    const bool quiet =
        c->balance.load_form == MOE_LOAD_TUTEL || c->balance.importance_of == MOE_IMPORTANCE_SCORES;
    return c->balance.load_form == MOE_LOAD_SHAZEER ||
           (quiet && (c->router.noise > 0 || moe_memory_learns_noise(c)));
}

/* The normed x [T,H] and its norms, logits [T,N] where there is a gate, what training keeps of the
 * noise, and the output and pre-activations of the shared experts (activations.c). */
static int64_t of_tokens(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, n = c->model.num_experts;
    const int64_t shared = mul(c->model.num_shared_experts, c->model.moe_intermediate_size);
    int64_t reals = moe_memory_has_gate(c) && !s->by_device ? n : 0;
    if (c->model.norm != MOE_NORM_NONE) {
        reals = add(reals, h);
    }
    if (s->train && c->router.jitter > 0) {
        reals = add(reals, h);
    }
    if (s->train) {
        reals = add(reals, (moe_memory_learns_noise(c) ? n : 0) + (keeps_clean(c) ? n : 0));
    }
    if (shared > 0) {
        reals = add(reals, add(h, s->keep ? mul(c->model.num_shared_experts, s->hidden) : 0));
    }
    return mul(s->tokens, add(mul(reals, REAL), c->model.norm != MOE_NORM_NONE ? DOUBLE : 0));
}

/* Outputs [S,H], what goes back [R,H], pre-activations [S,F], and gradients of the weights [S]. */
static int64_t of_experts(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t of_pair = add(h, add(s->keep ? s->hidden : 0, s->backward ? 1 : 0));
    const int64_t reals = add(mul(s->in_pairs, of_pair), mul(s->in_rows, h));
    return add(moe_memory_touched(mul(reals, REAL)), expert_scratch(c, s));
}

/* A capacity keeps of each selection whether it is kept, its place and its server; of those that
 * are sent their way back, and a routing of their own. */
static int64_t of_capacity(const moe_config *c, const moe_memory_sizes *s) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    return add(add(mul(s->selections, 2 * INT + 1), mul(s->sent, WORD)),
               routing(s->tokens, s->sent));
}

/* Where devices are routed one by one (by_device.c): the logits and the routing of a device for
 * each thread, and the devices that each token reaches. */
static int64_t of_devices(const moe_config *c, const moe_memory_sizes *s) {
    if (!s->by_device) {
        return 0;
    }
    const int64_t reals = moe_memory_has_gate(c) ? c->model.num_experts : 0;
    const int64_t worker =
        add(mul3(s->device_tokens, reals, REAL), routing_with_gaps(s, s->device_tokens));
    return add(mul(s->threads, worker),
               add(mul3(s->tokens, s->most, sizeof(moe_sparse_cell)), mul(s->local_devices, WORD)));
}

static int64_t activations_of_layer(const moe_config *c, const moe_memory_sizes *s) {
    return add(add(routing_with_gaps(s, s->tokens), add(of_tokens(c, s), of_devices(c, s))),
               add(of_experts(c, s), of_capacity(c, s)));
}

/* --- what all layers share --- */

/* The residual stream is x and y [T,H]; in training it is the x of every layer, the last output, y
 * and the gradient of the output. */
static int64_t streams(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t copies = s->train ? add(c->model.num_layers, 3) : 2;
    return mul(mul3(copies, s->tokens, c->model.hidden_size), REAL);
}

/* A dense layer keeps the normed x [T,H] with its norms, and the pre-activations where backward
 * reads them; in a forward run the layers share them (dense_layers.c). Beside it the working memory
 * of its products. */
static int64_t dense_layers(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, width = c->model.intermediate_size;
    const int64_t kept = s->train ? c->model.first_dense_layers : 1;
    const bool norm = c->model.norm != MOE_NORM_NONE;
    if (c->model.first_dense_layers == 0) {
        return 0;
    }
    const int64_t inner = mul(s->keep && s->matrices > 0 ? s->matrices - 1 : 0, width);
    const int64_t of_token = add(mul(add(norm ? h : 0, inner), REAL), norm ? (int64_t)DOUBLE : 0);
    const int64_t scratch = add(scratch_of(s, s->device_tokens, h, width, 0),
                                codes_of(c, s->device_tokens, h, width, 0));
    return add(mul3(kept, s->tokens, of_token), mul3(s->backward ? 1 : s->threads, scratch, REAL));
}

/* What backward works with (layer_backward.c). */
static int64_t backward(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, n = c->model.num_experts;
    if (!s->backward) {
        return 0;
    }
    const int64_t logits = mul(moe_memory_learns_noise(c) ? 2 : 1, mul(n, DOUBLE + REAL));
    const int64_t vectors =
        1 + !s->train + (c->router.jitter > 0) + (c->model.num_shared_experts > 0);
    return add(mul(s->tokens, add(logits, mul3(vectors, h, REAL))), mul3(2, s->selections, REAL));
}

/* The ends of the network: the targets of tokens and the two rows of every topic, or what the
 * language model needs of a token (train/task_text.c). Its parameters are counted elsewhere. */
static int64_t task(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size;
    if (!s->train) {
        return 0;
    }
    if (!s->text) {
        const int64_t load = c->train.specialization
                                 ? mul3(moe_config_moe_layers(c), c->model.num_experts, WORD)
                                 : 0;
        return add(mul(s->tokens, add(INT, mul(h, REAL))),
                   mul(c->data.num_topics, add(mul3(2, h, REAL), load)));
    }
    return mul(s->tokens, add(mul(add(h, BYTE_VALUES), REAL), DOUBLE + WORD + 2 * INT));
}

/* What is copied to be written at the end, or layer by layer: the choices, without their scores,
 * and then in columns (results_tokens.c); dlogits; and this rank's matrices of devices, where they
 * are written as arrays. */
static int64_t written(const moe_config *c, const moe_memory_sizes *s) {
    int64_t bytes = 0;
    if (c->output.routing) {
        const int64_t of_selection =
            INT + REAL + (c->capacity.policy == MOE_CAPACITY_NONE ? 0 : INT);
        const int64_t columns = mul(s->most, 2 * INT + (int64_t)sizeof(float) + 1);
        bytes = mul(moe_config_moe_layers(c),
                    add(mul(s->selections, of_selection), mul(s->tokens, add(WORD, columns))));
    }
    if (c->output.tensors && !s->train && !moe_config_recorded(c)) {
        bytes = add(bytes, mul3(s->tokens, c->model.num_experts, DOUBLE));
    }
    if (c->cluster.devices <= MOE_MATRIX_DEVICES) {
        const int64_t matrices = div_up(moe_config_moe_layers(c), s->ranks);
        bytes = add(bytes, mul3(matrices, mul(c->cluster.devices, c->cluster.devices), WORD));
    }
    return bytes;
}

/* --- working memory that is taken, given back and used again --- */

/* Blocks of working memory come in four sizes for each power of two: an eighth more on average. */
static int64_t in_classes(int64_t bytes) {
    return add(bytes, bytes / 8);
}

/* Topics of tokens, the table of topics, and the centres of those that came up. */
static int64_t topics(const moe_config *c, const moe_memory_sizes *s) {
    if (c->data.source != MOE_SOURCE_SYNTHETIC) {
        return 0;
    }
    const int64_t centres = min64(s->tokens, c->data.num_topics);
    return add(mul(s->tokens, s->train ? 0 : INT), add(mul(c->data.num_topics, DOUBLE + INT),
                                                       mul3(centres, c->model.hidden_size, REAL)));
}

/* Methods that look at all tokens of a device at once hold its scores [T_d,N]: sinkhorn exp(z);
 * expert choice s, a byte for each token and expert, and a column for each thread. */
static int64_t device_scores(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t n = c->model.num_experts, scores = mul3(s->device_tokens, n, DOUBLE);
    if (moe_config_recorded(c)) {
        return 0;
    }
    if (c->router.method == MOE_METHOD_SINKHORN) {
        return add(scores, add(scores / 128, mul3(s->local_devices, n, DOUBLE)));
    }
    if (c->router.method != MOE_METHOD_EXPERT_CHOICE) {
        return 0;
    }
    return add(add(scores, mul(s->tokens, n)), mul3(s->threads, s->device_tokens, DOUBLE));
}

/* While a capacity decides (drop.c, cut.c): group, key and score of every selection; in one pool
 * after the other the places, the keys where a budget ends, and the counts of its cells, of which
 * there are several vectors, and two more for every rank that shares the pool; batch priority also
 * sorts the keys. */
static int64_t deciding(const moe_config *c, const moe_memory_sizes *s) {
    moe_capacity k;
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    moe_capacity_init(&k, c);
    const bool global = k.policy != MOE_CAPACITY_SEQUENCE && k.scope == MOE_CAPACITY_GLOBAL;
    const int64_t of_device = s->selections / s->local_devices;
    const int64_t pool = global ? s->selections : of_device;
    const moe_shape shape = moe_cut_shape(
        &k, k.exempt_sequences > 0, mul(global ? s->tokens : s->device_tokens, c->router.top_k));
    const int64_t parts = global && s->ranks > 1 ? 2 * s->ranks : 1;
    int64_t bytes = mul(s->selections, INT + DOUBLE + (shape.has_keys ? WORD : 0));
    bytes = add(bytes, mul(pool, 2 * WORD + (shape.by_key ? 3 * 2 * WORD : 0)));
    bytes = add(bytes, mul(pool, shape.has_keys ? WORD + WORD / 2 : 0));
    if (k.overflow == MOE_OVERFLOW_NEXT_CHOICE) { /* the list of who asks */
        bytes = add(bytes, mul(s->selections, 5 * WORD));
    }
    return add(bytes, mul3(6 + parts, moe_shape_words(&shape), WORD));
}

/* Vectors of a number for each expert, of each thread, and the vector of the layer's counts. */
static int64_t small_vectors(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t thread = mul(add(mul(24, n), mul(2, d)), WORD);
    return add(mul(s->threads, thread),
               mul(add(mul(3, n), mul(3, moe_memory_matrix_cells(c, s))), WORD));
}

static int64_t working(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t first = topics(c, s), second = add(device_scores(c, s), deciding(c, s));
    /* what the first gives back serves the second in part */
    return add(in_classes(add(max64(first, second), min64(first, second) / 2)),
               small_vectors(c, s));
}

int64_t moe_memory_activations(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t layers = mul(s->copies, activations_of_layer(c, s));
    const int64_t ends = add(add(task(c, s), dense_layers(c, s)), moe_memory_attention(c, s));
    return add(add(add(streams(c, s), layers), add(backward(c, s), ends)),
               add(written(c, s), working(c, s)));
}
