/* memory_layer.c: the bytes of the layers: activations, working memory, and the exchange of rows.
 * The symbols are those of memory.c. */
#include "balance/balance.h"
#include "base/alloc.h"
#include "base/sparse.h"
#include "capacity/cut.h"
#include "exchange/payload.h"
#include "measure/matrix_size.h"
#include "predict/internal.h"
#include "predict/memory.h"
#include "world/board.h"

enum {
    CALL_ROWS = 1024, /* largest number of rows of one GEMM call (MOE_GEMM_ROWS) */
    HUGE_PAGE = 1 << 21
};

/* --- one layer's activations --- */

/* What a routing holds: offsets, and expert, score and weight for as many experts as a token may
 * have. */
static int64_t routing(int64_t tokens, int64_t most) {
    return add(mul(tokens, WORD), mul3(tokens, most, INT + DOUBLE + REAL));
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
    return mul(min64(CALL_ROWS, rows), add(add(mul(streams, h), mul(widths, width)), 2 * rank));
}
/* Factors of a product in bf16, which are half as long as floats (moe_ffn_codes). */
static int64_t codes_of(const moe_config *c, int64_t rows, int64_t h, int64_t width, int64_t rank) {
    if (c->model.compute == MOE_COMPUTE_FP32 || c->model.expert_type == MOE_EXPERT_IDENTITY) {
        return 0;
    }
    const int64_t of_rows = mul(min64(CALL_ROWS, rows), add(add(h, width), rank));
    const int64_t weights = add(mul(h, width), mul(rank, add(h, width)));
    return mul(add(of_rows, weights), sizeof(uint16_t)) / (int64_t)REAL;
}
static int64_t expert_scratch(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    const int64_t rank = c->model.expert_type == MOE_EXPERT_LORA ? c->model.lora_rank : 0;
    const int64_t shared = c->model.num_shared_experts;
    const int64_t rows = s->of_slot;
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
    const int64_t of_pair = add(h, add(s->keep ? s->hidden : 0, 1));
    return add(mul(add(mul(s->in_pairs, of_pair), mul(s->in_rows, h)), REAL), expert_scratch(c, s));
}

/* A capacity keeps of each selection whether it is kept, its place, its server and its way back,
 * and the routing that is sent. */
static int64_t of_capacity(const moe_config *c, const moe_memory_sizes *s) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return 0;
    }
    const int64_t most = s->tokens > 0 ? div_up(s->selections, s->tokens) : 0;
    return add(mul(s->selections, WORD + 2 * INT + 1), routing(s->tokens, most));
}

/* Where devices are routed one by one (by_device.c): the logits and the routing of a device for
 * each thread, and the devices that each token reaches. */
static int64_t of_devices(const moe_config *c, const moe_memory_sizes *s) {
    if (!s->by_device) {
        return 0;
    }
    const int64_t reals = moe_memory_has_gate(c) ? c->model.num_experts : 0;
    const int64_t worker =
        add(mul3(s->device_tokens, reals, REAL), routing(s->device_tokens, s->most));
    return add(mul(s->threads, worker),
               add(mul3(s->tokens, s->most, sizeof(moe_sparse_cell)), mul(s->local_devices, WORD)));
}

