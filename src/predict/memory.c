/* memory.c: the bytes that a rank will need, term by term. The arithmetic saturates, so that absurd
 * sizes come out as "too much" and never wrap.
 *
 * Symbols: L layers, H hidden size, N experts, F width of an expert, D devices, T tokens of the
 * fullest rank, S = T K selections (as many are received under a balanced load), R rows on the
 * wire. In a forward run, layers run one after the other and share their buffers; in training each
 * layer has its own, because backward walks through the layers the other way. Weights and recorded
 * logits exist for each layer. */
#include "predict/memory.h"

#include "attention/flash.h"
#include "attention/shape.h"
#include "balance/balance.h"
#include "base/alloc.h"
#include "experts/ffn.h"
#include "router/stats.h"

static int64_t add(int64_t a, int64_t b) {
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}
static int64_t mul(int64_t a, int64_t b) {
    return a != 0 && b > INT64_MAX / a ? INT64_MAX : a * b;
}
static int64_t mul3(int64_t a, int64_t b, int64_t c) {
    return mul(mul(a, b), c);
}
static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
/* The bytes with what growing adds: buffers grow by a quarter, and loads are never quite balanced.
 */
static int64_t grown(int64_t bytes) {
    return add(bytes, bytes / 4);
}
static int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

enum {
    CALL_ROWS = 1024,     /* largest number of rows of one GEMM call (MOE_GEMM_ROWS) */
    TREE_BYTES = 4 << 20, /* of partial gradients that are added at a time (model/device_tree.c) */
    BYTE_VALUES = 256
};

typedef struct sizes { /* of the fullest rank */
    bool train, text;
    int64_t ranks, local_devices, tokens, selections, rows;
    int64_t remote; /* rows for other ranks: the share 1 - 1/ranks of them */
    int64_t copies; /* how many layers have their activations at the same time */
    int64_t threads;
    int64_t matrices; /* how many matrices [H,F] an expert has */
} sizes;

static int64_t matrices(enum moe_expert_type type) {
    return moe_ffn_type_of(type)->matrices;
}

/* The dispatch rows of this rank's tokens: S in mode selection, at most min(K, comm_limit) for each
 * token in mode token. */
static int64_t rows_of(const moe_config *c, int64_t tokens) {
    const int64_t reach = c->comm_limit > 0 ? min64(moe_config_most_experts(c), c->comm_limit)
                                            : moe_config_most_experts(c);
    return mul(tokens,
               c->exchange.mode == MOE_EXCHANGE_SELECTION ? moe_config_most_experts(c) : reach);
}

int32_t moe_memory_kept_layers(const moe_config *c) {
    const bool gradient =
        c->output.tensors && moe_balance_alpha_all_layers(&c->balance, c->model.num_layers) > 0;
    return c->run.mode == MOE_MODE_TRAIN || gradient ? c->model.num_layers : 1;
}

static sizes sizes_of(const moe_config *c, int64_t num_tokens_global) {
    const int64_t devices = c->cluster.devices > 0 ? c->cluster.devices : 1,
                  ranks = c->ranks > 0 ? c->ranks : 1;
    const int64_t per_device =
        num_tokens_global > 0 ? div_up(num_tokens_global, devices) : c->data.tokens_per_device;
    sizes s = {.train = c->run.mode == MOE_MODE_TRAIN,
               .ranks = ranks,
               .local_devices = div_up(devices, ranks)};
    s.text = c->data.source == MOE_SOURCE_TEXT;
    s.tokens = mul(per_device, s.local_devices);
    s.selections = mul(s.tokens, moe_config_most_experts(c));
    s.rows = rows_of(c, s.tokens);
    s.remote = s.rows - s.rows / ranks;
    s.copies = moe_memory_kept_layers(c);
    s.threads = c->run.threads > 0 ? c->run.threads : 1;
    s.matrices = matrices(c->model.expert_type);
    return s;
}

/* --- parameters --- */

