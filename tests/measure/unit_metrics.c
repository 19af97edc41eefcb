/* unit_metrics.c: the metrics of a step: clearing, and merging of checks. */
#include "check.h"
#include "made_record.h"

static void check_cleared(void) {
    moe_step_metrics r;
    moe_step_metrics_init(&r, 2, 12, 4);
    CHECK(r.num_layers == 2 && r.num_experts == 12 && r.devices == 4 && r.num_checks == 0);
    moe_layer_metrics *l = &r.layer[1];
    CHECK(isnan(l->loss_raw[MOE_LOSS_EXPERT]) && isnan(l->ideal[MOE_LOSS_Z]) &&
          isnan(l->loss_by_scope[MOE_SCOPE_GLOBAL][MOE_LOSS_COMM]));
    CHECK(l->total == 0 && l->selections == 0 && isnan(l->mean_devices_unlimited));
    for (int i = 0; i < 12; i++) {
        l->counts_per_expert[i] = l->kept_per_expert[i] = 7;
    }
    for (int i = 0; i < 4; i++) {
        l->counts_per_device[i] = l->distinct_tokens_per_device[i] = l->sent_rows[i] =
            l->received_rows[i] = 8;
    }
    int64_t nines[16];
    for (int i = 0; i < 16; i++) {
        nines[i] = 9;
    }
    moe_sparse_from_array(&l->matrix, nines, 4, 4);
    CHECK(l->counts_per_expert[11] == 7 && l->kept_per_expert[11] == 7 &&
          l->received_rows[3] == 8 && moe_sparse_at(&l->matrix, 0, 0) == 9);

    int64_t *counts = l->counts_per_expert;
    l->total = r.seconds = 3;
    l->tokens_by_reach[64] = 5;
    moe_step_metrics_check(&r, "a", true, false, "no");
    moe_step_metrics_clear(&r);
    CHECK(r.layer[1].counts_per_expert == counts && counts[11] == 0 && l->kept_per_expert[0] == 0 &&
          moe_sparse_at(&l->matrix, 3, 3) == 0);
    CHECK(l->total == 0 && l->tokens_by_reach[64] == 0 && r.num_checks == 0 && r.seconds == 0);
    moe_step_metrics_free(&r);
    CHECK(r.layer == NULL);
}

static void check_merging(void) {
    moe_step_metrics r;
    moe_step_metrics_init(&r, 1, 1, 1);
    moe_step_metrics_check(&r, "sums", true, true, "layer %d", 0);
    moe_step_metrics_check(&r, "sums", true, true, "layer %d", 1);
    moe_step_metrics_check(&r, "later", false, false, "not yet");
    CHECK(moe_step_metrics_all_passed(&r) && r.num_checks == 2 &&
          !strcmp(r.check[0].detail, "layer 0"));
    moe_step_metrics_check(&r, "later", true, true, "now");
    CHECK(r.check[1].made && r.check[1].passed && !strcmp(r.check[1].detail, "now"));
    moe_step_metrics_check(&r, "sums", true, false, "broken in layer %d", 2);
    moe_step_metrics_check(&r, "sums", true, false, "broken in layer %d", 3);
    moe_step_metrics_check(&r, "sums", true, true, "fine in layer 4");
    moe_step_metrics_check(&r, "sums", false, false, "not made in layer 5");
    CHECK(r.num_checks == 2 && !r.check[0].passed && r.check[0].made &&
          !strcmp(r.check[0].detail, "broken in layer 2"));
    CHECK(!moe_step_metrics_all_passed(&r));
    moe_step_metrics_check(&r, "long", true, true, "%0300d", 1);
    CHECK_EQ(strlen(r.check[2].detail), sizeof r.check[2].detail - 1);
    moe_step_metrics_free(&r);
}

int main(void) {
    RUN(check_cleared);
    RUN(check_merging);
    return check_verdict();
}
