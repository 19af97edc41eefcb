/* unit_balancers.c: the balancers: EPLB's golden cases, figures that are known, and what has to
 * hold of every answer, over seeds. */
/* ctest: timeout=120 */
#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "golden_case.h"
#include "placement/balancer.h"

/* --- problems --- */

static double draw(uint64_t seed, uint64_t i) {
    return moe_rng_uniform((moe_rng){seed, MOE_RNG_TEST}, i, 0, 0);
}

/* Whole numbers that fall as 1 / rank^skew, dealt to the experts in a random order. */
static double *skewed_loads(int32_t n, double skew, uint64_t seed) {
    double *load = moe_alloc(n, sizeof *load, "test");
    for (int32_t i = 0; i < n; i++) {
        load[i] = floor(100000 * pow(i + 1, -skew) * (0.8 + 0.4 * draw(seed, (uint64_t)i)));
    }
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t j = (int32_t)(draw(seed, (uint64_t)(1000 + i)) * (i + 1));
        const double kept = load[i];
        load[i] = load[j];
        load[j] = kept;
    }
    return load;
}

/* Pairs as if every expert were chosen with one of its `size` neighbours more often than with
 * others; at most half of the smaller load. */
static double *clustered_pairs(const double *load, int32_t n, int32_t size) {
    double *pairs = moe_alloc_zero((int64_t)n * n, sizeof *pairs, "test"), sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += load[i];
    }
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n; j++) {
            const double share = i % (n / size) == j % (n / size) ? 20 : 2;
            pairs[i * n + j] =
                i == j ? 0 : fmin(share * load[i] * load[j] / sum, 0.5 * fmin(load[i], load[j]));
        }
    }
    return pairs;
}

static double max_load(const moe_balancer_answer *a, int32_t devices) {
    double load[1024];
    return moe_balancer_device_load(a, devices, load);
}

static double place(const char *name, const moe_balancer_problem *p, moe_balancer_answer *a) {
    moe_status st = {0};
    const moe_balancer *b = moe_balancer_find(name);
    CHECK_MSG(b && moe_balancer_check(b, p, &st) == MOE_OK, "%s %s", name, st.message);
    moe_balancer_place(b, p, a);
    return max_load(a, p->devices);
}

/* --- EPLB's golden cases --- */

/* log2phy of expert e, as a set, is the slots in which it is. */
static bool same_slots(const golden_array *log2phy,
                       int64_t row,
                       int64_t width,
                       const int32_t *expert,
                       int32_t slots,
                       int32_t e) {
    int32_t listed = 0, found = 0;
    for (int64_t i = 0; i < width; i++) {
        const double slot = golden_f64(log2phy, row * width + i);
        if (slot >= 0) {
            listed++;
            found += expert[(int32_t)slot] == e;
        }
    }
    int32_t here = 0;
    for (int32_t s = 0; s < slots; s++) {
        here += expert[s] == e;
    }
    return listed == found && found == here;
}

static void test_eplb(const char *name) {
    golden_case g = {.dir = MOESIM_GOLDEN_DIR "/eplb", .name = name};
    g.settings = golden_json(&g, "expected.json");
    golden_array weight = golden_load_array(&g, "weight.npy");
    golden_array phy2log = golden_load_array(&g, "phy2log.npy");
    golden_array log2phy = golden_load_array(&g, "log2phy.npy");
    golden_array logcnt = golden_load_array(&g, "logcnt.npy");
    const int32_t n = golden_int(&g, "experts"), devices = golden_int(&g, "num_gpus"),
                  slots = golden_int(&g, "num_replicas");
    const bool global = golden_is(&g, "policy", "global");
    const json_t *most = json_object_get(g.settings, "max_load_per_gpu");
    double *load = moe_alloc(n, sizeof *load, "test");
    moe_balancer_answer a = {0};
    for (int32_t l = 0; l < golden_int(&g, "layers"); l++) {
        for (int32_t e = 0; e < n; e++) {
            load[e] = golden_f64(&weight, (int64_t)l * n + e);
        }
        /* the global cases have numbers of groups and nodes that the reference falls back on */
        moe_balancer_problem p = {n, devices, 1, 1, slots / devices, load, .pairs = NULL};
        if (!global) {
            p.nodes = golden_int(&g, "num_nodes");
            p.groups = golden_int(&g, "num_groups");
        }
        const double found = place(global ? "eplb_global" : "eplb", &p, &a);
        CHECK_NEAR(found, json_number_value(json_array_get(most, (size_t)l)), 1e-12);
        for (int32_t s = 0; s < slots; s++) {
            CHECK_EQ(a.expert[s], (int32_t)golden_f64(&phy2log, (int64_t)l * slots + s));
        }
        for (int32_t e = 0; e < n; e++) {
            CHECK_EQ(a.replicas[e], (int32_t)golden_f64(&logcnt, (int64_t)l * n + e));
            CHECK(same_slots(&log2phy, (int64_t)l * n + e, log2phy.header.shape[2], a.expert, slots,
                             e));
        }
    }
    moe_balancer_answer_free(&a);
    moe_free(load);
    moe_free(weight.data);
    moe_free(phy2log.data);
    moe_free(log2phy.data);
    moe_free(logcnt.data);
    json_decref(g.settings);
}

