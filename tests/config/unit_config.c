/* unit_config.c: parsing, messages, presets, resolution, and that the printed configuration is a
 * fixed point. */
#include <dirent.h>
#include <string.h>

#include "check.h"
#include "config/config.h"
#include "config/presets.h"
#include "config/table.h"
#include "config/value.h"

/* A file of the source tree: ctest sets MOESIM_SOURCE_DIR. */
static void source_path(char *path, size_t capacity, const char *name) {
    const char *root = getenv("MOESIM_SOURCE_DIR");
    snprintf(path, capacity, "%s/%s", root != NULL ? root : ".", name);
}

static const char *parse(moe_config *c, const char *text, moe_status *st) {
    memset(st, 0, sizeof *st);
    moe_config_defaults(c);
    moe_config_parse(c, text, (int64_t)strlen(text), "folder/test.ini", st);
    return st->message;
}

/* The text parsed, assignments (blank-separated) set, and resolved; the message, "" when all is
 * well. */
static const char *resolve(moe_config *c,
                           const char *text,
                           const char *assignments,
                           int ranks,
                           moe_status *st) {
    char one[256];
    parse(c, text, st);
    while (*assignments != '\0' && st->code == MOE_OK) {
        const size_t length = strcspn(assignments, " ");
        snprintf(one, sizeof one, "%.*s", (int)length, assignments);
        moe_config_set(c, one, st);
        assignments += length + strspn(assignments + length, " ");
    }
    if (st->code == MOE_OK) {
        moe_config_resolve(c, ranks, st);
    }
    CHECK(st->code == MOE_OK || st->code == MOE_USER);
    CHECK(strchr(st->message, '\n') == NULL);
    return st->message;
}

static void expect_parse(const char *text, const char *message) {
    moe_config c;
    moe_status st;
    CHECK_MSG(strcmp(parse(&c, text, &st), message) == 0, "\n got: %s\nwant: %s", st.message,
              message);
    CHECK_MSG((st.code == MOE_USER) == (message[0] != '\0'), "%s", text);
}

static void expect_resolve(const char *assignments, int ranks, const char *message) {
    moe_config c;
    moe_status st;
    CHECK_MSG(strcmp(resolve(&c, "", assignments, ranks, &st), message) == 0,
              "%s\n got: %s\nwant: %s", assignments, st.message, message);
}

static char *print(const moe_config *c) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    moe_config_print(c, out);
    fclose(out);
    return text;
}

/* Are two configurations the same in every key and in what was derived (apart from where values
 * came from)? */
static void check_same(const moe_config *a, const moe_config *b) {
    char x[MOE_VALUE_TEXT_MAX], y[MOE_VALUE_TEXT_MAX];
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        moe_value_format(a, k, x);
        moe_value_format(b, k, y);
        CHECK_MSG(strcmp(x, y) == 0, "%s.%s: %s, %s", moe_keys[k].section, moe_keys[k].name, x, y);
    }
    CHECK(a->ranks == b->ranks && a->comm_limit == b->comm_limit);
}

/* print -> parse -> resolve -> print is a fixed point. */
static void check_echo(const moe_config *c, const char *what) {
    moe_config again;
    moe_status st = {0};
    char *first = print(c);
    moe_config_defaults(&again);
    moe_config_parse(&again, first, (int64_t)strlen(first), "config.ini", &st);
    moe_config_resolve(&again, c->ranks, &st);
    CHECK_MSG(st.code == MOE_OK, "%s: %s", what, st.message);
    check_same(c, &again);
    char *second = print(&again);
    CHECK_MSG(strcmp(first, second) == 0, "%s\n--- first\n%s--- second\n%s", what, first, second);
    free(first);
    free(second);
}

