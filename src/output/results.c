/* results.c: the folder of a run. Rank 0 makes it and writes the texts; arrays go through
 * moe_comm_write_npy. Whatever fails on one rank is agreed by all before anyone returns. */
#include "output/results.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "measure/figures.h"
#include "output/json.h"
#include "output/results_internal.h"

static void path_of(const moe_results *r, enum moe_result file, char path[MOE_RESULTS_PATH_MAX]) {
    moe_results_path(r->folder, moe_result_files[file].name, path);
}

static int metrics_failed(const moe_results *r, moe_status *st) {
    return moe_fail(st, MOE_ERROR, "cannot write '%s/%s': %s", r->folder,
                    moe_result_files[MOE_RESULT_METRICS].name, strerror(errno));
}

/* --- a new run --- */

/* Nothing stands in a new folder yet: a run that cannot write its configuration ends here. */
static int write_config(const moe_results *r, const moe_config *c, moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    path_of(r, MOE_RESULT_CONFIG, path);
    FILE *file = moe_file_create_stream(path);
    if (!file) {
        return moe_results_folder_failed(st, "write", path);
    }
    moe_config_print(c, file);
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) {
        return moe_results_folder_failed(st, "write", path);
    }
    return MOE_OK;
}

/* Opens metrics.jsonl: a new file, or the one of a run that goes on, at its end. */
static int open_metrics(moe_results *r, bool anew, moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    path_of(r, MOE_RESULT_METRICS, path);
    int file =
        anew ? moe_file_create(path) : open(path, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
    r->metrics = file >= 0 ? fdopen(file, anew ? "w" : "a") : NULL;
    return r->metrics ? MOE_OK : moe_results_folder_failed(st, "write", path);
}

static int make_folder(moe_results *out, const char *folder, bool force, moe_status *st) {
    return moe_results_folder_name(out->folder, "--out", folder, st) == MOE_OK
               ? moe_results_folder_make(out->folder, force, &out->lock, st)
               : st->code;
}

int moe_results_open(const moe_comm *comm,
                     const moe_config *c,
                     const char *folder,
                     bool force,
                     moe_results *out,
                     moe_status *st) {
    memset(out, 0, sizeof *out);
    if (comm->rank == 0) {
        int code = folder ? make_folder(out, folder, force, st)
                          : moe_results_folder_make_default(out->folder, c->name, &out->lock, st);
        if (code == MOE_OK) {
            code = write_config(out, c, st);
        }
        if (code == MOE_OK) {
            open_metrics(out, true, st);
        }
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        moe_results_free(out);
        return st->code;
    }
    moe_comm_bcast(comm, out->folder, sizeof out->folder, 0);
    return MOE_OK;
}

/* --- a run that goes on from a checkpoint --- */

int moe_results_lock(const moe_comm *comm, const char *folder, moe_lock *lock, moe_status *st) {
    *lock = (moe_lock){0};
    if (comm->rank == 0 && access(folder, F_OK) == 0) {
        moe_lock_take(folder, lock, st);
    }
    return moe_comm_agree(comm, st);
}

/* Whether the line is whole and of this step. A run that was killed may have left a torn one. */
static bool is_line_of(int64_t step, const char *line, ssize_t length) {
    if (line[length - 1] != '\n') {
        return false;
    }
    json_t *object = json_loadb(line, (size_t)length, 0, NULL),
           *number = json_object_get(object, "step");
    bool same = json_is_integer(number) && json_integer_value(number) == step;
    json_decref(object);
    return same;
}

/* Copies the lines of the steps 0 .. steps - 1, and returns how many there were. */
static int64_t copy_lines(FILE *from, FILE *to, int64_t steps) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int64_t n = 0;
    while (n < steps && (length = getline(&line, &capacity, from)) > 0 &&
           is_line_of(n, line, length)) {
        fwrite(line, 1, (size_t)length, to);
        n++;
    }
    free(line);
    return n;
}

