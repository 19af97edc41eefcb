/* mpi_results.c: the results' folder: what is written reads back equal, folders that must not be
 * touched are refused, and a full disk is one sentence on every rank.
 *
 * ctest: f64 */
#include <errno.h>
#include <math.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "check.h"
#include "made_record.h"
#include "measure/figures.h"
#include "output/results.h"
#include "scratch_folder.h"

enum { LAYERS = 2, EXPERTS = 48, DEVICES = 8, STEPS = 2 };

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0);
    if (file) {
        fclose(file);
    }
}

static moe_topology *make_topologies(int ranks) {
    moe_topology *t = moe_alloc_zero(ranks, sizeof *t, "topologies");
    for (int q = 0; q < ranks; q++) {
        snprintf(t[q].host, sizeof t[q].host, "host%d", q / 2);
        snprintf(t[q].processor, sizeof t[q].processor, "processor \xff");
        t[q].threads = q + 1;
        t[q].core = -1;
    }
    return t;
}

/* Two steps and an end. */
static int whole_run(const moe_comm *comm,
                     const moe_config *c,
                     moe_step_metrics *r,
                     const char *folder,
                     bool force,
                     moe_status *st) {
    moe_results results;
    if (moe_results_open(comm, c, folder, force, &results, st) != MOE_OK) {
        return st->code;
    }
    for (int step = 1; step <= STEPS; step++) {
        made_record(r, c, step, 500);
        if (moe_results_step(comm, &results, c, r, st) != MOE_OK) {
            return st->code;
        }
    }
    r->layer[1].loss_raw[MOE_LOSS_COMM] = NAN;
    moe_topology *t = make_topologies(comm->size);
    int code = moe_results_close(comm, &results, c, r, t, 3.25, st);
    moe_results_free(&results);
    moe_free(t);
    return code;
}

/* --- what was written --- */

static double at_path(const json_t *o, const char *a, const char *b, const char *k) {
    o = a ? json_object_get(o, a) : o;
    o = b ? json_object_get(o, b) : o;
    o = json_object_get(o, k);
    return json_is_number(o) ? json_number_value(o) : NAN;
}

static void check_line(const moe_config *c, const json_t *o, int step) {
    moe_step_metrics r;
    double most = 0;
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    made_record(&r, c, step, 500);
    moe_figures f = moe_figures_of(&r);
    for (int l = 0; l < LAYERS; l++) {
        most += moe_imbalance_of(r.layer[l].counts_per_expert, EXPERTS).max_over_mean / LAYERS;
    }
    CHECK(at_path(o, NULL, NULL, "step") == step);
    CHECK(at_path(o, "loss", NULL, "total") == f.total &&
          at_path(o, "loss", NULL, "comm") == f.loss[MOE_LOSS_COMM]);
    CHECK(at_path(o, "loss_raw", NULL, "z") == f.raw[MOE_LOSS_Z]);
    CHECK(at_path(o, "volume", "combine", "remote_bytes") ==
          (double)f.volume[MOE_COMBINE].remote_bytes);
    CHECK(at_path(o, "volume", "dispatch", "rows") == (double)f.volume[MOE_COMBINE].rows);
    CHECK_NEAR(at_path(o, "balance", "expert", "max_over_mean"), most, 1e-15);
    CHECK(at_path(o, "balance", "sent", "idle") == 0 &&
          at_path(o, "time", NULL, "step") == r.seconds);
    CHECK(!json_object_get(o, "task_loss") &&
          !json_object_get(json_object_get(o, "volume"), "dispatch_backward"));
    CHECK(at_path(o, "time", "phases", "plan") == LAYERS * 0.003 &&
          at_path(o, NULL, NULL, "allreduce_bytes") == LAYERS * 4096);
    moe_step_metrics_free(&r);
}

static void check_metrics(const moe_config *c, const char *path) {
    char line[65536];
    int step = 0;
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    while (file && fgets(line, sizeof line, file)) {
        json_error_t error;
        json_t *o = json_loads(line, 0, &error);
        CHECK_MSG(o != NULL, "%s", error.text);
        check_line(c, o, ++step);
        json_decref(o);
    }
    CHECK_EQ(step, STEPS);
    if (file) {
        fclose(file);
    }
}

