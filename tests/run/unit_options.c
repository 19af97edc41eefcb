/* unit_options.c: the command line: what each option sets, which words are refused and how, and
 * what
 * --help prints. */
#include <string.h>

#include "check.h"
#include "run/options.h"

enum { MOST_WORDS = 16 };

/* Words separated by blanks, as a shell would hand them over; "_" is the empty word. */
typedef struct command_line {
    char copy[256];
    char *argv[MOST_WORDS + 1];
    int argc;
    moe_options o;
    moe_status st;
} command_line;

static void parse(command_line *l, const char *words) {
    char *rest = l->copy;
    *l = (command_line){.argv = {"moesim"}, .argc = 1};
    snprintf(l->copy, sizeof l->copy, "%s", words);
    for (char *word = strtok_r(rest, " ", &rest); word; word = strtok_r(rest, " ", &rest)) {
        l->argv[l->argc++] = strcmp(word, "_") == 0 ? "" : word;
    }
    moe_options_parse(l->argc, l->argv, &l->o, &l->st);
}

static void test_values(void) {
    command_line l;
    parse(&l, "--set a=1 --out=o ut.ini --explain 7 --set=b=2 --explain-step --force --quiet");
    CHECK_STR(l.st.message, "");
    CHECK_STR(l.o.config, "ut.ini");
    CHECK_STR(l.o.run.out, "o");
    CHECK_EQ(l.o.sets.count, 2);
    CHECK_STR(l.o.sets.assignment[0], "a=1");
    CHECK_STR(l.o.sets.assignment[1], "b=2");
    CHECK(l.o.run.explains_token && l.o.run.explain_token == 7 && l.o.run.explains_step);
    CHECK(l.o.run.force && l.o.run.quiet && !l.o.run.check_only && !l.o.resume && !l.o.ranks);
    moe_options_free(&l.o);
    parse(&l, "--set --force x.ini"); /* a value may look like an option */
    CHECK(l.st.code == MOE_OK && !l.o.run.force && l.o.sets.count == 1);
    moe_options_free(&l.o);
    parse(&l, "--out= x.ini");
    CHECK(l.st.code == MOE_OK && l.o.run.out[0] == '\0');
    moe_options_free(&l.o);
}

/* One word each, and the field that it sets. */
static void test_flags(void) {
    static const struct {
        const char *words;
        size_t field;
    } flags[] = {{"--force x", offsetof(moe_options, run.force)},
                 {"--check x", offsetof(moe_options, run.check_only)},
                 {"--keys", offsetof(moe_options, keys)},
                 {"--quiet x", offsetof(moe_options, run.quiet)},
                 {"--explain-step x", offsetof(moe_options, run.explains_step)},
                 {"--dialects x", offsetof(moe_options, dialects)},
                 {"--placements x", offsetof(moe_options, placements)},
                 {"--verify", offsetof(moe_options, verify)},
                 {"--ranks x", offsetof(moe_options, ranks)},
                 {"--version", offsetof(moe_options, version)},
                 {"--help", offsetof(moe_options, help)},
                 {"-h", offsetof(moe_options, help)}};
    enum { NUM_FLAGS = sizeof flags / sizeof flags[0] };
    for (int i = 0; i < NUM_FLAGS; i++) {
        command_line l;
        parse(&l, flags[i].words);
        CHECK_MSG(l.st.code == MOE_OK, "%s: %s", flags[i].words, l.st.message);
        for (int j = 0; j < NUM_FLAGS; j++) {
            const bool set = *((const char *)&l.o + flags[j].field) != 0;
            CHECK_MSG(set == (flags[j].field == flags[i].field), "%s and %s", flags[i].words,
                      flags[j].words);
        }
        moe_options_free(&l.o);
    }
}

