/* memory.c: the bytes that a rank will need, term by term: every term is the table of one of the
 * program's blocks, with the numbers of tokens, selections and rows that are expected. The
 * arithmetic saturates, so that absurd sizes come out as "too much" and never wrap.
 *
 * Symbols: L layers, H hidden size, N experts, F width of an expert, D devices, T tokens of the
 * fullest rank, S selections (as many are received under a balanced load), R rows of dispatch. In a
 * forward run, layers run one after the other and share their buffers; in training each layer has
 * its own, because backward walks through the layers the other way. */
#include "predict/memory.h"

#include <math.h>

#include "balance/balance.h"
#include "base/alloc.h"
#include "capacity/cut.h"
#include "data/batch.h"
#include "exchange/payload.h"
#include "experts/ffn.h"
#include "predict/expected.h"
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
static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

enum {
    PROGRAM_BYTES = 8 << 20, /* libraries and their tables */
    GEMM_BYTES = 4 << 20,    /* of the libraries for products of matrices */
    THREAD_BYTES = 1 << 20,
    CALL_ROWS = 1024,     /* largest number of rows of one GEMM call (MOE_GEMM_ROWS) */
    TREE_BYTES = 4 << 20, /* of partial gradients that are added at a time (model/device_tree.c) */
    BYTE_VALUES = 256,
    WORD = sizeof(int64_t),
    INT = sizeof(int32_t),
    REAL = sizeof(real),
    DOUBLE = sizeof(double)
};

typedef struct sizes { /* of the fullest rank */
    bool train, text;
    bool backward;
    bool keep; /* backward needs the pre-activations of the experts */
    int64_t ranks, local_devices, tokens;
    int64_t device_tokens; /* of the fullest device */
    int64_t most;          /* experts that one token may have, for which there is room */
    int64_t selections;    /* that are expected */
    int64_t sent;          /* of these, after dropping */
    int64_t rows;          /* of dispatch that are expected */
    int64_t remote;        /* of these, for other ranks: the share 1 - 1/ranks */
    int64_t copies;        /* how many layers have their activations at the same time */
    int64_t threads;
    int64_t matrices; /* of an expert */
    int64_t slots;    /* experts of this rank */
    int64_t hidden;   /* pre-activations of an expert for one row: F, or 2 F where there is w3 */
} sizes;

static int64_t matrices(enum moe_expert_type type) {
    return moe_ffn_type_of(type)->matrices;
}

int32_t moe_memory_kept_layers(const moe_config *c) {
    const bool gradient =
        c->output.tensors && moe_balance_alpha_all_layers(&c->balance, c->model.num_layers) > 0;
    return c->run.mode == MOE_MODE_TRAIN || gradient ? c->model.num_layers : 1;
}

static int64_t whole(double x) {
    return x < 0x1p62 ? (int64_t)ceil(x) : INT64_MAX;
}