static void check_integers(const json_t *array, const int64_t *expected, int64_t n) {
    bool same = (int64_t)json_array_size(array) == n;
    for (int64_t i = 0; i < n && same; i++) {
        same = json_integer_value(json_array_get(array, (size_t)i)) == expected[i];
    }
    CHECK(same);
}

static void check_layer(const json_t *o, const moe_step_metrics *r, int index) {
    const moe_layer_metrics *l = &r->layer[index];
    check_integers(json_object_get(o, "counts_per_expert"), l->counts_per_expert, EXPERTS);
    check_integers(json_object_get(o, "kept_per_expert"), l->kept_per_expert, EXPERTS);
    check_integers(json_object_get(o, "counts_per_device"), l->counts_per_device, DEVICES);
    check_integers(json_object_get(o, "distinct_tokens_per_device"), l->distinct_tokens_per_device,
                   DEVICES);
    check_integers(json_object_get(o, "tokens_by_reach"), l->tokens_by_reach, DEVICES + 1);
    CHECK(at_path(o, "loss_raw", NULL, "expert") == l->loss_raw[MOE_LOSS_EXPERT]);
    CHECK(json_is_null(json_object_get(json_object_get(o, "loss_raw"), "comm")) ==
          isnan(l->loss_raw[MOE_LOSS_COMM]));
    CHECK(at_path(o, "loss", NULL, "device") == l->loss[MOE_LOSS_DEVICE] &&
          at_path(o, "loss", NULL, "total") == l->total);
    CHECK(json_object_get(json_object_get(o, "loss"), "z") == NULL);
    CHECK(json_is_null(json_object_get(json_object_get(o, "loss_ideal"), "z")) &&
          at_path(o, "loss_ideal", NULL, "expert") == 1);
    CHECK(at_path(o, "loss_by_scope", "global", "comm") ==
          l->loss_by_scope[MOE_SCOPE_GLOBAL][MOE_LOSS_COMM]);
    CHECK(at_path(o, NULL, NULL, "mean_devices_per_token") == l->mean_devices &&
          at_path(o, NULL, NULL, "dropped") == 0);
    const json_t *dispatch = json_object_get(json_object_get(o, "volume"), "dispatch");
    CHECK(at_path(dispatch, "by_level", "same_node", "rows") ==
          (double)l->volume[MOE_DISPATCH].by_level[MOE_LEVEL_NODE].rows);
    CHECK(at_path(dispatch, NULL, NULL, "metadata_bytes") ==
          (double)l->volume[MOE_DISPATCH].metadata_bytes);
    moe_imbalance m = moe_imbalance_of(l->received_rows, DEVICES);
    CHECK(at_path(o, "balance", "received", "gini") == m.gini &&
          at_path(o, "balance", "received", "p99") == m.p99);
}

/* Of two steps there is one drift; the worst of both is no less than that of the last one. */
static void check_over_steps(const moe_step_metrics *last, json_t *summary) {
    json_t *o = json_object_get(summary, "over_steps");
    double expert = 0, device = 0;
    for (int32_t l = 0; l < last->num_layers; l++) {
        const moe_layer_metrics *m = &last->layer[l];
        expert = fmax(expert, moe_imbalance_max_over_mean(m->counts_per_expert, EXPERTS));
        device = fmax(device, moe_imbalance_max_over_mean(m->counts_per_device, DEVICES));
    }
    CHECK(at_path(o, "expert_max_over_mean", NULL, "worst") >= expert &&
          at_path(o, "device_max_over_mean", NULL, "worst") >= device);
    const double drift = at_path(o, "drift", NULL, "first_to_last");
    CHECK(drift > 0 && drift < 1 && at_path(o, "drift", NULL, "step_mean") == drift &&
          at_path(o, "drift", NULL, "step_worst") == drift &&
          at_path(o, "drift", NULL, "worst_step") == 1);
}

