/* mpi_resume.c: a run's folder after the run was killed and went on from a checkpoint: the same
 * bytes as those of a run that was never killed. Steps are made up; what trains is not part of this
 * test. */
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "check.h"
#include "made_record.h"
#include "output/results.h"
#include "scratch_folder.h"
#include "train/checkpoint.h"

enum { LAYERS = 2, EXPERTS = 48, DEVICES = 8, STEPS = 6, SAVED = 2, KILLED = 4 };

static void path_of(const char *folder, const char *name, char path[256]) {
    snprintf(path, 256, "%s/%s/%s", scratch_folder, folder, name);
}

/* The bytes of a file, to be freed with moe_free; NULL when there is none. */
static char *bytes_of(const char *folder, const char *name, int64_t *length) {
    char path[256], *bytes = NULL;
    struct stat about;
    path_of(folder, name, path);
    FILE *file = fopen(path, "rb");
    *length = -1;
    if (file && fstat(fileno(file), &about) == 0) {
        bytes = moe_alloc(about.st_size + 1, 1, "test");
        *length = (int64_t)fread(bytes, 1, (size_t)about.st_size, file);
    }
    if (file) {
        fclose(file);
    }
    return bytes;
}

static void check_same_file(const char *a, const char *b, const char *name) {
    int64_t length[2];
    char *bytes[2] = {bytes_of(a, name, &length[0]), bytes_of(b, name, &length[1])};
    CHECK_MSG(bytes[0] && length[0] == length[1], "%s: %lld and %lld bytes", name,
              (long long)length[0], (long long)length[1]);
    if (bytes[0] && bytes[1] && length[0] == length[1]) {
        CHECK_MSG(memcmp(bytes[0], bytes[1], (size_t)length[0]) == 0, "%s", name);
    }
    moe_free(bytes[0]);
    moe_free(bytes[1]);
}

static void run_steps(const moe_comm *comm,
                      const moe_config *c,
                      moe_step_metrics *r,
                      moe_results *results,
                      int64_t from,
                      int64_t to) {
    moe_status st = {0};
    for (int64_t step = from; step < to; step++) {
        made_record(r, c, step, 100);
        CHECK_MSG(moe_results_step(comm, results, c, r, &st) == MOE_OK, "%s", st.message);
    }
}

static void end_run(const moe_comm *comm,
                    const moe_config *c,
                    const moe_step_metrics *r,
                    moe_results *results) {
    moe_status st = {0};
    moe_topology *t = moe_alloc_zero(comm->size, sizeof *t, "test");
    CHECK_MSG(moe_results_close(comm, results, c, r, t, 3.25, &st) == MOE_OK, "%s", st.message);
    moe_results_free(results);
    moe_free(t);
}

static void open_run(const moe_comm *comm,
                     const moe_config *c,
                     const char *name,
                     bool force,
                     moe_results *results) {
    char folder[256];
    moe_status st = {0};
    path_of(name, "", folder);
    CHECK_MSG(moe_results_open(comm, c, folder, force, results, &st) == MOE_OK, "%s", st.message);
}

static void whole_run(const moe_comm *comm,
                      const moe_config *c,
                      moe_step_metrics *r,
                      const char *name,
                      bool force) {
    moe_results results;
    open_run(comm, c, name, force, &results);
    run_steps(comm, c, r, &results, 0, STEPS);
    end_run(comm, c, r, &results);
}

static void save(const moe_comm *comm, const moe_config *c, moe_results *results, int64_t step) {
    const moe_parameters nothing = {0};
    moe_blob blobs[MOE_RESULTS_BLOBS];
    moe_status st = {0};
    CHECK(moe_results_sync(comm, results, &st) == MOE_OK);
    moe_results_history(comm, results, c, step, blobs);
    CHECK_MSG(moe_checkpoint_write(comm, results->folder, c, step, &nothing, blobs,
                                   MOE_RESULTS_BLOBS, &st) == MOE_OK,
              "%s", st.message);
}

/* Steps up to KILLED and half a line. */
static void killed_run(const moe_comm *comm,
                       const moe_config *c,
                       moe_step_metrics *r,
                       const char *name) {
    moe_results results;
    open_run(comm, c, name, false, &results);
    save(comm, c, &results, 0);
    run_steps(comm, c, r, &results, 0, SAVED);
    save(comm, c, &results, SAVED);
    run_steps(comm, c, r, &results, SAVED, KILLED);
    if (comm->rank == 0) {
        fputs("{\"step\": 4, \"num_tok", results.metrics);
        fclose(results.metrics);
    }
    results.metrics = NULL;
    moe_results_free(&results);
    moe_comm_barrier(comm);
}