/* Cuts metrics.jsonl back to the lines of the first `steps` steps. */
static int cut_metrics(const moe_results *r, int64_t steps, moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX], beside[MOE_RESULTS_PATH_MAX + 4];
    path_of(r, MOE_RESULT_METRICS, path);
    snprintf(beside, sizeof beside, "%s.tmp", path);
    const char *why;
    FILE *from = moe_file_stream(path, &why);
    if (!from) {
        return moe_fail(st, MOE_USER, "cannot read '%s': %s", path, why);
    }
    FILE *to = moe_file_create_stream(beside);
    if (!to) {
        moe_results_folder_failed(st, "write", beside);
    } else {
        int64_t kept = copy_lines(from, to, steps);
        if (kept < steps) {
            moe_fail(st, MOE_USER,
                     "'%s' has the lines of %lld steps, but the checkpoint was made after %lld: "
                     "the run cannot go on",
                     path, (long long)kept, (long long)steps);
        }
        moe_file_replace(path, beside, to, st);
    }
    fclose(from);
    return st->code;
}

/* Writes config.ini anew, because run.steps may have risen. A summary would be of a shorter run. */
static int renew_texts(const moe_results *r, const moe_config *c, moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX], *text = NULL;
    size_t length;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) {
        moe_out_of_memory("the configuration's text", 0);
    }
    moe_config_print(c, memory);
    if (fclose(memory) != 0) {
        moe_out_of_memory("the configuration's text", length);
    }
    path_of(r, MOE_RESULT_CONFIG, path);
    moe_file_write(path, text, st);
    free(text);
    path_of(r, MOE_RESULT_SUMMARY, path);
    if (st->code == MOE_OK && unlink(path) != 0 && errno != ENOENT) {
        moe_results_folder_failed(st, "remove", path);
    }
    return st->code;
}

int moe_results_reopen(const moe_comm *comm,
                       const moe_config *c,
                       const char *folder,
                       int64_t step,
                       moe_results *r,
                       moe_status *st) {
    MOE_ASSERT(r->times.steps == step);
    if (comm->rank == 0) {
        int code = moe_results_folder_name(r->folder, "--resume", folder, st);
        if (code == MOE_OK) {
            code = cut_metrics(r, step, st);
        }
        if (code == MOE_OK) {
            code = renew_texts(r, c, st);
        }
        if (code == MOE_OK) {
            open_metrics(r, false, st);
        }
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return st->code;
    }
    moe_comm_bcast(comm, r->folder, sizeof r->folder, 0);
    return MOE_OK;
}

bool moe_results_finished(const moe_comm *comm, const char *folder, int64_t steps) {
    int64_t finished = 0;
    if (comm->rank == 0) {
        char path[MOE_RESULTS_PATH_MAX];
        json_int_t done, wanted;
        snprintf(path, sizeof path, "%.*s/%s", MOE_PATH_MAX - 1, folder,
                 moe_result_files[MOE_RESULT_SUMMARY].name);
        const char *why;
        FILE *file = moe_file_stream(path, &why);
        json_t *summary = file ? json_loadf(file, 0, NULL) : NULL;
        if (file) {
            fclose(file);
        }
        if (summary && json_unpack(summary, "{s:I, s:{s:{s:I}}}", "steps", &done, "config", "run",
                                   "steps", &wanted) == 0) {
            finished = done >= (steps > 0 ? steps : wanted);
        }
        json_decref(summary);
    }
    moe_comm_bcast(comm, &finished, sizeof finished, 0);
    return finished != 0;
}

/* --- other texts --- */

int moe_results_write_text(const moe_comm *comm,
                           const moe_results *r,
                           const char *name,
                           const char *text,
                           moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    MOE_ASSERT(moe_result_file_is_known(name));
    moe_results_path(r->folder, name, path);
    if (comm->rank == 0) {
        moe_file_write(path, text, st);
    }
    return moe_comm_agree(comm, st);
}

/* --- step by step --- */

static void keep_expert_load(moe_results *r, const moe_step_metrics *step) {
    int64_t words = (int64_t)step->num_layers * step->num_experts,
            needed = (r->times.steps + 1) * words;
    if (needed > r->expert_load_capacity) {
        int64_t capacity = needed > 16 * words ? needed + needed / 2 : 16 * words;
        int64_t *grown = moe_alloc(capacity, sizeof *grown, "expert loads of all steps");
        if (r->times.steps > 0) {
            memcpy(grown, r->expert_load, (size_t)(r->times.steps * words) * sizeof *grown);
        }
        moe_free(r->expert_load);
        r->expert_load = grown;
        r->expert_load_capacity = capacity;
    }
    for (int32_t l = 0; l < step->num_layers; l++) {
        memcpy(r->expert_load + r->times.steps * words + (int64_t)l * step->num_experts,
               step->layer[l].counts_per_expert,
               (size_t)step->num_experts * sizeof *r->expert_load);
    }
}

