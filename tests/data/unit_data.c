/* unit_data.c: the layout tiles tokens and segments; vectors are the same bits however tokens are
 * split over ranks; skew, persistence, strength and step do what they say. */
#include <string.h>

#include "base/rng.h"
#include "check.h"
#include "data/batch.h"
#include "data/keyed.h"
#include "data/synthetic.h"
#include "data/window.h"

/* Small random numbers keyed by (case, what): a failing case prints its number. */
static int64_t pick(int number, uint32_t what, int64_t low, int64_t high) {
    uint64_t bits = moe_rng_bits((moe_rng){21, MOE_RNG_TEST}, (uint64_t)number, 0, what);
    return low + (int64_t)(bits % (uint64_t)(high - low + 1));
}

/* --- layout --- */

static void check_segments(const moe_batch *b, int number) {
    int64_t at = 0;
    for (int64_t s = 0; s < b->num_segments; s++) {
        const moe_segment *g = &b->segment[s];
        int32_t d = g->device - b->first_device;
        CHECK_MSG(g->begin == at && g->end > g->begin, "case %d", number);
        CHECK_MSG(d >= 0 && d < b->num_local_devices && g->begin >= b->device_offset[d] &&
                      g->end <= b->device_offset[d + 1],
                  "case %d", number);
        for (int64_t t = g->begin; t < g->end; t++) {
            CHECK_MSG((b->first_token + t) / b->sequence_length == g->sequence, "case %d", number);
        }
        if (s > 0) {
            CHECK_MSG(g->device != g[-1].device || g->sequence != g[-1].sequence,
                      "case %d: not maximal", number);
        }
        at = g->end;
    }
    CHECK_MSG(at == b->num_tokens, "case %d: segments end at %lld", number, (long long)at);
}

static void test_layout(int number) {
    int ranks = (int)pick(number, 0, 1, 8);
    int32_t devices = (int32_t)(ranks * pick(number, 1, 1, 4));
    int64_t tokens = pick(number, 2, 0, number % 3 ? 200 : 20);
    int64_t length = pick(number, 3, 0, number % 2 ? 12 : 250);
    int64_t next = 0;
    for (int32_t d = 0; d < devices; d++) {
        int64_t size = moe_batch_token_begin(tokens, devices, d + 1) -
                       moe_batch_token_begin(tokens, devices, d);
        CHECK_MSG(size == tokens / devices + (d < tokens % devices), "case %d", number);
    }
    CHECK(moe_batch_token_begin(tokens, devices, 0) == 0 &&
          moe_batch_token_begin(tokens, devices, devices) == tokens);
    for (int rank = 0; rank < ranks; rank++) {
        moe_batch b;
        moe_batch_layout(&b, tokens, length, devices, rank, ranks);
        CHECK_MSG(b.first_token == next && b.first_device == devices / ranks * rank &&
                      b.num_local_devices == devices / ranks,
                  "case %d", number);
        CHECK_MSG(b.sequence_length >= 1 &&
                      (length == 0 || length >= tokens || b.sequence_length == length),
                  "case %d", number);
        CHECK_MSG((b.num_sequences - 1) * b.sequence_length < tokens || tokens == 0, "case %d",
                  number);
        CHECK_MSG(b.num_sequences * b.sequence_length >= tokens &&
                      (length || b.num_sequences == (tokens > 0)),
                  "case %d", number);
        for (int32_t d = 0; d <= b.num_local_devices; d++) {
            CHECK_MSG(b.first_token + b.device_offset[d] ==
                          moe_batch_token_begin(tokens, devices, b.first_device + d),
                      "case %d", number);
        }
        check_segments(&b, number);
        next += b.num_tokens;
        moe_batch_free(&b);
    }
    CHECK_MSG(next == tokens, "case %d: ranks have %lld of %lld tokens", number, (long long)next,
              (long long)tokens);
}

/* --- vectors --- */

static moe_config example(int64_t hidden_size) {
    moe_config c;
    memset(&c, 0, sizeof c);
    c.run.seed = 1234;
    c.model.hidden_size = (int32_t)hidden_size;
    c.data.num_topics = 20;
    c.data.skew = 1;
    c.data.topic_strength = 0.5;
    c.data.topic_persistence = 0.7;
    c.train.context = 5;
    return c;
}

enum { MAX_TEXT = 5000 };
static uint8_t text[MAX_TEXT];
enum { SYNTHETIC, TEXT, KEYED, NUM_SOURCES };