static sizes sizes_of(const moe_config *c, const moe_memory_given *given) {
    const int64_t num_tokens_global = given->num_tokens;
    const int64_t devices = c->cluster.devices > 0 ? c->cluster.devices : 1,
                  ranks = c->ranks > 0 ? c->ranks : 1;
    const int64_t per_device =
        num_tokens_global > 0 ? div_up(num_tokens_global, devices) : c->data.tokens_per_device;
    sizes s = {.train = c->run.mode == MOE_MODE_TRAIN,
               .text = c->data.source == MOE_SOURCE_TEXT,
               .ranks = ranks,
               .local_devices = div_up(devices, ranks),
               .device_tokens = per_device,
               .most = moe_config_most_experts(c),
               .copies = moe_memory_kept_layers(c),
               .threads = c->run.threads > 0 ? c->run.threads : 1,
               .slots = div_up(c->model.num_experts, ranks)};
    s.backward = s.train || given->backward;
    s.keep = s.train ? !c->train.recompute : c->model.load[0] != '\0' && c->output.tensors;
    s.tokens = num_tokens_global > 0 ? min64(mul(per_device, s.local_devices), num_tokens_global)
                                     : mul(per_device, s.local_devices);
    if (num_tokens_global > 0 && ranks == 1) {
        s.tokens = num_tokens_global;
    }
    const double all = (double)mul(per_device, devices);
    const double routed = given->num_counted > 0 && all > 0 ? (double)given->num_counted / all : 1;
    const double k = fmin(routed, 1) *
                     (given->choices > 0 ? given->choices : moe_expected_choices(c, per_device));
    const double sent = k * moe_expected_kept(c, mul(per_device, devices), k);
    s.selections = whole((double)s.tokens * k);
    s.sent = whole((double)s.tokens * sent);
    s.rows = c->exchange.mode == MOE_EXCHANGE_SELECTION
                 ? s.sent
                 : whole((double)s.tokens * moe_expected_reach(c, sent));
    s.remote = s.rows - s.rows / ranks;
    s.matrices = matrices(c->model.expert_type);
    s.hidden = mul(s.matrices > 0 ? s.matrices - 1 : 0, c->model.moe_intermediate_size);
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
    const int64_t layer =
        add(add(gate, norm), mul(c->model.num_shared_experts, parameters_of_ffn(c)));
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

/* --- one layer's activations --- */

/* What a routing holds: offsets, and expert, score and weight for as many experts as a token may
 * have. */
static int64_t routing(int64_t tokens, int64_t most) {
    return add(mul(tokens, WORD), mul3(tokens, most, INT + DOUBLE + REAL));
}

/* Working memory of GEMM calls (experts.c): x and dy of a call, hidden vectors and LoRA's low ones.
 * Without w3, those of h3 stay untouched. Shared experts go backward in one thread. */
static int64_t scratch_of(const sizes *s, int64_t rows, int64_t h, int64_t width, int64_t rank) {
    const bool gated = s->matrices > 2;
    const int64_t widths = s->matrices == 0 ? 0 : s->backward ? (gated ? 5 : 3) : (gated ? 2 : 1);
    const int64_t streams = s->backward ? 2 : 1;
    return mul(min64(CALL_ROWS, rows), add(add(mul(streams, h), mul(widths, width)), 2 * rank));
}
/* Factors of a product in bf16, which are half as long as floats (moe_ffn_codes). */
static int64_t codes_of(const moe_config *c, int64_t rows, int64_t h, int64_t width, int64_t rank) {
    if (c->model.compute == MOE_COMPUTE_FP32 || c->model.expert_type == MOE_EXPERT_IDENTITY) {
        return 0;
    }
    const int64_t of_rows = mul(min64(CALL_ROWS, rows), add(add(h, width), rank));
    const int64_t weights = add(mul(h, width), mul(rank, add(h, width)));
    return add(of_rows, weights) * (int64_t)sizeof(uint16_t) / (int64_t)REAL;
}
static int64_t expert_scratch(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    const int64_t rank = c->model.expert_type == MOE_EXPERT_LORA ? c->model.lora_rank : 0;
    const int64_t shared = c->model.num_shared_experts;
    const int64_t rows = s->sent / s->slots + 1;
    const int64_t one = add(scratch_of(s, rows, h, f, rank), codes_of(c, rows, h, f, rank));
    const int64_t wide = shared > 0 ? add(scratch_of(s, s->device_tokens, h, mul(shared, f), 0),
                                          codes_of(c, s->device_tokens, h, mul(shared, f), 0))
                                    : 0;
    return mul(max64(mul(s->threads, one), mul(s->backward ? 1 : s->threads, wide)), REAL);
}

/* Whether a loss looks at the logits before noise. */
static bool keeps_clean(const moe_config *c) {
    const bool quiet =
        c->balance.load_form == MOE_LOAD_TUTEL || c->balance.importance_of == MOE_IMPORTANCE_SCORES;
    return c->balance.load_form == MOE_LOAD_SHAZEER ||
           (quiet && (c->router.noise > 0 || learns_noise(c)));
}

/* The normed x [T,H] and its norms, logits [T,N] where there is a gate, what training keeps of the
 * noise, and the output and pre-activations of the shared experts (activations.c). */
static int64_t of_tokens(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size, n = c->model.num_experts;
    const int64_t shared = mul(c->model.num_shared_experts, c->model.moe_intermediate_size);
    const bool gate = c->data.source == MOE_SOURCE_SYNTHETIC || s->text;
    int64_t reals = gate ? n : 0;
    if (c->model.norm != MOE_NORM_NONE) {
        reals = add(reals, h);
    }
    if (s->train && c->router.jitter > 0) {
        reals = add(reals, h);
    }
    if (s->train) {
        reals = add(reals, (learns_noise(c) ? n : 0) + (keeps_clean(c) ? n : 0));
    }
    if (shared > 0) {
        reals = add(reals, add(h, s->keep ? mul(c->model.num_shared_experts, s->hidden) : 0));
    }
    return mul(s->tokens, add(mul(reals, REAL), c->model.norm != MOE_NORM_NONE ? DOUBLE : 0));
}

/* Outputs [S,H], what goes back [R,H], pre-activations [S,F], and gradients of the weights [S]. */
static int64_t of_experts(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t of_pair = add(h, add(s->keep ? s->hidden : 0, 1));
    return add(mul(add(mul(s->sent, of_pair), mul(s->rows, h)), REAL), expert_scratch(c, s));
}

/* A capacity keeps of each selection whether it is kept, its place, its server and its way back,
 * and the routing that is sent. */
static int64_t of_capacity(const moe_config *c, const sizes *s) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    const int64_t most = s->tokens > 0 ? div_up(s->selections, s->tokens) : 0;
    return add(mul(s->selections, WORD + 2 * INT + 1), routing(s->tokens, most));
}