static int64_t parameters_of_ffn(const moe_config *c) {
    return mul3(matrices(c->model.expert_type), c->model.hidden_size,
                c->model.moe_intermediate_size);
}

/* An expert has its own FFN, or with LoRA its own adapters of the three matrices. */
static int64_t parameters_of_expert(const moe_config *c) {
    if (c->model.expert_type != MOE_EXPERT_LORA) {
        return parameters_of_ffn(c);
    }
    return mul3(matrices(c->model.expert_type), c->model.lora_rank,
                add(c->model.hidden_size, c->model.moe_intermediate_size));
}

/* The frozen base of LoRA experts stands on every rank. */
static int64_t frozen_parameters(const moe_config *c) {
    return c->model.expert_type == MOE_EXPERT_LORA ? mul(c->model.num_layers, parameters_of_ffn(c))
                                                   : 0;
}

static bool learns_noise(const moe_config *c) {
    return c->router.noise_form == MOE_NOISE_SOFTPLUS &&
           (c->data.source == MOE_SOURCE_SYNTHETIC || c->data.source == MOE_SOURCE_TEXT);
}

/* Each layer has the routed experts, the gate [N,H] (and as much for the scale of its noise where
 * that is learned), the norm [H] and every shared expert. A language model also has an embedding
 * [context,256,H], a norm [H] and a head [256,H]. */
moe_parameter_counts moe_memory_parameters(const moe_config *c) {
    const int64_t h = c->model.hidden_size;
    const int64_t expert = parameters_of_expert(c);
    const int64_t norm = c->model.norm == MOE_NORM_NONE ? 0 : h;
    const int64_t gate = mul3(learns_noise(c) ? 2 : 1, c->model.num_experts, h);
    const int64_t layer = add(add(add(gate, norm), moe_attention_parameters(c)),
                              mul(c->model.num_shared_experts, parameters_of_ffn(c)));
    moe_parameter_counts count = {.expert = mul3(c->model.num_layers, c->model.num_experts, expert),
                                  .replicated = mul(c->model.num_layers, layer)};
    if (c->run.mode == MOE_MODE_TRAIN && c->data.source == MOE_SOURCE_TEXT) {
        count.replicated =
            add(count.replicated, add(mul3(BYTE_VALUES, c->train.context + 1, h), h));
    }
    return count;
}

/* The parameters of this rank. */
static int64_t local_parameters(const moe_config *c, const sizes *s) {
    const int64_t slots =
        add(c->model.num_experts, c->compares_placements ? 0 : c->placement.redundant_experts);
    const int64_t experts = mul(c->model.num_layers, div_up(slots, s->ranks));
    return add(mul(experts, parameters_of_expert(c)), moe_memory_parameters(c).replicated);
}

/* The sum of the gradients; a partial sum of each local device for what is replicated; and a piece
 * of these on its way through the tree. */
static int64_t gradients(const moe_config *c, const sizes *s) {
    const int64_t replicated = moe_memory_parameters(c).replicated;
    const int64_t piece = min64(replicated, TREE_BYTES / (int64_t)sizeof(real) / s->local_devices);
    int64_t reals = add(local_parameters(c, s), mul(s->local_devices, add(replicated, piece)));
    if (s->ranks > 1) {
        reals = add(reals, mul(s->local_devices + 1, piece));
    }
    return s->train ? mul(reals, sizeof(real)) : 0;
}

/* AdamW keeps the means of the gradient and of its square. */
static int64_t optimizer(const moe_config *c, const sizes *s) {
    return s->train && c->train.optimizer == MOE_OPTIMIZER_ADAMW
               ? mul3(2, local_parameters(c, s), sizeof(real))
               : 0;
}

/* --- activations --- */

/* The working memory of the GEMM calls of each thread. Forward needs x [.,H] and the hidden vectors
 * of one call. Backward needs x and dy [.,H] and h1, h3 (again), h, dh, dh3 [.,F] of one call, of
 * an expert or of the shared ones. An expert may well have twice its share of rows. */