/* --- figures that are known --- */

static void test_yardstick(void) {
    const double load[] = {600, 560, 120, 120, 20, 10, 10, 10};
    const moe_balancer_problem p = {8, 8, 1, 1, 2, load, .pairs = NULL};
    moe_balancer_answer a = {0};
    CHECK_EQ(place("eplb", &p, &a), 232.0);
    CHECK_EQ(place("eplb_global", &p, &a), 232.0);
    const double flashlb = place("flashlb", &p, &a);
    CHECK_MSG(flashlb <= 205, "%g", flashlb);
    CHECK_NEAR(place("optimal", &p, &a), 590.0 / 3, 1e-12);
    moe_balancer_answer_free(&a);
}

/* Loads as skewed as DeepSeek-R1's at EP 32: (max - mean)/mean of about 1.5 falls to about 0.1. */
static void test_skew_of_r1(void) {
    moe_balancer_answer a = {0};
    double before = 0, eplb = 0, flashlb = 0;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        double *load = skewed_loads(256, 0.6, seed);
        const moe_balancer_problem plain = {256, 32, 4, 8, 8, load, .pairs = NULL};
        const moe_balancer_problem p = {256, 32, 4, 8, 9, load, .pairs = NULL};
        double mean = 0;
        for (int i = 0; i < 256; i++) {
            mean += load[i] / 32;
        }
        before += place("block", &plain, &a) / mean - 1;
        eplb += place("eplb", &p, &a) / mean - 1;
        flashlb += place("flashlb", &p, &a) / mean - 1;
        moe_free(load);
    }
    printf("(max - mean)/mean: blocks %.3f, eplb %.3f, flashlb %.3f\n", before / 8, eplb / 8,
           flashlb / 8);
    CHECK(before / 8 > 1 && before / 8 < 2.5);
    CHECK(eplb / 8 < 0.25);
    CHECK(flashlb <= eplb);
    moe_balancer_answer_free(&a);
}

/* --- what has to hold of every answer --- */

static void check_answer(const char *name,
                         const moe_balancer_problem *p,
                         const moe_balancer_answer *a) {
    double *served = moe_alloc_zero(p->num_experts, sizeof *served, "test");
    int32_t *replicas = moe_alloc_zero(p->num_experts, sizeof *replicas, "test");
    CHECK_EQ(a->slots, a->slots_per_device * p->devices);
    for (int32_t s = 0; s < a->slots; s++) {
        CHECK_MSG(a->expert[s] >= 0 && a->expert[s] < p->num_experts, "%s slot %d", name, s);
        CHECK_MSG(a->served[s] >= 0, "%s serves %g", name, a->served[s]);
        served[a->expert[s]] += a->served[s];
        replicas[a->expert[s]]++;
    }
    for (int32_t e = 0; e < p->num_experts; e++) {
        CHECK_MSG(a->replicas[e] >= 1 && a->replicas[e] == replicas[e], "%s expert %d", name, e);
        CHECK_MSG(fabs(served[e] - p->load[e]) <= 1e-9 * p->load[e], "%s serves %.17g of %.17g",
                  name, served[e], p->load[e]);
    }
    moe_free(served);
    moe_free(replicas);
}

/* Two answers to one problem are the same to the last bit. */
static void check_again(const moe_balancer *b,
                        const moe_balancer_problem *p,
                        const moe_balancer_answer *a) {
    moe_balancer_answer again = {0};
    moe_balancer_place(b, p, &again);
    CHECK_EQ(again.slots, a->slots);
    CHECK(memcmp(again.expert, a->expert, (size_t)a->slots * sizeof *a->expert) == 0);
    CHECK(memcmp(again.served, a->served, (size_t)a->slots * sizeof *a->served) == 0);
    moe_balancer_answer_free(&again);
}

