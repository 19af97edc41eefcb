/* options.c: the command line, read with getopt_long from one table that --help is printed from. */
#include "run/options.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "output/screen.h"

/* --- the table --- */

typedef struct option_row {
    const char *name;
    const char *argument; /* what --help calls the value; NULL: the option has none */
    const char *help;     /* NULL: stands without a sentence in the last line of --help */
    void (*take)(void *field, const char *value);
    size_t field; /* of moe_options, for `take` */
} option_row;

static void take_flag(void *field, const char *value) {
    (void)value;
    *(bool *)field = true;
}

static void take_text(void *field, const char *value) {
    *(const char **)field = value;
}

/* Adds the value to moe_options.sets, which has room for as many as there are words. */
static void take_set(void *field, const char *value) {
    moe_set_options *sets = field;
    sets->assignment[sets->count++] = value;
}

#define FLAG(field) take_flag, offsetof(moe_options, field)
#define TEXT(field) take_text, offsetof(moe_options, field)

static const option_row table[] = {
    {"set", "section.key=value", "overrides the file; repeatable", take_set,
     offsetof(moe_options, sets)},
    {"out", "DIR", "where results go (default runs/<config name>-<time>)", TEXT(run.out)},
    {"force", NULL, "replace the results in DIR", FLAG(run.force)},
    {"check", NULL, "validate, print the configuration as resolved, stop", FLAG(run.check_only)},
    {"resume", "DIR", "go on from that run's last checkpoint (no CONFIG)", TEXT(resume)},
    {"keys", NULL, "every key with type, default, range and one sentence", FLAG(keys)},
    {"quiet", NULL, "print nothing but errors", FLAG(run.quiet)},
    {"full", NULL, "tell everything at the end, formulas and matrix too", FLAG(run.full)},
    {"explain", "TOKEN", "one token of the last step on its way (0 = the first)", TEXT(explain)},
    {"explain-step", NULL, "every figure of the last step derived, and checked",
     FLAG(run.explains_step)},
    {"dialects", NULL, "the same tokens through every preset, side by side", FLAG(dialects)},
    {"placements", NULL, "the same routing under every placement, side by side", FLAG(placements)},
    {"verify", NULL, "known figures again; --verify predict: known times", FLAG(verify)},
    {"calibrate", "OUT.ini", "measure this host, write a cluster file (no CONFIG)",
     TEXT(calibrate)},
    {"export-parameters", "DIR", "the weights of that run's last checkpoint as .npy",
     TEXT(export_parameters)},
    {"ranks", NULL, NULL, FLAG(ranks)},
    {"version", NULL, NULL, FLAG(version)},
    {"help", NULL, NULL, FLAG(help)},
};
enum { NUM_OPTIONS = sizeof table / sizeof table[0] };

/* --- --help --- */

enum { HELP_COLUMN = 27 };

static void print_option(const moe_screen *s, const option_row *row) {
    char name[HELP_COLUMN + 1];
    snprintf(name, sizeof name, "  --%s%s%s", row->name, row->argument ? " " : "",
             row->argument ? row->argument : "");
    moe_screen_wrapped(s, HELP_COLUMN, name, "%s", row->help);
}

void moe_options_print_help(FILE *out) {
    const moe_screen s = moe_screen_of(out, false);
    moe_screen_wrapped(&s, 0, "",
                       "moesim simulates expert-parallel Mixture-of-Experts: an MPI rank is a "
                       "device.");
    fputs("usage: mpirun -np D moesim [OPTIONS] CONFIG.ini\n\n", out);
    const char *before = "  ";
    for (int i = 0; i < NUM_OPTIONS; i++) {
        if (table[i].help) {
            print_option(&s, &table[i]);
        } else {
            fprintf(out, "%s--%s", before, table[i].name);
            before = ", ";
        }
    }
    fputs("\n\nexamples:\n"
          "  mpirun -np 8 moesim configs/quickstart.ini\n"
          "  mpirun -np 4 moesim --set router.topk_group=2 my.ini\n",
          out);
    moe_screen_wrapped(&s, 0, "",
                       "exit status: 0 done; 2 a mistake in the input; 3 failed self-checks; 1 "
                       "otherwise");
}

/* --- reading --- */

static int unknown_option(const char *word, moe_status *st) {
    return moe_fail(st, MOE_USER, "unknown option %s: moesim --help lists them", word);
}

/* What getopt_long returns for the first row of the table, beyond all characters. */
enum { FIRST_ROW = 256 };

static void fill_long_options(struct option list[NUM_OPTIONS + 1]) {
    for (int i = 0; i < NUM_OPTIONS; i++) {
        list[i] =
            (struct option){table[i].name, table[i].argument ? required_argument : no_argument,
                            NULL, FIRST_ROW + i};
    }
    list[NUM_OPTIONS] = (struct option){NULL, 0, NULL, 0};
}

