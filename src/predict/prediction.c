/* prediction.c: from the counts of a step to its time.
 *
 * Counts of a training step are those of all its micro-batches. A micro-batch has its share of
 * them, and the step as many times its time. */
#include "predict/prediction.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "exchange/row_format.h"
#include "experts/ffn.h"
#include "predict/predictor.h"

const char *const moe_predicted_names[MOE_NUM_PREDICTED] = {
    "attention", "dense", "gate", "dispatch", "expert", "combine", "allreduce", "backward", "step"};

/* --- the model --- */

static double or_else(int32_t wish, int32_t otherwise) {
    return wish > 0 ? wish : otherwise;
}

/* The width of the numbers that experts compute with is that of the dispatched vectors. */
static double number_bytes(enum moe_payload payload) {
    switch (payload) { /* without a default, so that the compiler asks for each */
    case MOE_PAYLOAD_FP8:
        return 1;
    case MOE_PAYLOAD_BF16:
        return 2;
    case MOE_PAYLOAD_FP32:
        return (double)sizeof(real);
    }
    MOE_ASSERT(false);
    return 0;
}

static moe_cost_expert expert_of(const moe_config *c) {
    return (moe_cost_expert){
        .hidden = or_else(c->cluster.model_hidden_size, c->model.hidden_size),
        .intermediate = or_else(c->cluster.model_intermediate_size, c->model.moe_intermediate_size),
        .matrices = moe_ffn_type_of(c->model.expert_type)->matrices,
        .in_bytes = number_bytes(c->exchange.payload),
        .out_bytes = number_bytes(c->exchange.combine_payload)};
}

static double weights_of(const moe_config *c, const moe_cost_expert *e) {
    const double adapters = c->model.expert_type == MOE_EXPERT_LORA
                                ? c->model.lora_rank * (e->hidden + e->intermediate)
                                : 0;
    return e->matrices * (e->hidden * e->intermediate + adapters);
}

static double row_bytes(const moe_config *c, const moe_cost_expert *e, bool back) {
    const enum moe_payload payload = back ? c->exchange.combine_payload : c->exchange.payload;
    return (double)moe_row_format_wire_bytes(c->exchange.row_protocol, payload, (int64_t)e->hidden,
                                             moe_config_most_experts(c), back);
}

static void open_predictor(moe_predictor *p, const moe_config *c, int64_t num_tokens) {
    const int32_t devices = c->cluster.devices;
    *p = (moe_predictor){.config = c, .cluster = moe_cluster_of(c), .expert = expert_of(c)};
    p->weights = weights_of(c, &p->expert);
    p->out_bytes = row_bytes(c, &p->expert, false);
    p->in_bytes = row_bytes(c, &p->expert, true);
    p->micro_batches = c->run.mode == MOE_MODE_TRAIN ? c->train.accumulate : 1;
    p->tokens = (double)num_tokens / devices / p->micro_batches;
    p->load = moe_alloc(devices, sizeof *p->load, "prediction");
    p->total = moe_alloc_zero(devices, sizeof *p->total, "prediction");
    p->fixed = c->exchange.chunks * (p->cluster.exchange_seconds + moe_cost_latency(&p->cluster));
}

static void close_predictor(moe_predictor *p) {
    moe_free(p->load);
    moe_free(p->total);
}

/* --- the load of the devices in a layer --- */

static void count_rows(moe_predictor *p, const moe_layer_counts *l) {
    const int32_t per_node = p->cluster.devices_per_node;
    const double arriving = l->arriving > 0 ? l->arriving : 1;
    p->across_back = l->across_back > 0 ? l->across_back : 1;
    for (int64_t i = 0; i < l->matrix->num_cells; i++) {
        const int32_t s = l->matrix->cell[i].row, d = l->matrix->cell[i].column;
        const double rows = (double)l->matrix->cell[i].count / p->micro_batches;
        moe_cost_traffic *from = &p->load[s].rows, *to = &p->load[d].rows;
        p->load[d].arrived += arriving * rows;
        if (s / per_node != d / per_node) {
            from->inter_sent += rows;
            to->inter_received += rows;
        } else if (s != d) {
            from->intra_sent += rows;
            to->intra_received += rows;
        }
    }
}

