/* unit_files.c: which names are files of a run, so that --force removes these and nothing else. */
#include "check.h"
#include "output/files.h"

static void check_known(void) {
    static const char *const known[] = {
        "summary.json",  "summary.json.tmp",  "metrics.jsonl", "explain.json",
        "report.html",   "comm_matrix.npy",   "y.npy",         "y_layer0.npy",
        "y_layer12.npy", "dlogits_layer3.npy"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        CHECK_MSG(moe_result_file_is_known(known[i]), "%s", known[i]);
    }
}

static void check_others(void) {
    static const char *const others[] = {
        "",       "notes.txt",        "summary.json.old", "mysummary.json", "y",
        "yy.npy", "y_layer0.npy.tmp", "y_layer0x.npy",    "y_layers.npy",   "summary_layer0.json"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        CHECK_MSG(!moe_result_file_is_known(others[i]), "%s", others[i]);
    }
}

static void check_list(void) {
    for (int i = 0; i < MOE_NUM_RESULTS; i++) {
        CHECK_MSG(moe_result_file_is_known(moe_result_files[i].name), "%s",
                  moe_result_files[i].name);
    }
    CHECK_STR(moe_result_files[MOE_RESULT_COMM_MATRIX].name, "comm_matrix.npy");
    CHECK(moe_result_files[MOE_RESULT_SUMMARY].always && !moe_result_files[MOE_RESULT_Y].always);
    CHECK(moe_result_files[MOE_RESULT_Y].is_array && !moe_result_files[MOE_RESULT_CONFIG].is_array);
}

int main(void) {
    RUN(check_known);
    RUN(check_others);
    RUN(check_list);
    return check_verdict();
}
