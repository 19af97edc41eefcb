/* memory.c: the bytes that a rank will need, term by term: every term is the table of one of the
 * program's blocks, with the numbers of tokens, selections and rows that are expected. Here are the
 * sizes and parameters; activations stand in memory_layer.c, the exchange in memory_exchange.c,
 * cells of counts in memory_statistics.c, files in memory_files.c.
 *
 * Symbols: L layers, H hidden size, N experts, F width of an expert, D devices, T tokens of the
 * fullest rank, S selections (as many are received under a balanced load), R rows of dispatch. In a
 * forward run, layers run one after the other and share their buffers; in training each layer has
 * its own, because backward walks through the layers the other way. */
#include "predict/memory.h"

#include <math.h>
#include <string.h>

#include "attention/shape.h"
#include "balance/balance.h"
#include "base/alloc.h"
#include "base/gemm.h"
#include "experts/experts.h"
#include "predict/expected.h"
#include "predict/internal.h"

enum {
    PROGRAM_BYTES = 8 << 20,   /* beyond MOE_MEMORY_STARTED: pages of the program, a BLAS and MPI,
                                  with their tables and stacks */
    ONEDNN_BYTES = 6 << 20,    /* of oneDNN, with the code that it makes for the shapes it meets */
    BF16_BYTES = 2 << 20,      /* of it, where it computes products in bf16 alone */
    BF16_MORE_BYTES = 1 << 20, /* where it computes those as well */
    ONEDNN_PRODUCT = 1 << 19,  /* multiplications that are worth its call (base/gemm.c) */
    GATE_ROWS = 256,           /* of a product of a gate or a head (model/layer_forward.c) */
    TREE_BYTES = 4 << 20, /* of partial gradients that are added at a time (model/device_tree.c) */
};

static int64_t matrices(enum moe_expert_type type) {
    return moe_ffn_type_of(type)->matrices;
}

int32_t moe_memory_kept_layers(const moe_config *c) {
    const bool gradient = c->output.tensors &&
                          moe_balance_alpha_all_layers(&c->balance, moe_config_moe_layers(c)) > 0;
    return c->run.mode == MOE_MODE_TRAIN || gradient ? moe_config_moe_layers(c) : 1;
}

int64_t moe_memory_whole(double x) {
    return x < 0x1p62 ? (int64_t)ceil(x) : INT64_MAX;
}

static moe_sequences sequences_of(const moe_config *c,
                                  const moe_memory_given *given,
                                  int64_t tokens) {
    const int64_t length = c->data.sequence_length;
    if (given->boundary) {
        return (moe_sequences){.num = given->num_sequences, .boundary = given->boundary};
    }
    return (moe_sequences){.num = length > 0 ? div_up(tokens, length) : 1,
                           .length = length > 0 ? min64(length, tokens) : tokens};
}

/* Under an even load, as much arrives as is sent. */
static void balance(moe_memory_sizes *s) {
    s->in_pairs = s->sent;
    s->in_rows = s->rows;
    s->in_remote = s->remote;
    s->of_slot = s->sent / s->slots + 1;
}

/* What was seen of a sample. */
static void take_load(moe_memory_sizes *s, const moe_memory_load *load) {
    const double tokens = (double)s->tokens;
    s->selections = moe_memory_whole(tokens * load->selections);
    s->sent = moe_memory_whole(tokens * load->sent);
    s->rows = moe_memory_whole(tokens * load->rows);
    s->remote = moe_memory_whole(tokens * load->remote);
    s->first = moe_memory_whole(tokens * load->first);
    s->in_pairs = moe_memory_whole(tokens * load->in_pairs);
    s->in_rows = moe_memory_whole(tokens * load->in_rows);
    s->in_remote = moe_memory_whole(tokens * load->in_remote);
    s->of_slot = moe_memory_whole(tokens * load->of_slot);
}

