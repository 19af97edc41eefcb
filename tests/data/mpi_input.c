/* mpi_input.c: every rank gets its share of every kind of file, whatever the ranks and folded
 * devices; every bad file is refused on all ranks with a sentence that names it. The files are made
 * here, in a temporary folder. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "data/input.h"

static moe_comm comm;
static char folder[64];

enum { N = 144, K = 3 }; /* experts: a multiple of every number of devices here, 1 to 24 */

static const char *in_folder(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *name,
                        const void *front,
                        size_t front_bytes,
                        const void *bytes,
                        size_t count) {
    FILE *f = fopen(in_folder(name), "wb");
    CHECK_MSG(f && fwrite(front, 1, front_bytes, f) == front_bytes &&
                  fwrite(bytes, 1, count, f) == count,
              "%s", name);
    if (f) {
        fclose(f);
    }
}

/* Rank 0 writes an array, and the others wait for it. */
static void write_npy(const char *name,
                      enum moe_dtype dtype,
                      int num_dims,
                      const int64_t *shape,
                      const void *data) {
    char front[256];
    int64_t count = 1;
    for (int d = 0; d < num_dims; d++) {
        count *= shape[d];
    }
    size_t length = moe_npy_format(dtype, num_dims, shape, front, sizeof front);
    if (comm.rank == 0) {
        write_bytes(name, front, length, data, (size_t)count * moe_dtype_size(dtype));
    }
    moe_comm_barrier(&comm);
}

/* A resolved configuration that reads these files; NULL = none. */
static moe_config example(enum moe_source source, int fold, int layers, const char *path) {
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    c.data.source = source;
    c.model.num_layers = layers;
    c.model.num_experts = N;
    c.router.top_k = 2;
    c.cluster.devices = comm.size * fold;
    snprintf(c.data.path, sizeof c.data.path, "%s", path ? in_folder(path) : "");
    CHECK_MSG(moe_config_resolve(&c, comm.size, &st) == MOE_OK, "%s", st.message);
    return c;
}

static moe_batch layout(const moe_config *c, int64_t tokens) {
    moe_batch b;
    moe_batch_layout(&b, tokens, 0, c->cluster.devices, comm.rank, comm.size);
    return b;
}

/* --- good input --- */

static double logit_at(int layer, int64_t t, int e) {
    if ((t + e) % 11 == 0) {
        return -INFINITY;
    }
    return (double)(float)moe_rng_uniform((moe_rng){5, MOE_RNG_TEST}, (uint64_t)layer, (uint64_t)t,
                                          (uint32_t)e);
}

static void make_logits(const char *name,
                        bool f64,
                        int layers,
                        int64_t tokens,
                        int columns,
                        bool flat) {
    int64_t shape[3] = {layers, tokens, columns};
    int64_t flat_shape[2] = {layers * tokens, columns};
    int64_t count = layers * tokens * columns;
    double *d = moe_alloc(count, sizeof *d, "test");
    float *f = moe_alloc(count, sizeof *f, "test");
    for (int64_t i = 0; i < count; i++) {
        d[i] = logit_at((int)(i / columns / tokens), i / columns % tokens, (int)(i % columns));
        f[i] = (float)d[i];
    }
    write_npy(name, f64 ? MOE_F64 : MOE_F32, flat ? 2 : 3, flat ? flat_shape : shape,
              f64 ? (void *)d : (void *)f);
    moe_free(d);
    moe_free(f);
}