/* Opens the folder again after the newest checkpoint; returns its step. */
static int64_t go_on(const moe_comm *comm,
                     const moe_config *c,
                     const char *name,
                     moe_results *results,
                     moe_status *st) {
    char folder[256], word[512];
    moe_parameters nothing = {0};
    moe_checkpoint found;
    moe_blob blobs[MOE_RESULTS_BLOBS];
    path_of(name, "", folder);
    memset(results, 0, sizeof *results);
    CHECK_MSG(moe_checkpoint_find(comm, folder, &found, word, st) == MOE_OK, "%s", st->message);
    moe_results_history(comm, results, c, found.step, blobs);
    CHECK_MSG(moe_checkpoint_read(comm, found.path, &nothing, blobs, MOE_RESULTS_BLOBS, st) ==
                  MOE_OK,
              "%s", st->message);
    moe_results_reopen(comm, c, folder, found.step, results, st);
    moe_checkpoint_free(&found);
    return found.step;
}

static void check_resumed(const moe_comm *comm, const moe_config *c, moe_step_metrics *r) {
    static const char *const files[] = {"metrics.jsonl",   "config.ini",
                                        "summary.json",    "expert_load.npy",
                                        "comm_matrix.npy", "comm_matrix_steps.npy"};
    moe_results results;
    moe_status st = {0};
    char folder[256];
    path_of("killed", "", folder);
    CHECK(!moe_results_finished(comm, folder, 0));
    CHECK_EQ(go_on(comm, c, "killed", &results, &st), SAVED);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    run_steps(comm, c, r, &results, SAVED, STEPS);
    end_run(comm, c, r, &results);
    moe_comm_barrier(comm);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        check_same_file("whole", "killed", files[i]);
    }
    CHECK(moe_results_finished(comm, folder, 0) && moe_results_finished(comm, folder, STEPS) &&
          !moe_results_finished(comm, folder, STEPS + 1));
}

/* Two more steps of a run that had ended; its last checkpoint is older. */
static void check_longer(const moe_comm *comm, const moe_config *c, moe_step_metrics *r) {
    moe_config longer = *c;
    moe_results results;
    moe_status st = {0};
    char folder[256], path[256];
    longer.run.steps = STEPS + 2;
    path_of("killed", "", folder);
    path_of("killed", "summary.json", path);
    CHECK_EQ(go_on(comm, &longer, "killed", &results, &st), SAVED);
    CHECK(st.code == MOE_OK && access(path, F_OK) != 0);
    run_steps(comm, &longer, r, &results, SAVED, STEPS + 2);
    end_run(comm, &longer, r, &results);
    CHECK(moe_results_finished(comm, folder, STEPS + 2) && moe_results_finished(comm, folder, 0));
}

/* Lines that the checkpoint counts on are gone: refused, and nothing is touched. */
static void check_lost_lines(const moe_comm *comm, const moe_config *c) {
    moe_results results;
    moe_status st = {0};
    char path[256];
    path_of("killed", "metrics.jsonl", path);
    moe_comm_barrier(comm);
    if (comm->rank == 0) {
        CHECK(truncate(path, 100) == 0);
    }
    CHECK_EQ(go_on(comm, c, "killed", &results, &st), SAVED);
    CHECK_MSG(st.code == MOE_USER && strstr(st.message, "0 steps") &&
                  strstr(st.message, "metrics.jsonl"),
              "%s", st.message);
    struct stat about;
    CHECK(stat(path, &about) == 0 && about.st_size == 100);
    path_of("killed", "metrics.jsonl.tmp", path);
    CHECK(access(path, F_OK) != 0);
    moe_results_free(&results);
    moe_comm_barrier(comm);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_config c;
    moe_step_metrics r;
    moe_comm_init(&comm, &argc, &argv);
    scratch_folder_make(&comm, "/tmp/moesim-test-resume-XXXXXX");
    made_config(&c, LAYERS, EXPERTS, DEVICES, DEVICES);
    c.run.steps = STEPS;
    c.run.mode = MOE_MODE_TRAIN;
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    RUN(whole_run, &comm, &c, &r, "whole", false);
    RUN(killed_run, &comm, &c, &r, "killed");
    RUN(check_resumed, &comm, &c, &r);
    RUN(check_longer, &comm, &c, &r);
    RUN(check_lost_lines, &comm, &c);
    whole_run(&comm, &c, &r, "killed", true); /* --force takes the checkpoints away, too */
    char path[256];
    path_of("killed", "checkpoints", path);
    CHECK(access(path, F_OK) != 0);
    RUN(check_same_file, "whole", "killed", "metrics.jsonl");
    moe_step_metrics_free(&r);
    scratch_folder_remove(&comm);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
