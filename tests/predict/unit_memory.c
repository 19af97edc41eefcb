/* unit_memory.c: the estimate against one counted by hand, its growth, and its saturation. */
#include <string.h>

#include "balance/scopes.h"
#include "base/alloc.h"
#include "check.h"
#include "data/batch.h"
#include "predict/memory.h"

static moe_memory estimate(const char *text, int ranks, int64_t num_tokens) {
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    moe_config_parse(&c, text, (int64_t)strlen(text), "memory.ini", &st);
    moe_config_resolve(&c, ranks, &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    return moe_memory_estimate(&c, &(moe_memory_given){.num_tokens = num_tokens});
}

#define SMALL                                                                                   \
    "[model]\nhidden_size = 16\nnum_experts = 8\nmoe_intermediate_size = 4\n[router]\ntop_k = " \
    "2\n[cluster]\ndevices = 4\n"                                                               \
    "[data]\ntokens_per_device = 10\nsequence_length = 5\n[run]\nthreads = 1\n"

static void test_by_hand(void) {
    const int64_t r = sizeof(real);
    const int64_t t = 20;
    const int64_t s = 40; /* 2 ranks with 2 devices each */
    const moe_memory m = estimate(SMALL, 2, 0);
    CHECK_EQ(m.weights, r * (8 * 16 + 4 * 3 * 16 * 4));
    /* a token with 2 of 8 experts misses a device that has 2 of them with probability 6/8 5/7 */
    const int64_t rows = 38; /* 20 tokens, 4 (1 - 30/56) devices each */
    const int64_t streams = r * 2 * t * 16, routing = t * 8 + s * (4 + 8 + r);
    const int64_t layer = routing + r * (t * 8 + s * 16 + rows * 16 + (s / 4 + 1) * 24);
    const int64_t topics = t * 4 + 64 * (8 + 4) + r * t * 16;
    const int64_t vectors = 8 * ((24 * 8 + 2 * 4) + (3 * 8 + 3 * 4 * 4));
    const int64_t matrix = 8 * 4 * 4;
    const int64_t activations = streams + layer + matrix + topics + topics / 8 + vectors;
    /* where x and the result of a row stand are two pointers; for and from each rank stands a block
     * with three counts and the metadata of 20 tokens with 2 rows of one pair each; a pair of
     * devices has 40 bytes in the plan and 16 in the inbox */
    const int64_t of_row = (2 * 4 + 2 * 8) + (2 * 4 + 8) + 2 * 8;
    const int64_t of_pair = (4 + r + 2 * 8) + (4 + r + 3 * 8);
    const int64_t metadata = 2 * 2 * (3 * 8 + t * 2 * (2 * 4 + 4 + r));
    const int64_t exchange = r * 2 * (rows / 2) * 16 + of_row * rows + of_pair * s + metadata +
                             (40 + 16) * 2 * 4 + 8 * t + 3 * r * 16;
    CHECK_EQ(m.activations, activations + activations / 12);
    CHECK(m.gradients == 0 && m.optimizer == 0);
    CHECK_EQ(m.exchange, exchange + exchange / 12);
    CHECK_EQ(m.input, 0);
    const moe_memory dropping = estimate(SMALL "[capacity]\npolicy = device\n", 2, 0);
    CHECK(dropping.activations - m.activations > s * (8 + 2 * 4 + 1 + 4 + 8));
    CHECK_EQ(m.total, m.weights + m.activations + m.exchange + m.statistics + m.input + m.program);
    CHECK_EQ(moe_memory_of_ranks(&m, 2), 2 * m.total + m.histories);
}

/* Where devices are counted one by one, 4 times as many of both need 4 times and not 16 times as
 * much; of more than 2048, no array of pairs is written. */
static void test_many_devices(void) {
    int64_t bytes[2];
    for (int i = 0; i < 2; i++) {
        moe_config c;
        moe_status st = {0};
        char text[256];
        const int devices = 4096 << 2 * i;
        moe_config_defaults(&c);
        snprintf(text, sizeof text,
                 "[model]\nhidden_size = 16\nnum_experts = %d\nmoe_intermediate_size = 8\n"
                 "[cluster]\ndevices = %d\n[data]\ntokens_per_device = 8\n"
                 "sequence_length = 8\n[run]\nthreads = 2\n",
                 devices, devices);
        moe_config_parse(&c, text, (int64_t)strlen(text), "memory.ini", &st);
        moe_config_resolve(&c, 1, &st);
        const moe_memory whole = moe_memory_estimate(&c, &(moe_memory_given){0}),
                         m = moe_memory_estimate(&c, &(moe_memory_given){.by_device = true});
        CHECK(whole.total > 2 * 72 * (int64_t)devices * devices);
        bytes[i] = m.total - m.program;
    }
    CHECK_MSG(bytes[1] < 9 * bytes[0] / 2, "%lld, then %lld bytes", (long long)bytes[0],
              (long long)bytes[1]);
    CHECK_MSG(bytes[1] < 800 << 20, "%lld bytes", (long long)bytes[1]);
}

/* Where the experts are large and the tokens few, turning the matrices of a forward run takes more
 * than its steps do; training turns none. */
static void test_turning(void) {
#define LARGE                                                                                \
    "[model]\nhidden_size = 4096\nnum_experts = 2\nmoe_intermediate_size = 2048\n[router]\n" \
    "top_k = 1\n[cluster]\ndevices = 1\n[data]\ntokens_per_device = 1\n[run]\nthreads = 3\n"
    const moe_memory m = estimate(LARGE, 1, 0);
    const int64_t matrix = 4096 * 2048 * (int64_t)sizeof(real);
    CHECK(m.activations + m.exchange + m.statistics < matrix);
    CHECK_EQ(m.total, m.weights + 3 * matrix + m.input + m.program);
    const moe_memory trains = estimate(LARGE "mode = train\n", 1, 0);
    CHECK_EQ(trains.total, trains.weights + trains.gradients + trains.optimizer +
                               trains.activations + trains.exchange + trains.statistics +
                               trains.input + trains.program);
}

static void test_growth(void) {
    const moe_memory one = estimate(SMALL, 2, 0);
    const moe_memory given = estimate(SMALL, 2, 40);
    const moe_memory twice = estimate(SMALL, 2, 80);
    const moe_memory alone = estimate(SMALL, 1, 0);
    CHECK_EQ(given.total, one.total);
    CHECK(twice.activations > one.activations + one.activations / 2 &&
          twice.activations < 2 * one.activations && twice.weights == one.weights &&
          twice.exchange > one.exchange);
    CHECK(alone.weights > one.weights && alone.activations > one.activations &&
          alone.exchange < 2 * one.exchange);
#define WIDE                                                                             \
    "[model]\nhidden_size = 128\nnum_experts = 8\nmoe_intermediate_size = 4\n[router]\n" \
    "top_k = 2\n[cluster]\ndevices = 4\n[data]\ntokens_per_device = 10\n[run]\nthreads = 1\n"
    CHECK(estimate(WIDE "[exchange]\nmode = selection\n", 2, 0).exchange >
          estimate(WIDE, 2, 0).exchange);
    CHECK(estimate(SMALL "[model]\nnum_layers = 3\nnorm = none\n", 2, 0).weights ==
          3 * one.weights);
    CHECK(estimate(SMALL "[model]\nexpert_type = identity\n", 2, 0).weights ==
          (int64_t)sizeof(real) * 8 * 16);
    CHECK(estimate("[data]\nsource = logits\npath = x\n", 2, 100).input == 50 * 64 * 8);
}

#define TRAIN SMALL "[model]\nnum_layers = 3\n[run]\nmode = train\n"

/* Gate, norm and experts of three layers on 2 ranks; a partial gradient of each of the two devices,
 * and pieces of them on their way. */
static void test_training(void) {
    const int64_t r = sizeof(real);
    const int64_t replicated = 3 * (8 * 16 + 16);
    const int64_t local = replicated + 3 * 4 * 3 * 16 * 4;
    const moe_memory m = estimate(TRAIN, 2, 0),
                     forward = estimate(SMALL "[model]\nnum_layers = 3\n", 2, 0);
    CHECK(m.weights == r * local && forward.weights == m.weights && m.optimizer == 2 * m.weights);
    CHECK_EQ(m.gradients, r * (local + 2 * 2 * replicated + 3 * replicated));
    CHECK(m.exchange > 3 * forward.exchange && m.activations > 2 * forward.activations &&
          m.statistics > forward.statistics);
    CHECK_EQ(m.total, m.weights + m.gradients + m.optimizer + m.activations + m.exchange +
                          m.statistics + m.input + m.program);
    CHECK(estimate(TRAIN "[train]\noptimizer = sgd\n", 2, 0).optimizer == 0);
    CHECK(estimate(TRAIN "[train]\nrecompute = yes\n", 2, 0).activations < m.activations);
    moe_config c;
    moe_config_defaults(&c);
    c.run.mode = MOE_MODE_TRAIN;
    c.data.source = MOE_SOURCE_TEXT;
    c.model.num_shared_experts = 1;
    const int64_t h = c.model.hidden_size;
    const int64_t expert = 3 * h * c.model.moe_intermediate_size;
    const int64_t n = c.model.num_experts;
    CHECK(moe_memory_parameters(&c).expert == n * expert);
    CHECK(moe_memory_parameters(&c).replicated ==
          n * h + expert + 256 * h * (c.train.context + 1) + h + (c.model.norm ? h : 0));
}

/* 2 ranks, 3 layers, 8 experts and 8 more slots: loads of 2 steps, the pairs twice, and the largest
 * tensor [16,4] of the 8 slots of a rank, going and coming; in training that of its 4 replicas too,
 * to the first one and back, in each layer. */
static void test_placements(void) {
    const char *const load =
        "[placement]\nredundant_experts = 8\npolicy = joint\nrebalance_every = 2\nwindow = 2\n"
        "[run]\nsteps = 4\n";
    const char *const even = "[placement]\nredundant_experts = 8\n[run]\nsteps = 4\n";
    const int64_t tensor = 16 * 4 * sizeof(real);
    char text[1024];
    for (int trains = 0; trains < 2; trains++) {
        moe_memory m[2];
        for (int by_load = 0; by_load < 2; by_load++) {
            snprintf(text, sizeof text, "%s%s", trains ? TRAIN : SMALL "[model]\nnum_layers = 3\n",
                     by_load ? load : even);
            m[by_load] = estimate(text, 2, 0);
        }
        CHECK_EQ(m[1].statistics - m[0].statistics, 8 * (2 * 3 * 8 + 2 * 3 * 8 * 8));
        CHECK_EQ(m[1].exchange - m[0].exchange, 2 * 8 * tensor);
        CHECK_EQ(m[1].total - m[0].total,
                 m[1].statistics - m[0].statistics + m[1].exchange - m[0].exchange);
    }
    /* a row of each selection, so that replicas keep none at home */
    const char *const selections = "[exchange]\nmode = selection\n";
    snprintf(text, sizeof text, "%s%s", TRAIN, selections);
    const int64_t alone = estimate(text, 2, 0).exchange;
    snprintf(text, sizeof text, "%s%s%s", TRAIN, selections, even);
    CHECK_EQ(estimate(text, 2, 0).exchange - alone, 3 * 4 * 4 * tensor);
}

/* Loads of all steps are on rank 0; tables of topics on every rank. */
static void test_tables(void) {
    const int64_t r = sizeof(real);
    CHECK(estimate(SMALL "[run]\nsteps = 100000\n", 2, 0).histories > 8LL * 100000 * 8);
    CHECK(estimate(TRAIN "[data]\nnum_topics = 1000000\n", 2, 0).activations >
          r * 2 * 1000000 * 16);
}

/* Segments of the fullest rank, and sequences, as the batch lays them out, in cells of 7 + 8 N + D
 * words, beside the metrics. Sequences of a token, as long as a device, longer, and across. */
static void test_segments(void) {
    static const int64_t lengths[] = {1, 2, 3, 5, 7, 10, 16, 20, 37, 100, 0};
    const int devices = 4, experts = 8;
    const int64_t words = MOE_STAT_HEAD + MOE_STAT_PER_EXPERT * experts + devices;
    for (int i = 0; i < 3 * (int)(sizeof lengths / sizeof lengths[0]); i++) {
        const int ranks = 1 << i % 3;
        const int64_t length = lengths[i / 3], tokens = i % 2 ? 40 : 43;
        int64_t segments = 0, sequences = 0, last = -1, last_shared = -1, shared = 0;
        bool whole = true;
        for (int q = 0; q < ranks; q++) {
            moe_batch b;
            moe_batch_layout(&b, tokens, length, devices, q, ranks);
            const int64_t own = b.segment[b.num_segments - 1].sequence - b.segment[0].sequence + 1;
            if (b.segment[0].sequence == last && last != last_shared) {
                last_shared = last;
                shared++;
            }
            for (int64_t j = 0; j < b.num_segments; j++) {
                whole = whole && b.segment[j].sequence != last;
                last = b.segment[j].sequence;
            }
            segments = b.num_segments > segments ? b.num_segments : segments;
            sequences = own > sequences ? own : sequences;
            moe_batch_free(&b);
        }
        char text[512];
        snprintf(text, sizeof text,
                 "[model]\nnum_experts = 8\n[router]\ntop_k = 2\n[cluster]\ndevices = 4\n[data]\n"
                 "tokens_per_device = 10\nsequence_length = %lld\n",
                 (long long)length);
        const moe_memory m = estimate(text, ranks, tokens);
        const int64_t cells = segments + (whole ? 0 : sequences) + devices / ranks + 1 +
                              (1 + shared + (2 * MOE_SCOPES_MEAN_WORDS + words - 1) / words);
        const int64_t matrix = 3 * experts + 5 * devices + 2 * devices * devices;
        CHECK_EQ(m.statistics,
                 8 * (cells * words + matrix) + segments * (int64_t)sizeof(moe_segment));
    }
}

/* What recordings tell: fewer experts of a token, padding that is not routed, backward. */
static void test_given(void) {
    moe_config c;
    moe_config_defaults(&c);
    c.cluster.devices = 4;
    moe_memory_given given = {.num_tokens = 1000};
    const moe_memory all = moe_memory_estimate(&c, &given);
    given.choices = 1.5;
    CHECK(moe_memory_estimate(&c, &given).activations < all.activations);
    given = (moe_memory_given){.num_tokens = 1000, .num_counted = 500};
    CHECK(moe_memory_estimate(&c, &given).activations < all.activations);
    given = (moe_memory_given){.num_tokens = 1000, .backward = true};
    CHECK(moe_memory_estimate(&c, &given).activations > all.activations);
}

/* Far more than any machine has: the estimate saturates, it does not wrap. */
static void test_saturation(void) {
    moe_config c;
    moe_config_defaults(&c);
    c.model.hidden_size = c.model.num_experts = c.model.moe_intermediate_size = 1 << 30;
    c.model.num_layers = c.router.top_k = 1 << 30;
    const moe_memory m = moe_memory_estimate(&c, &(moe_memory_given){.num_tokens = INT64_MAX});
    CHECK(m.weights == INT64_MAX && m.activations == INT64_MAX && m.exchange == INT64_MAX &&
          m.total == INT64_MAX);
    CHECK(m.statistics > 0);
    c.run.mode = MOE_MODE_TRAIN;
    const moe_memory t = moe_memory_estimate(&c, &(moe_memory_given){.num_tokens = INT64_MAX});
    CHECK(t.gradients == INT64_MAX && t.optimizer == INT64_MAX && t.activations == INT64_MAX &&
          t.total == INT64_MAX);
}

int main(void) {
    RUN(test_by_hand);
    RUN(test_turning);
    RUN(test_growth);
    RUN(test_many_devices);
    RUN(test_training);
    RUN(test_placements);
    RUN(test_tables);
    RUN(test_segments);
    RUN(test_given);
    RUN(test_saturation);
    return check_verdict();
}
