/* unit_task.c: what the text task reads, both ends of the network against naive doubles and finite
 * differences, the regression task, and that nothing depends on the split over ranks.
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "train/task.h"

enum { MAX_TEXT = 12000, MAX_DOMAINS = 3 };
static uint8_t text[MAX_TEXT];
static const double TIGHT = sizeof(real) == 4 ? 3e-5 : 1e-12;

/* --- a task, whole or one rank's part --- */

typedef struct made {
    moe_config c;
    moe_input input;
    moe_batch b;
    moe_parameters all;
    moe_task task;
    int64_t offset[MAX_DOMAINS + 1];
    real *x, *dh; /* [T,H] */
} made;

typedef struct shape {
    int source;
    int32_t hidden, context, devices, domains;
    int64_t tokens, length;
} shape;

static void make(made *m, shape s, int rank, int ranks) {
    memset(m, 0, sizeof *m);
    moe_config_defaults(&m->c);
    m->c.run.seed = 77;
    m->c.run.mode = MOE_MODE_TRAIN;
    m->c.model.hidden_size = s.hidden;
    m->c.data.source = s.source;
    m->c.data.num_topics = 7;
    m->c.data.sequence_length = s.length;
    m->c.data.tokens_per_device = s.tokens / s.devices;
    m->c.cluster.devices = s.devices;
    m->c.train.context = s.context;
    m->c.train.validation_share = 0.2;
    m->c.train.validation_every = 1;
    for (int i = 0; i < s.domains; i++) { /* the later the longer */
        m->offset[i + 1] = m->offset[i] + (i + 1) * (MAX_TEXT / 6);
    }
    m->input = (moe_input){.text = text,
                           .text_length = m->offset[s.domains],
                           .num_domains = s.domains,
                           .domain_offset = m->offset};
    moe_batch_layout(&m->b, s.tokens, s.length, s.devices, rank, ranks);
    moe_parameters_init(&m->all, s.devices, m->b.num_local_devices);
    moe_task_init(&m->task, &m->c, &m->input, &m->b, &m->all);
    m->x = moe_alloc(m->b.num_tokens * s.hidden + 1, sizeof(real), "test");
    m->dh = moe_alloc(m->b.num_tokens * s.hidden + 1, sizeof(real), "test");
}

static void free_made(made *m) {
    moe_task_free(&m->task);
    moe_parameters_free(&m->all);
    moe_batch_free(&m->b);
    moe_free(m->x);
    moe_free(m->dh);
}

/* --- what is read --- */

/* Each stretch is text in its order, with its next byte inside the part that its home may read. */
static void check_stretches(made *m, int64_t draw, enum moe_split split) {
    const moe_batch *b = &m->b;
    moe_task_input(&m->task, &m->b, draw, split, m->x);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        int64_t sequence = (b->first_token + t) / b->sequence_length, at = m->task.position[t],
                length;
        int32_t home = 0;
        while (moe_batch_token_begin(b->num_tokens_global, b->devices, home + 1) <=
               sequence * b->sequence_length) {
            home++;
        }
        int64_t begin =
            moe_window_part(&m->task.corpus, b->devices, home, m->task.domain[t], split, &length);
        CHECK_MSG(at >= begin && at + 1 < begin + length,
                  "token %lld stands at %lld, not in [%lld, %lld)", (long long)t, (long long)at,
                  (long long)begin, (long long)(begin + length));
        CHECK(b->byte[t] == text[at] && m->task.next[t] == text[at + 1]);
        if (t > 0 && (b->first_token + t) % b->sequence_length) {
            CHECK_EQ(at, m->task.position[t - 1] + 1);
        }
    }
}

/* Parts of devices and splits tile the domains. */
static void check_parts(const made *m) {
    for (int32_t domain = 0; domain < m->input.num_domains; domain++) {
        int64_t at = m->offset[domain], length, all;
        for (int32_t d = 0; d < m->b.devices; d++) {
            CHECK_EQ(moe_window_part(&m->task.corpus, m->b.devices, d, domain, MOE_SPLIT_ALL, &all),
                     at);
            CHECK_EQ(
                moe_window_part(&m->task.corpus, m->b.devices, d, domain, MOE_SPLIT_TRAIN, &length),
                at);
            at += length;
            CHECK(fabs((double)length / (double)all - 0.8) < 0.01);
            CHECK_EQ(moe_window_part(&m->task.corpus, m->b.devices, d, domain, MOE_SPLIT_VALIDATION,
                                     &length),
                     at);
            at += length;
        }
        CHECK_EQ(at, m->offset[domain + 1]);
    }
}