static int64_t activations_of_layer(const moe_config *c, const sizes *s) {
    return add(add(routing(s->tokens, s->most), of_tokens(c, s)),
               add(of_experts(c, s), of_capacity(c, s)));
}

/* --- what all layers share --- */

/* The residual stream is x and y [T,H]; in training it is the x of every layer, the last output, y
 * and the gradient of the output. */
static int64_t streams(const moe_config *c, const sizes *s) {
    const int64_t copies = s->train ? add(c->model.num_layers, 3) : 2;
    return mul(mul3(copies, s->tokens, c->model.hidden_size), REAL);
}

/* What backward works with (layer_backward.c). */
static int64_t backward(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size, n = c->model.num_experts;
    if (!s->backward) {
        return 0;
    }
    const int64_t logits = mul(learns_noise(c) ? 2 : 1, mul(n, DOUBLE + REAL));
    const int64_t vectors =
        1 + !s->train + (c->router.jitter > 0) + (c->model.num_shared_experts > 0);
    return add(mul(s->tokens, add(logits, mul3(vectors, h, REAL))), mul3(2, s->selections, REAL));
}

/* The ends of the network: the targets of tokens and the two rows of every topic, or what the
 * language model needs of a token (train/task_text.c). Its parameters are counted elsewhere. */
static int64_t task(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size;
    if (!s->train) {
        return 0;
    }
    if (!s->text) {
        const int64_t load =
            c->train.specialization ? mul3(c->model.num_layers, c->model.num_experts, WORD) : 0;
        return add(mul(s->tokens, add(INT, mul(h, REAL))),
                   mul(c->data.num_topics, add(mul3(2, h, REAL), load)));
    }
    return mul(s->tokens, add(mul(add(h, BYTE_VALUES), REAL), DOUBLE + WORD + 2 * INT));
}