static void check_logits(int fold, bool f64, int layers, int64_t tokens, bool flat) {
    make_logits("logits.npy", f64, layers, tokens, N, flat);
    moe_config c = example(MOE_SOURCE_LOGITS, fold, layers, "logits.npy");
    moe_input in;
    moe_status st = {0};
    CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK, "%s", st.message);
    if (st.code) {
        return;
    }
    moe_batch b = layout(&c, tokens);
    CHECK(in.num_tokens_global == tokens && in.logits_dtype == (f64 ? MOE_F64 : MOE_F32));
    for (int64_t i = 0; i < layers * b.num_tokens * N; i++) {
        double z = f64 ? ((double *)in.logits)[i] : (double)((float *)in.logits)[i];
        int64_t t = b.first_token + i / N % b.num_tokens;
        CHECK_MSG(z == logit_at((int)(i / N / b.num_tokens), t, (int)(i % N)), "token %lld of %lld",
                  (long long)t, (long long)tokens);
    }
    moe_batch_free(&b);
    moe_input_free(&in);
}

static void test_logits(void) {
    static const int64_t tokens[] = {1, 2, 7, 64, 1001};
    for (int i = 0; i < 5; i++) {
        for (int fold = 1; fold <= 3; fold++) {
            check_logits(fold, i % 2, 1, tokens[i], fold == 1);
            check_logits(fold, fold % 2, 2, tokens[i], i % 2);
        }
    }
    check_logits(1, true, 1, 15000, true); /* 17 MB: several blocks */
    int64_t saved = comm.max_count;
    comm.max_count = 50; /* and several rounds in each */
    check_logits(2, true, 2, 301, false);
    comm.max_count = saved;
}

static int32_t choice_at(int layer, int64_t t, int k) {
    return (t + k) % 5 == 0 ? -1 : (int32_t)((t * 7 + layer + k) % 100);
}

static void test_routing(int fold, int layers, enum moe_dtype dtype, bool f64) {
    enum { T = 41 };
    int8_t narrow[2 * T * K];
    int64_t wide[2 * T * K];
    int64_t shape[3] = {layers, T, K};
    int64_t scores_shape[3] = {layers, T, N};
    int64_t mask_shape[1] = {T};
    double weights[2 * T * K], scores[2 * T * N];
    float weights32[2 * T * K];
    uint8_t mask[T];
    for (int i = 0; i < 2 * T * K; i++) {
        wide[i] = narrow[i] = (int8_t)choice_at(i / K / T, i / K % T, i % K);
        weights[i] = wide[i] < 0 ? NAN : i * 0.25;
        weights32[i] = (float)weights[i];
    }
    for (int i = 0; i < 2 * T * N; i++) {
        scores[i] = i / (2. * T * N);
    }
    for (int t = 0; t < T; t++) {
        mask[t] = (uint8_t)(t % 3);
    }
    write_npy("routing.npy", dtype, 3, shape, dtype == MOE_I8 ? (void *)narrow : (void *)wide);
    write_npy("weights.npy", f64 ? MOE_F64 : MOE_F32, 3, shape,
              f64 ? (void *)weights : (void *)weights32);
    write_npy("scores.npy", MOE_F64, 3, scores_shape, scores);
    write_npy("mask.npy", MOE_U8, 1, mask_shape, mask);
    moe_config c = example(MOE_SOURCE_ROUTING, fold, layers, "routing.npy");
    snprintf(c.data.weights, sizeof c.data.weights, "%s", in_folder("weights.npy"));
    snprintf(c.data.scores, sizeof c.data.scores, "%s", in_folder("scores.npy"));
    snprintf(c.data.mask, sizeof c.data.mask, "%s", in_folder("mask.npy"));
    moe_input in;
    moe_status st = {0};
    CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK, "%s", st.message);
    if (st.code) {
        return;
    }
    moe_batch b = layout(&c, T);
    CHECK(in.num_tokens_global == T && in.routing_k == K && c.router.top_k == K);
    for (int64_t i = 0; i < layers * b.num_tokens * K; i++) {
        int64_t t = b.first_token + i / K % b.num_tokens,
                global = (i / K / b.num_tokens * T + t) * K + i % K;
        CHECK_EQ(in.routing[i], wide[global]);
        CHECK((double)in.weights[i] == (wide[global] < 0 ? 0 : weights[global]));
    }
    for (int64_t i = 0; i < layers * b.num_tokens * N; i++) {
        CHECK(
            in.scores[i] ==
            scores[(i / N / b.num_tokens * T + b.first_token + i / N % b.num_tokens) * N + i % N]);
    }
    for (int64_t t = 0; t < b.num_tokens; t++) {
        CHECK(in.mask[t] == ((b.first_token + t) % 3 != 0));
    }
    moe_batch_free(&b);
    moe_input_free(&in);
}

