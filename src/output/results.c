/* results.c: the run's folder. Rank 0 makes it and writes the texts, arrays go through
 * moe_comm_write_npy; whatever fails on one rank is agreed by all before anyone returns. */
#include "output/results.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "output/json.h"

/* Everything that moesim may leave in a folder: what --force removes. Tensors of several layers
 * have "_layer0" and so on before .npy. */
static const char *const own_files[] = {"config.ini",        "config.ini.tmp",      "metrics.jsonl",
                                        "metrics.jsonl.tmp", "specialization.json", "explain.json",
                                        "summary.json",      "summary.json.tmp",    "timeline.json",
                                        "timeline.json.tmp", "report.html",         NULL};
static const char *const own_arrays[] = {"comm_matrix", "comm_matrix_steps",
                                         "expert_load", "domain_load",
                                         "topk_idx",    "topk_weight",
                                         "kept",        "served_idx",
                                         "x",           "y",
                                         "logits",      "dlogits",
                                         "dx",          "dwgate",
                                         "dw1",         "dw2",
                                         "dw3",         "dsw1",
                                         "dsw2",        "dsw3",
                                         NULL};

enum { FILE_PATH_MAX = MOE_PATH_MAX + MOE_NAME_MAX + 8 };

static void path_in(const moe_results *r, const char *name, char path[FILE_PATH_MAX]) {
    snprintf(path, FILE_PATH_MAX, "%s/%s", r->folder, name);
}

/* A full or broken disk is nobody's mistake; anything else in the way of a fresh folder is the
 * user's to mend. */
static int open_failure(moe_status *st, const char *what, const char *path) {
    int platform = errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == ENOMEM;
    return moe_fail(st, platform ? MOE_ERROR : MOE_USER,
                    "cannot %s '%s': %s; choose a folder that can be written to with --out", what,
                    path, strerror(errno));
}

/* The folder */

/* Makes the parents of path; path itself is left alone. */
static int make_parents(const char *path, moe_status *st) {
    char part[MOE_PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) {
            return open_failure(st, "make the folder", part);
        }
        *slash = '/';
    }
    return MOE_OK;
}

static bool is_empty_folder(const char *path) {
    DIR *folder = opendir(path);
    bool empty = folder != NULL;
    for (struct dirent *e; empty && (e = readdir(folder));) {
        empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    }
    if (folder) {
        closedir(folder);
    }
    return empty;
}

static bool is_own_file(const char *name) {
    for (int i = 0; own_files[i]; i++) {
        if (!strcmp(name, own_files[i])) {
            return true;
        }
    }
    for (int i = 0; own_arrays[i]; i++) {
        size_t length = strlen(own_arrays[i]);
        if (strncmp(name, own_arrays[i], length) != 0) {
            continue;
        }
        const char *rest = name + length;
        if (!strncmp(rest, "_layer", 6)) {
            rest += 6 + strspn(rest + 6, "0123456789");
        }
        if (!strcmp(rest, ".npy")) {
            return true;
        }
    }
    return false;
}

