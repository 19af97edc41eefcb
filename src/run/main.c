/* main.c: from the command line to what it asks for. Rank 0 speaks, and all ranks end with the same
 * code. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/parent.h"
#include "base/status.h"
#include "config/cluster_file.h"
#include "config/config.h"
#include "config/value.h"
#include "output/results.h"
#include "run/calibrate.h"
#include "run/dialects.h"
#include "run/options.h"
#include "run/placements.h"
#include "run/run.h"
#include "run/verify.h"
#include "world/comm.h"
#include "world/topology.h"

/* --- configurations --- */

enum { CONFIG_MAX_BYTES = 1 << 20 };

/* The bytes of the file and their number, to be freed by the caller, also on failure. */
static char *read_file(const char *path, int64_t *length, moe_status *st) {
    const char *why;
    FILE *file = moe_file_stream(path, &why);
    char *bytes = moe_alloc_zero(CONFIG_MAX_BYTES + 1, 1, "configuration");
    if (!file) {
        moe_fail(st, MOE_USER, "%s cannot be read: %s", path, why);
        return bytes;
    }
    *length = (int64_t)fread(bytes, 1, CONFIG_MAX_BYTES + 1, file);
    if (ferror(file)) {
        moe_fail(st, MOE_USER, "%s cannot be read: %m", path);
    } else if (*length > CONFIG_MAX_BYTES) {
        moe_fail(st, MOE_USER, "%s is longer than 1 MiB: it is not a configuration", path);
    }
    fclose(file);
    return bytes;
}

/* Local. Takes what stands behind every --set. */
static int set_all(const moe_options *o, moe_config *c, moe_status *st) {
    for (int i = 0; i < o->sets.count && st->code == MOE_OK; i++) {
        moe_config_set(c, o->sets.assignment[i], st);
    }
    return st->code;
}

/* Collective. Rank 0 reads the file, and every rank gets the same bytes, to be freed by the caller,
 * also on failure. */
static char *share_file(const moe_comm *comm, const char *path, int64_t *length, moe_status *st) {
    char *bytes = NULL;
    if (comm->rank == 0) {
        bytes = read_file(path, length, st);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        moe_comm_bcast(comm, length, sizeof *length, 0);
        if (comm->rank != 0) {
            bytes = moe_alloc(*length + 1, 1, "configuration");
        }
        moe_comm_bcast(comm, bytes, *length, 0);
    }
    return bytes;
}

/* Collective. Takes what the command line and the cluster file say on top of what was parsed. */
static int complete_config(const moe_comm *comm,
                           const moe_options *o,
                           moe_config *c,
                           moe_status *st) {
    c->hosts = (moe_config_hosts){.count = comm->num_hosts,
                                  .unequal = !comm->hosts_are_equal,
                                  .mixed = !comm->hosts_are_in_turn};
    if (set_all(o, c, st) == MOE_OK && moe_cluster_file_is_needed(c)) {
        int64_t length = 0;
        char *bytes = share_file(comm, c->cluster.file, &length, st);
        if (st->code == MOE_OK) {
            moe_cluster_file_apply(c, bytes, length, st);
        }
        moe_free(bytes);
    }
    return st->code == MOE_OK ? moe_config_resolve(c, comm->size, st) : st->code;
}

/* Collective. */
static int load_config(const moe_comm *comm, const moe_options *o, moe_config *c, moe_status *st) {
    int64_t length = 0;
    char *bytes = share_file(comm, o->config, &length, st);
    if (st->code == MOE_OK) {
        moe_config_defaults(c);
        c->compares_placements = o->placements;
        if (moe_config_parse(c, bytes, length, o->config, st) == MOE_OK) {
            complete_config(comm, o, c, st);
        }
    }
    moe_free(bytes);
    return st->code;
}

/* Collective. Makes the configuration of a checkpoint with what --set changes, and refuses it when
 * a run may not go on with that. */
static int resumed_config(const moe_comm *comm,
                          const moe_options *o,
                          const moe_checkpoint *found,
                          moe_config *c,
                          moe_status *st) {
    moe_checkpoint_config(found, c, st);
    if (st->code == MOE_OK && complete_config(comm, o, c, st) == MOE_OK) {
        moe_checkpoint_same_run(c, found->config_text, st);
    }
    return st->code;
}

/* --- what the command line asks for --- */