static void add_times(moe_run_times *t, const moe_step_metrics *step) {
    moe_figures f = moe_figures_of(step);
    t->steps++;
    t->step_seconds += step->seconds;
    for (int phase = 0; phase < MOE_NUM_PHASES; phase++) {
        t->phase_seconds[phase] += f.phase_seconds[phase];
    }
}

static void write_step(moe_results *r,
                       const moe_config *c,
                       const moe_step_metrics *step,
                       moe_status *st) {
    json_t *object = moe_summary_step(c, step);
    char *line = moe_json_line(object);
    if (fprintf(r->metrics, "%s\n", line) < 0 || fflush(r->metrics) != 0) {
        moe_fail(st, MOE_ERROR, "cannot write '%s/%s' at step %lld: %s", r->folder,
                 moe_result_files[MOE_RESULT_METRICS].name, (long long)step->step, strerror(errno));
    }
    free(line);
    json_decref(object);
}

int moe_results_step(const moe_comm *comm,
                     moe_results *r,
                     const moe_config *c,
                     const moe_step_metrics *step,
                     moe_status *st) {
    if (comm->rank == 0) {
        write_step(r, c, step, st);
        keep_expert_load(r, step);
        if (c->run.mode != MOE_MODE_TRAIN) { /* a run that goes on would know only its own part */
            moe_peak_add_devices(&r->device_peak, step);
        }
        moe_matrix_history_add(&r->matrix_history, step, r->times.steps);
    }
    add_times(&r->times, step);
    moe_overlap_add(&r->overlap, step);
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_training_history_add(&r->training_history, step);
    }
    if (moe_config_generates(c)) {
        moe_generation_add(&r->generation, step);
    }
    return moe_comm_agree(comm, st);
}

enum { TIMES, EXPERT_LOAD, HISTORY, MATRICES }; /* of the blobs */

void moe_results_history(const moe_comm *comm,
                         moe_results *r,
                         const moe_config *c,
                         int64_t step,
                         moe_blob blobs[MOE_RESULTS_BLOBS]) {
    int64_t count = step * moe_config_moe_layers(c) * c->model.num_experts;
    if (comm->rank == 0 && count > r->expert_load_capacity) {
        MOE_ASSERT(r->times.steps == 0);
        moe_reserve(&r->expert_load, &r->expert_load_capacity, count, sizeof *r->expert_load,
                    "expert loads of all steps");
    }
    int32_t layers = moe_config_moe_layers(c), devices = c->cluster.devices;
    int64_t stride, matrices = moe_matrix_history_kept(layers, devices, step, &stride) * layers *
                               devices * devices;
    if (comm->rank == 0) {
        moe_matrix_history_reserve(&r->matrix_history, layers, devices, step);
    }
    blobs[TIMES] = moe_blob_of("results.times", &r->times, sizeof r->times);
    blobs[EXPERT_LOAD] = moe_blob_of("results.expert_load", comm->rank == 0 ? r->expert_load : NULL,
                                     count * (int64_t)sizeof *r->expert_load);
    blobs[HISTORY] =
        moe_blob_of("results.history", &r->training_history, moe_training_history_bytes());
    blobs[MATRICES] =
        moe_blob_of("results.matrices", comm->rank == 0 ? r->matrix_history.rows : NULL,
                    matrices * (int64_t)sizeof *r->matrix_history.rows);
}

static bool are_sound_times(const moe_run_times *t, int64_t step) {
    bool sound = t->steps == step && isfinite(t->step_seconds);
    for (int phase = 0; phase < MOE_NUM_PHASES; phase++) {
        sound = sound && isfinite(t->phase_seconds[phase]);
    }
    return sound;
}

/* Whether a blob holds counts, so small that their sum over experts and layers does not overflow. A
 * rank that holds nothing of it finds no fault. */