static int remove_own_files(const moe_results *r, moe_status *st) {
    char path[FILE_PATH_MAX + NAME_MAX];
    DIR *folder = opendir(r->folder);
    if (!folder) {
        return open_failure(st, "read the folder", r->folder);
    }
    for (struct dirent *e; st->code == MOE_OK && (e = readdir(folder));) {
        if (!is_own_file(e->d_name)) {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", r->folder, e->d_name);
        if (unlink(path) != 0) {
            open_failure(st, "remove", path);
        }
    }
    closedir(folder);
    return st->code == MOE_OK ? moe_checkpoint_remove(r->folder, st) : st->code;
}

/* The folder's name, without slashes at its end. */
static int take_name(moe_results *r, const char *option, const char *folder, moe_status *st) {
    if (*folder == '\0' || strlen(folder) >= sizeof r->folder) {
        return moe_fail(st, MOE_USER,
                        "%s: the folder's name must have 1 to %d characters, this one has %zu",
                        option, MOE_PATH_MAX - 1, strlen(folder));
    }
    snprintf(r->folder, sizeof r->folder, "%s", folder);
    for (size_t n = strlen(r->folder); n > 1 && r->folder[n - 1] == '/'; n--) {
        r->folder[n - 1] = '\0';
    }
    return MOE_OK;
}

static int make_named_folder(moe_results *r, const char *folder, bool force, moe_status *st) {
    if (take_name(r, "--out", folder, st) != MOE_OK) {
        return st->code;
    }
    if (make_parents(r->folder, st) != MOE_OK) {
        return st->code;
    }
    if (mkdir(r->folder, 0777) == 0) {
        return MOE_OK;
    }
    if (errno != EEXIST) {
        return open_failure(st, "make the folder", r->folder);
    }

    struct stat what;
    if (stat(r->folder, &what) != 0 || !S_ISDIR(what.st_mode)) {
        return moe_fail(st, MOE_USER, "--out: '%s' exists and is not a folder; choose another name",
                        r->folder);
    }
    if (is_empty_folder(r->folder)) {
        return MOE_OK;
    }
    if (!force) {
        return moe_fail(st, MOE_USER,
                        "--out: the folder '%s' exists and is not empty; choose another one, or "
                        "add --force to replace the results in it",
                        r->folder);
    }
    return remove_own_files(r, st);
}

/* runs/<name>-<time>, then -2, -3 ... until one is new. */
static int make_default_folder(moe_results *r, const char *name, moe_status *st) {
    char stamp[32];
    time_t now = time(NULL);
    struct tm parts;
    strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", localtime_r(&now, &parts));
    snprintf(r->folder, sizeof r->folder, "runs/%s-%s", name[0] ? name : "run", stamp);
    if (make_parents(r->folder, st) != MOE_OK) {
        return st->code;
    }
    for (int attempt = 2; mkdir(r->folder, 0777) != 0; attempt++) {
        if (errno != EEXIST || attempt > 1000) {
            return open_failure(st, "make the folder", r->folder);
        }
        snprintf(r->folder, sizeof r->folder, "runs/%s-%s-%d", name[0] ? name : "run", stamp,
                 attempt);
    }
    return MOE_OK;
}

static int write_config(const moe_results *r, const moe_config *c, moe_status *st) {
    char path[FILE_PATH_MAX];
    path_in(r, "config.ini", path);
    FILE *file = fopen(path, "w");
    if (!file) {
        return open_failure(st, "write", path);
    }
    moe_config_print(c, file);
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) {
        return open_failure(st, "write", path);
    }
    return MOE_OK;
}

static int open_metrics(moe_results *r, const char *how, moe_status *st) {
    char path[FILE_PATH_MAX];
    path_in(r, "metrics.jsonl", path);
    r->metrics = fopen(path, how);
    return r->metrics ? MOE_OK : open_failure(st, "write", path);
}

int moe_results_open(const moe_comm *comm,
                     const moe_config *c,
                     const char *folder,
                     bool force,
                     moe_results *out,
                     moe_status *st) {
    memset(out, 0, sizeof *out);
    if (comm->rank == 0) {
        int code = folder ? make_named_folder(out, folder, force, st)
                          : make_default_folder(out, c->name, st);
        if (code == MOE_OK) {
            code = write_config(out, c, st);
        }
        if (code == MOE_OK) {
            open_metrics(out, "w", st);
        }
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return st->code;
    }
    moe_comm_bcast(comm, out->folder, sizeof out->folder, 0);
    return MOE_OK;
}

/* Going on */

int moe_results_text(const moe_comm *comm,
                     const moe_results *r,
                     const char *name,
                     const char *text,
                     moe_status *st) {
    char path[FILE_PATH_MAX];
    path_in(r, name, path);
    if (comm->rank == 0) {
        moe_file_write(path, text, st);
    }
    return moe_comm_agree(comm, st);
}

/* Is the line whole, and of this step? A killed run may have left a torn one. */
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

/* Copies the lines of steps 0 .. steps - 1; returns how many there were. */
static int64_t copy_lines(FILE *from, FILE *to, int64_t steps) {
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int64_t n = 0;
    while (n < steps && (length = getline(&line, &room, from)) > 0 && is_line_of(n, line, length)) {
        fwrite(line, 1, (size_t)length, to);
        n++;
    }
    free(line);
    return n;
}