/* Whether the word is one that moesim takes. getopt_long would also take the beginning of a name, a
 * group of letters behind one dash, a lone dash as a file, and two dashes as the end of options. */
static bool is_known(const char *word) {
    if (word[0] != '-' || strcmp(word, "-h") == 0) {
        return true;
    }
    const size_t length = strcspn(word, "=");
    for (int i = 0; i < NUM_OPTIONS; i++) {
        if (strncmp(word, "--", 2) == 0 && strlen(table[i].name) == length - 2 &&
            strncmp(word + 2, table[i].name, length - 2) == 0) {
            return word[length] == '\0' || table[i].argument;
        }
    }
    return false;
}

static int take_config(moe_options *o, const char *file, moe_status *st) {
    if (o->config) {
        return moe_fail(st, MOE_USER, "two configurations are given, %s and %s: one is expected",
                        o->config, file);
    }
    o->config = file;
    return MOE_OK;
}

/* Reads the words from left to right up to the first mistake. */
static int read_words(int argc, char **argv, moe_options *o, moe_status *st) {
    struct option list[NUM_OPTIONS + 1];
    fill_long_options(list);
    opterr = 0;
    optind = 0; /* start anew, whatever was parsed before */
    for (int at = 1; at < argc && st->code == MOE_OK; at = optind) {
        if (!is_known(argv[at])) {
            return unknown_option(argv[at], st);
        }
        /* "-": files and options come in the order in which they are written; ":": a value that is
         * missing is told apart */
        const int found = getopt_long(argc, argv, "-:h", list, NULL);
        if (found == ':') {
            moe_fail(st, MOE_USER, "%s needs a value: moesim --help shows how", argv[at]);
        } else if (found == 'h') {
            o->help = true;
        } else if (found == 1) {
            take_config(o, optarg, st);
        } else {
            const option_row *row = &table[found - FIRST_ROW];
            row->take((char *)o + row->field, optarg);
        }
    }
    return st->code;
}

/* --- options that do not go together --- */

/* The text behind --explain as the id of a token. */
static int parse_token(moe_options *o, moe_status *st) {
    char *end;
    errno = 0;
    o->run.explain_token = strtoll(o->explain, &end, 10);
    const bool digits = o->explain[0] >= '0' && o->explain[0] <= '9' && *end == '\0';
    if (!digits || errno != 0) {
        return moe_fail(st, MOE_USER, "--explain %s: the number of a token is expected, from 0 on",
                        o->explain);
    }
    o->run.explains_token = true;
    return MOE_OK;
}

/* What tells about a run's last step needs a run. */
static int check_last_step(const moe_options *o, moe_status *st) {
    const char *without = o->run.check_only                ? "--check"
                          : o->dialects                    ? "--dialects"
                          : o->placements                  ? "--placements"
                          : o->verify || o->verify_predict ? "--verify"
                          : o->calibrate                   ? "--calibrate"
                          : o->keys                        ? "--keys"
                                                           : NULL;
    const char *told = o->run.explains_token  ? "--explain"
                       : o->run.explains_step ? "--explain-step"
                       : o->run.full          ? "--full"
                                              : NULL;
    if (told && without) {
        return moe_fail(
            st, MOE_USER,
            "%s looks at the last step of a run, and %s makes none: leave one of them out", told,
            without);
    }
    if (o->run.full && o->run.quiet) {
        return moe_fail(st, MOE_USER, "--full and --quiet: leave one of them out");
    }
    return MOE_OK;
}

/* What was given beside an option that stands alone. */
static const char *given_beside(const moe_options *o) {
    const bool verifies = o->verify || o->verify_predict;
    return o->config                             ? o->config
           : o->sets.count > 0                   ? "--set"
           : o->run.out                          ? "--out"
           : o->resume                           ? "--resume"
           : o->run.force                        ? "--force"
           : o->run.check_only                   ? "--check"
           : o->dialects                         ? "--dialects"
           : o->placements                       ? "--placements"
           : o->calibrate                        ? "--calibrate"
           : o->export_parameters                ? "--export-parameters"
           : verifies && (o->keys || o->version) ? "--verify"
           : o->keys && o->version               ? "--version"
                                                 : NULL;
}

/* Options about moesim itself look at nothing else, and comparing dialects writes no files. */
static int check_idle(const moe_options *o, moe_status *st) {
    const char *alone = o->keys             ? "--keys"
                        : o->version        ? "--version"
                        : o->verify         ? "--verify"
                        : o->verify_predict ? "--verify predict"
                                            : NULL;
    const char *beside = given_beside(o);
    if (alone && beside && !o->help) {
        return moe_fail(st, MOE_USER, "%s looks at nothing else: leave %s out", alone, beside);
    }
    beside = o->run.out ? "--out" : o->run.force ? "--force" : o->run.check_only ? "--check" : NULL;
    if (o->dialects && beside) {
        return moe_fail(st, MOE_USER, "--dialects compares and writes nothing: leave %s out",
                        beside);
    }
    return MOE_OK;
}