static int already_finished(const moe_comm *comm, const moe_options *o) {
    if (comm->rank == 0 && !o->run.quiet) {
        printf("%s is finished: there is nothing to go on with\n", o->resume);
    }
    return MOE_OK;
}

/* Collective. Goes on with the run, whose folder is locked. */
static int resume_locked(const moe_comm *comm, const moe_options *o, moe_status *st) {
    moe_checkpoint found = {0};
    moe_config config;
    moe_run_options options = o->run;
    char word[512] = "";
    if (moe_checkpoint_find(comm, o->resume, &found, word, st)) {
        return st->code;
    }
    if (resumed_config(comm, o, &found, &config, st) == MOE_OK) {
        if (moe_results_finished(comm, o->resume, config.run.steps)) {
            already_finished(comm, o);
        } else {
            options.out = o->resume;
            options.resume = &found;
            options.word = word;
            moe_run(comm, &config, &options, st);
        }
    }
    moe_checkpoint_free(&found);
    return st->code;
}

/* Collective. Goes on with the run of --resume, unless it is finished. */
static int resume(const moe_comm *comm, const moe_options *o, moe_status *st) {
    moe_lock lock;
    if (o->sets.count == 0 && moe_results_finished(comm, o->resume, 0)) {
        return already_finished(comm, o);
    }
    if (moe_results_lock(comm, o->resume, &lock, st) == MOE_OK) {
        resume_locked(comm, o, st);
    }
    moe_lock_release(&lock);
    return st->code;
}

/* Local. The configuration of a checkpoint as a run that generates takes it. A capacity is one of
 * training: what is dropped would depend on the other sequences, and DeepSeek-V2 leaves inference
 * free to drop nothing (arXiv 2405.04434, section 2.1.4). --set comes after this. */
static int config_to_generate(const moe_checkpoint *found,
                              const char *folder,
                              moe_config *config,
                              moe_status *st) {
    if (moe_checkpoint_config(found, config, st) == MOE_OK &&
        moe_value_override(config, MOE_KEY(generate, run), folder, st) == MOE_OK) {
        moe_value_override(config, MOE_KEY(capacity, policy), "none", st);
    }
    return st->code;
}

/* Collective. Generates with the model of the last checkpoint in `folder`: with the configuration
 * `given`, which is resolved, or where that is NULL with that of the checkpoint. */
static int generate(const moe_comm *comm,
                    const moe_options *o,
                    const char *folder,
                    moe_config *given,
                    moe_status *st) {
    moe_checkpoint found = {0};
    moe_config config;
    moe_run_options options = o->run;
    char word[512] = "";
    if (moe_checkpoint_find(comm, folder, &found, word, st)) {
        return st->code;
    }
    if (!given && config_to_generate(&found, folder, &config, st) == MOE_OK) {
        complete_config(comm, o, &config, st);
    }
    if (st->code == MOE_OK) {
        moe_checkpoint_same_run(given ? given : &config, found.config_text, st);
    }
    if (st->code == MOE_OK) {
        options.model = &found;
        options.word = word;
        moe_run(comm, given ? given : &config, &options, st);
    }
    moe_checkpoint_free(&found);
    return st->code;
}

/* Local. Whether the command line asks about moesim itself. */
static bool is_about(const moe_options *o) {
    return o->help || o->version || o->keys;
}

/* The largest number of ranks up to the number of cores that divides the devices: each rank then
 * has as many. Where a device is what each rank is, 8. */
static int32_t ranks_for(int32_t devices) {
    const int32_t usual = 8;
    if (devices == 0) {
        return usual;
    }
    int32_t ranks = moe_topology_cores();
    while (devices % ranks != 0) {
        ranks--;
    }
    return ranks;
}

/* Local. Prints on how many ranks scripts/run starts this command line. Only what cannot be read is
 * refused here, since the run itself says what is wrong with the rest. For --resume that is the
 * config.ini of the run; one that is missing is the run's to complain about as well. */
static int print_ranks(const moe_options *o, moe_status *st) {
    char path[MOE_PATH_MAX];
    const char *file = o->config;
    moe_config c;
    if (o->resume) {
        snprintf(path, sizeof path, "%s/config.ini", o->resume);
        file = access(path, R_OK) == 0 ? path : NULL;
    }
    moe_config_defaults(&c);
    if (file) {
        int64_t length = 0;
        char *bytes = read_file(file, &length, st);
        if (st->code == MOE_OK) {
            moe_config_parse(&c, bytes, length, file, st);
        }
        moe_free(bytes);
    }
    if (st->code == MOE_OK && set_all(o, &c, st) == MOE_OK) {
        printf("%d\n", ranks_for(c.cluster.devices));
    }
    return st->code;
}