static void test_lines(void) {
    moe_config c;
    moe_status st;
    parse(&c,
          "\xEF\xBB\xBF; comment\r\n# comment\r\n  [run] ; comment\r\n\tsteps = 3 # comment\r\n  "
          "seed: 5\t; comment\r\n\r\n[data]\npath = "
          "/a/b#c;d e.npy\n[run]\nthreads=2",
          &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    CHECK(c.run.steps == 3 && c.run.seed == 5 && c.run.threads == 2);
    CHECK_MSG(strcmp(c.data.path, "/a/b#c;d e.npy") == 0, "%s", c.data.path);
    CHECK(strcmp(c.name, "test") == 0);
    CHECK(moe_config_given(&c, MOE_KEY(run, steps)) &&
          !moe_config_given(&c, MOE_KEY(router, top_k)));
    CHECK(c.place[MOE_KEY(run, steps)] == 4);
    expect_parse("", "");
    expect_parse("[run]\nsteps = 3\nsteps = 4\n",
                 "folder/test.ini:3: run.steps is given twice, first in line 2");
    expect_parse("steps = 3\n", "folder/test.ini:1: steps = 3: a key has to stand in a [section]");
    expect_parse("[run\n", "folder/test.ini:1: [run: a section is written as [name]");
    expect_parse("[run] steps = 3\n", "folder/test.ini:1: [run] steps = 3: nothing but a comment "
                                      "may follow a section in its line");
    expect_parse(
        "[run]\n\nhello\n",
        "folder/test.ini:3: hello: this is neither a [section], nor key = value, nor a comment");
    expect_parse("[ruotr]\n", "folder/test.ini:1: [ruotr]: there is no such section, allowed are "
                              "run, model, router, balance, capacity, exchange, "
                              "cluster, placement, data, train, generate, output");
    expect_parse("[ruoter]\n",
                 "folder/test.ini:1: [ruoter]: there is no such section, did you mean [router]?");
    expect_parse(
        "[router]\ntopk = 6\n",
        "folder/test.ini:2: router.topk: there is no such key, did you mean router.top_k?");
    expect_parse(
        "[model]\ntop_k = 6\n",
        "folder/test.ini:2: model.top_k: there is no such key, did you mean router.top_k?");
    expect_parse(
        "[run]\nbanana = 6\n",
        "folder/test.ini:2: run.banana: there is no such key; moesim --keys lists all keys");
    expect_parse("[router]\ntop_k = 0\n",
                 "folder/test.ini:2: router.top_k = 0: allowed is a whole number from 1 to 65536");
    expect_parse(
        "[router]\ntop_k =\n",
        "folder/test.ini:2: router.top_k = (empty): allowed is a whole number from 1 to 65536");
    expect_parse("[router]\nscore_func = sofmax\n",
                 "folder/test.ini:2: router.score_func = sofmax: allowed is one of softmax, "
                 "sigmoid, sqrtsoftplus, "
                 "softmax_topk (nearest is softmax)");
    expect_parse("[model]\nresidual = maybe\n",
                 "folder/test.ini:2: model.residual = maybe: allowed is yes or no");
    expect_parse(
        "[run]\nsteps = \x01\n",
        "folder/test.ini:2: run.steps = ?: allowed is a whole number from 1 to 1000000000000");
}

static void test_bytes(void) {
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    static const char nul[] = "[run]\nst\0eps = 3\n";
    moe_config_parse(&c, nul, sizeof nul - 1, "x.ini", &st);
    CHECK_MSG(strcmp(st.message, "x.ini:2: the line contains a NUL byte, which text does not") == 0,
              "%s", st.message);

    static char text[4096];
    for (int length = 100; length <= 1500; length += 100) { /* inih's own limits of 200 characters
                                                               never show */
        const int head = snprintf(text, sizeof text, "[data]\npath = ");
        memset(text + head, 'p', (size_t)length);
        snprintf(text + head + length, sizeof text - (size_t)(head + length), "\nskew = 2\n");
        parse(&c, text, &st);
        if (length < MOE_PATH_MAX) {
            CHECK_MSG(st.code == MOE_OK && (int)strlen(c.data.path) == length && c.data.skew == 2,
                      "%d: %s", length, st.message);
        } else {
            CHECK_MSG(st.code == MOE_USER && strncmp(st.message, "folder/test.ini:2: ", 19) == 0,
                      "%d: %s", length, st.message);
        }
    }
    memset(text, 'n', 400);
    memcpy(text, "[run]\n", 6);
    memcpy(text + 400, "= 3\n", 5);
    CHECK(strstr(parse(&c, text, &st), "folder/test.ini:2: nnn") != NULL &&
          strstr(st.message, "the name is too long") != NULL);
    memset(text, 's', 400);
    text[0] = '[';
    memcpy(text + 400, "]\n", 3);
    CHECK(strstr(parse(&c, text, &st), "there is no such section") != NULL);
}

static void test_set(void) {
    expect_resolve("router.topk=3", 1,
                   "--set: router.topk: there is no such key, did you mean router.top_k?");
    expect_resolve("top_k=3", 1, "--set: top_k: there is no such key, did you mean router.top_k?");
    expect_resolve("rooter.top_k=3", 1,
                   "--set: [rooter]: there is no such section, did you mean [router]?");
    expect_resolve("=3", 1, "--set: =3: an assignment is written as section.key=value");
    expect_resolve("router.top_k", 1,
                   "--set: router.top_k: an assignment is written as section.key=value");
    expect_resolve("router.top_k=x", 1,
                   "--set: router.top_k = x: allowed is a whole number from 1 to 65536");
    moe_config c;
    moe_status st;
    resolve(&c, "[router]\ntop_k = 3\n", "router.top_k=4 router.top_k=5", 1, &st);
    CHECK(st.code == MOE_OK && c.router.top_k == 5); /* the last one wins */
}

static void test_combinations(void) {
    expect_resolve("", 7,
                   "default: model.num_experts = 64: model.num_experts has to be a multiple of "
                   "cluster.devices (here 64 and 7); there is one device for each of 7 ranks here "
                   "(cluster.devices = 0): start 8 ranks (mpirun -np 8)");
    expect_resolve(
        "cluster.devices=4", 3,
        "--set: cluster.devices = 4: it has to be a multiple of the number of ranks (here 3)");
    expect_resolve("cluster.devices=8 cluster.devices_per_node=3", 1,
                   "--set: cluster.devices_per_node = 3: it has to divide cluster.devices = 8");
    expect_resolve("router.num_groups=5", 1,
                   "--set: router.num_groups = 5: it has to divide model.num_experts = 64");
    expect_resolve(
        "router.top_k=65", 1,
        "--set: router.top_k = 65: router.top_k may be at most model.num_experts (here 65 and 64)");
    expect_resolve("model.num_experts=4", 1,
                   "--set: model.num_experts = 4: router.top_k may be at most model.num_experts "
                   "(here 6 and 4)");
    expect_resolve("router.group_limit=max router.topk_group=9", 8,
                   "--set: router.topk_group = 9: at most router.num_groups = 8 is allowed (0 = "
                   "all; each device is a group); there is one device for each of 8 ranks here "
                   "(cluster.devices = 0): add --set cluster.devices=16, or start 16 ranks (mpirun "
                   "-np 16)");
    expect_resolve("router.group_limit=max router.topk_group=1 router.top_k=9", 8,
                   "--set: router.top_k = 9: router.top_k experts have to fit in router.topk_group "
                   "groups (here 9 in 1 of 8 experts each)");
    expect_resolve("router.group_limit=quota router.topk_group=4", 8,
                   "--set: router.topk_group = 4: group_limit = quota needs a router.top_k that is "
                   "a multiple of router.topk_group (here 6 and 4)");
    expect_resolve("router.group_limit=topk_sum router.topk_group=7", 8,
                   "--set: router.topk_group = 7: group_limit = topk_sum needs a router.top_k of "
                   "at least router.topk_group (here 6 and 7)");
    expect_resolve("router.group_limit=top2_sum router.num_groups=64 router.topk_group=8", 8,
                   "--set: router.group_limit = top2_sum: it needs groups of at least 2 experts "
                   "(here model.num_experts = 64 in "
                   "router.num_groups = 64)");
    expect_resolve("data.source=text", 1,
                   "--set: data.source = text: data.path has to name the file to read");
    expect_resolve("placement.policy=file", 1,
                   "--set: placement.policy = file: placement.file has to name the file to read");
    expect_resolve("placement.file=p.npy", 1,
                   "--set: placement.file = p.npy: it does not go with placement.policy = block: "
                   "policy = file reads placement.file, and no other policy does");
    expect_resolve("data.mask=m.npy", 1,
                   "--set: data.mask = m.npy: a mask goes with data.source = logits or routing, "
                   "not with synthetic");
    expect_resolve("data.tokens_per_device=1000000000000 cluster.devices=64", 1,
                   "--set: data.tokens_per_device = 1000000000000: times cluster.devices = 64 it "
                   "has to stay below 2^40 = 1099511627776 tokens");
    expect_resolve(
        "model.num_experts=1048576 model.hidden_size=1048576 model.moe_intermediate_size=1048576",
        1,
        "--set: model.num_experts = 1048576: times hidden_size = 1048576, moe_intermediate_size = "
        "1048576 and num_layers = 1 it "
        "has to stay "
        "below 2^50 weights");
}

static void test_not_yet(void) {
    static const char *const later[] = {"exchange.algorithm=windowed"};
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) {
        moe_config c;
        moe_status st;
        CHECK_MSG(strstr(resolve(&c, "", later[i], 8, &st), "not available yet") != NULL, "%s: %s",
                  later[i], st.message);
    }
}

