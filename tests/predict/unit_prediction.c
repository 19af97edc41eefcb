/* unit_prediction.c: the prediction of a step against a slow one that goes through every pair of
 * devices and every expert for each phase by itself, and what holds for every step. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "check.h"
#include "made_record.h"
#include "predict/prediction.h"

enum { LAYERS = 2, EXPERTS = 48, DEVICES = 8, PER_NODE = 4, TOKENS = 800, PER_DEVICE = 6 };

static void make(moe_config *c, moe_step_metrics *m, int64_t step) {
    made_config(c, LAYERS, EXPERTS, DEVICES, PER_NODE);
    c->model.hidden_size = 512;
    c->model.moe_intermediate_size = 256;
    c->model.num_shared_experts = 1;
    c->cluster.launch_us = 3;
    moe_step_metrics_init(m, LAYERS, EXPERTS, DEVICES);
    made_record(m, c, step, TOKENS);
}

/* Adds to a cell of the device matrix, or to the selections of an expert. */
static void add_count(moe_layer_metrics *l, bool of_matrix, int at, int64_t count) {
    moe_sparse_cell cell = {at / DEVICES, at % DEVICES, count};
    if (of_matrix) {
        moe_sparse_add(&l->matrix, &(moe_sparse){.num_cells = 1, .cell = &cell});
    } else {
        l->kept_per_expert[at] += count;
    }
}

/* --- the slow reference: fp32 both ways, no training --- */

static double exchange_us(const moe_config *c, const moe_sparse *matrix, bool back) {
    const moe_cluster_config *k = &c->cluster;
    double worst = 0;
    for (int d = 0; d < DEVICES; d++) {
        double out[2] = {0}, in[2] = {0};
        for (int e = 0; e < DEVICES; e++) {
            const int across = d / PER_NODE != e / PER_NODE;
            const double row = 4.0 * c->model.hidden_size;
            out[across] +=
                d == e ? 0 : row * (double)moe_sparse_at(matrix, back ? e : d, back ? d : e);
            in[across] +=
                d == e ? 0 : row * (double)moe_sparse_at(matrix, back ? d : e, back ? e : d);
        }
        worst = fmax(worst, fmax(out[0], in[0]) / (k->intra_gbps * 1e3 * k->link_efficiency));
        worst = fmax(worst, fmax(out[1], in[1]) / (k->inter_gbps * 1e3 * k->link_efficiency));
    }
    return k->exchange_us + 2 * k->intra_latency_us + 2 * k->inter_latency_us + worst;
}

static double product_us(const moe_config *c, double rows) {
    const moe_cluster_config *k = &c->cluster;
    const double weights = 3.0 * c->model.hidden_size * c->model.moe_intermediate_size;
    const double compute =
        2 * weights * (rows + k->gemm_half_rows) / (k->device_tflops * 1e6 * k->efficiency);
    return rows > 0 ? fmax(compute, 4 * weights / (k->memory_gbps * 1e3 * k->memory_efficiency))
                    : 0;
}

static double experts_us(const moe_config *c, const moe_layer_metrics *l) {
    const moe_cluster_config *k = &c->cluster;
    const double h = c->model.hidden_size, f = c->model.moe_intermediate_size;
    double worst = 0;
    for (int d = 0; d < DEVICES; d++) {
        double work = product_us(c, TOKENS / (double)DEVICES), selections = 0, arrived = 0;
        for (int i = d * PER_DEVICE; i < (d + 1) * PER_DEVICE; i++) {
            work += product_us(c, (double)l->kept_per_expert[i]);
            selections += (double)l->kept_per_expert[i];
        }
        for (int s = 0; s < DEVICES; s++) {
            arrived += (double)moe_sparse_at(&l->matrix, s, d);
        }
        const double bytes = arrived * 8 * h + selections * (12 * h + 20 * f);
        work += bytes / (k->memory_gbps * 1e3 * k->memory_efficiency);
        worst = fmax(worst, cbrt(pow(k->launch_us, 3) + pow(work, 3)));
    }
    return worst;
}

static void test_reference(int64_t step) {
    moe_config c;
    moe_step_metrics m;
    double dispatch = 0, expert = 0, combine = 0;
    make(&c, &m, step);
    for (int l = 0; l < LAYERS; l++) {
        dispatch += exchange_us(&c, &m.layer[l].matrix, false);
        combine += exchange_us(&c, &m.layer[l].matrix, true);
        expert += experts_us(&c, &m.layer[l]);
    }
    const moe_prediction p = moe_prediction_of(&c, &m);
    CHECK_NEAR(1e6 * p.seconds[MOE_PREDICTED_DISPATCH], dispatch, 1e-12);
    CHECK_NEAR(1e6 * p.seconds[MOE_PREDICTED_EXPERT], expert, 1e-12);
    CHECK_NEAR(1e6 * p.seconds[MOE_PREDICTED_COMBINE], combine, 1e-12);
    double sum = 0, largest = 0;
    for (int i = 0; i < MOE_PREDICTED_STEP; i++) {
        sum += p.seconds[i];
        largest = fmax(largest, p.seconds[i]);
    }
    CHECK(p.seconds[MOE_PREDICTED_STEP] <= sum * (1 + 1e-12));
    CHECK(p.seconds[MOE_PREDICTED_STEP] >= largest && p.seconds[MOE_PREDICTED_BACKWARD] == 0);
    CHECK(isnan(p.price_per_token) && strlen(p.bottleneck) > 10);
    moe_step_metrics_free(&m);
}