/* Another thing that is asked for, which has no place beside --export-parameters. */
static const char *beside_export(const moe_options *o) {
    return o->run.check_only       ? "--check"
           : o->dialects           ? "--dialects"
           : o->placements         ? "--placements"
           : o->verify             ? "--verify"
           : o->verify_predict     ? "--verify predict"
           : o->calibrate          ? "--calibrate"
           : o->run.explains_token ? "--explain"
           : o->run.explains_step  ? "--explain-step"
           : o->run.full           ? "--full"
                                   : NULL;
}

/* The parameters are those of the run of --resume, or those that CONFIG starts from; or the folder
 * is itself that of the run. */
static int complete_export(moe_options *o, moe_status *st) {
    const char *to = o->export_parameters, *other = beside_export(o);
    const bool alone = !o->config && !o->resume;
    if (!to) {
        return MOE_OK;
    }
    if (other) {
        return moe_fail(st, MOE_USER,
                        "--export-parameters %s writes weights and nothing else: leave %s out", to,
                        other);
    }
    if (o->sets.count > 0 && !o->config) {
        return moe_fail(st, MOE_USER,
                        "--export-parameters %s writes what a checkpoint holds, and --set does not "
                        "change that: leave --set out",
                        to);
    }
    if (o->run.out && !alone) {
        return moe_fail(st, MOE_USER,
                        "--export-parameters %s says where the weights go: leave --out out", to);
    }
    o->parameters.from = alone ? to : o->resume;
    o->parameters.folder = alone ? o->run.out : to;
    return MOE_OK;
}

/* Whether --set asks for generating. What is wrong with the words is said where they are taken. */
static bool asks_to_generate(const moe_options *o) {
    moe_config c;
    moe_config_defaults(&c);
    for (int i = 0; i < o->sets.count; i++) {
        moe_status ignored = {0};
        moe_config_set(&c, o->sets.assignment[i], &ignored);
    }
    return moe_config_generates(&c);
}

static int check_together(const moe_options *o, moe_status *st) {
    if (check_last_step(o, st) != MOE_OK || check_idle(o, st) != MOE_OK) {
        return st->code;
    }
    if (o->config && o->config[0] == '\0') {
        return moe_fail(st, MOE_USER, "the name of the configuration is empty");
    }
    const bool in_folder = !o->export_parameters && !o->generates;
    if (o->resume && (o->config || (o->run.out && !o->generates) || (o->run.force && in_folder))) {
        return moe_fail(st, MOE_USER,
                        "--resume %s takes its configuration and folder from that run: a CONFIG, "
                        "--out and --force do not go with it",
                        o->resume);
    }
    if (o->calibrate && (o->config || o->resume || o->sets.count > 0 || o->run.out)) {
        return moe_fail(st, MOE_USER,
                        "--calibrate %s measures this host: a CONFIG, --set, --out and --resume do "
                        "not go with it",
                        o->calibrate);
    }
    if ((o->dialects || o->placements) && o->resume) {
        return moe_fail(st, MOE_USER,
                        "%s takes a CONFIG and does not go on with a run: leave --resume out",
                        o->dialects ? "--dialects" : "--placements");
    }
    if (o->dialects && o->placements) {
        return moe_fail(st, MOE_USER, "--dialects and --placements: leave one of them out");
    }
    const bool needs_none = o->help || o->version || o->keys || o->verify || o->verify_predict ||
                            o->resume || o->calibrate || o->export_parameters;
    if (!o->config && !needs_none) {
        return moe_fail(
            st, MOE_USER,
            "no configuration is given: mpirun -np D moesim CONFIG.ini (moesim --help)");
    }
    return MOE_OK;
}

int moe_options_parse(int argc, char **argv, moe_options *o, moe_status *st) {
    *o = (moe_options){0};
    o->sets.assignment = moe_alloc(argc, sizeof *o->sets.assignment, "arguments");
    if (read_words(argc, argv, o, st) == MOE_OK && o->verify && o->config &&
        strcmp(o->config, "predict") == 0) {
        o->verify = false;
        o->verify_predict = true;
        o->config = NULL;
    }
    if (st->code == MOE_OK && o->explain) {
        parse_token(o, st);
    }
    if (st->code == MOE_OK) {
        o->generates = asks_to_generate(o);
    }
    if (st->code == MOE_OK && check_together(o, st) == MOE_OK) {
        complete_export(o, st);
    }
    return st->code;
}

void moe_options_free(moe_options *o) {
    moe_free(o->sets.assignment);
}
