/* unit_router_keys.c: what router.method implies for other keys, and which combinations of router
 * and loss keys are refused. */
#include <string.h>

#include "check.h"
#include "config/config.h"

/* The text parsed, assignments (blank-separated) set, and resolved; the message, "" when all is
 * well. */
static const char *resolve(
    moe_config *c, const char *text, const char *assignments, int ranks, moe_status *st) {
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

int main(void) {
    RUN(test_refused);
    RUN(test_implied);
    return check_verdict();
}