/* The first mistake from left to right is the one that is said. */
static void test_refused(void) {
    static const char *const refused[][2] = {
        {"--kes", "unknown option --kes: moesim --help lists them"},
        {"--key", "unknown option --key: moesim --help lists them"},
        {"--expl 3 x", "unknown option --expl: moesim --help lists them"},
        {"--keys=3", "unknown option --keys=3: moesim --help lists them"},
        {"-k", "unknown option -k: moesim --help lists them"},
        {"-hk", "unknown option -hk: moesim --help lists them"},
        {"-help", "unknown option -help: moesim --help lists them"},
        {"-", "unknown option -: moesim --help lists them"},
        {"-- x", "unknown option --: moesim --help lists them"},
        {"--=3", "unknown option --=3: moesim --help lists them"},
        {"--calibrate", "--calibrate needs a value: moesim --help shows how"},
        {"--calibrate h.ini --set a.b=1",
         "--calibrate h.ini measures this host: a CONFIG, --set, --out and --resume do not go with "
         "it"},
        {"x --set", "--set needs a value: moesim --help shows how"},
        {"--resume", "--resume needs a value: moesim --help shows how"},
        {"x --bad --set", "unknown option --bad: moesim --help lists them"},
        {"x y --bad", "two configurations are given, x and y: one is expected"},
        {"_ y", "two configurations are given,  and y: one is expected"},
        {"--explain 3x x", "--explain 3x: the number of a token is expected, from 0 on"},
        {"--explain=-1 x", "--explain -1: the number of a token is expected, from 0 on"},
        {"--explain 3 --check x",
         "--explain looks at the last step of a run, and --check makes none: leave one of them "
         "out"},
        {"--full --dialects x",
         "--full looks at the last step of a run, and --dialects makes none: leave one of them "
         "out"},
        {"--full --quiet x", "--full and --quiet: leave one of them out"},
        {"--resume d x", "--resume d takes its configuration and folder from that run: a CONFIG, "
                         "--out and --force do not go with it"},
        {"--resume d --dialects",
         "--dialects takes a CONFIG and does not go on with a run: leave --resume out"},
        {"--resume d --placements",
         "--placements takes a CONFIG and does not go on with a run: leave --resume out"},
        {"--dialects --placements x", "--dialects and --placements: leave one of them out"},
        {"--explain 3 --placements x",
         "--explain looks at the last step of a run, and --placements makes none: leave one of "
         "them out"},
        {"--ranks", "no configuration is given: mpirun -np D moesim CONFIG.ini (moesim --help)"},
        {"", "no configuration is given: mpirun -np D moesim CONFIG.ini (moesim --help)"}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        command_line l;
        parse(&l, refused[i][0]);
        CHECK_EQ(l.st.code, MOE_USER);
        CHECK_STR(l.st.message, refused[i][1]);
        moe_options_free(&l.o);
    }
}

/* Every option that --help names is known, with a value where it shows one. */
static void test_help(void) {
    char *text = NULL;
    size_t length;
    int options = 0;
    FILE *out = open_memstream(&text, &length);
    moe_options_print_help(out);
    fclose(out);
    for (const char *at = strstr(text, "\n  --"); at; at = strstr(at + 1, "\n  --")) {
        command_line l;
        char name[32], words[64];
        const size_t end = strcspn(at + 3, " ,\n");
        const bool has_value = at[3 + end] == ' ' && at[4 + end] != ' ';
        snprintf(name, sizeof name, "%.*s", (int)end, at + 3);
        snprintf(words, sizeof words, "%s%s", name, has_value ? "" : " x.ini");
        parse(&l, words);
        CHECK_MSG(strncmp(l.st.message, "unknown option", 14) != 0, "%s", l.st.message);
        CHECK_MSG((strstr(l.st.message, "needs a value") != NULL) == has_value, "%s: %s", words,
                  l.st.message);
        moe_options_free(&l.o);
        options++;
    }
    CHECK_EQ(options, 16); /* --version and --help share the last line */
    CHECK(strstr(text, "\n  --version, --help\n") != NULL);
    free(text);
}

int main(void) {
    RUN(test_values);
    RUN(test_flags);
    RUN(test_refused);
    RUN(test_help);
    return check_verdict();
}