static void count_selections(moe_predictor *p, const moe_layer_counts *l) {
    const int32_t per_device = l->slots / p->cluster.devices;
    for (int32_t i = 0; i < l->slots; i++) {
        moe_device_load *load = &p->load[i / per_device];
        const double rows = (double)l->served[i] / p->micro_batches;
        load->selections += rows;
        load->active += rows > 0;
        load->products += moe_cost_product(&p->cluster, rows, p->weights, p->expert.in_bytes);
    }
}

/* Adds `share` of a load, without its products. */
static void add_load(moe_device_load *sum, const moe_device_load *l, double share) {
    sum->rows.intra_sent += share * l->rows.intra_sent;
    sum->rows.intra_received += share * l->rows.intra_received;
    sum->rows.inter_sent += share * l->rows.inter_sent;
    sum->rows.inter_received += share * l->rows.inter_received;
    sum->arrived += share * l->arrived;
    sum->selections += share * l->selections;
    sum->active += share * l->active;
}

/* The load of every device if all had the same: the time of a product rises linearly from some
 * number of rows on, so that equal experts take the least time. */
static moe_device_load even_load(const moe_predictor *p) {
    const int32_t devices = p->cluster.devices;
    moe_device_load mean = {0};
    for (int32_t d = 0; d < devices; d++) {
        add_load(&mean, &p->load[d], 1.0 / devices);
    }
    if (mean.active > 0) {
        mean.products = mean.active * moe_cost_product(&p->cluster, mean.selections / mean.active,
                                                       p->weights, p->expert.in_bytes);
    }
    return mean;
}

/* --- the time of a layer --- */

static double experts_seconds(const moe_predictor *p, const moe_device_load *l, double passes) {
    const double shared = p->config->model.num_shared_experts *
                          moe_cost_product(&p->cluster, p->tokens, p->weights, p->expert.in_bytes);
    const double bytes = moe_cost_expert_pass(&p->expert, l->arrived, l->selections);
    return moe_cost_experts(&p->cluster, passes * (l->products + shared), passes * bytes);
}

static moe_cost_traffic reversed(const moe_predictor *p, const moe_cost_traffic *t) {
    return (moe_cost_traffic){.intra_sent = t->intra_received,
                              .intra_received = t->intra_sent,
                              .inter_sent = p->across_back * t->inter_received,
                              .inter_received = p->across_back * t->inter_sent};
}

/* One way through a layer and back: each phase on the device that is its slowest, and the longest
 * way through dispatch and experts of one device. */
typedef struct pass_times {
    double dispatch, expert, combine;
    double path;
} pass_times;

/* passes: how often the products of forward are computed. */
static pass_times pass_of(const moe_predictor *p,
                          const moe_device_load *load,
                          int32_t devices,
                          double out_bytes,
                          double passes) {
    const int32_t chunks = p->config->exchange.chunks;
    pass_times slowest = {0};
    for (int32_t d = 0; d < devices; d++) {
        const moe_cost_traffic back = reversed(p, &load[d].rows);
        const double out = moe_cost_exchange(&p->cluster, &load[d].rows, out_bytes, chunks),
                     work = experts_seconds(p, &load[d], passes);
        slowest.dispatch = fmax(slowest.dispatch, out);
        slowest.expert = fmax(slowest.expert, work);
        slowest.path = fmax(slowest.path, out + work);
        slowest.combine =
            fmax(slowest.combine, moe_cost_exchange(&p->cluster, &back, p->in_bytes, chunks));
    }
    return slowest;
}