static void make_text(void) {
    if (comm.rank == 0) {
        mkdir(in_folder("text"), 0700);
        mkdir(in_folder("text/b"), 0700);
        mkdir(in_folder("none"), 0700);
        write_bytes("text/c", "", 0, "ccc", 3);
        write_bytes("text/a", "", 0, "a", 1);
        write_bytes("text/b/x", "", 0, "bx", 2);
        write_bytes("none/empty", "", 0, "", 0);
        CHECK(symlink("..", in_folder("text/b/loop")) == 0);
        CHECK(symlink("../c", in_folder("text/b/link")) == 0);
        CHECK(mkfifo(in_folder("text/pipe"), 0600) == 0);
    }
    moe_comm_barrier(&comm);
}

/* Sorted by path: a, b/link (-> c), b/x, c; the loop is not followed and the pipe is not opened. */
static void test_text(const char *name, const char *expected) {
    moe_config c = example(MOE_SOURCE_TEXT, 1, 1, name);
    moe_input in;
    moe_status st = {0};
    CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK, "%s", st.message);
    if (st.code) {
        return;
    }
    CHECK(in.text_length == (int64_t)strlen(expected) && in.num_tokens_global == 0);
    CHECK_MSG(memcmp(in.text, expected, strlen(expected)) == 0, "%.*s", (int)in.text_length,
              (char *)in.text);
    moe_input_free(&in);
}

static void test_bias(void) {
    const int64_t shape[1] = {N};
    float bias[N];
    for (int i = 0; i < N; i++) {
        bias[i] = (float)(i * 0.5 - 3);
    }
    write_npy("bias.npy", MOE_F32, 1, shape, bias);
    moe_config c = example(MOE_SOURCE_SYNTHETIC, 2, 1, NULL);
    snprintf(c.router.bias_file, sizeof c.router.bias_file, "%s", in_folder("bias.npy"));
    moe_input in;
    moe_status st = {0};
    CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK, "%s", st.message);
    if (st.code) {
        return;
    }
    for (int i = 0; i < N; i++) {
        CHECK_EQ(in.bias[i], i * 0.5 - 3);
    }
    CHECK(!in.logits && !in.mask && !in.routing && !in.text && in.num_tokens_global == 0);
    moe_input_free(&in);
}

/* One bias for all layers, or one for each: in memory there is one for each. */
static void test_bias_of_layers(void) {
    enum { LAYERS = 3 };
    const int64_t one[1] = {N}, each[2] = {LAYERS, N};
    double bias[LAYERS * N];
    for (int i = 0; i < LAYERS * N; i++) {
        bias[i] = i * 0.25 - 7;
    }
    write_npy("one.npy", MOE_F64, 1, one, bias);
    write_npy("each.npy", MOE_F64, 2, each, bias);
    for (int layered = 0; layered < 2; layered++) {
        moe_config c = example(MOE_SOURCE_SYNTHETIC, 1, LAYERS, NULL);
        snprintf(c.router.bias_file, sizeof c.router.bias_file, "%s",
                 in_folder(layered ? "each.npy" : "one.npy"));
        moe_input in;
        moe_status st = {0};
        CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK, "%s", st.message);
        for (int i = 0; i < LAYERS * N && st.code == MOE_OK; i++) {
            CHECK_EQ(in.bias[i], bias[layered ? i : i % N]);
        }
        moe_input_free(&in);
    }
}