/* Local. What rank 0 prints for --version, --help and --keys. */
static void print_about(const moe_options *o) {
    if (o->version) {
        printf("moesim %s\n", MOESIM_VERSION);
    }
    if (o->help) {
        moe_options_print_help(stdout);
    }
    if (o->keys) {
        moe_config_print_keys(stdout);
    }
}

/* Collective. */
static int act(const moe_comm *comm, const moe_options *o, moe_status *st) {
    moe_config config;
    if (is_about(o)) {
        if (comm->rank == 0) {
            print_about(o);
        }
        return MOE_OK;
    }
    if (o->verify) {
        return moe_verify(comm, st);
    }
    if (o->verify_predict) {
        if (comm->rank == 0) {
            moe_verify_predict();
        }
        return MOE_OK;
    }
    if (o->calibrate) {
        return moe_calibrate(comm, o->calibrate, o->run.force, st);
    }
    if (o->parameters.from) {
        return moe_export_checkpoint(comm, &o->parameters, &o->run, st);
    }
    if (o->resume) {
        return o->generates ? generate(comm, o, o->resume, NULL, st) : resume(comm, o, st);
    }
    if (load_config(comm, o, &config, st) != MOE_OK) {
        return st->code;
    }
    if (o->dialects) {
        return moe_dialects(comm, &config, st);
    }
    if (o->placements) {
        return moe_placements(comm, &config, &o->run, st);
    }
    if (moe_config_generates(&config)) {
        if (o->export_parameters) {
            return moe_fail(st, MOE_USER,
                            "run.mode = generate has the parameters of %s: moesim "
                            "--export-parameters writes those of that folder",
                            config.generate.run);
        }
        return generate(comm, o, config.generate.run, &config, st);
    }
    if (o->export_parameters) {
        return moe_export_start(comm, &config, &o->parameters, &o->run, st);
    }
    return moe_run(comm, &config, &o->run, st);
}

/* Local. Says what went wrong, if anything did, and returns the code to end with. */
static int conclude(const moe_status *st) {
    if (st->code != MOE_OK) {
        fprintf(stderr, "moesim: %s\n", st->message);
    }
    /* an earlier failure has emptied the buffer, and only the stream's flag still tells of it */
    if ((fflush(stdout) != 0 || ferror(stdout)) && st->code == MOE_OK) {
        fprintf(stderr,
                "moesim: standard output cannot be written: what was to be shown is lost\n");
        return MOE_ERROR;
    }
    return st->code;
}

/* Local. A standard stream that is closed would give its number to the next file that is opened,
 * which then got what is printed. /dev/null stands in its place, opened so that what would be
 * printed to it fails. */
static void fill_closed_streams(void) {
    for (int stream = 0; stream <= 2; stream++) {
        if (fcntl(stream, F_GETFD) < 0) {
            open("/dev/null", O_RDONLY);
        }
    }
}

/* Local. A limit on the size of files (ulimit -f) makes a write fail, like a full disk, instead of
 * ending the process. */
static void prepare_process(void) {
    fill_closed_streams();
    signal(SIGXFSZ, SIG_IGN);
    moe_parent_watch();
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_options o;
    moe_status st = {0}, limits = {0};
    prepare_process();
    moe_options_parse(argc, argv, &o, &st);
    if (st.code == MOE_OK && (is_about(&o) ? !moe_parent_is_launcher() : o.ranks)) {
        if (is_about(&o)) { /* either without MPI, which would take longer to start */
            print_about(&o);
        } else {
            print_ranks(&o, &st);
        }
        moe_options_free(&o);
        return conclude(&st);
    }
    if (moe_limits_check_start(&limits)) { /* mpirun ends the other ranks */
        moe_options_free(&o);
        return conclude(&limits);
    }
    moe_comm_init(&comm, &argc, &argv);
    if (st.code == MOE_OK) {
        act(&comm, &o, &st);
    }
    if (comm.rank == 0) {
        st.code = conclude(&st);
    }
    moe_options_free(&o);
    moe_comm_bcast(&comm, &st.code, sizeof st.code, 0);
    moe_comm_finalize(&comm);
    return st.code;
}