/* Cuts metrics.jsonl back to the lines of the first `steps` steps. */
static int cut_metrics(const moe_results *r, int64_t steps, moe_status *st) {
    char path[FILE_PATH_MAX], beside[FILE_PATH_MAX];
    path_in(r, "metrics.jsonl", path);
    path_in(r, "metrics.jsonl.tmp", beside);
    FILE *from = fopen(path, "r");
    if (!from) {
        return open_failure(st, "read", path);
    }
    FILE *to = fopen(beside, "w");
    if (!to) {
        open_failure(st, "write", beside);
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
/* config.ini anew: run.steps may have risen. The summary, if there is one, is of a shorter run. */
static int renew_texts(const moe_results *r, const moe_config *c, moe_status *st) {
    char path[FILE_PATH_MAX], *text = NULL;
    size_t length;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) {
        moe_out_of_memory("the configuration's text", 0);
    }
    moe_config_print(c, memory);
    if (fclose(memory) != 0) {
        moe_out_of_memory("the configuration's text", length);
    }
    path_in(r, "config.ini", path);
    moe_file_write(path, text, st);
    free(text);
    path_in(r, "summary.json", path);
    if (st->code == MOE_OK && unlink(path) != 0 && errno != ENOENT) {
        open_failure(st, "remove", path);
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
        int code = take_name(r, "--resume", folder, st);
        if (code == MOE_OK) {
            code = cut_metrics(r, step, st);
        }
        if (code == MOE_OK) {
            code = renew_texts(r, c, st);
        }
        if (code == MOE_OK) {
            open_metrics(r, "a", st);
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
        char path[FILE_PATH_MAX];
        json_int_t done, wanted;
        snprintf(path, sizeof path, "%.*s/summary.json", MOE_PATH_MAX - 1, folder);
        json_t *summary = json_load_file(path, 0, NULL);
        if (summary && json_unpack(summary, "{s:I, s:{s:{s:I}}}", "steps", &done, "config", "run",
                                   "steps", &wanted) == 0) {
            finished = done >= (steps > 0 ? steps : wanted);
        }
        json_decref(summary);
    }
    moe_comm_bcast(comm, &finished, sizeof finished, 0);
    return finished != 0;
}

/* Step by step */

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
    t->steps++;
    t->step_seconds += step->seconds;
    for (int32_t l = 0; l < step->num_layers; l++) {
        for (int p = 0; p < MOE_NUM_PHASES; p++) {
            t->phase_seconds[p] += step->layer[l].phase_seconds[p];
        }
    }
}

static void write_step(moe_results *r,
                       const moe_config *c,
                       const moe_step_metrics *step,
                       moe_status *st) {
    json_t *object = moe_summary_step(c, step);
    char *line = moe_json_line(object);
    if (fprintf(r->metrics, "%s\n", line) < 0 || fflush(r->metrics) != 0) {
        moe_fail(st, MOE_ERROR, "cannot write '%s/metrics.jsonl' at step %lld: %s", r->folder,
                 (long long)step->step, strerror(errno));
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
        moe_matrix_history_add(&r->matrices, step, r->times.steps);
    }
    add_times(&r->times, step);
    if (c->run.mode == MOE_MODE_TRAIN) {
        moe_training_history_add(&r->history, step);
    }
    return moe_comm_agree(comm, st);
}

void moe_results_history(const moe_comm *comm,
                         moe_results *r,
                         const moe_config *c,
                         int64_t step,
                         moe_blob blobs[MOE_RESULTS_BLOBS]) {
    int64_t count = step * c->model.num_layers * c->model.num_experts;
    if (comm->rank == 0 && count > r->expert_load_capacity) {
        MOE_ASSERT(r->times.steps == 0);
        moe_reserve(&r->expert_load, &r->expert_load_capacity, count, sizeof *r->expert_load,
                    "expert loads of all steps");
    }
    int32_t layers = c->model.num_layers, devices = c->cluster.devices;
    int64_t stride, matrices = moe_matrix_history_kept(layers, devices, step, &stride) * layers *
                               devices * devices;
    if (comm->rank == 0) {
        moe_matrix_history_reserve(&r->matrices, layers, devices, step);
    }
    blobs[0] = (moe_blob){"results.times", &r->times, sizeof r->times};
    blobs[1] = (moe_blob){"results.expert_load", comm->rank == 0 ? r->expert_load : NULL,
                          count * (int64_t)sizeof *r->expert_load};
    blobs[2] = (moe_blob){"results.history", &r->history, moe_training_history_bytes()};
    blobs[3] = (moe_blob){"results.matrices", comm->rank == 0 ? r->matrices.rows : NULL,
                          matrices * (int64_t)sizeof *r->matrices.rows};
}

int moe_results_sync(const moe_comm *comm, const moe_results *r, moe_status *st) {
    if (comm->rank == 0 && (fflush(r->metrics) != 0 || fsync(fileno(r->metrics)) != 0)) {
        moe_fail(st, MOE_ERROR, "cannot write '%s/metrics.jsonl': %s", r->folder, strerror(errno));
    }
    return moe_comm_agree(comm, st);
}

/* The end */

static void write_summary(const moe_results *r,
                          const moe_config *c,
                          const moe_step_metrics *last,
                          const moe_topology *topologies,
                          int ranks,
                          moe_status *st) {
    char path[FILE_PATH_MAX];
    json_t *object = moe_summary_run(c, last, topologies, ranks, &r->times, &r->history, &r->facts);
    char *text = moe_json_indented(object);
    path_in(r, "summary.json", path);
    moe_file_write(path, text, st);
    free(text);
    json_decref(object);
}

static int write_matrix(const moe_comm *comm,
                        const moe_results *r,
                        const moe_step_metrics *last,
                        moe_status *st) {
    char path[FILE_PATH_MAX];
    int64_t devices = last->devices;
    int64_t shape[3] = {last->num_layers, devices, devices};
    int64_t mine = 0;
    moe_npy_piece *pieces = moe_alloc(last->num_layers, sizeof *pieces, "pieces of the matrix");
    for (int32_t l = comm->rank; l < last->num_layers; l += comm->size) {
        pieces[mine++] =
            (moe_npy_piece){last->layer[l].matrix, l * devices * devices, devices * devices};
    }
    path_in(r, "comm_matrix.npy", path);
    moe_comm_write_npy(comm, path, MOE_I64, 3, shape, pieces, mine, st);
    moe_free(pieces);
    return st->code;
}

/* comm_matrix_steps.npy: what was kept, and the last step where it is not among it. */
static int write_matrices(const moe_comm *comm,
                          const moe_results *r,
                          const moe_step_metrics *last,
                          moe_status *st) {
    char path[FILE_PATH_MAX];
    int32_t layers = last->num_layers, devices = last->devices;
    int64_t step[MOE_MATRICES + 1], stride,
        written = moe_matrix_history_steps(layers, devices, r->times.steps, step);
    int64_t kept = moe_matrix_history_kept(layers, devices, r->times.steps, &stride);
    int64_t layer = (int64_t)devices * devices;
    int64_t size = layers * layer;
    int64_t shape[4] = {written, layers, devices, devices}, num = 0;
    if (written == 0) {
        return MOE_OK;
    }
    moe_npy_piece *pieces = moe_alloc(layers + 1, sizeof *pieces, "pieces of the matrices");
    if (comm->rank == 0) {
        pieces[num++] = (moe_npy_piece){r->matrices.rows, 0, kept * size};
        for (int32_t l = 0; written > kept && l < layers; l++) {
            pieces[num++] = (moe_npy_piece){last->layer[l].matrix, kept * size + l * layer, layer};
        }
    }
    path_in(r, "comm_matrix_steps.npy", path);
    moe_comm_write_npy(comm, path, MOE_I64, 4, shape, pieces, num, st);
    moe_free(pieces);
    return st->code;
}

static int write_expert_load(const moe_comm *comm,
                             const moe_results *r,
                             const moe_step_metrics *last,
                             moe_status *st) {
    char path[FILE_PATH_MAX];
    int64_t shape[3] = {r->times.steps, last->num_layers, last->num_experts};
    moe_npy_piece all = {r->expert_load, 0, shape[0] * shape[1] * shape[2]};
    path_in(r, "expert_load.npy", path);
    return moe_comm_write_npy(comm, path, MOE_I64, 3, shape, &all, comm->rank == 0, st);
}

static void close_metrics(moe_results *r, moe_status *st) {
    if (r->metrics && fclose(r->metrics) != 0) {
        moe_fail(st, MOE_ERROR, "cannot write '%s/metrics.jsonl': %s", r->folder, strerror(errno));
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
    if (comm->rank == 0) {
        close_metrics(r, st);
    }
    int code = moe_comm_agree(comm, st);
    if (code == MOE_OK) {
        code = write_matrix(comm, r, last, st);
    }
    if (code == MOE_OK) {
        code = write_matrices(comm, r, last, st);
    }
    if (code == MOE_OK) {
        code = write_expert_load(comm, r, last, st);
    }
    if (code == MOE_OK) {
        if (comm->rank == 0) {
            write_summary(r, c, last, topologies, comm->size, st);
        }
        code = moe_comm_agree(comm, st);
    }
    moe_results_free(r);
    return code;
}

void moe_results_free(moe_results *r) {
    if (r->metrics) {
        fclose(r->metrics);
    }
    r->metrics = NULL;
    moe_free(r->expert_load);
    r->expert_load = NULL;
    r->expert_load_capacity = 0;
    moe_matrix_history_free(&r->matrices);
}