static int64_t scratch(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t f = c->model.moe_intermediate_size;
    const int64_t hidden = s->matrices > 0 ? mul(s->matrices - 1, f) : 0;
    const int64_t one_expert = div_up(s->selections, div_up(c->model.num_experts, s->ranks));
    const int64_t rows = min64(CALL_ROWS, mul(2, one_expert));
    if (!s->train) {
        return mul3(s->threads, rows, add(h, hidden));
    }
    const int64_t expert = mul(rows, add(mul(2, h), mul(5, f)));
    const int64_t shared = mul(min64(CALL_ROWS, s->tokens / s->local_devices),
                               add(mul(2, h), mul3(5, c->model.num_shared_experts, f)));
    return mul(s->threads, expert > shared || c->model.num_shared_experts == 0 ? expert : shared);
}

/* Whether a loss looks at the logits before noise. */
static bool keeps_clean(const moe_config *c) {
    const bool quiet =
        c->balance.load_form == MOE_LOAD_TUTEL || c->balance.importance_of == MOE_IMPORTANCE_SCORES;
    return c->balance.load_form == MOE_LOAD_SHAZEER ||
           (quiet && (c->router.noise > 0 || learns_noise(c)));
}

/* What training keeps of each token for noise: the logits before the noise and those of its scale
 * [N], and the jittered x [H]. */
static int64_t noisy_reals(const moe_config *c) {
    const int64_t n = c->model.num_experts;
    return (learns_noise(c) ? n : 0) + (keeps_clean(c) ? n : 0) +
           (c->router.jitter > 0 ? c->model.hidden_size : 0);
}

/* What one layer keeps, apart from the residual stream: the normed x [T,H] and the logits [T,N]; of
 * the experts outputs [S,H] and results [R,H]; of the shared experts the output [T,H] and hidden
 * vectors [T,F]. Backward also needs h1, h3 [S,F] (unless train.recompute is set), those of the
 * shared experts, and dg [S]. */
static int64_t reals_of_layer(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t f = c->model.moe_intermediate_size;
    const int64_t hidden = s->matrices > 0 ? mul(s->matrices - 1, f) : 0;
    const bool keep = s->train && !c->train.recompute;
    int64_t reals =
        mul(s->tokens, add(c->model.num_experts, c->model.norm == MOE_NORM_NONE ? 0 : h));
    if (s->train) {
        reals = add(reals, mul(s->tokens, noisy_reals(c)));
    }
    reals = add(reals, mul(add(s->selections, s->rows), h));
    reals = add(reals, scratch(c, s));
    if (s->train) {
        reals = add(reals, s->selections);
    }
    if (keep) {
        reals = add(reals, mul(s->selections, hidden));
    }
    if (c->model.num_shared_experts == 0) {
        return reals;
    }
    if (!s->train) {
        return add(reals, mul(s->tokens, add(h, hidden)));
    }
    return add(reals, mul(s->tokens, add(h, keep ? mul3(2, c->model.num_shared_experts, f) : 0)));
}

/* What attention keeps of each token in a layer: the normed input [H] and the sum [H], which is the
 * input of the MoE layer; queries, keys and values of the heads, the output, and a number for each
 * head; and with mla the narrow vectors before and after their norms. */
static int64_t reals_of_attention(const moe_config *c) {
    const moe_attention_shape a = moe_attention_shape_of(c);
    const int64_t by_head =
        add(mul(a.heads, a.key + a.value + 1), mul(a.kv_heads, a.key + a.value));
    return add(add(by_head, mul(2, a.kv_rank + a.q_rank)), a.normed ? a.hidden : 0);
}

/* The memory of attention: what is kept, in every layer or with train.recompute once; the inputs of
 * the MoE layers; and, once for all layers, what a pass works with: queries, keys and values by
 * token, and in training the gradients of them, of the output and of the input. */