/* What is copied to be written at the end, or layer by layer: the choices, and dlogits. */
static int64_t written(const moe_config *c, const sizes *s) {
    int64_t bytes = 0;
    if (c->output.routing) {
        const int64_t server =
            c->capacity.policy == MOE_CAPACITY_NONE ? 0 : mul(s->selections, INT);
        bytes = mul(c->model.num_layers,
                    add(add(routing(s->tokens, s->most), server),
                        mul3(s->tokens, s->most, 2 * INT + (int64_t)sizeof(float) + 1)));
    }
    if (c->output.tensors && !s->train && !moe_config_recorded(c)) {
        bytes = add(bytes, mul3(s->tokens, c->model.num_experts, DOUBLE));
    }
    return bytes;
}

/* --- working memory that is taken, given back and used again --- */

/* Blocks of working memory come in four sizes for each power of two: an eighth more on average. */
static int64_t in_classes(int64_t bytes) {
    return add(bytes, bytes / 8);
}

/* Topics of tokens, the table of topics, and the centres of those that came up. */
static int64_t topics(const moe_config *c, const sizes *s) {
    if (c->data.source != MOE_SOURCE_SYNTHETIC) {
        return 0;
    }
    const int64_t centres = min64(s->tokens, c->data.num_topics);
    return add(mul(s->tokens, s->train ? 0 : INT), add(mul(c->data.num_topics, DOUBLE + INT),
                                                       mul3(centres, c->model.hidden_size, REAL)));
}

/* Methods that look at all tokens of a device at once hold its scores [T_d,N]: sinkhorn exp(z);
 * expert choice s, a byte for each token and expert, and a column for each thread. */