/* Without what may depend on the number of ranks, the summary is the one of a single rank. */
static void check_rank_free(const moe_config *c, const moe_step_metrics *r, json_t *summary) {
    static const char *const local[] = {"ranks", "machine", "time"};
    moe_topology *t = make_topologies(1);
    moe_run_times times = {.steps = STEPS};
    json_t *alone = moe_summary_run(c, r, t, 1, &times, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        CHECK(json_object_del(summary, local[i]) == 0);
        json_object_del(alone, local[i]);
    }
    check_over_steps(r, summary);
    json_object_set(alone, "over_steps", json_object_get(summary, "over_steps"));
    CHECK(json_equal(alone, summary));
    json_decref(alone);
    moe_free(t);
}

static void check_summary(const moe_comm *comm,
                          const moe_config *c,
                          const moe_step_metrics *r,
                          const char *path) {
    json_error_t error;
    json_t *o = json_load_file(path, 0, &error);
    CHECK_MSG(o != NULL, "%s", error.text);
    if (!o) {
        return;
    }
    CHECK(!strcmp(json_string_value(json_object_get(o, "version")), MOESIM_VERSION));
    CHECK(at_path(o, NULL, NULL, "devices") == DEVICES &&
          at_path(o, NULL, NULL, "ranks") == comm->size &&
          at_path(o, NULL, NULL, "steps") == STEPS);
    CHECK(at_path(o, NULL, NULL, "num_tokens") == 500 &&
          at_path(o, "config", "router", "top_k") == MADE_TOP_K);
    CHECK(!strcmp(json_string_value(json_object_get(json_object_get(o, "config"), "name")),
                  "made_up"));
    const json_t *checks = json_object_get(o, "checks");
    CHECK(json_is_true(json_object_get(checks, "rows_conserved")) &&
          json_is_null(json_object_get(checks, "groups_theorem")));
    CHECK(json_array_size(json_object_get(o, "layers")) == LAYERS);
    check_integers(json_object_get(o, "comm_matrix_steps"), (int64_t[]){0, 1}, STEPS);
    for (int l = 0; l < LAYERS; l++) {
        check_layer(json_array_get(json_object_get(o, "layers"), (size_t)l), r, l);
    }
    const json_t *ranks = json_object_get(json_object_get(o, "machine"), "ranks");
    CHECK((int)json_array_size(ranks) == comm->size &&
          at_path(json_array_get(ranks, 0), NULL, NULL, "threads") == 1);
    CHECK(json_is_null(json_object_get(json_array_get(ranks, 0), "core")));
    CHECK((int)json_array_size(json_object_get(json_object_get(o, "machine"), "hosts")) ==
          (comm->size + 1) / 2);
    CHECK(at_path(o, "time", NULL, "total") == 3.25 && !json_object_get(o, "training"));
    CHECK_NEAR(at_path(o, "time", "measured", "step_mean"), 1.5123, 1e-14);
    CHECK_NEAR(
        at_path(json_object_get(json_object_get(o, "time"), "measured"), "phases", NULL, "route"),
        STEPS * LAYERS * 0.002, 1e-14);
    check_rank_free(c, r, o);
    json_decref(o);
}

static void check_array(const char *path,
                        enum moe_dtype dtype,
                        int dims,
                        const int64_t *shape,
                        const void *expected) {
    moe_npy_header h;
    moe_status st = {0};
    void *data = NULL;
    CHECK_MSG(moe_npy_read(path, &h, &data, &st) == MOE_OK, "%s", st.message);
    if (st.code != MOE_OK) {
        return;
    }
    bool same = h.dtype == dtype && h.num_dims == dims;
    for (int i = 0; i < dims && same; i++) {
        same = h.shape[i] == shape[i];
    }
    CHECK(same);
    if (same && h.count) {
        CHECK(memcmp(data, expected, (size_t)h.count * moe_dtype_size(dtype)) == 0);
    }
    moe_free(data);
}