/* --- properties --- */

static double random_of(int64_t seed, int i) {
    return moe_rng_uniform((moe_rng){(uint64_t)seed, MOE_RNG_TEST}, (uint64_t)i, 0, 0);
}

static void attend(moe_config *c, bool latent, int wider) {
    c->model.attention = latent ? MOE_ATTENTION_MLA : MOE_ATTENTION_MHA;
    c->model.num_heads = 8;
    c->model.num_kv_heads = 2;
    c->model.head_dim = wider * 64;
    c->model.rope_dim = wider * 32;
    c->model.kv_lora_rank = wider * 256;
    c->model.q_lora_rank = wider * 384;
    c->model.norm = MOE_NORM_RMSNORM;
    c->data.sequence_length = 50;
}

/* A cluster in which now this and now that is slow. */
static void vary(moe_config *c, int64_t seed) {
    c->cluster.intra_gbps = exp(8 * random_of(seed, 0) - 2);
    c->cluster.inter_gbps = exp(8 * random_of(seed, 1) - 2);
    c->cluster.device_tflops = exp(8 * random_of(seed, 2) - 3);
    c->cluster.memory_gbps = exp(8 * random_of(seed, 3));
    c->cluster.launch_us = 100 * random_of(seed, 4);
    c->cluster.gemm_half_rows = 100 * random_of(seed, 5);
    c->exchange.chunks = 1 + (int32_t)(3 * random_of(seed, 6));
    if (random_of(seed, 9) < 0.5) {
        attend(c, random_of(seed, 10) < 0.5, 1);
    }
    if (random_of(seed, 7) < 0.5) {
        c->run.mode = MOE_MODE_TRAIN;
        c->train.accumulate = 1 + (int32_t)(3 * random_of(seed, 8));
    }
}

static void test_properties(int64_t seed) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, seed);
    vary(&c, seed);
    if (c.run.mode == MOE_MODE_TRAIN) {
        made_training(&m);
    }
    const moe_prediction p = moe_prediction_of(&c, &m);
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        CHECK_MSG(p.balanced[i] <= p.seconds[i] * (1 + 1e-12), "seed %d: %s %g balanced, %g",
                  (int)seed, moe_predicted_names[i], p.balanced[i], p.seconds[i]);
    }
    for (int i = 0; i < 40; i++) { /* a row, or a selection, more is never faster */
        const int layer = i % LAYERS, place = (int)(random_of(seed, 20 + i) * DEVICES * DEVICES);
        const int at = i % 4 < 2 ? place : place % EXPERTS;
        add_count(&m.layer[layer], i % 4 < 2, at, 500);
        const moe_prediction more = moe_prediction_of(&c, &m);
        CHECK_MSG(more.seconds[MOE_PREDICTED_STEP] >= p.seconds[MOE_PREDICTED_STEP],
                  "seed %d: more at %d is faster", (int)seed, at);
        add_count(&m.layer[layer], i % 4 < 2, at, -500);
    }
    c.cluster.model_layers = 10 * LAYERS;
    c.cluster.price_per_hour = 3.6;
    const moe_prediction deep = moe_prediction_of(&c, &m);
    CHECK_NEAR(deep.seconds[MOE_PREDICTED_STEP], 10 * p.seconds[MOE_PREDICTED_STEP], 1e-12);
    CHECK_NEAR(deep.price_per_token * TOKENS, 0.001 * DEVICES * deep.seconds[MOE_PREDICTED_STEP],
               1e-12);
    moe_step_metrics_free(&m);
}

/* Widths that are given are those that a run with them would have. */
static void test_widths(void) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 5);
    c.cluster.model_hidden_size = 7168;
    c.cluster.model_intermediate_size = 2048;
    const moe_prediction wide = moe_prediction_of(&c, &m);
    c.cluster.model_hidden_size = c.cluster.model_intermediate_size = 0;
    c.model.hidden_size = 7168;
    c.model.moe_intermediate_size = 2048;
    const moe_prediction same = moe_prediction_of(&c, &m);
    CHECK(memcmp(wide.seconds, same.seconds, sizeof wide.seconds) == 0);
    moe_step_metrics_free(&m);
}