static int64_t device_scores(const moe_config *c, const sizes *s) {
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
static int64_t deciding(const moe_config *c, const sizes *s) {
    moe_capacity k;
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    moe_capacity_init(&k, &c->capacity, c->model.num_experts, c->cluster.devices, c->router.top_k,
                      0);
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

/* Cells of the matrix of devices [D,D] that are not 0, at most. */
static int64_t matrix_cells(const moe_config *c, const sizes *s) {
    return min64(mul(c->cluster.devices, c->cluster.devices), mul(s->ranks, s->selections));
}

/* Vectors of a number for each expert, of each thread, and the vector of the layer's counts. */
static int64_t small_vectors(const moe_config *c, const sizes *s) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t thread = mul(add(mul(24, n), mul(2, d)), WORD);
    return add(mul(s->threads, thread), mul(add(mul(3, n), mul(3, matrix_cells(c, s))), WORD));
}

static int64_t working(const moe_config *c, const sizes *s) {
    const int64_t first = topics(c, s), second = add(device_scores(c, s), deciding(c, s));
    /* what the first gives back serves the second in part */
    return add(in_classes(add(max64(first, second), min64(first, second) / 2)),
               small_vectors(c, s));
}

static int64_t activations(const moe_config *c, const sizes *s) {
    const int64_t layers = mul(s->copies, activations_of_layer(c, s));
    return add(add(add(streams(c, s), layers), add(backward(c, s), task(c, s))),
               add(written(c, s), working(c, s)));
}

/* --- exchange --- */

/* What a payload narrower than fp32 needs: rows of the wire on both sides, as many as there are;
 * tokens as they were rounded (in training x and dy); and all rows that came back as numbers. */
static int64_t rounding(const moe_config *c, const sizes *s) {
    const moe_payload_format out = moe_payload_of_dispatch(c), back = moe_payload_of_combine(c);
    const int64_t h = c->model.hidden_size;
    if (!moe_payload_rounds(out) && !moe_payload_rounds(back)) {
        return 0;
    }
    const int64_t wider = moe_payload_bytes(moe_payload_rounds(back) ? back : out, h);
    const int64_t wire = mul3(2, add(s->rows, s->tokens), wider);
    const int64_t numbers = add(mul(s->train ? 2 : 1, s->tokens), s->rows);
    return add(wire, mul3(numbers, h, REAL));
}

/* The last step is run with fp32 too: its output and gradients, and the counts of its layers. */
static int64_t fp32_step(const moe_config *c, const sizes *s) {
    if (c->model.compute == MOE_COMPUTE_FP32 && !moe_payload_rounds(moe_payload_of_dispatch(c)) &&
        !moe_payload_rounds(moe_payload_of_combine(c))) {
        return 0;
    }
    const int64_t d = c->cluster.devices, n = c->model.num_experts;
    const int64_t counts =
        mul(c->model.num_layers, add(add(mul(2, matrix_cells(c, s)), mul(5, d)), mul(3, n)));
    const int64_t y = mul(s->tokens, c->model.hidden_size);
    return add(mul(add(y, s->train ? local_parameters(c, s) : 0), REAL), mul(counts, WORD));
}

/* The plan and the inbox of a layer (plan.c, exchange.c): vectors that are packed for and received
 * from other ranks, in training x and dy; lists of rows and pairs; the metadata that is sent and
 * received; and numbers for each pair of a local and any device that occurs. */
static int64_t exchange(const moe_config *c, const sizes *s) {
    const int64_t h = c->model.hidden_size, pair_words = 1 + REAL / INT;
    const int64_t head_words = c->exchange.mode == MOE_EXCHANGE_SELECTION ? 1 : 2;
    const int64_t vectors = mul(mul3(s->train ? 3 : 2, s->remote, h), REAL);
    const int64_t of_row = (2 * INT + 2 * WORD) + (2 * INT + WORD) + 2 * head_words * INT;
    const int64_t of_pair =
        (INT + REAL + 2 * WORD) + (INT + REAL + 3 * WORD) + 2 * pair_words * INT;
    const int64_t lists = add(mul(s->rows, of_row), mul(s->sent, of_pair));
    const int64_t fixed =
        add(mul(10 * WORD, min64(s->sent, mul(s->local_devices, c->cluster.devices))),
            add(mul(s->tokens, WORD), mul3(2 * s->threads, h, REAL)));
    return mul(s->copies, add(add(add(vectors, rounding(c, s)), lists), fixed));
}

/* --- statistics --- */

/* A cell of counts and exact sums for each segment (the part of a sequence on a device), for each
 * sequence, local device and the batch, and those of the sum over ranks; once more for all layers
 * put together (aux_form = mixtral). The metrics of a layer are three vectors [N], five [D] and
 * two words for each cell of the matrix [D,D] that is not 0. A step of several micro-batches has
 * metrics of its own beside those of the micro-batch. */
static int64_t statistics(const moe_config *c, const sizes *s, int64_t num_sequences) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t ranks = s->ranks, share = div_up(num_sequences, ranks);
    const int64_t cut = min64(s->local_devices, num_sequences);
    const int64_t segments = num_sequences <= 1 ? s->local_devices : add(share, cut);
    const int64_t sequences = num_sequences <= 1 ? 1 : share;
    const int64_t shared = ranks > 1 ? min64(ranks - 1, num_sequences) : 0;
    const int64_t words = add(mul(MOE_STAT_PER_EXPERT, n), d + MOE_STAT_HEAD);
    const int64_t of_scopes = add(add(sequences, s->local_devices), 1);
    const int64_t cells = add(add(segments, of_scopes), shared + 2);
    const int64_t all = moe_balance_has_all_layers(&c->balance) ? of_scopes : 0;
    const int64_t metrics = add(mul(3, n), add(mul(5, d), mul(2, matrix_cells(c, s))));
    const int64_t steps = s->train && c->train.accumulate > 1 ? 2 : 1;
    const int64_t segment_bytes = mul(segments, sizeof(moe_segment));
    return add(segment_bytes, mul(add(mul(add(mul(s->copies, cells), all), words),
                                      mul3(steps, c->model.num_layers, metrics)),
                                  WORD));
}

/* --- what was read --- */

/* Of each step recorded logits [L,T,N] (counted as double), or routing [L,T,K] with weights and
 * scores [L,T,N], and a byte of mask for each token; the text; and the biases [L,N]. */