/* The time of the three with `chunks` pieces on their way. */
static double overlapped(const pass_times *t, int32_t chunks) {
    const double longest = fmax(t->dispatch, fmax(t->expert, t->combine));
    return (t->path + t->combine + (chunks - 1) * longest) / chunks;
}

/* The logits of a device's tokens: a product, and reading them once; and what becomes of them. */
static double gate_seconds(const moe_predictor *p) {
    const double weights = p->expert.hidden * p->config->model.num_experts,
                 bytes = p->expert.out_bytes;
    return moe_cost_product(&p->cluster, p->tokens, weights, bytes) +
           p->tokens * p->config->model.num_experts * p->cluster.router_seconds +
           p->tokens * p->expert.hidden * bytes / p->cluster.memory_rate;
}

/* Numbers of attention are as wide as those that come back from the experts. */
static moe_cost_attention attention_of(const moe_predictor *p) {
    const moe_config *c = p->config;
    return (moe_cost_attention){.shape = moe_attention_shape_of(c),
                                .wider = p->expert.hidden / c->model.hidden_size,
                                .tokens = p->tokens,
                                .length = (double)c->data.sequence_length,
                                .number_bytes = p->expert.out_bytes};
}

static moe_two_ways attention_seconds(const moe_predictor *p) {
    const moe_config *c = p->config;
    const moe_cost_attention a = attention_of(p);
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return (moe_two_ways){0};
    }
    return (moe_two_ways){moe_cost_attention_forward(&p->cluster, &a),
                          moe_cost_attention_backward(&p->cluster, &a, c->train.recompute)};
}

/* The FFN of a dense layer is an expert that every token of the device goes to. Its width grows as
 * that of the experts does. Backward has two products for each of forward, and with
 * train.recompute forward once more. */
static moe_two_ways dense_seconds(const moe_predictor *p) {
    const moe_config *c = p->config;
    moe_cost_expert e = p->expert;
    e.intermediate *= (double)c->model.intermediate_size / c->model.moe_intermediate_size;
    const double weights = e.matrices * e.hidden * e.intermediate;
    const double products = moe_cost_product(&p->cluster, p->tokens, weights, e.in_bytes),
                 bytes = moe_cost_expert_pass(&e, p->tokens, p->tokens),
                 forward = moe_cost_experts(&p->cluster, products, bytes);
    return (moe_two_ways){forward, moe_cost_experts(&p->cluster, 2 * products, 2 * bytes) +
                                       (c->train.recompute ? forward : 0)};
}

/* Adds the dense layers to the phases of the MoE layers. */
static void add_dense_layers(const moe_predictor *p, double seconds[MOE_NUM_PREDICTED]) {
    const double times = p->config->model.first_dense_layers * p->micro_batches;
    if (times == 0) {
        return;
    }
    const moe_two_ways attention = p->attention, dense = dense_seconds(p);
    const bool trains = p->config->run.mode == MOE_MODE_TRAIN;
    const double backward = trains ? attention.backward + dense.backward : 0;
    seconds[MOE_PREDICTED_ATTENTION] += times * attention.forward;
    seconds[MOE_PREDICTED_DENSE] += times * dense.forward;
    seconds[MOE_PREDICTED_BACKWARD] += times * backward;
    seconds[MOE_PREDICTED_STEP] += times * (attention.forward + dense.forward + backward);
}