static void test_reading(void) {
    enum { DRAWS = 40 };
    made m;
    int64_t count[MAX_DOMAINS] = {0}, tokens = 0;
    shape s = {
        MOE_SOURCE_TEXT, 2, 4, 6, 3, 630, 32}; /* devices of 105 tokens: sequences span them */
    make(&m, s, 0, 1);
    check_parts(&m);
    uint8_t byte[630], next[630];
    for (int64_t draw = 0; draw < DRAWS; draw++) {
        check_stretches(&m, draw, MOE_SPLIT_VALIDATION);
        if (draw == 3) {
            memcpy(byte, m.b.byte, 630), memcpy(next, m.task.next, 630);
        }
        check_stretches(&m, draw, MOE_SPLIT_TRAIN);
        for (int64_t t = 0; t < m.b.num_tokens; t++, tokens++) {
            count[m.task.domain[t]]++;
        }
    }
    for (int i = 0; i < 3; i++) { /* 1/6, 2/6, 3/6 of the text */
        CHECK_MSG(fabs((double)count[i] / (double)tokens - (i + 1) / 6.0) < 0.06,
                  "domain %d: %lld of %lld", i, (long long)count[i], (long long)tokens);
    }
    moe_task_input(&m.task, &m.b, 3, MOE_SPLIT_VALIDATION, m.x);
    CHECK(memcmp(byte, m.b.byte, 630) == 0 && memcmp(next, m.task.next, 630) == 0);
    moe_task_input(&m.task, &m.b, 4, MOE_SPLIT_VALIDATION, m.x);
    CHECK(memcmp(byte, m.b.byte, 630) != 0);
    free_made(&m);
}

/* --- both ends against naive doubles --- */

static double naive_x0(const made *m, int64_t t, int64_t i) {
    int64_t place = (m->b.first_token + t) % m->b.sequence_length, h = m->task.hidden;
    double sum = 0;
    for (int32_t j = 0; j < m->task.context && j <= place; j++) {
        sum += (double)m->task.table[(j * 256 + text[m->task.position[t] - j]) * h + i];
    }
    return sum / sqrt(m->task.context);
}

/* Nats of one token from its h, in double. */
static double naive_nats(const made *m, const real *h, uint8_t next) {
    int64_t width = m->task.hidden;
    double square = 0, sum = 0, z[256];
    for (int64_t i = 0; i < width; i++) {
        square += (double)h[i] * (double)h[i];
    }
    for (int v = 0; v < 256; v++) {
        z[v] = 0;
        for (int64_t i = 0; i < width; i++) {
            z[v] += (double)m->task.head[v * width + i] * (double)h[i] /
                    sqrt(square / (double)width + 1e-6) * (double)m->task.head_norm[i];
        }
    }
    for (int v = 0; v < 256; v++) {
        sum += exp(z[v]);
    }
    return log(sum) - z[next];
}

static double loss_of(made *m, const real *h, int64_t tokens_global, real *dh) {
    int64_t words[MOE_EXACT_WORDS] = {0}, tokens = 0;
    CHECK_EQ(moe_task_loss(&m->task, &m->b, h, tokens_global, &m->all, words, &tokens, dh), -1);
    return moe_exact_value(words) / (double)tokens_global;
}