static void synthetic_vectors(const moe_config *c,
                              const moe_batch *b,
                              int64_t step,
                              real *x,
                              int32_t *topic) {
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, b, step, x, topic);
}

static void text_vectors(const moe_config *c,
                         int64_t text_length,
                         int64_t step,
                         moe_batch *b,
                         real *x) {
    moe_window_vectors(text, text_length, c->run.seed, c->train.context, c->model.hidden_size, step,
                       b, x);
}

static void make(int source,
                 const moe_config *c,
                 moe_batch *b,
                 int64_t text_length,
                 int64_t step,
                 real *x,
                 int32_t *topic) {
    if (source == SYNTHETIC) {
        synthetic_vectors(c, b, step, x, topic);
    }
    if (source == TEXT) {
        text_vectors(c, text_length, step, b, x);
    }
    if (source == KEYED) {
        moe_keyed_vectors(c->run.seed, c->model.hidden_size, b, step, x);
    }
}

/* Whatever the split, a rank's rows are the rows of the one-rank run. */
static void test_splits(int number, int source) {
    int64_t width = pick(number, 5, 1, 40);
    int64_t tokens = pick(number, 6, 1, 120);
    int64_t length = pick(number, 7, 0, 40);
    int64_t step = pick(number, 8, 0, 3);
    int64_t text_length = number % 3 ? MAX_TEXT : pick(number, 9, 1, 100);
    int ranks = (int)pick(number, 10, 2, 8);
    int32_t devices = (int32_t)(ranks * pick(number, 11, 1, 3)), topic[2][120];
    moe_config c = example(width);
    moe_batch whole, part;
    real *x = moe_alloc(tokens * width, sizeof *x, "test"),
         *y = moe_alloc(tokens * width, sizeof *y, "test");
    moe_batch_layout(&whole, tokens, length, devices, 0, 1);
    make(source, &c, &whole, text_length, step, x, topic[0]);
    for (int rank = 0; rank < ranks; rank++) {
        moe_batch_layout(&part, tokens, length, devices, rank, ranks);
        make(source, &c, &part, text_length, step, y, topic[1]);
        int64_t first = part.first_token, count = part.num_tokens;
        CHECK_MSG(memcmp(x + first * width, y, (size_t)(count * width) * sizeof *x) == 0,
                  "case %d, source %d, rank %d", number, source, rank);
        if (source == SYNTHETIC) {
            CHECK_MSG(memcmp(topic[0] + first, topic[1], (size_t)count * sizeof **topic) == 0,
                      "case %d", number);
        }
        if (source == TEXT && count) {
            CHECK_MSG(memcmp(whole.byte + first, part.byte, (size_t)count) == 0, "case %d", number);
        }
        moe_batch_free(&part);
    }
    moe_batch_free(&whole);
    moe_free(x);
    moe_free(y);
}

static void test_steps(void) {
    enum { T = 64, H = 16 };
    static real x[3][T * H];
    static int32_t topic[3][T];
    moe_config c = example(H), other = example(H);
    other.run.seed++;
    moe_batch b;
    moe_batch_layout(&b, T, 16, 4, 0, 1);
    for (int source = SYNTHETIC; source < NUM_SOURCES; source++) {
        make(source, &c, &b, MAX_TEXT, 0, x[0], topic[0]);
        make(source, &c, &b, MAX_TEXT, 1, x[1], topic[1]);
        make(source, &c, &b, MAX_TEXT, 0, x[2], topic[2]);
        CHECK(memcmp(x[0], x[2], sizeof x[0]) == 0);
        if (source != KEYED) {
            CHECK_MSG(memcmp(x[0], x[1], sizeof x[0]) != 0, "source %d: step changes nothing",
                      source);
        }
        make(source, &other, &b, MAX_TEXT, 0, x[1], topic[1]);
        CHECK_MSG(memcmp(x[0], x[1], sizeof x[0]) != 0, "source %d: seed changes nothing", source);
    }
    synthetic_vectors(&c, &b, 0, x[1], NULL);
    synthetic_vectors(&c, &b, 0, x[0], topic[0]);
    CHECK(memcmp(x[0], x[1], sizeof x[0]) == 0);
    moe_batch_free(&b);
}

/* --- statistics --- */

enum { MANY = 40000 };
static int32_t topics[MANY];