static int64_t input(const moe_config *c, int64_t tokens) {
    const int64_t n = c->model.num_experts, layers = c->model.num_layers;
    const int64_t rows = mul3(c->run.steps, layers, tokens);
    const int64_t scores = mul3(rows, n, DOUBLE);
    const int64_t bias = c->router.bias_file[0] ? mul3(layers, n, DOUBLE) : 0;
    const int64_t more = add(c->data.mask[0] ? mul(c->run.steps, tokens) : 0, bias);
    if (c->data.source == MOE_SOURCE_LOGITS) {
        return add(scores, more);
    }
    if (c->data.source == MOE_SOURCE_ROUTING) {
        const int64_t each = INT + (c->data.weights[0] ? REAL : 0);
        return add(add(mul3(rows, c->router.top_k, each), c->data.scores[0] ? scores : 0), more);
    }
    return add(c->data.source == MOE_SOURCE_TEXT ? tokens : 0, more);
}

/* --- what rank 0 keeps for the files of results --- */

/* The loads [L,N] of all steps, in a vector that grows by half when it is full and is copied then
 * (its reserve is not touched); and the device matrices of some steps (matrix_history.h), which
 * double. */
static int64_t histories(const moe_config *c) {
    const double words = (double)c->model.num_layers * c->model.num_experts;
    const double steps = (double)c->run.steps;
    double room = 0, before = 0;
    for (double needed = 1; needed <= steps; needed = room + 1) {
        before = room;
        room = needed > 16 ? floor(1.5 * needed) : 16;
    }
    const double cells = (double)c->model.num_layers * c->cluster.devices * c->cluster.devices;
    const double fit = fmin(fmin(steps, 32), floor((16 << 20) / (WORD * cells)));
    const double matrices_bytes = 1.5 * cells * WORD * (fit > 0 ? exp2(ceil(log2(fit))) : 0);
    return whole(fmax(steps, 2 * before) * words * WORD + matrices_bytes);
}

/* --- together --- */

static int64_t program(const moe_config *c, const sizes *s) {
    const bool gemm =
        c->run.gemm != MOE_GEMM_REFERENCE && (s->hidden > 0 || !moe_config_recorded(c));
    return add(PROGRAM_BYTES, add(gemm ? GEMM_BYTES : 0, mul(s->threads - 1, THREAD_BYTES)));
}

/* The load is never quite even, and the last page of a buffer never quite full. */
static int64_t uneven(int64_t bytes) {
    return add(bytes, bytes / 24);
}

static int64_t sequences_of(const moe_config *c, int64_t tokens) {
    return c->data.sequence_length > 0 ? div_up(tokens, c->data.sequence_length) : 1;
}

moe_memory moe_memory_estimate(const moe_config *c, const moe_memory_given *given) {
    const sizes s = sizes_of(c, given);
    const int64_t tokens = given->num_tokens > 0
                               ? given->num_tokens
                               : mul(c->data.tokens_per_device, max64(c->cluster.devices, 1));
    moe_memory m = {.weights =
                        mul(add(local_parameters(c, &s), frozen_parameters(c)), sizeof(real)),
                    .gradients = gradients(c, &s),
                    .optimizer = optimizer(c, &s),
                    .activations = uneven(activations(c, &s)),
                    .exchange = uneven(add(exchange(c, &s), fp32_step(c, &s))),
                    .statistics = statistics(c, &s, sequences_of(c, tokens)),
                    .input = input(c, s.tokens),
                    .program = program(c, &s),
                    .histories = histories(c)};
    const int64_t trained = add(m.weights, add(m.gradients, m.optimizer));
    m.total = add(add(trained, m.activations),
                  add(add(m.exchange, m.statistics), add(m.input, m.program)));
    return m;
}

int64_t moe_memory_of_ranks(const moe_memory *m, int ranks) {
    return add(mul(m->total, ranks), m->histories);
}