static void test_chunks(void) {
    static const char *const good[] = {"exchange.chunks=4 data.tokens_per_device=4",
                                       "exchange.chunks=4 exchange.transport=auto",
                                       "exchange.chunks=4 exchange.mode=selection"};
    expect_resolve("exchange.chunks=5 data.tokens_per_device=4", 1,
                   "--set: exchange.chunks = 5: there is nothing to put into some of the chunks: "
                   "the tokens of a device are 4, and chunks may be at most that");
    expect_resolve("exchange.chunks=2 exchange.mode=two_level", 1,
                   "--set: exchange.chunks = 2: it does not go with exchange.mode = two_level: its "
                   "second hop begins when the whole first one has arrived: mode = token or "
                   "selection, or chunks = 1");
    expect_resolve("exchange.chunks=2 exchange.transport=shared", 1,
                   "--set: exchange.chunks = 2: it does not go with exchange.transport = shared: a "
                   "rank writes to shared memory itself and has nothing to compute behind: "
                   "transport = alltoallv or auto, or chunks = 1");
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        moe_config c;
        moe_status st;
        CHECK_STR(resolve(&c, "", good[i], 1, &st), "");
    }
}

/* What attention does not go with, and heads that do not come out even. */
static void test_attention(void) {
    expect_resolve("model.attention=mha model.num_heads=3", 1,
                   "--set: model.num_heads = 3: model.num_heads has to divide model.hidden_size "
                   "(here 3 and 256), or model.head_dim has to say how wide a head is");
    expect_resolve("model.attention=mla model.rope_dim=7", 1,
                   "--set: model.rope_dim = 7: rotary position embedding turns pairs: an even "
                   "number, or 0 for none");
    expect_resolve("model.attention=mha model.rope_dim=34", 1,
                   "--set: model.rope_dim = 34: the rotary part of attention = mha is part of a "
                   "head: model.rope_dim may be at most model.head_dim (here 34 and 32)");
    expect_resolve("model.attention=mha model.num_kv_heads=3", 1,
                   "--set: model.num_kv_heads = 3: it has to divide model.num_heads = 8");
    expect_resolve(
        "model.attention=mha data.sequence_length=100", 2,
        "--set: data.sequence_length = 100: attention needs every sequence whole on one "
        "device: data.sequence_length has to divide data.tokens_per_device (here 100 and "
        "512)");
    expect_resolve(
        "model.attention=mla model.residual=no", 1,
        "--set: model.attention = mla: it does not go with model.residual = no: attention "
        "adds to the residual stream: residual = yes, or attention = none");
    static const char *const others[] = {"data.source=logits data.path=l.npy",
                                         "data.source=routing data.path=r.npy",
                                         "data.boundaries=b.npy",
                                         "model.load=d",
                                         "model.num_heads=65536 model.head_dim=65536",
                                         "data.sequence_length=0 cluster.devices=2"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        moe_config c;
        moe_status st;
        char words[128];
        snprintf(words, sizeof words, "model.attention=mha %s", others[i]);
        resolve(&c, "", words, 1, &st);
        CHECK_MSG(st.code == MOE_USER, "%s is allowed", words);
    }
}