static void draw_topics(double skew, double persistence, int64_t length) {
    static real x[MANY];
    moe_config c = example(1);
    moe_batch b;
    c.data.skew = skew;
    c.data.topic_persistence = persistence;
    moe_batch_layout(&b, MANY, length, 8, 0, 1);
    synthetic_vectors(&c, &b, 0, x, topics);
    moe_batch_free(&b);
}

/* Each token its own topic: topic i has share (i+1)^-skew / sum. */
static void test_skew(double skew) {
    int count[20] = {0};
    double sum = 0;
    draw_topics(skew, 0, 100);
    for (int t = 0; t < MANY; t++) {
        CHECK(topics[t] >= 0 && topics[t] < 20);
        count[topics[t]]++;
    }
    for (int i = 0; i < 20; i++) {
        sum += pow(i + 1, -skew);
    }
    for (int i = 0; i < 20; i++) {
        double p = pow(i + 1, -skew) / sum, sigma = sqrt(p * (1 - p) / MANY);
        CHECK_MSG(fabs((double)count[i] / MANY - p) < 5 * sigma,
                  "skew %g, topic %d: %d of %d, expected share %g", skew, i, count[i], MANY, p);
    }
}

/* The weight of a place that may lie between two others, as docs/method.md section 5 has it. */
static double weight_at(double place, double skew) {
    const double whole = floor(place), part = place - whole;
    const double here = fmod(whole, 20), next = fmod(whole + 1, 20);
    return (1 - part) * pow(here + 1, -skew) + part * pow(next + 1, -skew);
}

/* In a later step topic i has the popularity of place i + drift step. */
static void test_drift(double drift, int64_t step) {
    static real x[MANY];
    static int32_t unmoved[MANY];
    int count[20] = {0};
    double sum = 0;
    moe_config c = example(1);
    moe_batch b;
    c.data.topic_persistence = 0;
    moe_batch_layout(&b, MANY, 100, 8, 0, 1);
    synthetic_vectors(&c, &b, 0, x, unmoved);
    c.data.drift = drift;
    synthetic_vectors(&c, &b, 0, x, topics);
    CHECK_MSG(memcmp(topics, unmoved, sizeof topics) == 0, "drift changes the first step");
    synthetic_vectors(&c, &b, step, x, topics);
    moe_batch_free(&b);
    for (int t = 0; t < MANY; t++) {
        count[topics[t]]++;
    }
    for (int i = 0; i < 20; i++) {
        sum += weight_at(i + drift * (double)step, 1);
    }
    for (int i = 0; i < 20; i++) {
        double p = weight_at(i + drift * (double)step, 1) / sum, sigma = sqrt(p * (1 - p) / MANY);
        CHECK_MSG(fabs((double)count[i] / MANY - p) < 5 * sigma,
                  "drift %g, step %lld, topic %d: %d of %d, expected share %g", drift,
                  (long long)step, i, count[i], MANY, p);
    }
}

/* The share of neighbours with one topic: both kept the sequence's topic, or they met by chance. */
static void test_persistence(double persistence) {
    int same = 0;
    draw_topics(0, persistence, 100);
    for (int t = 0; t < MANY; t += 100) {
        for (int i = 0; i < 99; i++) {
            same += topics[t + i] == topics[t + i + 1];
        }
    }
    double both = persistence * persistence;
    double expected = both + (1 - both) / 20;
    double pairs = MANY / 100 * 99;
    CHECK_MSG(fabs(same / pairs - expected) < 0.015,
              "persistence %g: %g of neighbours agree, expected %g", persistence, same / pairs,
              expected);
    if (persistence == 1) {
        CHECK_EQ(same, pairs);
    }
}

/* Unit variance; tokens of one topic have covariance `strength`, others none. */
static void test_strength(double strength) {
    enum { T = 200, H = 256 };
    static real x[T * H];
    static int32_t topic[T];
    moe_config c = example(H);
    moe_batch b;
    double square = 0;
    double alike = 0;
    double unlike = 0;
    int num_alike = 0, num_unlike = 0;
    c.data.topic_strength = strength;
    c.data.num_topics = 8;
    moe_batch_layout(&b, T, 10, 1, 0, 1);
    synthetic_vectors(&c, &b, 0, x, topic);
    for (int t = 0; t < T; t++) {
        for (int u = 0; u <= t; u++) {
            double dot = 0;
            for (int h = 0; h < H; h++) {
                dot += (double)x[t * H + h] * (double)x[u * H + h] / H;
            }
            if (u == t) {
                square += dot / T;
            } else if (topic[t] == topic[u]) {
                alike += dot, num_alike++;
            } else {
                unlike += dot, num_unlike++;
            }
        }
    }
    CHECK_MSG(fabs(square - 1) < 0.08, "strength %g: variance %g", strength, square);
    CHECK_MSG(fabs(alike / num_alike - strength) < 0.1, "strength %g: covariance inside a topic %g",
              strength, alike / num_alike);
    CHECK_MSG(fabs(unlike / num_unlike) < 0.1, "strength %g: covariance between topics %g",
              strength, unlike / num_unlike);
    moe_batch_free(&b);
}

