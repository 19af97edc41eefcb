/* bench_placement.c: the balancers on 58 layers of 256 experts, 288 slots, 32 devices and 4 nodes:
 * milliseconds for all layers, with loads as skewed as DeepSeek-R1's. The aim of EPLB is 50 ms,
 * that of joint 5 s, that of all together 10 s. The yardstick `optimal` is for small problems and
 * stands apart. The second column is EPLB's time in the same run.
 *
 * bench: np=1 */
#include <math.h>

#include "base/rng.h"
#include "bench.h"
#include "placement/balancer.h"

enum { LAYERS = 58, EXPERTS = 256, DEVICES = 32, NODES = 4, SLOTS = 9 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Popularity falls as rank^-0.6; expert e of layer l has the rank that its random key gives. */
static void fill_loads(double *load, uint64_t layer) {
    for (uint64_t e = 0; e < EXPERTS; e++) {
        const double rank = moe_rng_uniform((moe_rng){1, MOE_RNG_TEST}, layer, e, 0) * EXPERTS;
        load[e] = floor(1e5 * pow(1 + rank, -0.6));
    }
}

/* Experts of a topic are chosen together ten times as often as others. */
static void fill_pairs(const double *load, double *pairs) {
    double sum = 0;
    for (int32_t e = 0; e < EXPERTS; e++) {
        sum += load[e];
    }
    for (int32_t e = 0; e < EXPERTS; e++) {
        for (int32_t f = 0; f < EXPERTS; f++) {
            pairs[e * EXPERTS + f] =
                e == f ? 0 : (e % 16 == f % 16 ? 20 : 2) * load[e] * load[f] / sum;
        }
    }
}

static double seconds_of(const moe_balancer *b, const double *load, const double *pairs) {
    moe_balancer_answer a = {0};
    const double begin = now();
    for (int l = 0; l < LAYERS; l++) {
        const moe_balancer_problem p = {.num_experts = EXPERTS,
                                        .devices = DEVICES,
                                        .nodes = NODES,
                                        .groups = 8,
                                        .slots_per_device = SLOTS,
                                        .load = load + l * EXPERTS,
                                        .pairs = pairs + (int64_t)l * EXPERTS * EXPERTS};
        moe_status st = {0};
        if (moe_balancer_check(b, &p, &st) == MOE_OK) {
            moe_balancer_place(b, &p, &a);
        }
    }
    moe_balancer_answer_free(&a);
    return now() - begin;
}

static void print_row(const char *name, double seconds, double eplb, const char *aim) {
    printf("58 layers, 256 experts, 288 slots: %s\t%.3f\t%.3f\tms\t%.3f\t-\t%s\n", name,
           1e3 * seconds, 1e3 * eplb, eplb / seconds, aim);
    fflush(stdout);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    double *load = moe_alloc(LAYERS * EXPERTS, sizeof *load, "bench");
    double *pairs = moe_alloc((int64_t)LAYERS * EXPERTS * EXPERTS, sizeof *pairs, "bench");
    for (int l = 0; l < LAYERS; l++) {
        fill_loads(load + l * EXPERTS, (uint64_t)l);
        fill_pairs(load + l * EXPERTS, pairs + (int64_t)l * EXPERTS * EXPERTS);
    }
    double eplb = seconds_of(moe_balancer_find("eplb"), load, pairs), all = 0;
    for (int i = 0; i < moe_num_balancers; i++) {
        const char *name = moe_balancers[i].name;
        if (strcmp(name, "optimal") != 0) {
            const double seconds = seconds_of(&moe_balancers[i], load, pairs);
            all += seconds;
            print_row(name, seconds, eplb,
                      strcmp(name, "eplb") == 0    ? "50 ms"
                      : strcmp(name, "joint") == 0 ? "5 s"
                                                   : "-");
        }
    }
    print_row("all together", all, eplb, "10 s");
    moe_free(load);
    moe_free(pairs);
    moe_comm_finalize(&comm);
    return 0;
}