static void check_arrays(const moe_config *c,
                         const moe_step_metrics *last,
                         const char *matrix_path,
                         const char *steps_path,
                         const char *load_path) {
    int64_t matrix[LAYERS * DEVICES * DEVICES], steps[STEPS][LAYERS * DEVICES * DEVICES],
        load[STEPS * LAYERS * EXPERTS];
    moe_step_metrics r;
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    for (int l = 0; l < LAYERS; l++) {
        moe_sparse_to_array(&last->layer[l].matrix, matrix + l * DEVICES * DEVICES, DEVICES,
                            DEVICES);
    }
    for (int step = 1; step <= STEPS; step++) {
        made_record(&r, c, step, 500);
        for (int l = 0; l < LAYERS; l++) {
            moe_sparse_to_array(&r.layer[l].matrix, steps[step - 1] + l * DEVICES * DEVICES,
                                DEVICES, DEVICES);
        }
        for (int l = 0; l < LAYERS; l++) {
            memcpy(load + ((step - 1) * LAYERS + l) * EXPERTS, r.layer[l].counts_per_expert,
                   EXPERTS * sizeof *load);
        }
    }
    check_array(matrix_path, MOE_I64, 3, (int64_t[]){LAYERS, DEVICES, DEVICES}, matrix);
    check_array(steps_path, MOE_I64, 4, (int64_t[]){STEPS, LAYERS, DEVICES, DEVICES}, steps);
    check_array(load_path, MOE_I64, 3, (int64_t[]){STEPS, LAYERS, EXPERTS}, load);
    moe_step_metrics_free(&r);
}

static void check_written(const moe_comm *comm, const moe_config *c) {
    moe_step_metrics r;
    moe_status st = {0};
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    CHECK_MSG(whole_run(comm, c, &r, in_scratch_folder("deep/er/run/"), false, &st) == MOE_OK, "%s",
              st.message);
    if (comm->rank == 0) {
        check_metrics(c, in_scratch_folder("deep/er/run/metrics.jsonl"));
        check_summary(comm, c, &r, in_scratch_folder("deep/er/run/summary.json"));
        char matrix[300], steps[300];
        snprintf(matrix, sizeof matrix, "%s", in_scratch_folder("deep/er/run/comm_matrix.npy"));
        snprintf(steps, sizeof steps, "%s", in_scratch_folder("deep/er/run/comm_matrix_steps.npy"));
        check_arrays(c, &r, matrix, steps, in_scratch_folder("deep/er/run/expert_load.npy"));
        CHECK(exists(in_scratch_folder("deep/er/run/config.ini")) &&
              !exists(in_scratch_folder("deep/er/run/summary.json.tmp")));
    }
    moe_step_metrics_free(&r);
}

/* --- training --- */

/* Steps of a training run. In a run that diverges the loss of the last step is not a number. */
enum { TRAINED = 25, DIVERGES = 24 };

static void train(const moe_comm *comm,
                  const moe_config *c,
                  moe_step_metrics *r,
                  const char *folder,
                  bool diverges) {
    moe_results results;
    moe_status st = {0};
    CHECK_MSG(moe_results_open(comm, c, folder, false, &results, &st) == MOE_OK, "%s", st.message);
    results.facts = moe_training_facts_of(c, (const uint8_t *)"a text of a few words", 21, 1);
    for (int64_t step = 0; step < TRAINED; step++) {
        made_record(r, c, step, 100);
        if (diverges && step == DIVERGES) {
            r->task_loss = NAN;
        }
        CHECK_MSG(moe_results_step(comm, &results, c, r, &st) == MOE_OK, "%s", st.message);
    }
    CHECK_EQ(results.training_history.steps, TRAINED);
    moe_topology *t = make_topologies(comm->size);
    CHECK_MSG(moe_results_close(comm, &results, c, r, t, 1, &st) == MOE_OK, "%s", st.message);
    moe_results_free(&results);
    moe_free(t);
}