/* Boundaries are on every rank, and the segments of all ranks lie between them. */
static void test_boundaries(void) {
    enum { T = 50, SEQUENCES = 6 };
    static double z[T * N];
    const int32_t ends[SEQUENCES + 1] = {0, 1, 13, 14, 30, 47, T};
    const int64_t shape[2] = {T, N}, count[1] = {SEQUENCES + 1};
    write_npy("z.npy", MOE_F64, 2, shape, z);
    write_npy("ends.npy", MOE_I32, 1, count, ends);
    moe_config c = example(MOE_SOURCE_LOGITS, 2, 1, "z.npy");
    snprintf(c.data.boundaries, sizeof c.data.boundaries, "%s", in_folder("ends.npy"));
    moe_input in;
    moe_status st = {0};
    CHECK_MSG(moe_input_read(&comm, &c, &in, &st) == MOE_OK &&
                  moe_input_check(&in, &c, T, &st) == MOE_OK,
              "%s", st.message);
    CHECK_EQ(in.num_sequences, SEQUENCES);
    CHECK_EQ(moe_input_longest_sequence(&in, &c, T), 17);
    moe_batch b;
    moe_input_layout(&in, &c, &comm, T, &b);
    int64_t tokens = 0;
    for (int64_t i = 0; i < b.num_segments; i++) {
        const moe_segment *s = &b.segment[i];
        tokens += s->end - s->begin;
        for (int64_t t = s->begin; t < s->end; t++) {
            CHECK(b.first_token + t >= ends[s->sequence] &&
                  b.first_token + t < ends[s->sequence + 1]);
            CHECK_EQ(moe_batch_sequence_of(&b, b.first_token + t), s->sequence);
        }
    }
    moe_comm_sum_i64(&comm, &tokens, 1);
    CHECK_EQ(tokens, T);
    CHECK(moe_input_check(&in, &c, T + 1, &st) == MOE_USER && strstr(st.message, "ends with 50"));
    moe_batch_free(&b);
    moe_input_free(&in);
}

/* --- bad input --- */

/* All ranks get MOE_USER and the same line, which names the file and says what is expected; nothing
 * stays allocated. */
static void check_refused(moe_config *c, const char *name, const char *expected) {
    int64_t before = moe_alloc_live_bytes();
    moe_input in;
    moe_status st = {0}, first;
    CHECK_MSG(moe_input_read(&comm, c, &in, &st) == MOE_USER, "%s (%s): code %d", name, expected,
              st.code);
    CHECK_MSG(strstr(st.message, name) && strstr(st.message, expected),
              "\"%s\" lacks \"%s\" or \"%s\"", st.message, name, expected);
    CHECK(!strchr(st.message, '\n') && moe_alloc_live_bytes() == before);
    first = st;
    moe_comm_bcast(&comm, &first, sizeof first, 0);
    CHECK(strcmp(first.message, st.message) == 0);
}

static void refused_logits(int layers,
                           enum moe_dtype dtype,
                           int num_dims,
                           int64_t a,
                           int64_t b,
                           int64_t d,
                           const char *expected) {
    static const double zeros[4096];
    const int64_t shape[3] = {a, b, d};
    write_npy("bad.npy", dtype, num_dims, shape, zeros);
    moe_config c = example(MOE_SOURCE_LOGITS, 1, layers, "bad.npy");
    check_refused(&c, "bad.npy", expected);
}

static void test_bad_shapes(void) {
    refused_logits(1, MOE_F32, 2, 4, N + 1, 0, "[4, 145]; allowed is [T, 144]");
    refused_logits(1, MOE_F32, 1, N, 0, 0, "[144]; allowed");
    refused_logits(1, MOE_F32, 2, 0, N, 0, "T >= 1");
    refused_logits(1, MOE_F32, 3, 2, 4, N, "[2, 4, 144]; allowed");
    refused_logits(3, MOE_F32, 3, 2, 4, N, "[3, T, 144]");
    refused_logits(3, MOE_F32, 2, 7, N, 0, "[3 x T, 144]");
    refused_logits(1, MOE_I32, 2, 4, N, 0, "int32; allowed are float16, float32 and float64");
}