static void add_layer(const moe_predictor *p,
                      const moe_layer_counts *l,
                      const moe_device_load *load,
                      int32_t devices,
                      double seconds[MOE_NUM_PREDICTED]) {
    const int32_t chunks = p->config->exchange.chunks;
    const double gate = p->gate;
    const moe_two_ways attention = p->attention;
    const double reduce = moe_cost_allreduce(
        &p->cluster, (double)l->allreduce_bytes / p->cluster.devices / p->micro_batches);
    const pass_times forward = pass_of(p, load, devices, p->out_bytes, 1);
    double backward = 0;
    if (p->config->run.mode == MOE_MODE_TRAIN) {
        const pass_times way = pass_of(p, load, devices, p->in_bytes, 2);
        backward = 2 * gate + overlapped(&way, chunks) + attention.backward;
    }
    seconds[MOE_PREDICTED_ATTENTION] += p->micro_batches * attention.forward;
    seconds[MOE_PREDICTED_GATE] += p->micro_batches * gate;
    seconds[MOE_PREDICTED_DISPATCH] += p->micro_batches * forward.dispatch;
    seconds[MOE_PREDICTED_EXPERT] += p->micro_batches * forward.expert;
    seconds[MOE_PREDICTED_COMBINE] += p->micro_batches * forward.combine;
    seconds[MOE_PREDICTED_ALLREDUCE] += p->micro_batches * reduce;
    seconds[MOE_PREDICTED_BACKWARD] += p->micro_batches * backward;
    seconds[MOE_PREDICTED_STEP] +=
        p->micro_batches *
        (attention.forward + gate + overlapped(&forward, chunks) + reduce + backward);
}

/* --- together --- */

/* The sum of the gradients of what every device has, whose bytes are those of the step's widths:
 * vectors of the hidden size, but for the matrices of attention and of the dense layers. */
static double gradient_seconds(const moe_predictor *p, int32_t layers, int64_t gradient_bytes) {
    const moe_model_config *m = &p->config->model;
    const double wider = p->expert.hidden / m->hidden_size;
    const double dense = p->expert.matrices * m->hidden_size * m->intermediate_size,
                 numbers = (double)moe_attention_parameters(p->config) *
                               (layers + m->first_dense_layers) +
                           dense * m->first_dense_layers;
    const double all = (double)gradient_bytes / p->cluster.devices,
                 matrices = fmin(all, numbers * sizeof(real));
    return moe_cost_allreduce(&p->cluster, (all - matrices) * wider + matrices * wider * wider);
}

/* The MoE layers of the model that is meant for each of the run. */
static double layers_for_each(const moe_config *c, int32_t num_layers) {
    const int32_t wish = c->cluster.model_layers, most = wish - c->model.first_dense_layers;
    return wish > 0 ? (double)(most > 1 ? most : 1) / num_layers : 1;
}

/* From the layers of the run to those of the model that is meant. */
static void conclude(double seconds[MOE_NUM_PREDICTED], double layers, double gradients) {
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        seconds[i] *= layers;
    }
    seconds[MOE_PREDICTED_ALLREDUCE] += layers * gradients;
    seconds[MOE_PREDICTED_STEP] += layers * gradients;
}

moe_prediction moe_prediction_of_counts(const moe_config *c,
                                        const moe_layer_counts *layer,
                                        int32_t num_layers,
                                        int64_t num_tokens,
                                        int64_t gradient_bytes) {
    const int32_t devices = c->cluster.devices;
    moe_predictor p;
    moe_prediction out = {.price_per_token = NAN};
    open_predictor(&p, c, num_tokens);
    p.num_layers = num_layers;
    p.attention = attention_seconds(&p);
    p.gate = gate_seconds(&p);
    out.out_bytes = p.out_bytes;
    out.in_bytes = p.in_bytes;
    out.exchange_seconds = p.fixed;
    for (int32_t l = 0; l < num_layers; l++) {
        memset(p.load, 0, (size_t)devices * sizeof *p.load);
        count_rows(&p, &layer[l]);
        count_selections(&p, &layer[l]);
        const moe_device_load even = even_load(&p);
        add_layer(&p, &layer[l], p.load, devices, out.seconds);
        add_layer(&p, &layer[l], &even, 1, out.balanced);
        for (int32_t d = 0; d < devices; d++) {
            add_load(&p.total[d], &p.load[d], 1);
            const moe_cost_traffic *rows = &p.load[d].rows;
            const double both = p.out_bytes + p.in_bytes;
            out.bytes += (rows->intra_sent + rows->inter_sent) * both * p.micro_batches;
            out.bytes += (p.across_back - 1) * rows->inter_sent * p.in_bytes * p.micro_batches;
        }
    }
    const double layers = layers_for_each(c, num_layers),
                 gradients = gradient_seconds(&p, num_layers, gradient_bytes);
    conclude(out.seconds, layers, gradients);
    conclude(out.balanced, layers, gradients);
    add_dense_layers(&p, out.seconds);
    add_dense_layers(&p, out.balanced);
    moe_predictor_describe(&p, layers * num_layers, &out);
    out.bytes *= layers;
    if (p.cluster.device_price > 0 && num_tokens > 0) {
        out.price_per_token =
            p.cluster.device_price * devices * out.seconds[MOE_PREDICTED_STEP] / (double)num_tokens;
    }
    close_predictor(&p);
    return out;
}