static void check_training_line(const moe_config *c, const json_t *o, int64_t step, bool diverges) {
    moe_step_metrics r;
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    made_record(&r, c, step, 100);
    bool none = diverges && step == DIVERGES;
    bool validated = !isnan(r.validation_loss);
    bool text = c->data.source == MOE_SOURCE_TEXT;
    CHECK(none ? json_is_null(json_object_get(o, "task_loss"))
               : at_path(o, NULL, NULL, "task_loss") == r.task_loss);
    if (text && !none) {
        CHECK(at_path(o, NULL, NULL, "lm_loss") == r.task_loss);
    }
    if (text && !none) {
        CHECK_NEAR(at_path(o, NULL, NULL, "bits_per_byte"), r.task_loss / log(2), 1e-15);
    }
    CHECK((json_object_get(o, "lm_loss") != NULL) == text &&
          (json_object_get(o, "bits_per_byte") != NULL) == text);
    CHECK((json_object_get(o, "validation_loss") != NULL) == validated);
    CHECK((json_object_get(o, "validation_bits_per_byte") != NULL) == (validated && text));
    if (validated) {
        CHECK(at_path(o, NULL, NULL, "validation_loss") == r.validation_loss);
    }
    CHECK(at_path(o, NULL, NULL, "gradient_norm") == r.gradient_norm &&
          at_path(o, NULL, NULL, "learning_rate") == 0.003);
    CHECK(at_path(o, NULL, NULL, "gradient_allreduce_bytes") == 1 << 20);
    for (int d = 0; d < MOE_NUM_DIRECTIONS; d++) {
        CHECK(at_path(o, "volume", moe_direction_names[d], "remote_bytes") ==
              (double)moe_figures_of(&r).volume[d].remote_bytes);
    }
    CHECK(at_path(o, "time", "phases", "backward") > 0);
    moe_step_metrics_free(&r);
}

static void check_training_lines(const moe_config *c, const char *path, bool diverges) {
    char line[65536];
    int64_t step = 0;
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    while (file && fgets(line, sizeof line, file)) {
        json_t *o = json_loads(line, 0, NULL);
        CHECK(o != NULL);
        check_training_line(c, o, step++, diverges);
        json_decref(o);
    }
    CHECK_EQ(step, TRAINED);
    if (file) {
        fclose(file);
    }
}

static void check_training_summary(const moe_config *c, const char *path, bool diverges) {
    moe_step_metrics r;
    moe_training_history h = {.steps = 0};
    json_t *o = json_load_file(path, 0, NULL), *t = json_object_get(o, "training");
    bool text = c->data.source == MOE_SOURCE_TEXT;
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    for (int64_t step = 0; step < TRAINED; step++) {
        made_record(&r, c, step, 100);
        moe_training_history_add(&h, &r);
    }
    CHECK(json_is_object(t) && at_path(t, NULL, NULL, "steps") == TRAINED &&
          at_path(t, NULL, NULL, "window") == MOE_HISTORY_WINDOW);
    CHECK(json_is_boolean(json_object_get(t, "diverged")) &&
          json_is_true(json_object_get(t, "diverged")) == diverges);
    CHECK(at_path(t, "task_loss", NULL, "first") ==
          moe_training_history_first(&h, MOE_FIGURE_TASK_LOSS));
    if (!diverges) {
        CHECK(at_path(t, "task_loss", NULL, "mean_last_20") ==
              moe_training_history_mean(&h, MOE_FIGURE_TASK_LOSS));
    }
    if (diverges) {
        CHECK(json_is_null(json_object_get(json_object_get(t, "task_loss"), "mean_last_20")));
    }
    CHECK(at_path(t, "maxvio", "device", "mean_last_20") ==
          moe_training_history_mean(&h, MOE_FIGURE_DEVICE_MAXVIO));
    CHECK(at_path(t, "loss_raw", "comm", "first") ==
          moe_training_history_first(&h, MOE_FIGURE_RAW + MOE_LOSS_COMM));
    CHECK(at_path(t, "dispatch_remote_bytes", NULL, "last") ==
          moe_training_history_last(&h, MOE_FIGURE_DISPATCH_BYTES));
    CHECK(at_path(t, "validation_loss", NULL, "best") == h.validation.best &&
          at_path(t, "validation_loss", NULL, "last_step") == 24);
    CHECK((json_object_get(t, "lm_loss") != NULL) == text &&
          (json_object_get(t, "unigram_entropy") != NULL) == text);
    if (text) {
        CHECK(at_path(t, NULL, NULL, "unigram_entropy") > 2 &&
              at_path(t, NULL, NULL, "text_bytes") == 21);
    }
    CHECK(at_path(t, "parameters", NULL, "total") ==
          at_path(t, "parameters", NULL, "expert") + at_path(t, "parameters", NULL, "replicated"));
    CHECK(at_path(o, "volume", "combine_backward", "rows") ==
          at_path(o, "volume", "combine", "rows"));
    moe_step_metrics_free(&r);
    json_decref(o);
}