static int64_t activations_of_layer(const moe_config *c, const moe_memory_sizes *s) {
    return add(add(routing(s->tokens, s->most), add(of_tokens(c, s), of_devices(c, s))),
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

/* What is copied to be written at the end, or layer by layer: the choices, dlogits, and this rank's
 * matrices of devices, where they are written as arrays. */
static int64_t written(const moe_config *c, const moe_memory_sizes *s) {
    int64_t bytes = 0;
    if (c->output.routing) {
        const int64_t server =
            c->capacity.policy == MOE_CAPACITY_NONE ? 0 : mul(s->selections, INT);
        bytes = mul(moe_config_moe_layers(c),
                    add(add(routing(s->tokens, s->most), server),
                        mul3(s->tokens, s->most, 2 * INT + (int64_t)sizeof(float) + 1)));
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

/* --- exchange --- */

/* Bytes of a vector [H] on the wire, 0 where it is not rounded on its way. */
static int64_t wire_bytes(const moe_config *c, moe_payload_format f) {
    return moe_payload_rounds(f) ? moe_payload_bytes(f, c->model.hidden_size) : 0;
}

/* A buffer whose size varies with the load has a quarter in reserve. One of two huge pages or more
 * begins at such a page (base/alloc.c), and is resident up to the end of the last that is used. */
static int64_t touched(int64_t bytes) {
    const int64_t huge = (add(bytes, bytes / 4)) / HUGE_PAGE * HUGE_PAGE;
    return huge >= 2 * HUGE_PAGE && bytes <= huge ? mul(div_up(bytes, HUGE_PAGE), HUGE_PAGE)
                                                  : bytes;
}

/* Vectors [H] in a buffer of their own. */
static int64_t of_vectors(const moe_config *c, int64_t rows) {
    return touched(mul3(rows, c->model.hidden_size, REAL));
}

/* Bytes of a vector [H] on the wire, rounded or not. */
static int64_t carried(const moe_config *c, int64_t wire) {
    return wire > 0 ? wire : mul(c->model.hidden_size, REAL);
}

/* The vectors of a layer (exchange.c, combine.c): received from other ranks, in training x and dy;
 * and what is packed for them, where results land later. Of a payload that rounds, the tokens or
 * the results stand there as bytes, and so do the rows from other ranks; and the tokens as numbers
 * again, x and in training dy. Through shared memory nothing is packed, nothing lands and bytes
 * stand in windows: what is left are numbers that were bytes. */
static int64_t vectors(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t out = wire_bytes(c, moe_payload_of_dispatch(c));
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    const int64_t most = max64(carried(c, out), carried(c, back));
    const int64_t rounded = (out > 0) + (s->backward && back > 0);
    const int64_t decoded = mul(rounded, of_vectors(c, s->first > 0 ? s->first : s->tokens));
    const int64_t arriving = s->backward ? max64(out, back) : out;
    const int64_t coded = max64(mul(s->tokens, arriving), mul(s->rows, back));
    if (moe_memory_shares(c)) {
        return s->first > 0 ? mul(rounded, of_vectors(c, s->in_rows))
                            : add(decoded, mul(rounded, of_vectors(c, s->in_remote)));
    }
    return add(
        add(touched(mul(s->remote, most)), mul(s->backward ? 2 : 1, of_vectors(c, s->in_remote))),
        add(decoded, add(touched(coded), touched(mul(s->in_remote, arriving)))));
}

/* What an exchange in several chunks adds (chunks.c): vectors for other ranks, packed apart from
 * what comes back meanwhile; of a payload that rounds, what goes back as bytes; and the orders of
 * both sides. */
static int64_t of_chunks(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t whole = mul(c->model.hidden_size, REAL);
    const int64_t out = moe_payload_bytes(moe_payload_of_dispatch(c), c->model.hidden_size);
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    if (c->exchange.chunks == 1) {
        return 0;
    }
    const int64_t sending = s->backward ? max64(out, back > 0 ? back : whole) : out;
    const int64_t apart = mul(s->rows, back);
    const int64_t groups =
        mul3(s->local_devices, moe_config_slots_per_device(c), c->exchange.chunks);
    return add(add(touched(mul(s->remote, sending)), touched(apart)),
               add(mul(s->rows, 2 * (INT + 2 * WORD)), mul(groups, WORD)));
}

/* The last step is run with fp32 too: its output and gradients, and the counts of its layers. */
static int64_t fp32_step(const moe_config *c, const moe_memory_sizes *s) {
    if (c->model.compute == MOE_COMPUTE_FP32 && !moe_payload_rounds(moe_payload_of_dispatch(c)) &&
        !moe_payload_rounds(moe_payload_of_combine(c))) {
        return 0;
    }
    const int64_t d = c->cluster.devices, n = c->model.num_experts;
    const int64_t counts =
        mul(moe_config_moe_layers(c),
            add(add(mul(2, moe_memory_matrix_cells(c, s)), mul(5, d)), mul(3, n)));
    const int64_t y = mul(s->tokens, c->model.hidden_size);
    return add(mul(add(y, s->train ? moe_memory_local_parameters(c, s) : 0), REAL),
               mul(counts, WORD));
}

/* The bytes of a row, and of a pair, in the lists of a plan and of an inbox, and as metadata. */
static int64_t bytes_of_row(int64_t head_words) {
    return (2 * INT + 2 * WORD) + (2 * INT + 4 * WORD) + 2 * head_words * INT;
}
static int64_t bytes_of_pair(void) {
    const int64_t pair_words = 1 + REAL / INT;
    return (INT + REAL + 2 * WORD) + (INT + REAL + 3 * WORD) + 2 * pair_words * INT;
}

/* The vectors of a first hop (relay.c): all rows that arrived stand in memory, in training x and
 * dy, as they travelled; beside them what was packed for other ranks, where results land later, and
 * what goes back, in a payload that rounds also as bytes. Through shared memory only the last are
 * not in windows, as numbers. */
static int64_t relay_vectors(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t out = wire_bytes(c, moe_payload_of_dispatch(c));
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    const int64_t returned = c->exchange.node_sum ? s->first : s->rows;
    const int64_t remote = returned - returned / s->first_ranks;
    const int64_t arrived = add(touched(mul(s->first, carried(c, out))),
                                s->backward ? touched(mul(s->first, carried(c, back))) : 0);
    if (moe_memory_shares(c)) {
        return back > 0 ? of_vectors(c, returned) : 0;
    }
    return add(add(arrived, of_vectors(c, returned)),
               add(touched(mul(remote, max64(carried(c, out), carried(c, back)))),
                   touched(mul(returned, back))));
}

/* What a first hop adds (relay.c): its vectors; its lists with the parts of rows; in the lists of
 * the second where a row comes from; and in training numbers of pairs. */
static int64_t relay(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t of_row = bytes_of_row(2) + 2 * INT + 4 * WORD;
    const int64_t of_part = 2 * INT + 4 * WORD;
    const int64_t of_pair = bytes_of_pair() - 2 * WORD + (s->backward ? 2 * REAL : 0);
    if (s->first == 0) {
        return 0;
    }
    return add(add(relay_vectors(c, s), mul(s->tokens, WORD)),
               add(add(mul(s->first, of_row), mul(s->rows, of_part)), mul(s->sent, of_pair)));
}

/* The plan and the inbox of a layer (plan.c, exchange.c): vectors; lists of rows and pairs; the
 * metadata that is sent and received; and numbers for each pair of a local and any device that
 * occurs. */
static int64_t exchange_of_layers(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size;
    const int64_t head_words = c->exchange.mode == MOE_EXCHANGE_SELECTION ? 1 : 2;
    const int64_t lists =
        add(mul(s->rows, bytes_of_row(head_words)), mul(s->sent, bytes_of_pair()));
    const int64_t fixed =
        add(mul(10 * WORD, min64(s->sent, mul(s->local_devices, c->cluster.devices))),
            add(mul(s->tokens, WORD), mul3(3 * s->threads, h, REAL)));
    return mul(s->copies,
               add(add(vectors(c, s), lists), add(fixed, add(relay(c, s), of_chunks(c, s)))));
}

/* --- windows --- */

bool moe_memory_shares(const moe_config *c) {
    return moe_config_shares_memory(c) && c->ranks > 1;
}

/* What the host sees of this rank in one hop: metadata, vectors that it has (in training x and dy),
 * what it returns, and in training numbers of pairs. */
static int64_t shown(const moe_config *c,
                     const moe_memory_sizes *s,
                     int64_t rows,
                     int64_t vectors,
                     int64_t returned) {
    const int64_t out = carried(c, wire_bytes(c, moe_payload_of_dispatch(c)));
    const int64_t back = carried(c, wire_bytes(c, moe_payload_of_combine(c)));
    const int64_t words = add(mul(2, rows), mul(1 + REAL / INT, s->sent));
    return add(add(mul(vectors, out + (s->train ? back : 0)), mul(returned, back)),
               add(mul(words, INT), s->train ? mul(s->sent, REAL) : 0));
}

/* One of each: the results of the experts stand in a window in place of memory of the rank. */
static int64_t windows_of_layer(const moe_config *c, const moe_memory_sizes *s) {
    if (s->first == 0) {
        return shown(c, s, s->rows, s->tokens, s->in_rows);
    }
    const int64_t parts = c->exchange.node_sum ? s->first : s->rows;
    return add(shown(c, s, s->first, s->tokens, parts),
               add(shown(c, s, s->rows, 0, s->in_rows), mul(INT, s->rows)));
}

int64_t moe_memory_windows(const moe_config *c, const moe_memory_sizes *s) {
    if (!moe_memory_shares(c)) {
        return 0;
    }
    const int64_t bytes =
        add(mul(s->copies, windows_of_layer(c, s)), MOE_BOARD_HALVES * MOE_BOARD_BYTES);
    return add(bytes, bytes / 4);
}

/* A window has a quarter more than it needs, and all of it is touched. Metadata were counted with
 * the lists, and results with the experts. */
int64_t moe_memory_exchange(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t results = moe_payload_rounds(moe_payload_of_combine(c))
                                ? 0
                                : mul3(mul(s->copies, s->in_rows), c->model.hidden_size, REAL);
    const int64_t windows = moe_memory_windows(c, s);
    return add(add(exchange_of_layers(c, s), fp32_step(c, s)),
               windows > results ? windows - results : windows);
}