/* --- text --- */

/* Every sequence is one stretch of the text, inside the share of the device of its first token
 * where the share is long enough. */
static void test_text_stretches(void) {
    enum { T = 400, LENGTH = 20, D = 8 };
    static real x[T];
    moe_config c = example(1);
    moe_batch b;
    moe_batch_layout(&b, T, LENGTH, D, 0, 1);
    for (int i = 0; i < MAX_TEXT; i++) {
        text[i] = (uint8_t)moe_rng_bits((moe_rng){8, MOE_RNG_TEST}, 1, (uint64_t)i, 0);
    }
    text_vectors(&c, MAX_TEXT, 0, &b, x);
    for (int q = 0; q < T / LENGTH; q++) {
        const uint8_t *found = memmem(text, MAX_TEXT, b.byte + q * LENGTH, LENGTH);
        int device = q * LENGTH / (T / D);
        CHECK_MSG(found != NULL, "sequence %d is no stretch of the text", q);
        if (found) {
            CHECK_MSG(found - text >= device * (MAX_TEXT / D) &&
                          found - text + LENGTH <= (device + 1) * (MAX_TEXT / D),
                      "sequence %d", q);
        }
    }
    text_vectors(&c, 7, 0, &b, x); /* a text shorter than a sequence goes round */
    for (int t = 0; t < T; t++) {
        CHECK_EQ(b.byte[t], text[t % LENGTH % 7]);
    }
    moe_batch_free(&b);
}

/* x depends on the last `context` bytes and on nothing else, and has unit variance. */
static void test_text_vectors(void) {
    enum { T = 300, H = 64 };
    static real x[T * H];
    moe_config c = example(H);
    moe_batch b;
    double square = 0;
    for (int i = 0; i < MAX_TEXT; i++) {
        text[i] = (uint8_t)("ab"[i / 3 % 2]);
    }
    moe_batch_layout(&b, T, 0, 2, 0, 1);
    text_vectors(&c, MAX_TEXT - MAX_TEXT % 6, 0, &b, x);
    for (int t = 6; t < T; t++) { /* the text has period 6 */
        CHECK_MSG(memcmp(x + t * H, x + (t - 6) * H, H * sizeof *x) == 0, "token %d", t);
    }
    for (int t = 0; t < 5; t++) {
        CHECK_MSG(memcmp(x + t * H, x + (t + 1) * H, H * sizeof *x) != 0, "token %d", t);
    }
    for (int i = 0; i < 6 * H; i++) {
        square += (double)x[i] * (double)x[i] / (6 * H);
    }
    CHECK_MSG(fabs(square - 1) < 0.25, "variance %g", square);
    moe_batch_free(&b);
}

int main(void) {
    for (int i = 0; i < MAX_TEXT; i++) {
        text[i] = (uint8_t)(i * i / 7);
    }
    for (int number = 0; number < 300; number++) {
        RUN(test_layout, number);
    }
    for (int number = 0; number < 60; number++) {
        for (int source = SYNTHETIC; source < NUM_SOURCES; source++) {
            RUN(test_splits, number, source);
        }
    }
    RUN(test_steps);
    RUN(test_skew, 0);
    RUN(test_skew, 1);
    RUN(test_skew, 1.7);
    RUN(test_drift, 0.25, 3);
    RUN(test_drift, 1, 7);
    RUN(test_drift, 3.7, 100000);
    RUN(test_persistence, 0);
    RUN(test_persistence, 0.5);
    RUN(test_persistence, 1);
    RUN(test_strength, 0);
    RUN(test_strength, 0.5);
    RUN(test_strength, 1);
    RUN(test_text_stretches);
    RUN(test_text_vectors);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