static void check_training(const moe_comm *comm,
                           moe_config c,
                           const char *name,
                           bool text,
                           bool diverges) {
    moe_step_metrics r;
    char folder[256], path[300];
    c.run.mode = MOE_MODE_TRAIN;
    c.data.source = text ? MOE_SOURCE_TEXT : MOE_SOURCE_SYNTHETIC;
    snprintf(folder, sizeof folder, "%s", in_scratch_folder(name));
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    train(comm, &c, &r, folder, diverges);
    moe_step_metrics_free(&r);
    if (comm->rank != 0) {
        return;
    }
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    check_training_lines(&c, path, diverges);
    snprintf(path, sizeof path, "%s/summary.json", folder);
    check_training_summary(&c, path, diverges);
}

/* --- folders that are refused --- */

static void check_refused(const moe_comm *comm,
                          const moe_config *c,
                          const char *folder,
                          bool force,
                          const char *because) {
    moe_results results;
    moe_status st = {0};
    CHECK_MSG(moe_results_open(comm, c, folder, force, &results, &st) == MOE_USER, "%s: %d", folder,
              st.code);
    CHECK_MSG(strstr(st.message, because) && !strchr(st.message, '\n'), "'%s' says '%s'", folder,
              st.message);
}

static void check_refusals(const moe_comm *comm, const moe_config *c) {
    moe_step_metrics r;
    moe_status st = {0};
    char long_name[MOE_PATH_MAX + 10];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    if (comm->rank == 0) {
        CHECK(mkdir(in_scratch_folder("empty"), 0777) == 0);
        write_file(in_scratch_folder("deep/er/run/notes.txt"), "mine");
        write_file(in_scratch_folder("deep/er/run/y.npy"), "of an earlier run");
        write_file(in_scratch_folder("deep/er/run/logits_layer12.npy"), "of an earlier run");
        write_file(in_scratch_folder("deep/er/run/my_y.npy"), "mine");
    }
    moe_comm_barrier(comm);
    check_refused(comm, c, in_scratch_folder("deep/er/run"), false, "not empty");
    check_refused(comm, c, in_scratch_folder("deep/er/run/notes.txt"), true, "not a folder");
    check_refused(comm, c, in_scratch_folder("deep/er/run/notes.txt/below"), false,
                  "Not a directory");
    check_refused(comm, c, "/proc/no/such/place", false, "cannot make the folder");
    check_refused(comm, c, long_name, false, "characters");
    check_refused(comm, c, "", false, "characters");
    if (comm->rank == 0) {
        CHECK(exists(in_scratch_folder("deep/er/run/y.npy")));
    }

    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    CHECK_MSG(whole_run(comm, c, &r, in_scratch_folder("empty"), false, &st) == MOE_OK, "%s",
              st.message);
    CHECK_MSG(whole_run(comm, c, &r, in_scratch_folder("deep/er/run"), true, &st) == MOE_OK, "%s",
              st.message);
    if (comm->rank == 0) {
        CHECK(exists(in_scratch_folder("deep/er/run/notes.txt")) &&
              exists(in_scratch_folder("deep/er/run/my_y.npy")));
        CHECK(!exists(in_scratch_folder("deep/er/run/y.npy")) &&
              !exists(in_scratch_folder("deep/er/run/logits_layer12.npy")) &&
              exists(in_scratch_folder("empty/summary.json")));
        check_metrics(c, in_scratch_folder("deep/er/run/metrics.jsonl"));
    }
    moe_step_metrics_free(&r);
}