static moe_memory_sizes sizes_of(const moe_config *c, const moe_memory_given *given) {
    const int64_t num_tokens_global = given->num_tokens;
    const int64_t devices = c->cluster.devices > 0 ? c->cluster.devices : 1,
                  ranks = c->ranks > 0 ? c->ranks : 1;
    const int64_t per_device =
        num_tokens_global > 0 ? div_up(num_tokens_global, devices) : c->data.tokens_per_device;
    moe_memory_sizes s = {.train = c->run.mode == MOE_MODE_TRAIN,
                          .text = c->data.source == MOE_SOURCE_TEXT,
                          .ranks = ranks,
                          .local_devices = div_up(devices, ranks),
                          .device_tokens = per_device,
                          .most = moe_config_most_experts(c),
                          .copies = moe_memory_kept_layers(c),
                          .threads = c->run.threads > 0 ? c->run.threads : 1,
                          .slots = div_up(c->model.num_experts, ranks)};
    s.backward = s.train || given->backward;
    s.places = given->places;
    s.by_device = given->by_device;
    s.keep = s.train ? !c->train.recompute : given->backward;
    s.tokens = num_tokens_global > 0 ? min64(mul(per_device, s.local_devices), num_tokens_global)
                                     : mul(per_device, s.local_devices);
    if (num_tokens_global > 0 && ranks == 1) {
        s.tokens = num_tokens_global;
    }
    const double all = (double)mul(per_device, devices);
    const double routed = given->num_counted > 0 && all > 0 ? (double)given->num_counted / all : 1;
    const double k = fmin(routed, 1) *
                     (given->choices > 0 ? given->choices : moe_expected_choices(c, per_device));
    const int64_t in_batch = num_tokens_global > 0 ? num_tokens_global : mul(per_device, devices);
    const moe_sequences sequences = sequences_of(c, given, in_batch);
    const double sent = k * moe_expected_kept(c, &sequences, in_batch, k);
    s.segments = moe_memory_segments(&sequences, in_batch, (int32_t)devices, (int32_t)ranks);
    s.selections = moe_memory_whole((double)s.tokens * k);
    s.sent = moe_memory_whole((double)s.tokens * sent);
    s.rows = c->exchange.mode == MOE_EXCHANGE_SELECTION
                 ? s.sent
                 : moe_memory_whole((double)s.tokens * moe_expected_reach(c, sent));
    s.first = c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL
                  ? moe_memory_whole((double)s.tokens * moe_expected_nodes(c, sent))
                  : 0;
    const int64_t nodes = max64(1, devices / max64(1, c->cluster.devices_per_node));
    const int64_t ranks_of_node = max64(1, ranks / nodes);
    s.first_ranks = min64(nodes, ranks);
    s.remote = s.rows - s.rows / (s.first > 0 ? ranks_of_node : ranks);
    const bool replicas = !c->compares_placements && c->placement.redundant_experts > 0;
    if (replicas && s.local_devices == 1 && c->exchange.mode == MOE_EXCHANGE_TOKEN) {
        /* replicas keep rows at home */
        s.remote = min64(s.remote, moe_memory_whole((double)s.tokens * moe_expected_away(c, sent)));
    }
    balance(&s);
    if (given->load) {
        take_load(&s, given->load);
    }
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

/* A dense layer has a norm [H], the matrices of its FFN and the attention in front. */
static int64_t parameters_of_dense_layer(const moe_config *c, int64_t norm) {
    const int64_t ffn =
        mul3(matrices(c->model.expert_type), c->model.hidden_size, c->model.intermediate_size);
    return add(add(norm, ffn), moe_attention_parameters(c));
}

/* The frozen base of LoRA experts stands on every rank. */
static int64_t frozen_parameters(const moe_config *c) {
    return c->model.expert_type == MOE_EXPERT_LORA
               ? mul(moe_config_moe_layers(c), parameters_of_ffn(c))
               : 0;
}

int64_t moe_memory_touched(int64_t bytes) {
    const int64_t huge = (add(bytes, bytes / 4)) / HUGE_PAGE * HUGE_PAGE;
    return huge >= 2 * HUGE_PAGE && bytes <= huge ? mul(div_up(bytes, HUGE_PAGE), HUGE_PAGE)
                                                  : bytes;
}

bool moe_memory_has_gate(const moe_config *c) {
    return c->data.source == MOE_SOURCE_SYNTHETIC || c->data.source == MOE_SOURCE_TEXT;
}

bool moe_memory_learns_noise(const moe_config *c) {
    return c->router.noise_form == MOE_NOISE_SOFTPLUS && moe_memory_has_gate(c);
}

/* Each MoE layer has the routed experts, the gate [N,H] (and as much for the scale of its noise
 * where that is learned), the norm [H], every shared expert and the attention in front. A language
 * model also has an embedding [context,256,H], a norm [H] and a head [256,H]. */
moe_parameter_counts moe_memory_parameters(const moe_config *c) {
    const int64_t h = c->model.hidden_size;
    const int64_t expert = parameters_of_expert(c);
    const int64_t norm = c->model.norm == MOE_NORM_NONE ? 0 : h;
    const int64_t gate = mul3(moe_memory_learns_noise(c) ? 2 : 1, c->model.num_experts, h);
    const int64_t layer =
        add(add(add(gate, norm), mul(c->model.num_shared_experts, parameters_of_ffn(c))),
            moe_attention_parameters(c));
    moe_parameter_counts count = {.expert =
                                      mul3(moe_config_moe_layers(c), c->model.num_experts, expert),
                                  .replicated = mul(moe_config_moe_layers(c), layer)};
    count.replicated =
        add(count.replicated, mul(c->model.first_dense_layers, parameters_of_dense_layer(c, norm)));
    if (c->run.mode != MOE_MODE_FORWARD && c->data.source == MOE_SOURCE_TEXT) {
        count.replicated =
            add(count.replicated, add(mul3(BYTE_VALUES, c->train.context + 1, h), h));
    }
    return count;
}

/* The parameters of this rank. */
int64_t moe_memory_local_parameters(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t slots =
        add(c->model.num_experts, c->compares_placements ? 0 : c->placement.redundant_experts);
    const int64_t experts = mul(moe_config_moe_layers(c), div_up(slots, s->ranks));
    return add(mul(experts, parameters_of_expert(c)), moe_memory_parameters(c).replicated);
}

/* The sum of the gradients; a partial sum of each local device for what is replicated; and a piece
 * of these on its way through the tree. */
static int64_t gradients(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t replicated = moe_memory_parameters(c).replicated;
    const int64_t piece = min64(replicated, TREE_BYTES / (int64_t)sizeof(real) / s->local_devices);
    int64_t reals =
        add(moe_memory_local_parameters(c, s), mul(s->local_devices, add(replicated, piece)));
    if (s->ranks > 1) {
        reals = add(reals, mul(s->local_devices + 1, piece));
    }
    return s->backward ? mul(reals, sizeof(real)) : 0;
}

/* AdamW keeps the means of the gradient and of its square. */
static int64_t optimizer(const moe_config *c, const moe_memory_sizes *s) {
    return s->train && c->train.optimizer == MOE_OPTIMIZER_ADAMW
               ? mul3(2, moe_memory_local_parameters(c, s), sizeof(real))
               : 0;
}

/* --- together --- */

int64_t moe_memory_rows_of_call(const moe_config *c, const moe_memory_sizes *s) {
    return min64(div_up(s->of_slot, max64(1, c->exchange.chunks)), MOE_GEMM_ROWS);
}

/* Multiplications of the largest product: of an expert, of the shared ones and of dense layers, of
 * the gate and of the head, and of attention. */
static int64_t largest_product(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    const int64_t rows = min64(s->device_tokens, MOE_GEMM_ROWS);
    const int64_t narrow = s->backward ? s->device_tokens : min64(s->device_tokens, GATE_ROWS);
    const int64_t of_ffn = s->matrices > 0 ? h : 0;
    const int64_t dense = c->model.first_dense_layers > 0 ? c->model.intermediate_size : 0;
    const int64_t wide = max64(mul(c->model.num_shared_experts, f), dense);
    const bool has_head = s->text && c->run.mode != MOE_MODE_FORWARD;
    int64_t most = max64(mul3(moe_memory_rows_of_call(c, s), of_ffn, f), mul3(rows, of_ffn, wide));
    most = max64(most, moe_memory_has_gate(c) ? mul3(narrow, h, c->model.num_experts) : 0);
    most = max64(most, has_head ? mul3(narrow, h, BYTE_VALUES) : 0);
    return max64(most, moe_memory_attention_product(c, s));
}

/* Of the products of a run, the small ones go elsewhere, unless one library computes them all. */
static bool uses_onednn(const moe_config *c, const moe_memory_sizes *s) {
    moe_gemm_kernels of[2];
    const bool all = moe_gemm_kernels_of(of) == 1;
    return !strcmp(of[0].library, "oneDNN") && (all || largest_product(c, s) >= ONEDNN_PRODUCT);
}

static int64_t program(const moe_config *c, const moe_memory_sizes *s) {
    const bool narrow = c->model.compute == MOE_COMPUTE_BF16;
    return MOE_MEMORY_STARTED + PROGRAM_BYTES +
           (uses_onednn(c, s) ? ONEDNN_BYTES + (narrow ? BF16_MORE_BYTES : 0)
            : narrow          ? BF16_BYTES
                              : 0);
}

/* The load is never quite even, and the last page of a buffer, a huge one where the buffer is
 * large, never quite full. */
static int64_t uneven(int64_t bytes) {
    return add(bytes, bytes / 12);
}

/* What a thread needs to turn the largest matrix of a forward run round (moe_ffn_turn), before
 * anything of a step is there. */
static int64_t turning(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t dense = c->model.first_dense_layers > 0 ? c->model.intermediate_size : 0;
    const int64_t f = c->model.moe_intermediate_size;
    const int64_t width = max64(mul(f, max64(1, c->model.num_shared_experts)), dense);
    const bool turns = !s->backward && c->model.expert_type != MOE_EXPERT_IDENTITY;
    return turns ? mul(mul3(s->threads, width, c->model.hidden_size), sizeof(real)) : 0;
}

moe_memory moe_memory_estimate(const moe_config *c, const moe_memory_given *given) {
    const moe_memory_sizes s = sizes_of(c, given);
    moe_memory m = {
        .weights = mul(add(moe_memory_local_parameters(c, &s), frozen_parameters(c)), sizeof(real)),
        .gradients = gradients(c, &s),
        .optimizer = optimizer(c, &s),
        .activations = uneven(moe_memory_activations(c, &s)),
        .exchange = add(uneven(moe_memory_exchange(c, &s)), moe_memory_staging(c, &s)),
        .windows = moe_memory_windows(c, &s),
        .statistics = add(moe_memory_statistics(c, &s), moe_memory_loads(c)),
        .input = moe_memory_input(c, s.tokens),
        .program = program(c, &s),
        .histories = moe_memory_histories(c)};
    const int64_t trained = add(m.weights, add(m.gradients, m.optimizer));
    const int64_t of_steps = add(m.activations, add(m.exchange, m.statistics));
    m.total = add(add(trained, max64(of_steps, turning(c, &s))), add(m.input, m.program));
    m.mean = m.total;
    return m;
}

void moe_memory_parts(const moe_memory *m, moe_memory_part part[MOE_MEMORY_PARTS]) {
    const moe_memory_part all[MOE_MEMORY_PARTS] = {
        {"weights", m->weights},     {"gradients", m->gradients},
        {"optimiser", m->optimizer}, {"activations", m->activations},
        {"exchange", m->exchange},   {"statistics", m->statistics},
        {"input", m->input},         {"program", m->program},
    };
    memcpy(part, all, sizeof all);
}

int64_t moe_memory_of_ranks(const moe_memory *m, int ranks) {
    return add(mul(m->mean, ranks), m->histories);
}