static void test_text_values(void) {
    made m;
    shape s = {MOE_SOURCE_TEXT, 12, 5, 4, 2, 200, 30};
    make(&m, s, 0, 1);
    moe_rng_normal((moe_rng){3, MOE_RNG_TEST}, 0, 0, 1, m.task.head_norm, 12);
    moe_task_input(&m.task, &m.b, 9, MOE_SPLIT_TRAIN, m.x);
    double nats = 0;
    for (int64_t t = 0; t < m.b.num_tokens; t++) {
        for (int64_t i = 0; i < 12; i++) {
            CHECK(fabs((double)m.x[t * 12 + i] - naive_x0(&m, t, i)) < TIGHT);
        }
        nats += naive_nats(&m, m.x + t * 12, m.task.next[t]);
    }
    int64_t words[MOE_EXACT_WORDS] = {0}, tokens = 3;
    CHECK_EQ(moe_task_loss(&m.task, &m.b, m.x, 200, &m.all, words, &tokens, NULL), -1);
    CHECK_EQ(tokens, 203);
    CHECK_NEAR(moe_exact_value(words), nats, TIGHT);
    for (int64_t i = 0; i < m.all.p[m.task.head_index].size; i++) {
        CHECK_EQ(m.all.p[m.task.head_index].partial[i], 0); /* no gradient was asked for */
    }
    free_made(&m);
}

/* A fresh model knows nothing: a little above log 256 nats. */
static void test_start(void) {
    made m;
    shape s = {MOE_SOURCE_TEXT, 64, 8, 2, 1, 512, 64};
    make(&m, s, 0, 1);
    moe_task_input(&m.task, &m.b, 0, MOE_SPLIT_TRAIN, m.x);
    double loss = loss_of(&m, m.x, 512, NULL);
    CHECK_MSG(loss > log(256) && loss < log(256) + 0.5, "%g", loss);
    free_made(&m);
}

/* --- finite differences --- */

/* Fourth-order difference of the loss in one number. */
static double difference(made *m, real *x, bool through_table) {
    static const double weight[4] = {1, -8, 8, -1};
    static const int place[4] = {-2, -1, 1, 2};
    const double e = 1e-3;
    real before = *x;
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        *x = before + (real)(place[i] * e);
        if (through_table) {
            moe_task_input(&m->task, &m->b, 5, MOE_SPLIT_TRAIN, m->x);
        }
        sum += weight[i] * loss_of(m, m->x, m->b.num_tokens_global, NULL);
    }
    *x = before;
    return sum / (12 * e);
}

/* gradient [n]; every number that is not 0 and some that are. */
static void check_gradient(made *m,
                           const char *name,
                           real *x,
                           const double *gradient,
                           int64_t n,
                           bool through_table) {
    double square = 0;
    int64_t nonzero = 0;
    for (int64_t i = 0; i < n; i++) {
        square += gradient[i] * gradient[i];
        nonzero += gradient[i] != 0;
    }
    double typical = sqrt(square / (double)(nonzero ? nonzero : 1));
    CHECK_MSG(nonzero > 0, "%s", name);
    for (int64_t i = 0; i < n; i++) {
        if (gradient[i] == 0 && i % 97) {
            continue;
        }
        double expected = difference(m, x + i, through_table);
        CHECK_MSG(fabs(gradient[i] - expected) <= 1e-7 * (fabs(expected) + typical),
                  "%s[%lld]: %.12g, difference %.12g", name, (long long)i, gradient[i], expected);
    }
}

/* Sum of the devices' partials of a parameter, in double. Caller frees. */
static double *total(const made *m, int index) {
    const moe_parameter *p = &m->all.p[index];
    double *sum = moe_alloc_zero(p->size, sizeof *sum, "test");
    for (int32_t d = 0; d < m->b.num_local_devices; d++) {
        for (int64_t i = 0; i < p->size; i++) {
            sum[i] += (double)p->partial[d * p->size + i];
        }
    }
    return sum;
}

static void check_parameter(made *m, int index, bool through_table) {
    const moe_parameter *p = &m->all.p[index];
    double *gradient = total(m, index);
    check_gradient(m, p->name, p->value, gradient, p->size, through_table);
    moe_free(gradient);
}

static void check_dh(made *m) {
    int64_t n = m->b.num_tokens * m->task.hidden;
    double *gradient = moe_alloc(n, sizeof *gradient, "test");
    for (int64_t i = 0; i < n; i++) {
        gradient[i] = (double)m->dh[i];
    }
    check_gradient(m, "dh", m->x, gradient, n, false);
    moe_free(gradient);
}