static void test_invariants(int32_t n,
                            int32_t devices,
                            int32_t nodes,
                            int32_t groups,
                            int32_t slots,
                            uint64_t seed) {
    double *load = skewed_loads(n, 0.3 * (double)(seed % 5), seed);
    double *pairs = clustered_pairs(load, n, n > 4 ? 4 : 1);
    const moe_balancer_problem p = {n, devices, nodes, groups, slots, load, pairs, .alpha = 0};
    moe_balancer_answer a = {0};
    for (int i = 0; i < moe_num_balancers; i++) {
        moe_status st = {0};
        if (moe_balancer_check(&moe_balancers[i], &p, &st) != MOE_OK) {
            CHECK_MSG(strncmp(st.message, moe_balancers[i].name, strlen(moe_balancers[i].name)) ==
                          0,
                      "%s", st.message);
            continue;
        }
        moe_balancer_place(&moe_balancers[i], &p, &a);
        check_answer(moe_balancers[i].name, &p, &a);
        CHECK(moe_balancers[i].timing == MOE_BALANCER_PLANS || a.slots_per_device == slots);
        check_again(&moe_balancers[i], &p, &a);
        load[0] += 1000; /* another batch under the same placement */
        moe_balancer_split(&moe_balancers[i], &p, &a);
        check_answer(moe_balancers[i].name, &p, &a);
        load[0] -= 1000;
    }
    moe_balancer_answer_free(&a);
    moe_free(load);
    moe_free(pairs);
}

/* MoonEP: every device has exactly its share. */
static void test_equality(int32_t n, int32_t devices, uint64_t seed) {
    double *load = skewed_loads(n, 1.5, seed), sum = 0, each[256];
    for (int32_t e = 0; e < n; e++) {
        sum += load[e];
    }
    load[0] += devices * ceil(sum / devices) - sum; /* so that a share is a whole number */
    const double share = ceil(sum / devices);
    const moe_balancer_problem p = {n, devices, 1, 1, n / devices, load, .pairs = NULL};
    moe_balancer_answer a = {0};
    place("moonep", &p, &a);
    moe_balancer_device_load(&a, devices, each);
    for (int32_t d = 0; d < devices; d++) {
        CHECK_EQ(each[d], share);
    }
    CHECK(a.slots_per_device <= n / devices + 8);
    moe_balancer_answer_free(&a);
    moe_free(load);
}

/* LLEP: caps are kept, and no piece is smaller than the least batch. */
static void test_caps(double alpha, double least_share, uint64_t seed) {
    double *load = skewed_loads(64, 1.2, seed), each[16], mean = 0;
    for (int32_t e = 0; e < 64; e++) {
        mean += load[e] / 16;
    }
    const moe_balancer_problem p = {
        64, 16, 1, 1, 4, load, .pairs = NULL, .alpha = alpha, .least_batch = least_share * mean};
    moe_balancer_answer a = {0};
    place("llep", &p, &a);
    moe_balancer_device_load(&a, 16, each);
    for (int32_t d = 0; d < 16; d++) {
        /* each of a device's 4 experts may keep a piece that is not worth moving */
        CHECK_MSG(each[d] <= alpha * mean * (1 + 1e-9) + 4 * least_share * mean, "%g of %g",
                  each[d] / mean, alpha);
    }
    for (int32_t s = 0; s < a.slots; s++) {
        const bool foreign = a.expert[s] / 4 != s / a.slots_per_device;
        CHECK(!foreign || a.served[s] == 0 || a.served[s] >= least_share * mean);
    }
    moe_balancer_answer_free(&a);
    moe_free(load);
}

/* Within the slots that there are: no device has more copies than it has room for, and nobody is
 * busier than without copies; where the room suffices, MoonEP's devices are as even as ever. */
static void test_within_slots(const char *name, int32_t room, uint64_t seed) {
    double *load = skewed_loads(64, 1.2, seed), each[16];
    moe_balancer_problem p = {64, 16, 1, 1, 4 + room, load, .pairs = NULL, .within_slots = true};
    moe_balancer_answer a = {0}, free_of_limits = {0};
    const double most = place(name, &p, &a);
    check_answer(name, &p, &a);
    CHECK_EQ(a.slots_per_device, 4 + room);
    double home = 0;
    for (int32_t d = 0; d < 16; d++) {
        each[d] = load[4 * d] + load[4 * d + 1] + load[4 * d + 2] + load[4 * d + 3];
        home = fmax(home, each[d]);
    }
    CHECK(most <= home * (1 + 1e-12));
    p.within_slots = false;
    p.slots_per_device = 4;
    const double free_most = place(name, &p, &free_of_limits);
    if (free_of_limits.slots_per_device <= 4 + room) {
        CHECK_NEAR(most, free_most, 1e-9 * free_most);
    }
    moe_balancer_answer_free(&a);
    moe_balancer_answer_free(&free_of_limits);
    moe_free(load);
}