/* --- attention --- */

/* A layer in fp32, token by token, matrices one by one. */
static double attention_us(const moe_config *c, bool latent) {
    const moe_cluster_config *k = &c->cluster;
    const double flops = k->device_tflops * 1e6 * k->efficiency;
    const double memory = k->memory_gbps * 1e3 * k->memory_efficiency;
    const double tokens = TOKENS / (double)DEVICES, h = 512;
    const double mha[] = {h * 8 * 64, h * 2 * 64, h * 2 * 64, 8 * 64 * h};
    const double mla[] = {h * 384,      384 * 8 * 96, h * 256,   h * 32,
                          256 * 8 * 64, 256 * 8 * 64, 8 * 64 * h};
    const double *matrix = latent ? mla : mha, key = latent ? 96 : 64;
    double us = 0, between = 0;
    for (int i = 0; i < (latent ? 7 : 4); i++) {
        us += fmax(2 * matrix[i] * (tokens + k->gemm_half_rows) / flops, 4 * matrix[i] / memory);
    }
    for (int t = 0; t < (int)tokens; t++) { /* sees itself and what stands before it */
        between += 8 * 2 * (key + 64) * (t % 50 + 1);
    }
    const double bytes = 4 * tokens * ((8 + (latent ? 8 : 2)) * (key + 64));
    return us + fmax(between / flops, bytes / memory) + 2 * 4 * tokens * h / memory;
}

static void test_attention(bool latent) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 4);
    const moe_prediction without = moe_prediction_of(&c, &m);
    CHECK(without.seconds[MOE_PREDICTED_ATTENTION] == 0);
    attend(&c, latent, 1);
    const moe_prediction with = moe_prediction_of(&c, &m);
    const double seconds = with.seconds[MOE_PREDICTED_ATTENTION];
    CHECK_NEAR(1e6 * seconds, LAYERS * attention_us(&c, latent), 1e-12);
    CHECK_NEAR(with.seconds[MOE_PREDICTED_STEP], without.seconds[MOE_PREDICTED_STEP] + seconds,
               1e-12);
    CHECK(with.balanced[MOE_PREDICTED_ATTENTION] == seconds);
    c.data.sequence_length = 100;
    CHECK(moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_ATTENTION] >= seconds);
    attend(&c, latent, 1);
    c.run.mode = MOE_MODE_TRAIN;
    c.train.accumulate = 1;
    c.model.attention = MOE_ATTENTION_NONE;
    const double backward = moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_BACKWARD];
    attend(&c, latent, 1);
    const double own = moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_BACKWARD] - backward;
    CHECK_MSG(own >= 2 * seconds * (1 - 1e-12) && own <= 2.5 * seconds * (1 + 1e-12),
              "backward %g s, forward %g s", own, seconds);
    c.train.recompute = true;
    CHECK_NEAR(moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_BACKWARD] - backward, own + seconds,
               1e-9);
    moe_step_metrics_free(&m);
}

/* A width that is given stands for a model in which all widths of attention are as much larger. */
static void test_wide_attention(bool latent) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 4);
    attend(&c, latent, 1);
    c.cluster.model_hidden_size = 3 * 512;
    const moe_prediction wide = moe_prediction_of(&c, &m);
    c.cluster.model_hidden_size = 0;
    attend(&c, latent, 3);
    c.model.hidden_size = 3 * 512;
    const moe_prediction same = moe_prediction_of(&c, &m);
    for (int i = 0; i < MOE_NUM_PREDICTED; i++) {
        CHECK_NEAR(wide.seconds[i], same.seconds[i], 1e-12);
    }
    moe_step_metrics_free(&m);
}

/* --- dense layers --- */

/* Two dense layers in front: an FFN of three matrices for all tokens of a device, with attention.
 */