/* The network without layers: h = x0. */
static void test_text_gradients(bool masked) {
    made m;
    shape s = {MOE_SOURCE_TEXT, 5, 3, 3, 2, 26, 7};
    uint8_t counted[26];
    make(&m, s, 0, 1);
    for (int t = 0; t < 26; t++) {
        counted[t] = t % 3 != 1;
    }
    if (masked) {
        m.b.counted = counted;
    }
    moe_rng_normal((moe_rng){3, MOE_RNG_TEST}, 0, 0, 1, m.task.head_norm, s.hidden);
    moe_rng_normal((moe_rng){3, MOE_RNG_TEST}, 0, 1, 1, m.task.head, 256 * s.hidden);
    moe_task_input(&m.task, &m.b, 5, MOE_SPLIT_TRAIN, m.x);
    loss_of(&m, m.x, 26, m.dh);
    moe_task_input_backward(&m.task, &m.b, m.dh, &m.all);
    check_dh(&m);
    check_parameter(&m, m.task.head_index, false);
    check_parameter(&m, m.task.head_norm_index, false);
    check_parameter(&m, m.task.table_index, true);
    free_made(&m);
}

/* In either build: the gradient of the logits' end, from its formula. */
static void test_text_dh(void) {
    enum { H = 9, T = 40 };
    made m;
    shape s = {MOE_SOURCE_TEXT, H, 3, 2, 1, T, 8};
    make(&m, s, 0, 1);
    moe_task_input(&m.task, &m.b, 1, MOE_SPLIT_TRAIN, m.x);
    loss_of(&m, m.x, T, m.dh);
    for (int64_t t = 0; t < T; t++) {
        double along = 0, expected = 0; /* a step along h changes nothing but through the norm's
                                           epsilon */
        for (int i = 0; i < H; i++) {
            along += (double)m.dh[t * H + i] * (double)m.x[t * H + i];
            expected += fabs((double)m.dh[t * H + i] * (double)m.x[t * H + i]);
        }
        CHECK_MSG(fabs(along) <= 1e-4 * expected, "token %lld: %g of %g", (long long)t, along,
                  expected);
    }
    double *head = total(&m, m.task.head_index);
    for (int i = 0; i < H; i++) { /* softmax - onehot sums to 0 over the vocabulary */
        double sum = 0, size = 0;
        for (int v = 0; v < 256; v++) {
            sum += head[v * H + i];
            size += fabs(head[v * H + i]);
        }
        CHECK_MSG(fabs(sum) <= TIGHT * size, "column %d: %g of %g", i, sum, size);
    }
    moe_free(head);
    free_made(&m);
}

/* A micro-batch adds to what is there. */
static void test_accumulation(void) {
    made m;
    shape s = {MOE_SOURCE_TEXT, 7, 3, 2, 1, 60, 15};
    double *once[3];
    make(&m, s, 0, 1);
    for (int turn = 0; turn < 2; turn++) {
        moe_task_input(&m.task, &m.b, 1, MOE_SPLIT_TRAIN, m.x);
        loss_of(&m, m.x, 60, m.dh);
        moe_task_input_backward(&m.task, &m.b, m.dh, &m.all);
        for (int i = 0; i < 3; i++) {
            double *now = total(&m, i);
            for (int64_t k = 0; turn == 1 && k < m.all.p[i].size; k++) {
                CHECK(fabs(now[k] - 2 * once[i][k]) <= TIGHT * (fabs(now[k]) + 1e-3));
            }
            if (turn == 0) {
                once[i] = now;
            } else {
                moe_free(now);
            }
        }
    }
    for (int i = 0; i < 3; i++) {
        moe_free(once[i]);
    }
    free_made(&m);
}

/* --- regression --- */