static void refused_logit(double value, const char *expected) {
    enum { T = 33 };
    double z[T * N] = {0};
    const int64_t shape[2] = {T, N};
    z[20 * N + 5] = value;
    z[30 * N + 2] = value;
    write_npy("bad.npy", MOE_F64, 2, shape, z);
    moe_config c = example(MOE_SOURCE_LOGITS, 2, 1, "bad.npy");
    check_refused(&c, "bad.npy", expected);
}

static void refused_choice(int64_t first, int64_t second, const char *expected) {
    int64_t idx[9 * K] = {0};
    const int64_t shape[2] = {9, K};
    for (int i = 0; i < 9 * K; i++) {
        idx[i] = i % K;
    }
    idx[8 * K] = first;
    idx[8 * K + 1] = second;
    write_npy("bad.npy", MOE_I64, 2, shape, idx);
    moe_config c = example(MOE_SOURCE_ROUTING, 1, 1, "bad.npy");
    check_refused(&c, "bad.npy", expected);
}

/* An array beside a good routing [9, K]. */
static void refused_beside(const char *key,
                           enum moe_dtype dtype,
                           int num_dims,
                           int64_t a,
                           int64_t b,
                           double value,
                           const char *expected) {
    int32_t idx[9 * K];
    double numbers[9 * N];
    const int64_t good[2] = {9, K}, shape[2] = {a, b};
    for (int i = 0; i < 9 * K; i++) {
        idx[i] = i % K;
    }
    for (int i = 0; i < 9 * N; i++) {
        numbers[i] = i == 7 ? value : 0;
    }
    write_npy("routing.npy", MOE_I32, 2, good, idx);
    write_npy("beside.npy", dtype, num_dims, shape, numbers);
    moe_config c = example(MOE_SOURCE_ROUTING, 1, 1, "routing.npy");
    char *path = strcmp(key, "weights") == 0  ? c.data.weights
                 : strcmp(key, "scores") == 0 ? c.data.scores
                 : strcmp(key, "mask") == 0   ? c.data.mask
                                              : c.router.bias_file;
    snprintf(path, MOE_PATH_MAX, "%s", in_folder("beside.npy"));
    check_refused(&c, "beside.npy", expected);
}

static void test_bad_routing(void) {
    refused_choice(
        N, 1, "token 8, choice 0: 144 is not allowed; allowed are -1 (none) and experts 0 to 143");
    refused_choice(1, -2, "choice 1: -2");
    refused_choice((int64_t)1 << 32, 1, "choice 0: 4.29497e+09");
    refused_choice(4, 4, "choice 1: 4 is not allowed; allowed are different experts");
    refused_beside("weights", MOE_F64, 2, 9, K + 1, 0, "[9, 3]");
    refused_beside("weights", MOE_F64, 2, 8, K, 0, "[9, 3]");
    refused_beside("weights", MOE_F64, 2, 9, K, NAN, "token 2, choice 1: nan");
    refused_beside("scores", MOE_F64, 2, 9, N, -0.5, "token 0, expert 7: -0.5");
    refused_beside("scores", MOE_F64, 2, 9, N, 1.5, "from 0 to 1");
    refused_beside("scores", MOE_F64, 2, 9, K, 0, "[9, 144]");
    refused_beside("mask", MOE_U8, 1, 8, 0, 0, "9 tokens");
    refused_beside("mask", MOE_U8, 2, 3, 4, 0, "[3, 4]");
    refused_beside("mask", MOE_F32, 1, 9, 0, 0, "float32; allowed are integers and bool");
    refused_beside("bias", MOE_F64, 1, N - 1, 0, 0, "[144]");
    refused_beside("bias", MOE_I64, 1, N, 0, 0, "int64");
    refused_beside("bias", MOE_F64, 1, N, 0, INFINITY, "expert 7: inf");
}