static int64_t attention(const moe_config *c, const sizes *s) {
    const moe_attention_shape a = moe_attention_shape_of(c);
    const int64_t layers = s->train ? c->model.num_layers : 1;
    const int64_t kept = s->train && !c->train.recompute ? layers : 1;
    const int64_t q = mul(a.heads, a.key), o = mul(a.heads, a.value);
    const int64_t kv = mul(a.kv_heads, a.key + a.value);
    const int64_t gradients = add(add(add(q, kv), mul(2, o)), a.kv_rank + a.q_rank + a.hidden);
    const int64_t working = add(add(add(q, kv), a.rope), s->train ? gradients : 0);
    const int64_t tiles = mul(s->threads, 2 * MOE_FLASH_TILE * (MOE_FLASH_TILE + a.value));
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return 0;
    }
    const int64_t by_token =
        add(add(mul(kept, reals_of_attention(c)), mul(layers, a.hidden)), working);
    return mul(add(mul(s->tokens, by_token), tiles), sizeof(real));
}

/* What backward works with, once for all layers: dlogits [T,N] (as double, and rounded; the same
 * for noise of learned scale), the part of du that comes from the gate with jitter [T,H], dg of
 * selections and of pairs [S], du and dx of the shared experts [T,H]; and at the ends of the
 * network the input of the head [T,H], logits [T,256] and places of the text, or targets [T,H]. */
static int64_t backward(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t n = c->model.num_experts;
    const int64_t per_token = (int64_t)sizeof(double) + 16;
    int64_t reals = mul(s->tokens, add(add(n, mul(c->model.num_shared_experts > 0 ? 2 : 1, h)),
                                       mul(2, moe_config_most_experts(c))));
    reals = add(reals, mul(s->tokens, add(h, s->text ? BYTE_VALUES : 0)));
    if (!s->train) {
        return 0;
    }
    if (learns_noise(c)) {
        reals = add(reals, mul3(s->tokens, n, 1 + sizeof(double) / sizeof(real)));
    }
    if (c->router.jitter > 0) {
        reals = add(reals, mul(s->tokens, h));
    }
    return add(mul(reals, sizeof(real)), mul(s->tokens, add(mul(n, sizeof(double)), per_token)));
}

/* A capacity keeps of each selection whether it is kept, its place, its server, and the routing
 * that is sent with its way back; while it decides, also group, key and score. */
static int64_t dropping(const moe_config *c, const sizes *s) {
    const int64_t kept = 1 + 3 * (int64_t)sizeof(int32_t) +
                         (int64_t)(sizeof(int64_t) + sizeof(real) + sizeof(double));
    const int64_t deciding = (int64_t)(sizeof(int32_t) + sizeof(uint64_t) + sizeof(double));
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    return grown(mul(s->selections, add(mul(s->copies, kept), deciding)));
}

/* Methods that look at all tokens of a device at once hold its scores [T_d,N], which stay as
 * scratch memory from step to step: sinkhorn exp(z); expert choice s, and a byte for each token and
 * expert. */
static int64_t device_scores(const moe_config *c, const sizes *s) {
    const int64_t n = c->model.num_experts,
                  scores = mul3(div_up(s->tokens, s->local_devices), n, sizeof(double));
    if (c->router.method == MOE_METHOD_SINKHORN) {
        return grown(scores);
    }
    return c->router.method == MOE_METHOD_EXPERT_CHOICE ? grown(add(scores, mul(s->tokens, n))) : 0;
}

/* The residual stream is x and y [T,H]; in training it is the x of every layer, the last output, y
 * and dh. Of what every layer chose, expert, weight and score of each selection are kept, and an
 * offset for each token. */
static int64_t activations(const moe_config *c, const sizes *s) {
    const int64_t streams = s->train ? add(c->model.num_layers, 3) : 2,
                  stream = mul3(streams, s->tokens, c->model.hidden_size);
    const int64_t chosen =
        add(mul(s->selections, (int64_t)(sizeof(int32_t) + sizeof(real) + sizeof(double))),
            mul(s->tokens, sizeof(int64_t)));
    const int64_t layers =
        add(mul3(s->copies, reals_of_layer(c, s), sizeof(real)), mul(c->model.num_layers, chosen));
    const int64_t working =
        add(add(backward(c, s), attention(c, s)), add(dropping(c, s), device_scores(c, s)));
    return add(add(mul(stream, sizeof(real)), grown(layers)), working);
}