static void test_synthetic(void) {
    enum { H = 8, T = 90 };
    made m;
    shape s = {MOE_SOURCE_SYNTHETIC, H, 1, 3, 0, T, 10};
    real shift[2 * H], validation[T * H];
    make(&m, s, 0, 1);
    CHECK_EQ(m.all.num, 0);
    moe_task_input(&m.task, &m.b, 2, MOE_SPLIT_VALIDATION, validation);
    moe_task_input(&m.task, &m.b, 2, MOE_SPLIT_TRAIN, m.x);
    CHECK(memcmp(validation, m.x, sizeof validation) != 0);
    double error = 0;
    for (int64_t t = 0; t < T; t++) {
        CHECK(m.task.domain[t] >= 0 && m.task.domain[t] < 7);
        moe_rng_normal((moe_rng){77, MOE_RNG_TEACHER}, (uint64_t)m.task.domain[t], 0, 1, shift, H);
        moe_rng_normal((moe_rng){77, MOE_RNG_TEACHER}, (uint64_t)m.task.domain[t], 1, 1, shift + H,
                       H);
        for (int i = 0; i < H; i++) {
            double target = (double)m.x[t * H + i] * (double)shift[i] + (double)shift[H + i],
                   h = (double)m.x[t * H + i];
            CHECK(fabs((double)m.task.target[t * H + i] - target) < TIGHT);
            error += (h - target) * (h - target) / (T * H);
        }
    }
    CHECK_NEAR(loss_of(&m, m.x, T, m.dh), error, TIGHT);
    for (int i = 0; i < T * H; i++) {
        double expected = 2 * ((double)m.x[i] - (double)m.task.target[i]) / (T * H);
        CHECK(fabs((double)m.dh[i] - expected) <= TIGHT * fabs(expected));
    }
    if (sizeof(real) == 8) {
        check_dh(&m);
    }
    CHECK(loss_of(&m, m.task.target, T, NULL) == 0);
    free_made(&m);
}

/* --- the split over ranks --- */

static void check_same(const made *whole, const made *part, int rank) {
    int64_t first = part->b.first_token;
    int64_t n = part->b.num_tokens;
    int64_t h = part->task.hidden;
    size_t bytes = (size_t)(n * h) * sizeof(real);
    CHECK_MSG(memcmp(whole->x + first * h, part->x, bytes) == 0, "x0 of rank %d", rank);
    CHECK_MSG(memcmp(whole->dh + first * h, part->dh, bytes) == 0, "dh of rank %d", rank);
    CHECK(memcmp(whole->task.domain + first, part->task.domain,
                 (size_t)n * sizeof *part->task.domain) == 0);
    for (int i = 0; i < part->all.num; i++) {
        const moe_parameter *p = &part->all.p[i];
        CHECK_MSG(memcmp(whole->all.p[i].partial + part->b.first_device * p->size, p->partial,
                         (size_t)(p->size * part->b.num_local_devices) * sizeof(real)) == 0,
                  "gradient of %s, rank %d", p->name, rank);
    }
}

/* Two micro-batches, so that partials are added to. */
static void run_both(made *m, int64_t *words) {
    int64_t tokens = 0;
    for (int64_t draw = 3; draw < 5; draw++) {
        moe_task_input(&m->task, &m->b, draw, MOE_SPLIT_TRAIN, m->x);
        moe_task_loss(&m->task, &m->b, m->x, m->b.num_tokens_global, &m->all, words, &tokens,
                      m->dh);
        moe_task_input_backward(&m->task, &m->b, m->dh, &m->all);
    }
    CHECK_EQ(tokens, 2 * m->b.num_tokens);
}

static void test_ranks(shape s) {
    made whole, part;
    int64_t expected[MOE_EXACT_WORDS] = {0};
    make(&whole, s, 0, 1);
    run_both(&whole, expected);
    for (int ranks = 2; ranks <= s.devices; ranks++) {
        int64_t words[MOE_EXACT_WORDS] = {0};
        if (s.devices % ranks) {
            continue;
        }
        for (int rank = 0; rank < ranks; rank++) {
            make(&part, s, rank, ranks);
            run_both(&part, words);
            check_same(&whole, &part, rank);
            free_made(&part);
        }
        CHECK_MSG(moe_exact_value(words) == moe_exact_value(expected), "%d ranks: %.17g, %.17g",
                  ranks, moe_exact_value(words), moe_exact_value(expected));
    }
    free_made(&whole);
}

/* --- bad numbers, too little text --- */