/* The widths of DeepSeek-V2 stand in for what is not given: d_R = d / 2 and r = 4 d; all of a head
 * is turned in mha. A sequence of one device may be as long as the batch. */
static void test_attention_widths(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "", "model.attention=mla model.num_heads=4", 1, &st);
    CHECK(c.model.head_dim == 64 && c.model.rope_dim == 32 && c.model.kv_lora_rank == 256);
    check_echo(&c, "mla");
    resolve(&c, "", "model.attention=mha model.head_dim=9 data.sequence_length=0", 1, &st);
    CHECK(st.code == MOE_OK && c.model.head_dim == 9 && c.model.rope_dim == 8);
    check_echo(&c, "mha");
    resolve(&c, "", "model.attention=mla model.rope_dim=0 data.sequence_length=128", 4, &st);
    CHECK(st.code == MOE_OK && c.model.rope_dim == 0 && c.model.kv_lora_rank == 128);
    check_echo(&c, "mla without rotary part");
}

/* A capacity that does not go with another key: both are named. */
static void test_capacity(void) {
    expect_resolve("capacity.policy=device capacity.expert_capacity=3", 1,
                   "--set: capacity.expert_capacity = 3: it needs policy expert or sequence: a "
                   "device has a capacity_factor (here "
                   "capacity.policy = device)");
    expect_resolve("capacity.policy=sequence capacity.drop=probs", 1,
                   "--set: capacity.drop = probs: it needs policy device or expert: of a sequence "
                   "the later tokens go (drop = position) (here "
                   "capacity.policy = sequence)");
    static const char *const pairs[][3] = {
        {"capacity.policy=sequence capacity.exempt_sequences=0.1", "capacity.exempt_sequences",
         "capacity.policy"},
        {"capacity.policy=sequence capacity.capacity_scope=device", "capacity.capacity_scope",
         "capacity.policy"},
        {"capacity.policy=device capacity.pad_to_capacity=yes", "capacity.pad_to_capacity",
         "capacity.policy"},
        {"capacity.policy=expert capacity.renormalize=yes", "capacity.renormalize",
         "router.norm_topk_prob"},
        {"capacity.policy=expert capacity.overflow=next_choice data.source=routing data.path=r.npy",
         "capacity.overflow", "data.source"},
        {"capacity.policy=expert capacity.overflow=next_choice router.method=hash",
         "capacity.overflow", "router.method"},
        {"capacity.policy=expert capacity.renormalize=yes router.norm_topk_prob=yes "
         "data.source=routing data.path=r.npy",
         "capacity.renormalize", "data.source"}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        moe_config c;
        moe_status st;
        const char *said = resolve(&c, "", pairs[i][0], 1, &st);
        CHECK_MSG(st.code == MOE_USER && strstr(said, pairs[i][1]) && strstr(said, pairs[i][2]),
                  "%s: %s", pairs[i][0], said);
    }
}