/* Vectors that are packed for and received from other ranks (in training x and dy); the lists of
 * the plan and of what arrived, 12 numbers of 4 bytes for each row and 20 for each selection;
 * rows and places of each pair of a local and any device that occurs. */
static int64_t exchange(const moe_config *c, const sizes *s) {
    const int64_t vectors =
        mul(mul3(s->train ? 3 : 2, s->remote, c->model.hidden_size), sizeof(real));
    const int64_t lists = mul(add(mul(12, s->rows), mul(20, s->selections)), sizeof(int32_t));
    const int64_t pairs = min64(s->selections, mul(s->local_devices, c->cluster.devices));
    return mul(s->copies,
               grown(add(vectors, add(lists, mul(12 * (int64_t)sizeof(int64_t), pairs)))));
}

/* A cell of counts and exact sums for each segment (the part of a sequence on a device), each local
 * device and the batch, doubled for sums over sequences, and once more for all layers put together
 * (aux_form = mixtral). The metrics of a layer are three vectors [N], five [D] and two
 * words for each cell of the matrix [D,D] that is not 0. A step of several micro-batches has
 * metrics of its own beside those of the micro-batch. */
static int64_t statistics(const moe_config *c, const sizes *s) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t sequences =
        c->data.sequence_length > 0
            ? add(div_up(s->tokens, c->data.sequence_length), mul(2, s->local_devices))
            : s->local_devices;
    const int64_t words = add(mul(MOE_STAT_PER_EXPERT, n), d + MOE_STAT_HEAD),
                  cells = mul3(2, add(add(sequences, s->local_devices), 1), words);
    const int64_t copies = s->copies + (moe_balance_has_all_layers(&c->balance) ? 1 : 0);
    const int64_t cells_of_matrix = min64(mul(d, d), mul(s->ranks, s->selections));
    const int64_t metrics = add(mul(3, n), add(mul(5, d), mul(2, cells_of_matrix)));
    const int64_t steps = c->run.mode == MOE_MODE_TRAIN && c->train.accumulate > 1 ? 2 : 1;
    return mul(add(mul(copies, cells), mul3(steps, c->model.num_layers, metrics)), sizeof(int64_t));
}

/* What is read of each step: recorded logits [L,T,N] (counted as double), or routing [L,T,K] with
 * weights and scores [L,T,N]; and a byte of mask for each token. */
static int64_t input(const moe_config *c, int64_t tokens) {
    const int64_t rows = mul3(c->run.steps, c->model.num_layers, tokens);
    const int64_t scores = mul3(rows, c->model.num_experts, sizeof(double));
    const int64_t mask = mul(c->run.steps, tokens);
    if (c->data.source == MOE_SOURCE_LOGITS) {
        return add(scores, mask);
    }
    if (c->data.source == MOE_SOURCE_ROUTING) {
        return add(add(mul3(rows, moe_config_most_experts(c), sizeof(int32_t) + sizeof(real)),
                       c->data.scores[0] != '\0' ? scores : 0),
                   mask);
    }
    return c->data.source == MOE_SOURCE_TEXT ? tokens : 0;
}

moe_memory moe_memory_estimate(const moe_config *c, int64_t num_tokens_global) {
    const sizes s = sizes_of(c, num_tokens_global);
    moe_memory m = {.weights =
                        mul(add(local_parameters(c, &s), frozen_parameters(c)), sizeof(real)),
                    .gradients = gradients(c, &s),
                    .optimizer = optimizer(c, &s),
                    .activations = activations(c, &s),
                    .exchange = exchange(c, &s),
                    .statistics = statistics(c, &s),
                    .input = input(c, s.tokens)};
    const int64_t trained = add(m.weights, add(m.gradients, m.optimizer));
    m.total = add(add(trained, m.activations), add(add(m.exchange, m.statistics), m.input));
    return m;
}