/* Two runs without --out within a second get two folders. */
static void check_default_folder(const moe_comm *comm, const moe_config *c) {
    char here[1024];
    moe_results results[2];
    moe_status st = {0};
    CHECK(getcwd(here, sizeof here) && chdir(scratch_folder) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK_MSG(moe_results_open(comm, c, NULL, false, &results[i], &st) == MOE_OK, "%s",
                  st.message);
        CHECK(!strncmp(results[i].folder, "runs/made_up-20", 15) && exists(results[i].folder));
        if (results[i].metrics) {
            fclose(results[i].metrics);
        }
    }
    CHECK(strcmp(results[0].folder, results[1].folder) != 0);
    moe_comm_barrier(comm);
    CHECK_EQ(chdir(here), 0);
}

/* Arrays of each rank's tokens; with few tokens some ranks have none. */
static void check_tokens(const moe_comm *comm, moe_config c, int64_t tokens) {
    int64_t share = tokens / comm->size;
    int64_t extra = tokens % comm->size;
    int64_t k = 3;
    moe_batch b = {.num_tokens_global = tokens, .num_tokens = share + (comm->rank < extra)};
    b.first_token = comm->rank * share + (comm->rank < extra ? comm->rank : extra);
    c.router.top_k = (int32_t)k;
    int32_t expected_idx[LAYERS * 64 * 3];
    float expected_weight[LAYERS * 64 * 3], rows[64 * 2], expected_rows[64 * 2];
    uint8_t expected_kept[LAYERS * 64 * 3];
    moe_routing routing[LAYERS] = {{0}};
    for (int l = 0; l < LAYERS; l++) {
        moe_routing_reserve(&routing[l], b.num_tokens, (int32_t)k);
        routing[l].row_offset[0] = 0;
        for (int64_t t = 0; t < tokens; t++) {
            int64_t local = t - b.first_token, count = t % (k + 1); /* a token may choose fewer */
            bool mine = local >= 0 && local < b.num_tokens;
            for (int64_t j = 0; j < k; j++) {
                int64_t at = (l * tokens + t) * k + j;
                expected_idx[at] = j < count ? (int32_t)(100 * l + 10 * t + j) : -1;
                expected_weight[at] = j < count ? 0.25f * (float)(l + t + j) : 0;
                expected_kept[at] = j < count;
                if (!mine || j >= count) {
                    continue;
                }
                routing[l].expert[routing[l].row_offset[local] + j] = expected_idx[at];
                routing[l].weight[routing[l].row_offset[local] + j] = (real)expected_weight[at];
            }
            if (mine) {
                routing[l].row_offset[local + 1] = routing[l].row_offset[local] + count;
            }
        }
        routing[l].num_selections = routing[l].row_offset[b.num_tokens];
    }
    for (int64_t i = 0; i < 2 * tokens; i++) {
        expected_rows[i] = 0.5f * (float)i;
    }
    memcpy(rows, expected_rows + 2 * b.first_token, (size_t)(2 * b.num_tokens) * sizeof *rows);

    moe_results results = {.metrics = NULL};
    moe_status st = {0};
    snprintf(results.folder, sizeof results.folder, "%s", in_scratch_folder("empty"));
    CHECK_MSG(moe_results_routing(comm, &results, &c, &b, routing, &st) == MOE_OK, "%s",
              st.message);
    CHECK_MSG(moe_results_tensor(comm, &results, "y", &b, rows, 2, sizeof *rows, &st) == MOE_OK,
              "%s", st.message);
    if (comm->rank == 0) {
        check_array(in_scratch_folder("empty/topk_idx.npy"), MOE_I32, 3,
                    (int64_t[]){LAYERS, tokens, k}, expected_idx);
        check_array(in_scratch_folder("empty/topk_weight.npy"), MOE_F32, 3,
                    (int64_t[]){LAYERS, tokens, k}, expected_weight);
        check_array(in_scratch_folder("empty/kept.npy"), MOE_U8, 3, (int64_t[]){LAYERS, tokens, k},
                    expected_kept);
        check_array(in_scratch_folder("empty/y.npy"), MOE_F32, 2, (int64_t[]){tokens, 2},
                    expected_rows);
    }
    moe_comm_barrier(comm);
    for (int l = 0; l < LAYERS; l++) {
        moe_routing_free(&routing[l]);
    }
}