/* LPLB never does worse than without its flows, and on every link moves at most the expert's load;
 * where the heaviest expert alone exceeds the mean by its copies' reach, the bound of t is sharp.
 */
static void test_flows(enum moe_links links, int32_t nodes, uint64_t seed) {
    double *load = skewed_loads(64, 0.9, seed), plain_most;
    const moe_balancer_problem plain = {64, 16, 1, 1, 4, load, .pairs = NULL};
    moe_balancer_problem p = {64, 16, nodes, 1, 6, load, .pairs = NULL, .links = links};
    moe_balancer_answer a = {0}, b = {0};
    plain_most = place("eplb_global", &plain, &a);
    const double most = place("lplb", &p, &b);
    CHECK_MSG(most <= plain_most * (1 + 1e-9), "%g %g", most, plain_most);
    CHECK_EQ(moe_balancer_wasted(&b, 16), 0);
    check_answer("lplb", &p, &b);
    moe_balancer_answer_free(&a);
    moe_balancer_answer_free(&b);
    moe_free(load);
}

/* Two devices that copy each other's heaviest expert: the program evens them out. */
static void test_program(void) {
    const double load[] = {10, 1, 1, 1};
    const moe_balancer_problem p = {4, 2, 1, 1, 3, load, .pairs = NULL};
    moe_balancer_answer a = {0};
    CHECK_NEAR(place("lplb", &p, &a), 6.5, 1e-6);
    moe_balancer_answer_free(&a);
}

/* Nothing is better than the exhaustive search, and all replicas share evenly there. */
static void test_optimal(int32_t n, int32_t devices, int32_t slots, uint64_t seed) {
    double *load = skewed_loads(n, 0.9, seed);
    const moe_balancer_problem p = {n, devices, 1, 1, slots, load, .pairs = NULL};
    moe_balancer_answer a = {0};
    const double best = place("optimal", &p, &a);
    static const char *const others[] = {"block", "round_robin", "eplb_global", "flashlb"};
    for (int i = 0; i < 4; i++) {
        const double found = place(others[i], &p, &a);
        CHECK_MSG(found >= best * (1 - 1e-12), "%s %g, best %g", others[i], found, best);
    }
    CHECK(place("flashlb", &p, &a) <= place("eplb_global", &p, &a));
    moe_balancer_answer_free(&a);
    moe_free(load);
}

static double mean_of(const moe_balancer_problem *p) {
    double sum = 0;
    for (int32_t e = 0; e < p->num_experts; e++) {
        sum += p->load[e] / p->devices;
    }
    return sum;
}

/* EPIC: no swap of the heaviest and the lightest device is left that gains more than it costs. */
static void test_swaps(uint64_t seed) {
    double *load = skewed_loads(64, 0.6, seed), each[16];
    moe_balancer_problem p = {64, 16, 1, 1, 4, load, .pairs = NULL};
    moe_balancer_answer a = {0};
    const double cost = 0.005 * mean_of(&p), blocks = place("block", &p, &a);
    const double most = place("epic", &p, &a);
    moe_balancer_device_load(&a, 16, each);
    int32_t h = 0, l = 0;
    for (int32_t d = 0; d < 16; d++) {
        h = each[d] > each[h] ? d : h;
        l = each[d] < each[l] ? d : l;
    }
    for (int32_t i = h * 4; i < h * 4 + 4; i++) {
        for (int32_t j = l * 4; j < l * 4 + 4; j++) {
            const double change = a.served[i] - a.served[j];
            CHECK(fmax(each[h] - change, each[l] + change) >= each[h] - cost * (1 + 1e-9));
        }
    }
    CHECK(most <= blocks);
    p.move_cost = 1e30;
    CHECK_EQ(place("epic", &p, &a), blocks);
    moe_balancer_answer_free(&a);
    moe_free(load);
}

/* --- what is refused --- */

static void refused(const char *name, moe_balancer_problem p, const char *sentence) {
    moe_status st = {0};
    moe_balancer_check(moe_balancer_find(name), &p, &st);
    CHECK_EQ(st.code, MOE_USER);
    CHECK_STR(st.message, sentence);
}

