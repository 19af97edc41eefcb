/* unit_router_keys.c: what router.method implies for other keys, and which combinations of router
 * and loss keys are refused. */
#include <string.h>

#include "check.h"
#include "config/config.h"

/* The text parsed, assignments (blank-separated) set, and resolved; the message, "" when all is
 * well. */
static const char *resolve(moe_config *c,
                           const char *text,
                           const char *assignments,
                           int ranks,
                           moe_status *st) {
    char one[256];
    memset(st, 0, sizeof *st);
    moe_config_defaults(c);
    moe_config_parse(c, text, (int64_t)strlen(text), "test.ini", st);
    while (*assignments != '\0' && st->code == MOE_OK) {
        const size_t length = strcspn(assignments, " ");
        snprintf(one, sizeof one, "%.*s", (int)length, assignments);
        moe_config_set(c, one, st);
        assignments += length + strspn(assignments + length, " ");
    }
    if (st->code == MOE_OK) {
        moe_config_resolve(c, ranks, st);
    }
    return st->message;
}

/* Keys that do not go together: both are named, and what would be consistent. */
static void test_refused(void) {
    static const struct {
        const char *set, *first, *second;
    } bad[] = {
        {"router.method=expert_choice router.group_limit=max", "router.method",
         "router.group_limit"},
        {"router.method=random router.group_limit=max", "router.method", "router.group_limit"},
        {"router.method=switch router.top_k=2", "router.method", "router.top_k"},
        {"router.method=switch router.norm_topk_prob=yes", "router.method",
         "router.norm_topk_prob"},
        {"router.method=gshard router.top_k=3", "router.method", "router.top_k"},
        {"router.method=top_p router.score_func=sigmoid", "router.method", "router.score_func"},
        {"router.method=hash router.bias_file=b.npy", "router.bias_file", "router.method"},
        {"router.method=sinkhorn router.bias_update_rate=0.1", "router.bias_update_rate",
         "router.method"},
        {"router.temperature=2", "router.temperature", "router.method"},
        {"router.second_choice=random", "router.second_choice", "router.method"},
        {"balance.load_form=tutel", "balance.load_form", "router.noise"},
        {"balance.load_loss=0.1", "balance.load_loss", "balance.load_form"},
        {"router.method=hash data.source=routing data.path=x.npy", "router.method", "data.source"},
        {"router.method=top_p router.group_limit=quota", "router.method", "router.group_limit"},
        {"balance.comm_count_local=no balance.comm_count=selections", "balance.comm_count_local",
         "balance.comm_count"},
        {"run.mode=train data.source=routing data.path=x.npy", "run.mode", "data.source"},
        {"run.mode=train data.source=logits data.path=x.npy", "run.mode", "data.source"},
    };
    moe_config c;
    moe_status st;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        resolve(&c, "", bad[i].set, 4, &st);
        CHECK_MSG(st.code == MOE_USER && strstr(st.message, bad[i].first) &&
                      strstr(st.message, bad[i].second),
                  "%s: %s", bad[i].set, st.message);
    }
    static const char *const outside[] = {"router.top_p=0", "router.top_p=1.1",
                                          "router.temperature=0", "router.temperature=-1"};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        CHECK_MSG(strstr(resolve(&c, "", outside[i], 4, &st), "from ") != NULL, "%s: %s",
                  outside[i], st.message);
    }
}

/* A method given with --set is not held back by the file's K or group limit. */
static void test_implied(void) {
    moe_config c;
    moe_status st;
    resolve(&c, "[router]\ntop_k = 6\ngroup_limit = max\n", "router.method=round_robin", 4, &st);
    CHECK(st.code == MOE_OK && c.router.group_limit == MOE_GROUP_NONE && c.router.top_k == 6);
    resolve(&c, "[router]\ntop_k = 6\n", "router.method=switch", 4, &st);
    CHECK(st.code == MOE_OK && c.router.top_k == 1);
    resolve(&c, "", "router.method=sinkhorn router.top_k=1", 4, &st);
    CHECK(st.code == MOE_OK && c.router.score_func == MOE_SCORE_SIGMOID);
    resolve(&c, "", "router.method=top_p", 4, &st);
    CHECK(st.code == MOE_OK && c.router.top_k == c.model.num_experts);
    resolve(&c, "", "router.method=expert_choice", 4, &st);
    CHECK(st.code == MOE_OK && moe_config_most_experts(&c) == c.model.num_experts &&
          c.comm_limit == 4);
}

/* A recorded routing has no choice to be made, and brings its own K: neither what a preset says of
 * a choice nor the default of top_k is in the way. A method that was given is. */
static void test_recorded(void) {
    static const char *const source = "data.source=routing data.path=x.npy ";
    static const char *const fits[] = {
        "router.preset=gshard", "router.preset=mixlora_dynamic", "model.num_experts=4",
        "router.group_limit=max router.topk_group=1 model.num_experts=8",
        "router.group_limit=quota router.topk_group=4"};
    char set[256];
    moe_config c;
    moe_status st;
    for (size_t i = 0; i < sizeof fits / sizeof fits[0]; i++) {
        snprintf(set, sizeof set, "%s%s", source, fits[i]);
        resolve(&c, "", set, 4, &st);
        CHECK_MSG(st.code == MOE_OK && c.router.method == MOE_METHOD_TOPK &&
                      c.router.second_choice == MOE_SECOND_BEST,
                  "%s: %s", set, st.message);
    }
    snprintf(set, sizeof set, "%srouter.group_limit=quota router.topk_group=2", source);
    resolve(&c, "", set, 4, &st);
    CHECK(st.code == MOE_OK);
    CHECK(moe_config_recorded_top_k(&c, 3, &st) == MOE_USER && strstr(st.message, "quota"));
}

/* The most devices that m of the groups lie on, by trying all sets of groups. */
static int32_t span_by_trying(int32_t experts, int32_t groups, int32_t devices, int32_t m) {
    const int32_t size = experts / groups, share = experts / devices;
    int32_t most = 0;
    for (uint32_t set = 0; set < 1u << groups; set++) {
        uint32_t reached = 0;
        for (int32_t i = 0; i < experts; i++) {
            reached |= (set >> (i / size) & 1) << (i / share);
        }
        if (__builtin_popcount(set) == m && __builtin_popcount(reached) > most) {
            most = __builtin_popcount(reached);
        }
    }
    return most;
}

/* Groups that are devices, lie inside devices, have several, or straddle their borders. */
static void test_span(void) {
    moe_config c;
    moe_config_defaults(&c);
    for (int32_t groups = 1; groups <= 10; groups++) {
        for (int32_t devices = 1; devices <= 12; devices++) {
            for (int32_t m = 1; m <= groups; m++) {
                const int32_t experts = groups * devices;
                c.router.num_groups = groups;
                c.router.topk_group = m;
                c.cluster.devices = devices;
                const int32_t span = moe_config_group_span(&c);
                const int32_t tried = span_by_trying(experts, groups, devices, m);
                CHECK_MSG(span == tried, "%d of %d groups on %d devices: %d, not %d", m, groups,
                          devices, span, tried);
            }
        }
    }
    moe_status st;
    resolve(&c, "",
            "model.num_experts=12 router.top_k=4 router.group_limit=max router.num_groups=3 "
            "router.topk_group=1",
            4, &st);
    CHECK(st.code == MOE_OK && c.comm_limit == 2);
}

int main(void) {
    RUN(test_refused);
    RUN(test_implied);
    RUN(test_recorded);
    RUN(test_span);
    return check_verdict();
}