static int32_t limit_of(const char *assignments) {
    moe_config c;
    moe_status st;
    CHECK_MSG(resolve(&c, "", assignments, 1, &st)[0] == '\0', "%s: %s", assignments, st.message);
    return c.comm_limit;
}

/* M of f'', docs/method.md section 2. */
static void test_comm_limit(void) {
    CHECK(limit_of("cluster.devices=8") == 6);
    CHECK(limit_of("cluster.devices=4") == 4);
    CHECK(limit_of("cluster.devices=8 router.group_limit=max router.topk_group=3") == 3);
    CHECK(limit_of("cluster.devices=8 router.group_limit=max router.topk_group=3 router.top_k=2") ==
          3);
    CHECK(limit_of("cluster.devices=8 router.group_limit=max") == 8);
    CHECK(limit_of("cluster.devices=64 router.num_groups=8 router.group_limit=max "
                   "router.topk_group=2 router.top_k=16") == 16);
    CHECK(limit_of("cluster.devices=64 router.num_groups=8 router.group_limit=max "
                   "router.topk_group=2 router.top_k=12") == 12);
    CHECK(
        limit_of(
            "cluster.devices=16 router.num_groups=8 router.group_limit=max router.topk_group=2") ==
        4);
    CHECK(
        limit_of(
            "cluster.devices=4 router.num_groups=16 router.group_limit=max router.topk_group=2") ==
        2);
    CHECK(
        limit_of(
            "cluster.devices=4 router.num_groups=16 router.group_limit=max router.topk_group=8") ==
        4);
    CHECK(limit_of("model.num_experts=24 cluster.devices=12 router.num_groups=8 "
                   "router.group_limit=max router.topk_group=2") == 4);
}

static void test_derived(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "", "", 8, &st);
    CHECK(c.cluster.devices == 8 && c.cluster.devices_per_node == 8 && c.router.num_groups == 8 &&
          c.router.topk_group == 8 && c.ranks == 8);
    CHECK(c.model.residual && c.model.norm == MOE_NORM_NONE);
    CHECK(c.exchange.mode == MOE_EXCHANGE_TOKEN && c.balance.comm_count == MOE_COUNT_TOKENS &&
          c.balance.comm_count_local);
    CHECK(c.balance.device_p == MOE_DEVICE_P_SUM && c.balance.aux_selection == MOE_AUX_ACTUAL &&
          c.capacity.policy == MOE_CAPACITY_NONE);
    CHECK(c.exchange.payload == MOE_PAYLOAD_FP32 && !c.router.norm_topk_prob &&
          c.router.routed_scaling_factor == 1 && c.run.steps == 1);
    CHECK(c.balance.alpha_expert == 0 && c.balance.alpha_device == 0 && c.balance.alpha_comm == 0 &&
          c.balance.z_loss == 0);
    resolve(&c, "", "model.num_layers=2", 8, &st);
    CHECK_EQ(c.model.norm, MOE_NORM_RMSNORM);
    resolve(&c, "", "model.num_layers=2 model.norm=none", 8, &st);
    CHECK_EQ(c.model.norm, MOE_NORM_NONE);
    resolve(&c, "", "data.source=logits data.path=x.npy run.steps=5", 8, &st);
    CHECK(st.code == MOE_OK && c.run.steps == 5);
}

/* Where each rank is a device, what is refused for the number of devices says what to add; and what
 * it says is accepted. */
