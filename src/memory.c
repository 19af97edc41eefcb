/* memory.c: bytes that a rank will need, term by term, in saturating arithmetic, so that absurd sizes come out as "too much" and never
 * wrap.
 *
 * Letters: L layers, H hidden, N experts, F width, D devices, T tokens of the fullest rank, S = T K selections (sent; under a balanced load
 * as many are received), R rows on the wire. Layers run one after the other and share their buffers; weights and recorded logits exist per
 * layer. */
#include "moesim/memory.h"

#include "moesim/tensor.h"

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
/* Buffers grow by a quarter, and loads are never quite balanced. */
static int64_t room(int64_t bytes) {
    return add(bytes, bytes / 4);
}
static int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

/* Matrices [H,F] of one expert. */
static int64_t matrices(int expert_type) {
    if (expert_type == MOE_EXPERT_IDENTITY) return 0;
    return expert_type == MOE_EXPERT_SWIGLU ? 3 : 2;
}

/* Per layer: gate [N,H], this rank's routed experts and every shared expert, matrices [H,F] each. */
static int64_t weights(const moe_config *c, int64_t ranks) {
    const int64_t experts = add(div_up(c->model.num_experts, ranks), c->model.num_shared_experts);
    const int64_t expert = mul3(matrices(c->model.expert_type), c->model.hidden_size, c->model.moe_intermediate_size);
    const int64_t gate = mul(c->model.num_experts, c->model.hidden_size);
    return mul3(c->model.num_layers, add(gate, mul(experts, expert)), sizeof(real));
}

/* Rows of dispatch for this rank's tokens: S in mode selection, at most min(K, comm_limit) per token in mode token. */
static int64_t rows_of(const moe_config *c, int64_t tokens) {
    const int64_t reach = c->comm_limit > 0 ? min64(c->router.top_k, c->comm_limit) : c->router.top_k;
    return mul(tokens, c->exchange.mode == MOE_EXCHANGE_SELECTION ? c->router.top_k : reach);
}

/* x and y [T,H], with a norm one more; logits [T,N]; what every layer chose (expert and weight per selection, an offset per token);
 * experts: outputs [S,H], results [R,H], and for each thread the input and hidden vectors of one expert's share of S; shared expert:
 * hidden vectors [T,F] and output [T,H]. */
static int64_t activations(const moe_config *c, int64_t tokens, int64_t ranks) {
    const int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size, selections = mul(tokens, c->router.top_k);
    const int64_t hidden = matrices(c->model.expert_type) > 0 ? mul(matrices(c->model.expert_type) - 1, f) : 0;
    const int64_t one_expert = div_up(selections, div_up(c->model.num_experts, ranks)), threads = c->run.threads > 0 ? c->run.threads : 1;
    int64_t reals = add(mul3(c->model.norm == MOE_NORM_NONE ? 2 : 3, tokens, h), mul(tokens, c->model.num_experts));
    reals = add(reals, mul(add(selections, rows_of(c, tokens)), h));
    reals = add(reals, mul3(threads, one_expert, add(h, hidden)));
    if (c->model.num_shared_experts > 0) reals = add(reals, mul(tokens, add(h, hidden)));
    const int64_t chosen = add(mul(selections, (int64_t)(sizeof(int32_t) + sizeof(real))), mul(tokens, sizeof(int64_t)));
    return room(add(mul(reals, sizeof(real)), mul(c->model.num_layers, chosen)));
}

/* Vectors packed for and received from other ranks (of R rows the share 1 - 1/ranks); lists of the plan and of what arrived: 12 numbers of 4
 * bytes per row and 20 per selection; offsets and sizes of each pair of a local and any device. */
static int64_t exchange(const moe_config *c, int64_t tokens, int64_t local_devices, int64_t ranks) {
    const int64_t rows = rows_of(c, tokens), remote = rows - rows / ranks;
    const int64_t vectors = mul3(mul(2, remote), c->model.hidden_size, sizeof(real));
    const int64_t lists = mul(add(mul(12, rows), mul3(20, tokens, c->router.top_k)), sizeof(int32_t));
    return room(add(vectors, add(lists, mul3(12 * (int64_t)sizeof(int64_t), local_devices, c->cluster.devices))));
}

/* A cell of counts and exact score sums (3N + D + 4 words) for each segment (a sequence's part on a device), each local device and the
 * batch, doubled for threads' sums; per layer the record: three vectors [N], five [D] and the matrix [D,D]. */
static int64_t statistics(const moe_config *c, int64_t tokens, int64_t local_devices) {
    const int64_t n = c->model.num_experts, d = c->cluster.devices;
    const int64_t sequences =
        c->data.sequence_length > 0 ? add(div_up(tokens, c->data.sequence_length), mul(2, local_devices)) : local_devices;
    const int64_t cells = mul3(2, add(add(sequences, local_devices), 1), add(mul(3, n), d + 4));
    const int64_t record = add(mul(3, n), add(mul(5, d), mul(d, d)));
    return mul(add(cells, mul(c->model.num_layers, record)), sizeof(int64_t));
}

/* What is read: recorded logits [L,T,N] (counted as double) or routing [T,K] with weights and scores [T,N]; a byte of mask per token. */
static int64_t input(const moe_config *c, int64_t tokens) {
    const int64_t scores = mul3(tokens, c->model.num_experts, sizeof(double));
    if (c->data.source == MOE_SOURCE_LOGITS) return add(mul(c->model.num_layers, scores), tokens);
    if (c->data.source == MOE_SOURCE_ROUTING)
        return add(add(mul3(tokens, c->router.top_k, sizeof(int32_t) + sizeof(real)), c->data.scores[0] != '\0' ? scores : 0), tokens);
    return c->data.source == MOE_SOURCE_TEXT ? tokens : 0;
}

moe_memory moe_memory_estimate(const moe_config *c, int64_t num_tokens_global) {
    const int64_t devices = c->cluster.devices > 0 ? c->cluster.devices : 1, ranks = c->ranks > 0 ? c->ranks : 1;
    const int64_t local_devices = div_up(devices, ranks);
    const int64_t per_device = num_tokens_global > 0 ? div_up(num_tokens_global, devices) : c->data.tokens_per_device;
    const int64_t tokens = mul(per_device, local_devices);
    moe_memory m = {.weights = weights(c, ranks),
                    .activations = activations(c, tokens, ranks),
                    .exchange = exchange(c, tokens, local_devices, ranks),
                    .statistics = statistics(c, tokens, local_devices),
                    .input = input(c, tokens)};
    m.total = add(add(add(m.weights, m.activations), add(m.exchange, m.statistics)), m.input);
    return m;
}