static void test_dense_layers(void) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 4);
    attend(&c, true, 1);
    const moe_prediction without = moe_prediction_of(&c, &m);
    CHECK(without.seconds[MOE_PREDICTED_DENSE] == 0);
    c.model.first_dense_layers = 2;
    c.model.intermediate_size = 1000;
    const moe_prediction with = moe_prediction_of(&c, &m);
    const moe_cluster_config *k = &c.cluster;
    const double flops = k->device_tflops * 1e6 * k->efficiency;
    const double memory = k->memory_gbps * 1e3 * k->memory_efficiency;
    const double tokens = TOKENS / (double)DEVICES, weights = 3.0 * 512 * 1000;
    const double numbers = tokens * 2 * 512 + tokens * (512 + 2 * 2 * 1000 + 1000 + 2 * 512);
    const double work =
        fmax(2 * weights * (tokens + k->gemm_half_rows) / flops, 4 * weights / memory) +
        4 * numbers / memory;
    const double dense = 2 * cbrt(pow(k->launch_us, 3) + pow(work, 3));
    CHECK_NEAR(1e6 * with.seconds[MOE_PREDICTED_DENSE], dense, 1e-12);
    CHECK(with.balanced[MOE_PREDICTED_DENSE] == with.seconds[MOE_PREDICTED_DENSE]);
    CHECK_NEAR(1e6 * with.seconds[MOE_PREDICTED_ATTENTION], (LAYERS + 2) * attention_us(&c, true),
               1e-12);
    CHECK_NEAR(1e6 * with.seconds[MOE_PREDICTED_STEP],
               1e6 * without.seconds[MOE_PREDICTED_STEP] + dense + 2 * attention_us(&c, true),
               1e-12);
    c.cluster.model_layers = 10 * LAYERS + 2; /* of which two are dense */
    CHECK_NEAR(moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_STEP],
               10 * without.seconds[MOE_PREDICTED_STEP] + with.seconds[MOE_PREDICTED_STEP] -
                   without.seconds[MOE_PREDICTED_STEP],
               1e-12);
    moe_step_metrics_free(&m);
}

/* The sentence names what is slow. */
static void test_bottleneck(void) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 3);
    c.cluster.inter_gbps = 1e-3;
    for (int s = 0; s < 4; s++) { /* devices of the first node send to device 6 alone */
        add_count(&m.layer[0], true, s * DEVICES + 6, 100000);
        add_count(&m.layer[1], true, s * DEVICES + 6, 100000);
    }
    moe_prediction p = moe_prediction_of(&c, &m);
    CHECK_MSG(strstr(p.bottleneck, "device 6") && strstr(p.bottleneck, "across nodes"), "%s",
              p.bottleneck);
    c.cluster.inter_gbps = c.cluster.intra_gbps = 1e6;
    c.cluster.exchange_us = c.cluster.launch_us = 0;
    c.cluster.device_tflops = 1e-3;
    m.layer[0].kept_per_expert[2 * PER_DEVICE] += 1000000;
    p = moe_prediction_of(&c, &m);
    CHECK_MSG(strstr(p.bottleneck, "expert is") && strstr(p.bottleneck, "device 2"), "%s",
              p.bottleneck);
    c.cluster.launch_us = 1e15;
    p = moe_prediction_of(&c, &m);
    CHECK_MSG(strstr(p.bottleneck, "launching"), "%s", p.bottleneck);
    c.cluster.exchange_us = 1e18;
    m.layer[0].allreduce_bytes = m.layer[1].allreduce_bytes = 0;
    p = moe_prediction_of(&c, &m);
    CHECK_MSG(strstr(p.bottleneck, "latency"), "%s", p.bottleneck);
    moe_step_metrics_free(&m);
}

/* Experts that do not stand in blocks: the selections count on the device that serves them, and not
 * on the one whose block the expert would belong to. */
static void test_placed(void) {
    moe_config c;
    moe_step_metrics m;
    make(&c, &m, 5);
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < EXPERTS; i++) {
            m.layer[l].kept_per_expert[i] = 100 + 10 * (i / PER_DEVICE);
        }
        for (int d = 0; d < DEVICES; d++) {
            m.layer[l].counts_per_device[d] = PER_DEVICE * (100 + 10 * d) + 7;
            m.layer[l].dropped_per_device[d] = 7;
        }
    }
    const moe_prediction blocks = moe_prediction_of(&c, &m);
    c.placement.policy = MOE_PLACEMENT_ROUND_ROBIN;
    CHECK(moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_STEP] ==
          blocks.seconds[MOE_PREDICTED_STEP]);
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < EXPERTS; i++) {
            m.layer[l].kept_per_expert[i] = i < PER_DEVICE ? 1080 : 0;
        }
    }
    const moe_prediction placed = moe_prediction_of(&c, &m);
    CHECK(placed.seconds[MOE_PREDICTED_STEP] == blocks.seconds[MOE_PREDICTED_STEP]);
    c.placement.policy = MOE_PLACEMENT_BLOCK;
    CHECK(moe_prediction_of(&c, &m).seconds[MOE_PREDICTED_EXPERT] >
          placed.seconds[MOE_PREDICTED_EXPERT]);
    moe_step_metrics_free(&m);
}

int main(void) {
    for (int64_t step = 0; step < 5; step++) {
        RUN(test_reference, step);
    }
    for (int64_t seed = 0; seed < 60; seed++) {
        RUN(test_properties, seed);
    }
    RUN(test_widths, );
    for (int latent = 0; latent < 2; latent++) {
        RUN(test_attention, latent);
        RUN(test_wide_attention, latent);
    }
    RUN(test_dense_layers, );
    RUN(test_bottleneck, );
    RUN(test_placed, );
    return check_verdict();
}