static void test_too_few_devices(void) {
    static const struct {
        const char *assignments;
        int ranks, devices; /* devices 0: no number of them helps */
        bool same_ranks;    /* as many ranks can have them */
    } cases[] = {
        {"router.group_limit=max router.topk_group=3", 1, 8, true},
        {"router.group_limit=max router.topk_group=3", 2, 8, true},
        {"router.group_limit=max router.topk_group=3", 3, 8, false},
        {"router.group_limit=max router.topk_group=3 model.num_experts=60", 2, 4, true},
        {"router.group_limit=max router.topk_group=3 model.num_experts=7 router.top_k=2", 2, 7,
         false},
        {"router.group_limit=max router.topk_group=9", 2, 16, true},
        {"cluster.devices_per_node=4", 2, 8, true},
        {"cluster.devices_per_node=16", 8, 16, true},
        {"model.num_experts=50", 4, 5, false},
        {"placement.redundant_experts=3 model.num_experts=61 cluster.devices_per_node=8", 4, 8,
         true},
        {"router.group_limit=max router.topk_group=3 cluster.devices=2", 2, 0, true},
        {"router.top_k=65", 2, 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moe_config c;
        moe_status st;
        char words[128] = "", assignments[256];
        const int32_t devices = cases[i].devices;
        resolve(&c, "", cases[i].assignments, cases[i].ranks, &st);
        CHECK_MSG(st.code == MOE_USER, "%s", cases[i].assignments);
        const char *at = strstr(st.message, "; there is one device for each of ");
        CHECK_MSG((at != NULL) == (devices > 0), "%s: %s", cases[i].assignments, st.message);
        if (devices == 0) {
            continue;
        }
        if (cases[i].same_ranks) {
            snprintf(words, sizeof words, "add --set cluster.devices=%d, or ", devices);
        }
        snprintf(words + strlen(words), sizeof words - strlen(words),
                 "start %d ranks (mpirun -np %d)", devices, devices);
        CHECK_MSG(at && strstr(at, words), "%s\n got: %s\nwant: %s", cases[i].assignments,
                  st.message, words);
        snprintf(assignments, sizeof assignments, "%s cluster.devices=%d", cases[i].assignments,
                 devices);
        resolve(&c, "", assignments, cases[i].same_ranks ? cases[i].ranks : devices, &st);
        CHECK_MSG(st.code == MOE_OK, "%s: %s", assignments, st.message);
    }
}

/* cluster.devices_per_node = 0 makes each host a node; what was found is printed, so that the same
 * text means the same on one host. */
static void test_hosts(int ranks, int count, int devices, int per_node) {
    moe_config c, again;
    moe_status st = {0};
    char assignment[64];
    moe_config_defaults(&c);
    snprintf(assignment, sizeof assignment, "cluster.devices=%d", devices);
    moe_config_set(&c, assignment, &st);
    c.hosts.count = count;
    moe_config_resolve(&c, ranks, &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    CHECK_EQ(c.cluster.devices_per_node, per_node);
    char *text = print(&c);
    parse(&again, text, &st);
    moe_config_resolve(&again, 1, &st);
    CHECK_EQ(again.cluster.devices, devices > 0 ? devices : ranks);
    CHECK_EQ(again.cluster.devices_per_node, per_node);
    free(text);
}

static void test_odd_hosts(moe_config_hosts hosts, const char *given, const char *message) {
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    if (given) {
        moe_config_set(&c, given, &st);
    }
    c.hosts = hosts;
    moe_config_resolve(&c, 4, &st);
    CHECK_MSG(strcmp(st.message, message) == 0, "\n got: %s\nwant: %s", st.message, message);
    CHECK(st.code == (message[0] != '\0' ? MOE_USER : MOE_OK));
}

static void test_segmentation(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "",
            "model.num_experts=16 router.top_k=2 model.moe_intermediate_size=512 "
            "model.expert_segmentation=4 model.num_shared_experts=1",
            1, &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    CHECK(c.model.num_experts == 63 && c.router.top_k == 7 &&
          c.model.moe_intermediate_size == 128 && c.model.expert_segmentation == 1);
    char *text = print(&c);
    CHECK_MSG(strstr(text, "compute 1024 = 1024, parameters 8192 = 8192 columns: parity") != NULL,
              "%s", text);
    moe_config again;
    parse(&again, text, &st);
    moe_config_resolve(&again, 1, &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    check_same(&c, &again);
    free(text);
    expect_resolve(
        "model.expert_segmentation=3", 1,
        "--set: model.expert_segmentation = 3: it has to divide model.moe_intermediate_size = 128");
    expect_resolve("model.expert_segmentation=2 model.num_shared_experts=12", 1,
                   "--set: model.expert_segmentation = 2: model.num_shared_experts = 12 leaves 0 "
                   "of m x top_k = 12 chosen experts, at "
                   "least 1 is needed");
}

static void test_recorded(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "", "data.source=routing data.path=x.npy", 8, &st);
    CHECK(moe_config_recorded_top_k(&c, 4, &st) == MOE_OK && c.router.top_k == 4 &&
          c.comm_limit == 4);
    CHECK(moe_config_recorded_top_k(&c, 65, &st) == MOE_USER);
    resolve(&c, "", "data.source=routing data.path=x.npy router.top_k=4", 8, &st);
    CHECK(moe_config_recorded_top_k(&c, 4, &st) == MOE_OK);
    CHECK(moe_config_recorded_top_k(&c, 6, &st) == MOE_USER);
    CHECK_MSG(strcmp(st.message,
                     "--set: router.top_k = 4: the recorded routing has 6 experts per token") == 0,
              "%s", st.message);
}

static void test_presets(void) {
    for (int i = 0; i < moe_num_presets; i++) {
        const moe_preset *p = &moe_presets[i];
        moe_config c;
        moe_status st;
        char set[128];
        CHECK(strlen(p->description) > 20);
        const int ranks = strcmp(p->name, "deepseek_moe_2b") == 0 ? 9 : 8; /* 63 experts */
        snprintf(set, sizeof set, "router.preset=%s", p->name);
        resolve(&c, "", set, ranks, &st);
        CHECK_MSG(st.code == MOE_OK, "%s: %s", p->name, st.message);
        for (const moe_setting *one = p->settings; one->key != MOE_KEY_NONE; one++) {
            char value[MOE_VALUE_TEXT_MAX]; /* what the preset says is what runs */
            moe_value_format(&c, one->key, value);
            CHECK_MSG(strcmp(value, one->value) == 0, "%s: %s=%s but %s runs", p->name,
                      moe_keys[one->key].full, one->value, value);
            CHECK_MSG(moe_preset_value(p, one->key) == one->value, "%s: %s twice", p->name,
                      moe_keys[one->key].full);
        }
        char *text = print(&c);
        CHECK_MSG(strstr(text, "overrides preset") == NULL, "%s\n%s", p->name, text);
        free(text);
        check_echo(&c, p->name);
        const int32_t k = c.router.method == MOE_METHOD_GSHARD ? 2 : 4;
        snprintf(set, sizeof set, "router.preset=%s router.top_k=%d balance.alpha_expert=0.5",
                 p->name, k);
        resolve(&c, "", set, ranks, &st);
        CHECK_MSG(c.router.top_k == k && c.balance.alpha_expert == 0.5, "%s", p->name);
        check_echo(&c, p->name);
    }
}

static void test_deepseek(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "[router]\npreset = deepseek_v2\ntop_k = 4\n", "", 8, &st);
    CHECK(c.model.num_experts == 160 && c.model.num_shared_experts == 2 &&
          c.router.topk_group == 3 && c.router.group_limit == MOE_GROUP_MAX);
    CHECK(c.router.routed_scaling_factor == 16 && !c.router.scale_normalized &&
          !c.router.norm_single && c.comm_limit == 3);
    CHECK(c.balance.alpha_expert == 0.003 && c.balance.alpha_device == 0.05 &&
          c.balance.alpha_comm == 0.02);
    char *text = print(&c);
    CHECK_MSG(strstr(text, "\ntop_k = 4   ; overrides preset deepseek_v2: 6\n") != NULL, "%s",
              text);
    CHECK(strstr(text, "Device-level dropping") != NULL);
    free(text);
    expect_resolve("router.preset=deepseek_v2", 2,
                   "preset deepseek_v2: router.topk_group = 3: at most router.num_groups = 2 is "
                   "allowed (0 = all; each device is a group); there is one device for each of 2 "
                   "ranks here (cluster.devices = 0): add --set "
                   "cluster.devices=8, or start 8 ranks (mpirun -np 8)");
    expect_resolve("router.preset=deepsek_v4", 2,
                   "--set: router.preset = deepsek_v4: allowed is nothing or one of "
                   "deepseek_moe_2b, deepseek_moe_16b, deepseek_moe_145b, "
                   "deepseek_v2, "
                   "deepseek_v2_lite, deepseek_v3, deepseek_v2_mini, deepseek_v3_mini, mixtral, "
                   "qwen2_moe, olmoe, switch, gshard, "
                   "mixlora, mixlora_switch, mixlora_dynamic, megatron, "
                   "deepspeed_top1, deepspeed_top2, deepspeed_topk, tutel, fastmoe_naive, "
                   "fastmoe_gshard, fastmoe_switch (nearest is deepseek_v2)");
}

static char *read_file(const char *path, int64_t *length) {
    FILE *in = fopen(path, "rb");
    char *text = malloc(1 << 16);
    *length = in != NULL ? (int64_t)fread(text, 1, 1 << 16, in) : -1;
    if (in != NULL) {
        fclose(in);
    }
    return text;
}

/* Every file of configs/ parses, resolves for some number of ranks, and its echo is a fixed point.
 */
static void test_configs(void) {
    char path[512], name[300];
    source_path(path, sizeof path, "configs");
    DIR *folder = opendir(path);
    int count = 0;
    CHECK(folder != NULL);
    if (folder == NULL) {
        return;
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        int64_t length;
        moe_config c;
        moe_status st = {0};
        if (strstr(entry->d_name, ".ini") == NULL) {
            continue;
        }
        snprintf(name, sizeof name, "configs/%s", entry->d_name);
        source_path(path, sizeof path, name);
        char *text = read_file(path, &length);
        moe_config_defaults(&c);
        moe_config_parse(&c, text, length, path, &st);
        moe_config_resolve(&c, strstr(path, "quickstart") != NULL ? 8 : 1, &st);
        CHECK_MSG(st.code == MOE_OK, "%s", st.message);
        if (st.code == MOE_OK) {
            check_echo(&c, path);
        }
        free(text);
        count++;
    }
    closedir(folder);
    CHECK_MSG(count >= 14, "%d", count);
}

/* interface.md: the quickstart stays valid under these changes. */
static void test_quickstart(void) {
    static const char *const changes[] = {"",
                                          "cluster.devices=4",
                                          "cluster.devices=8",
                                          "cluster.devices=64",
                                          "model.num_experts=64",
                                          "model.num_experts=256",
                                          "router.top_k=1",
                                          "router.top_k=2",
                                          "router.top_k=8",
                                          "router.topk_group=1",
                                          "router.topk_group=4",
                                          "model.hidden_size=64",
                                          "data.source=text data.path=/x",
                                          "data.source=logits data.path=/x",
                                          "data.source=routing data.path=/x",
                                          "router.group_limit=none"};
    int64_t length;
    char path[512];
    source_path(path, sizeof path, "configs/quickstart.ini");
    char *text = read_file(path, &length);
    CHECK(length > 0);
    if (length > 0) {
        text[length] = '\0';
    }
    for (size_t i = 0; length > 0 && i < sizeof changes / sizeof changes[0]; i++) {
        moe_config c;
        moe_status st;
        CHECK_MSG(resolve(&c, text, changes[i], 4, &st)[0] == '\0', "%s: %s", changes[i],
                  st.message);
        CHECK(c.router.preset[0] == '\0' && c.router.bias_file[0] == '\0');
    }
    free(text);
}

int main(void) {
    RUN(test_lines);
    RUN(test_bytes);
    RUN(test_set);
    RUN(test_combinations);
    RUN(test_too_few_devices);
    RUN(test_hosts, 4, 1, 0, 4);
    RUN(test_hosts, 4, 2, 0, 2);
    RUN(test_hosts, 4, 2, 64, 32);
    RUN(test_hosts, 8, 8, 16, 2);
    RUN(test_odd_hosts, (moe_config_hosts){.count = 2, .unequal = true}, NULL,
        "default: cluster.devices_per_node = 0: each host would be a node, and these hosts have "
        "different numbers of ranks: start as many on each, or give the number of devices of a "
        "node");
    RUN(test_odd_hosts, (moe_config_hosts){.count = 2, .mixed = true}, NULL,
        "default: cluster.devices_per_node = 0: each host would be a node, and the ranks of a host "
        "do not follow each other: map ranks by slot and not by node, or give the number of "
        "devices of a node");
    RUN(test_odd_hosts, (moe_config_hosts){.count = 2, .unequal = true, .mixed = true},
        "cluster.devices_per_node=2", "");
    RUN(test_not_yet);
    RUN(test_chunks);
    RUN(test_attention);
    RUN(test_attention_widths);
    RUN(test_capacity);
    RUN(test_comm_limit);
    RUN(test_derived);
    RUN(test_segmentation);
    RUN(test_recorded);
    RUN(test_presets);
    RUN(test_deepseek);
    RUN(test_configs);
    RUN(test_quickstart);
    return check_verdict();
}