static bool are_counts(const moe_blob *b) {
    const int64_t *count = b->data, most = INT64_C(1) << 40;
    for (int64_t i = 0; count && i < b->bytes / (int64_t)sizeof *count; i++) {
        if (count[i] < 0 || count[i] > most) {
            return false;
        }
    }
    return true;
}

int moe_results_check_history(const moe_results *r,
                              const moe_blob blobs[MOE_RESULTS_BLOBS],
                              int64_t step,
                              const char *path,
                              moe_status *st) {
    const char *bad = NULL;
    if (!are_sound_times(&r->times, step)) {
        bad = blobs[TIMES].name;
    } else if (!moe_training_history_is_sound(&r->training_history, step)) {
        bad = blobs[HISTORY].name;
    } else if (!are_counts(&blobs[EXPERT_LOAD])) {
        bad = blobs[EXPERT_LOAD].name;
    } else if (!are_counts(&blobs[MATRICES])) {
        bad = blobs[MATRICES].name;
    }
    if (!bad) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "the checkpoint '%s' is damaged: its %s is not that of a run after %lld steps",
                    path, bad, (long long)step);
}

int moe_results_sync(const moe_comm *comm, const moe_results *r, moe_status *st) {
    if (comm->rank == 0 && (fflush(r->metrics) != 0 || fsync(fileno(r->metrics)) != 0)) {
        metrics_failed(r, st);
    }
    return moe_comm_agree(comm, st);
}

/* --- the end --- */

static void write_summary(const moe_results *r,
                          const moe_config *c,
                          const moe_step_metrics *last,
                          const moe_topology *topologies,
                          int ranks,
                          moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    json_t *object =
        moe_summary_run(c, last, topologies, ranks, &r->times, &r->training_history, &r->facts);
    json_t *overlap = moe_overlap_json(c, r->overlaps, ranks);
    if (overlap) {
        moe_json_put(json_object_get(object, "time"), "overlap", overlap);
    }
    moe_json_put(object, "over_steps", moe_over_steps_json(&r->over_steps, last->num_layers));
    if (moe_config_generates(c)) {
        moe_summary_put_generation(object, c, &r->generation);
    }
    char *text = moe_json_indented(object);
    path_of(r, MOE_RESULT_SUMMARY, path);
    moe_file_write(path, text, st);
    free(text);
    json_decref(object);
}

static void close_metrics(moe_results *r, moe_status *st) {
    if (r->metrics && fclose(r->metrics) != 0) {
        metrics_failed(r, st);
    }
    r->metrics = NULL;
}

int moe_results_close(const moe_comm *comm,
                      moe_results *r,
                      const moe_config *c,
                      const moe_step_metrics *last,
                      const moe_topology *topologies,
                      double seconds,
                      moe_status *st) {
    r->times.seconds = seconds;
    r->overlaps = moe_overlap_gather(comm, &r->overlap);
    if (comm->rank == 0) {
        close_metrics(r, st);
    }
    int code = moe_comm_agree(comm, st);
    if (code == MOE_OK) {
        code = moe_results_write_matrix(comm, r->folder, last, st);
    }
    if (code == MOE_OK) {
        code = moe_results_write_matrix_history(comm, r->folder, &r->matrix_history, last,
                                                r->times.steps, st);
    }
    if (code == MOE_OK) {
        code = moe_results_write_expert_load(comm, r->folder, r->expert_load, last, r->times.steps,
                                             st);
    }
    if (code == MOE_OK) {
        if (comm->rank == 0) {
            r->over_steps = moe_over_steps_of(r->expert_load, r->times.steps, last->num_layers,
                                              last->num_experts, &r->device_peak);
            write_summary(r, c, last, topologies, comm->size, st);
        }
        code = moe_comm_agree(comm, st);
    }
    return code;
}

void moe_results_free(moe_results *r) {
    if (r->metrics) {
        fclose(r->metrics);
    }
    r->metrics = NULL;
    moe_free(r->overlaps);
    r->overlaps = NULL;
    moe_free(r->expert_load);
    r->expert_load = NULL;
    r->expert_load_capacity = 0;
    moe_matrix_history_free(&r->matrix_history);
    moe_lock_release(&r->lock);
}
