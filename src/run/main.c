/* main.c: arguments, configuration, run. Rank 0 speaks; all ranks end with the same code. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "config/config.h"
#include "output/results.h"
#include "run/dialects.h"
#include "run/run.h"
#include "run/verify.h"
#include "world/comm.h"

typedef struct arguments {
    const char *config, *resume;
    const char **set;
    int num_set;
    moe_run_options run;
    bool help, version, keys, verify, dialects;
} arguments;

static const char *const help_text =
    "moesim simulates expert-parallel Mixture-of-Experts: an MPI rank is a device.\n"
    "\n"
    "usage: mpirun -np D moesim [OPTIONS] CONFIG.ini\n"
    "\n"
    "  --set section.key=value  overrides the file; repeatable\n"
    "  --out DIR                where results go (default runs/<config name>-<time>)\n"
    "  --force                  replace the results in DIR\n"
    "  --check                  validate, print the configuration as resolved, stop\n"
    "  --resume DIR             go on from that run's last checkpoint (no CONFIG)\n"
    "  --keys                   every key with type, default, range and one sentence\n"
    "  --quiet                  print nothing but errors\n"
    "  --explain TOKEN          one token of the last step on its way (0 = the first)\n"
    "  --explain-step           every figure of the last step derived, and checked\n"
    "  --dialects               the same tokens through every preset, side by side\n"
    "  --verify                 recompute figures that are known exactly (no CONFIG)\n"
    "  --version, --help\n"
    "\n"
    "examples:\n"
    "  mpirun -np 8 moesim configs/quickstart.ini\n"
    "  mpirun -np 4 moesim --set router.topk_group=2 --out runs/m2 my.ini\n"
    "\n"
    "exit status: 0 done; 2 a mistake in the input, and one sentence that names it;\n"
    "             3 the run failed its own checks; 1 anything else\n";

static int unknown_option(const char *option, moe_status *st) {
    if (strcmp(option, "--calibrate") == 0) {
        return moe_fail(st, MOE_USER, "%s is not available yet", option);
    }
    return moe_fail(st, MOE_USER, "unknown option %s: moesim --help lists them", option);
}

/* The value of an option: "--out=DIR" or "--out DIR". NULL and a failure when it is missing. */
static const char *option_value(int argc, char **argv, int *i, const char *name, moe_status *st) {
    size_t length = strlen(name);
    if (argv[*i][length] == '=') {
        return argv[*i] + length + 1;
    }
    if (*i + 1 < argc) {
        return argv[++*i];
    }
    moe_fail(st, MOE_USER, "%s needs a value: moesim --help shows how", name);
    return NULL;
}

static bool is_option(const char *argument, const char *name) {
    size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 &&
           (argument[length] == 0 || argument[length] == '=');
}

/* The value of --explain: a token id. */
static int parse_token(arguments *a, const char *value, moe_status *st) {
    char *end;
    errno = 0;
    a->run.explain_token = strtoll(value, &end, 10);
    bool digits = value[0] >= '0' && value[0] <= '9' && *end == 0;
    if (!digits || errno) {
        return moe_fail(st, MOE_USER, "--explain %s: the number of a token is expected, from 0 on",
                        value);
    }
    a->run.explains_token = true;
    return MOE_OK;
}

/* What looks at a run's last step goes with a run only. */
static int check_explain(const arguments *a, moe_status *st) {
    const char *other = a->run.check_only ? "--check"
                        : a->dialects     ? "--dialects"
                        : a->verify       ? "--verify"
                        : a->keys         ? "--keys"
                                          : NULL;
    bool explains = a->run.explains_token || a->run.explains_step;
    if (!explains || !other) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "%s looks at the last step of a run, and %s makes none: leave one of them out",
                    a->run.explains_token ? "--explain" : "--explain-step", other);
}

static int parse_arguments(int argc, char **argv, arguments *a, moe_status *st) {
    const char *explain = NULL;
    a->set = moe_alloc(argc, sizeof *a->set, "arguments");
    for (int i = 1; i < argc && st->code == MOE_OK; i++) {
        if (is_option(argv[i], "--set")) {
            a->set[a->num_set++] = option_value(argc, argv, &i, "--set", st);
        } else if (is_option(argv[i], "--out")) {
            a->run.out = option_value(argc, argv, &i, "--out", st);
        } else if (is_option(argv[i], "--explain")) {
            explain = option_value(argc, argv, &i, "--explain", st);
        } else if (is_option(argv[i], "--resume")) {
            a->resume = option_value(argc, argv, &i, "--resume", st);
        } else if (strcmp(argv[i], "--explain-step") == 0) {
            a->run.explains_step = true;
        } else if (strcmp(argv[i], "--force") == 0) {
            a->run.force = true;
        } else if (strcmp(argv[i], "--check") == 0) {
            a->run.check_only = true;
        } else if (strcmp(argv[i], "--quiet") == 0) {
            a->run.quiet = true;
        } else if (strcmp(argv[i], "--verify") == 0) {
            a->verify = true;
        } else if (strcmp(argv[i], "--dialects") == 0) {
            a->dialects = true;
        } else if (strcmp(argv[i], "--keys") == 0) {
            a->keys = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            a->help = true;
        } else if (strcmp(argv[i], "--version") == 0) {
            a->version = true;
        } else if (argv[i][0] == '-') {
            unknown_option(argv[i], st);
        } else if (a->config) {
            moe_fail(st, MOE_USER, "two configurations are given, %s and %s: one is expected",
                     a->config, argv[i]);
        } else {
            a->config = argv[i];
        }
    }
    if (st->code == MOE_OK && explain) {
        parse_token(a, explain, st);
    }
    if (st->code == MOE_OK) {
        check_explain(a, st);
    }
    bool talks = a->help || a->version || a->keys || a->verify;
    if (st->code == MOE_OK && a->resume && (a->config || a->run.out || a->run.force)) {
        moe_fail(st, MOE_USER,
                 "--resume %s takes its configuration and folder from that run: a CONFIG, --out "
                 "and --force do not go with it",
                 a->resume);
    }
    if (st->code == MOE_OK && a->dialects && a->resume) {
        moe_fail(st, MOE_USER,
                 "--dialects takes a CONFIG and does not go on with a run: leave --resume out");
    }
    if (st->code == MOE_OK && !a->config && !talks && !a->resume) {
        moe_fail(st, MOE_USER,
                 "no configuration is given: mpirun -np D moesim CONFIG.ini (moesim --help)");
    }
    return st->code;
}