static void test_refusals(void) {
    const double load[] = {1, 2, 3, 4, 5, 6}, bad[] = {1, 2, NAN, 4, 5, 6};
    refused("eplb", (moe_balancer_problem){6, 2, 1, 1, 2, load, .pairs = NULL},
            "eplb: 6 experts do not fit into 4 slots");
    refused("eplb", (moe_balancer_problem){6, 3, 2, 1, 2, load, .pairs = NULL},
            "eplb: 3 devices on 2 nodes make nodes of unequal size");
    refused("eplb", (moe_balancer_problem){6, 3, 1, 4, 2, load, .pairs = NULL},
            "eplb: 6 experts in 4 groups make groups of unequal size");
    refused("eplb", (moe_balancer_problem){6, 3, 1, 1, 2, bad, .pairs = NULL},
            "eplb: the load of expert 2 is nan, and a load is a number of tokens");
    refused("joint", (moe_balancer_problem){6, 3, 1, 1, 2, load, .pairs = NULL},
            "joint: loads alone do not say which experts are chosen together");
    refused("llep", (moe_balancer_problem){6, 4, 1, 1, 2, load, .pairs = NULL},
            "llep: 4 devices do not divide 6 experts");
    refused(
        "lplb",
        (moe_balancer_problem){6, 3, 1, 1, 3, load, .pairs = NULL, .links = MOE_LINKS_HYPERCUBE},
        "lplb: 3 devices do not make a hypercube");
    refused("optimal", (moe_balancer_problem){6, 3, 1, 1, 9, load, .pairs = NULL},
            "optimal: 6 experts in 27 slots are too many for a search of all");
    CHECK(moe_balancer_find("nothing") == NULL);
}

/* No load at all is a load too. */
static void test_nothing_chosen(void) {
    const double load[8] = {0}, pairs[64] = {0};
    const moe_balancer_problem p = {8, 4, 2, 4, 3, load, pairs, .alpha = 0};
    moe_balancer_answer a = {0};
    for (int i = 0; i < moe_num_balancers; i++) {
        CHECK_EQ(place(moe_balancers[i].name, &p, &a), 0.0);
        check_answer(moe_balancers[i].name, &p, &a);
    }
    moe_balancer_answer_free(&a);
}

int main(void) {
    RUN(test_eplb, "eplb_readme");
    RUN(test_eplb, "eplb_01_E12_R16_zipf");
    RUN(test_eplb, "eplb_02_E64_R80_uni");
    RUN(test_eplb, "eplb_03_E160_R192_zipf");
    RUN(test_eplb, "eplb_05_E256_R320_zipf_global");
    RUN(test_eplb, "eplb_06_E60_R72_global");
    RUN(test_eplb, "eplb_09_E128_R144_oneexpertpergpu");
    RUN(test_yardstick);
    RUN(test_skew_of_r1);
    for (uint64_t seed = 1; seed <= 10; seed++) {
        RUN(test_invariants, 64, 8, 2, 8, 10, seed);
        RUN(test_invariants, 12, 4, 2, 4, 4, seed);
        RUN(test_invariants, 8, 4, 1, 1, 4, seed);
        RUN(test_invariants, 10, 4, 2, 5, 3, seed);
        RUN(test_invariants, 6, 6, 3, 2, 2, seed);
        RUN(test_invariants, 4, 1, 1, 1, 6, seed);
        RUN(test_invariants, 128, 16, 4, 4, 8, seed);
        RUN(test_equality, 64, 8, seed);
        RUN(test_equality, 256, 32, seed);
        RUN(test_caps, 1, 1e-6, seed);
        RUN(test_caps, 1.2, 0.02, seed);
        for (int32_t room = 0; room <= 6; room += 2) {
            RUN(test_within_slots, "llep", room, seed);
            RUN(test_within_slots, "moonep", room, seed);
        }
        RUN(test_flows, MOE_LINKS_AUTO, 1, seed);
        RUN(test_flows, MOE_LINKS_CUBE, 1, seed);
        RUN(test_flows, MOE_LINKS_TORUS, 4, seed);
        RUN(test_flows, MOE_LINKS_HYPERCUBE, 4, seed);
        RUN(test_optimal, 8, 8, 2, seed);
        RUN(test_optimal, 6, 4, 3, seed);
        RUN(test_optimal, 7, 2, 6, seed);
        RUN(test_swaps, seed);
    }
    RUN(test_program);
    RUN(test_refusals);
    RUN(test_nothing_chosen);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