/* --- a full disk --- */

static void fill(const char *path) {
    static const char block[4096] = {1};
    FILE *file = fopen(path, "w");
    if (!file) {
        return;
    }
    setvbuf(file, NULL, _IONBF, 0);
    while (fwrite(block, sizeof block, 1, file) == 1)
        ;
    fclose(file);
}

/* The disk fills up before step `full_at` (STEPS + 1: before the end). */
static void check_full_disk(const moe_comm *comm, const moe_config *c, int full_at) {
    moe_results results;
    moe_status st = {0};
    moe_step_metrics r;
    char folder[128];
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    moe_topology *t = make_topologies(comm->size);
    snprintf(folder, sizeof folder, "%s/full%d", in_scratch_folder("disk"), full_at);
    CHECK_MSG(moe_results_open(comm, c, folder, false, &results, &st) == MOE_OK, "%s", st.message);
    int code = MOE_OK;
    for (int step = 1; step <= STEPS + 1 && code == MOE_OK; step++) {
        made_record(&r, c, step, 500);
        moe_comm_barrier(comm);
        if (comm->rank == 0 && step == full_at) {
            fill(in_scratch_folder("disk/filler"));
        }
        moe_comm_barrier(comm);
        code = step <= STEPS ? moe_results_step(comm, &results, c, &r, &st)
                             : moe_results_close(comm, &results, c, &r, t, 1, &st);
        /* the last page of the file may have room for a line or two */
        while (step == full_at && step <= STEPS && code == MOE_OK) {
            code = moe_results_step(comm, &results, c, &r, &st);
        }
    }
    CHECK_MSG(code == MOE_ERROR && st.message[0] && !strchr(st.message, '\n'), "%d '%s'", code,
              st.message);
    if (comm->rank == 0) {
        snprintf(folder, sizeof folder, "%s/full%d/summary.json", in_scratch_folder("disk"),
                 full_at);
        CHECK(!exists(folder));
        unlink(in_scratch_folder("disk/filler"));
    }
    moe_results_free(&results);
    moe_free(t);
    moe_step_metrics_free(&r);
    moe_comm_barrier(comm);
}

static void check_disk(const moe_comm *comm, const moe_config *c) {
    int64_t mounted = 0;
    if (comm->rank == 0) {
        mounted = mkdir(in_scratch_folder("disk"), 0777) == 0 &&
                  mount("tmpfs", in_scratch_folder("disk"), "tmpfs", 0, "size=256k") == 0;
    }
    int reason = errno;
    moe_comm_bcast(comm, &mounted, sizeof mounted, 0);
    if (!mounted) {
        if (comm->rank == 0) {
            printf("skipped: the full disk, because a small tmpfs cannot be mounted here: %s\n",
                   strerror(reason));
        }
        return;
    }
    check_full_disk(comm, c, 1);
    check_full_disk(comm, c, STEPS);
    check_full_disk(comm, c, STEPS + 1);
    if (comm->rank == 0) {
        CHECK(umount2(in_scratch_folder("disk"), MNT_DETACH) == 0);
    }
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_config c;
    moe_comm_init(&comm, &argc, &argv);
    scratch_folder_make(&comm, "results.XXXXXX");
    made_config(&c, LAYERS, EXPERTS, DEVICES, 4);
    RUN(check_written, &comm, &c);
    RUN(check_training, &comm, c, "text", true, false);
    RUN(check_training, &comm, c, "regression", false, false);
    RUN(check_training, &comm, c, "diverged", true, true);
    RUN(check_refusals, &comm, &c);
    RUN(check_default_folder, &comm, &c);
    RUN(check_tokens, &comm, c, 5);
    RUN(check_tokens, &comm, c, 61);
    RUN(check_disk, &comm, &c);
    scratch_folder_remove(&comm);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