static void test_bad(int source, double bad) {
    enum { T = 64, H = 6 };
    made m;
    shape s = {source, H, 3, 2, 1, T, 16};
    int64_t words[MOE_EXACT_WORDS] = {0};
    int64_t rest[MOE_EXACT_WORDS] = {0};
    int64_t tokens = 0;
    make(&m, s, 0, 1);
    moe_task_input(&m.task, &m.b, 0, MOE_SPLIT_TRAIN, m.x);
    m.x[20 * H + 1] = m.x[41 * H] = (real)bad;
    CHECK_EQ(moe_task_loss(&m.task, &m.b, m.x, T, &m.all, words, &tokens, m.dh), 20);
    CHECK_EQ(tokens, T);
    uint8_t counted[T];
    memset(counted, 1, T);
    counted[20] = counted[41] = 0;
    m.b.counted = counted;
    CHECK_EQ(moe_task_loss(&m.task, &m.b, m.x, T, &m.all, rest, &tokens, NULL), -1);
    CHECK_EQ(tokens, 2 * T - 2);
    CHECK_EQ(moe_exact_value(words), moe_exact_value(rest));
    free_made(&m);
}

static void check_refused(made *m, const char *expected) {
    moe_status st = {0};
    int code = moe_task_check(&m->c, &m->input, &st);
    CHECK_EQ(code, expected ? MOE_USER : MOE_OK);
    if (expected) {
        CHECK_MSG(strstr(st.message, expected) != NULL, "\"%s\" is not in: %s", expected,
                  st.message);
    }
}

/* Domain 1 has 2000 bytes, 500 a device: 400 for training, 100 held out. */
static void test_check(void) {
    made m;
    shape s = {MOE_SOURCE_TEXT, 2, 2, 4, 2, 4000, 99};
    make(&m, s, 0, 1);
    check_refused(&m, NULL);
    m.c.data.sequence_length = 100;
    check_refused(&m, "text 1 of 2 has 2000 bytes, of which device 0 of 4 has 100 for validation");
    m.c.train.validation_every = 0;
    check_refused(&m, NULL);
    m.c.data.sequence_length = 399;
    check_refused(&m, NULL);
    m.c.data.sequence_length = 400;
    check_refused(&m, "has 400 for training");
    m.c.data.sequence_length = 0; /* one sequence of the batch */
    check_refused(&m, "need 4001");
    m.c.data.source = MOE_SOURCE_SYNTHETIC;
    check_refused(&m, NULL);
    free_made(&m);
}

int main(void) {
    static const shape shapes[] = {{MOE_SOURCE_TEXT, 10, 4, 6, 2, 606, 33},
                                   {MOE_SOURCE_TEXT, 3, 9, 12, 1, 100, 20},
                                   {MOE_SOURCE_TEXT, 16, 2, 2, 1, 1200, 600},
                                   {MOE_SOURCE_SYNTHETIC, 10, 1, 6, 0, 601, 33},
                                   {MOE_SOURCE_SYNTHETIC, 5, 1, 4, 0, 40, 0}};
    moe_gemm_init();
    for (int i = 0; i < MAX_TEXT; i++) { /* 20 different bytes, some more frequent */
        text[i] =
            (uint8_t)(97 +
                      20 * pow(moe_rng_uniform((moe_rng){8, MOE_RNG_TEST}, 1, (uint64_t)i, 0), 2));
    }
    RUN(test_reading);
    RUN(test_text_values);
    RUN(test_start);
    if (sizeof(real) == 8) {
        RUN(test_text_gradients, false);
        RUN(test_text_gradients, true);
    }
    RUN(test_text_dh);
    RUN(test_accumulation);
    RUN(test_synthetic);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        RUN(test_ranks, shapes[i]);
    }
    RUN(test_bad, MOE_SOURCE_TEXT, NAN);
    RUN(test_bad, MOE_SOURCE_TEXT, INFINITY);
    RUN(test_bad, MOE_SOURCE_SYNTHETIC, NAN);
    RUN(test_bad, MOE_SOURCE_SYNTHETIC, INFINITY);
    RUN(test_bad, MOE_SOURCE_SYNTHETIC, 1e30);
    RUN(test_check);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