/* What the slots of the devices serve where experts do not stand in blocks: the metrics count by
 * device, and its slots share evenly. */
static void spread(const moe_layer_metrics *l,
                   int32_t devices,
                   int32_t per_device,
                   int64_t *served) {
    for (int32_t d = 0; d < devices; d++) {
        const int64_t counted = l->counts_per_device[d] - l->dropped_per_device[d],
                      kept = counted > 0 ? counted : 0;
        for (int32_t i = 0; i < per_device; i++) {
            served[(int64_t)d * per_device + i] = kept / per_device + (i < kept % per_device);
        }
    }
}

static double ratio(int64_t part, int64_t whole) {
    return whole > 0 ? (double)part / (double)whole : 1;
}

/* What the sum of two hops hides. */
static void split_hops(const moe_config *c, const moe_layer_metrics *l, moe_layer_counts *counts) {
    const moe_volume *out = &l->volume[MOE_DISPATCH], *back = &l->volume[MOE_COMBINE];
    int64_t last = 0;
    if (moe_row_format_hops(c->exchange.mode) == 1) {
        return;
    }
    for (int level = 0; level < MOE_NUM_LEVELS; level++) {
        last += out->by_hop[1][level].rows;
    }
    counts->arriving = ratio(last, out->rows);
    counts->across_back =
        ratio(back->by_level[MOE_LEVEL_CLUSTER].rows, out->by_level[MOE_LEVEL_CLUSTER].rows);
}

moe_prediction moe_prediction_of(const moe_config *c, const moe_step_metrics *m) {
    const bool blocks = c->placement.policy == MOE_PLACEMENT_BLOCK &&
                        c->placement.redundant_experts == 0 && m->num_experts % m->devices == 0;
    const int32_t slots = m->num_experts + c->placement.redundant_experts,
                  per_device = (slots + m->devices - 1) / m->devices;
    const int64_t all = (int64_t)m->devices * per_device;
    int64_t *served = blocks ? NULL : moe_alloc(m->num_layers * all, sizeof *served, "prediction");
    moe_layer_counts *layer = moe_alloc(m->num_layers, sizeof *layer, "prediction");
    for (int32_t l = 0; l < m->num_layers; l++) {
        layer[l] = (moe_layer_counts){.matrix = &m->layer[l].matrix,
                                      .slots = (int32_t)all,
                                      .served = m->layer[l].kept_per_expert,
                                      .allreduce_bytes = m->layer[l].allreduce_bytes};
        split_hops(c, &m->layer[l], &layer[l]);
        if (!blocks) {
            spread(&m->layer[l], m->devices, per_device, served + l * all);
            layer[l].served = served + l * all;
        }
    }
    const moe_prediction out = moe_prediction_of_counts(c, layer, m->num_layers, m->num_tokens,
                                                        m->gradient_allreduce_bytes);
    moe_free(layer);
    moe_free(served);
    return out;
}