enum { CONFIG_MAX_BYTES = 1 << 20 };

/* Rank 0: the bytes of the configuration, NULL on failure. */
static char *read_file(const char *path, int64_t *length, moe_status *st) {
    FILE *file = fopen(path, "rb");
    char *bytes = moe_alloc_zero(CONFIG_MAX_BYTES + 1, 1, "configuration");
    if (!file) {
        moe_fail(st, MOE_USER, "%s cannot be read: %m", path);
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

/* Collective. Rank 0 reads, everybody parses the same bytes. */
static int load_config(const moe_comm *comm, const arguments *a, moe_config *c, moe_status *st) {
    int64_t length = 0;
    char *bytes = NULL;
    if (comm->rank == 0) {
        bytes = read_file(a->config, &length, st);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        moe_comm_bcast(comm, &length, sizeof length, 0);
        if (comm->rank != 0) {
            bytes = moe_alloc(length + 1, 1, "configuration");
        }
        moe_comm_bcast(comm, bytes, length, 0);
        moe_config_defaults(c);
        moe_config_parse(c, bytes, length, a->config, st);
        for (int i = 0; i < a->num_set && st->code == MOE_OK; i++) {
            moe_config_set(c, a->set[i], st);
        }
        if (st->code == MOE_OK) {
            moe_config_resolve(c, comm->size, st);
        }
    }
    moe_free(bytes);
    return st->code;
}

/* Collective. The configuration of a checkpoint with what --set changes, if that may go on. */
static int resumed_config(const moe_comm *comm,
                          const arguments *a,
                          const moe_checkpoint *found,
                          moe_config *c,
                          moe_status *st) {
    moe_checkpoint_config(found, c, st);
    for (int i = 0; i < a->num_set && st->code == MOE_OK; i++) {
        moe_config_set(c, a->set[i], st);
    }
    if (st->code == MOE_OK) {
        moe_config_resolve(c, comm->size, st);
    }
    if (st->code == MOE_OK) {
        moe_checkpoint_same_run(c, found->config_text, st);
    }
    return st->code;
}

static int already_finished(const moe_comm *comm, const arguments *a) {
    if (comm->rank == 0 && !a->run.quiet) {
        printf("%s is finished: there is nothing to go on with\n", a->resume);
    }
    return MOE_OK;
}

/* Collective. --resume DIR */
static int resume(const moe_comm *comm, const arguments *a, moe_status *st) {
    moe_checkpoint found = {0};
    moe_config config;
    moe_run_options options = a->run;
    char word[512] = "";
    if (a->num_set == 0 && moe_results_finished(comm, a->resume, 0)) {
        return already_finished(comm, a);
    }
    if (moe_checkpoint_find(comm, a->resume, &found, word, st)) {
        return st->code;
    }
    if (resumed_config(comm, a, &found, &config, st) == MOE_OK) {
        if (moe_results_finished(comm, a->resume, config.run.steps)) {
            already_finished(comm, a);
        } else {
            options.out = a->resume;
            options.resume = &found;
            options.word = word;
            moe_run(comm, &config, &options, st);
        }
    }
    moe_checkpoint_free(&found);
    return st->code;
}

static int act(const moe_comm *comm, const arguments *a, moe_status *st) {
    moe_config config;
    if (a->help || a->version || a->keys) {
        if (comm->rank == 0 && a->version) {
            printf("moesim %s\n", MOESIM_VERSION);
        }
        if (comm->rank == 0 && a->help) {
            fputs(help_text, stdout);
        }
        if (comm->rank == 0 && a->keys) {
            moe_config_print_keys(stdout);
        }
        return MOE_OK;
    }
    if (a->verify) {
        return moe_verify(comm, st);
    }
    if (a->resume) {
        return resume(comm, a, st);
    }
    if (load_config(comm, a, &config, st)) {
        return st->code;
    }
    if (a->dialects) {
        return moe_dialects(comm, &config, st);
    }
    return moe_run(comm, &config, &a->run, st);
}

int main(int argc, char **argv) {
    moe_comm comm;
    arguments a = {0};
    moe_status st = {0};
    moe_comm_init(&comm, &argc, &argv);
    if (parse_arguments(argc, argv, &a, &st) == MOE_OK) {
        act(&comm, &a, &st);
    }
    if (comm.rank == 0 && st.code) {
        fprintf(stderr, "moesim: %s\n", st.message);
    }
    if (comm.rank == 0 && fflush(stdout) && !st.code) {
        st.code = MOE_ERROR;
    }
    moe_free(a.set);
    moe_comm_bcast(&comm, &st.code, sizeof st.code, 0);
    moe_comm_finalize(&comm);
    return st.code;
}