/* A file that claims more than any memory holds is refused before anything is taken. */
static void test_huge(void) {
    const int64_t shape[2] = {(int64_t)1 << 36, N};
    char front[256];
    size_t length = moe_npy_format(MOE_F32, 2, shape, front, sizeof front);
    int holes = 1;
    if (comm.rank == 0) {
        write_bytes("huge.npy", front, length, "", 0);
        holes = truncate(in_folder("huge.npy"), (off_t)(length + ((size_t)N << 38))) == 0;
    }
    moe_comm_bcast(&comm, &holes, sizeof holes, 0);
    moe_config c = example(MOE_SOURCE_LOGITS, 1, 1, "huge.npy");
    check_refused(&c, "huge.npy", holes ? "MiB" : "bytes long");
}

static void test_bad_files(void) {
    moe_config c = example(MOE_SOURCE_LOGITS, 1, 1, "missing.npy");
    check_refused(&c, "missing.npy", "data.path = ");
    c = example(MOE_SOURCE_LOGITS, 1, 1, "text");
    check_refused(&c, "text", "not a regular file");
    c = example(MOE_SOURCE_LOGITS, 1, 1, "text/c");
    check_refused(&c, "text/c", "not a .npy file");
    c = example(MOE_SOURCE_TEXT, 1, 1, "missing");
    check_refused(&c, "missing", "No such file");
    c = example(MOE_SOURCE_TEXT, 1, 1, "none");
    check_refused(&c, "none", "no text");
    c = example(MOE_SOURCE_TEXT, 1, 1, "none/empty");
    check_refused(&c, "none/empty", "no text");
    c = example(MOE_SOURCE_TEXT, 1, 1, "text/pipe");
    check_refused(&c, "text/pipe", "neither a regular file nor a folder");
    if (comm.rank == 0) {
        CHECK(symlink("nowhere", in_folder("none/broken")) == 0);
    }
    c = example(MOE_SOURCE_TEXT, 1, 1, "none");
    check_refused(&c, "none/broken", "cannot be read");
    refused_logit(NAN, "token 20, expert 5: nan");
    refused_logit(INFINITY, "token 20, expert 5: inf");
}

static void make_folder(void) {
    if (comm.rank == 0) {
        snprintf(folder, sizeof folder, "/tmp/moesim_test_input_XXXXXX");
        CHECK(mkdtemp(folder) != NULL);
    }
    moe_comm_bcast(&comm, folder, sizeof folder, 0);
}

static void remove_folder(void) {
    static const char *const names[] = {
        "logits.npy", "routing.npy", "weights.npy", "scores.npy",  "mask.npy",
        "bias.npy",   "bad.npy",     "beside.npy",  "huge.npy",    "one.npy",
        "each.npy",   "z.npy",       "ends.npy",    "text/b/loop", "text/b/link",
        "text/b/x",   "text/a",      "text/c",      "text/pipe",   "text/b",
        "text",       "none/empty",  "none/broken", "none",        ""};
    moe_comm_barrier(&comm);
    for (size_t i = 0; i < sizeof names / sizeof *names && comm.rank == 0; i++) {
        CHECK_MSG(remove(in_folder(names[i])) == 0, "%s", names[i]);
    }
}

int main(int argc, char **argv) {
    moe_comm_init(&comm, &argc, &argv);
    make_folder();
    RUN(test_logits);
    RUN(test_routing, 1, 1, MOE_I8, true);
    RUN(test_routing, 2, 2, MOE_I64, false);
    make_text();
    RUN(test_text, "text", "acccbxccc");
    RUN(test_text, "text/a", "a");
    RUN(test_bias);
    RUN(test_bias_of_layers);
    RUN(test_boundaries);
    RUN(test_bad_shapes);
    RUN(test_bad_routing);
    RUN(test_bad_files);
    RUN(test_huge);
    remove_folder();
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    int code = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return code;
}
