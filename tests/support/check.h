/* check.h: a non-fatal check for tests. Every failure is printed and counted; the verdict is main's
 * exit code (of all ranks together in MPI tests). Never assert(): Release defines NDEBUG, and an
 * early exit on one rank leaves the others waiting.
 *
 *   int main(void) { CHECK(1 + 1 == 2); return check_verdict(); }
 *   int main(...)  { MPI_Init(...); CHECK(...); int verdict = check_verdict_mpi(MPI_COMM_WORLD);
 * MPI_Finalize(); return verdict; }
 *
 * A test fails when a check failed on any rank, when nothing was checked at all, or when it ends
 * without having asked for the verdict. Checks are counted per source file: a helper in another
 * file returns a value and lets the test check it. Not for use inside a parallel region. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long check_failures, check_count;
static bool check_asked;
static pid_t check_process;
static const char *check_running; /* the case that runs (RUN), or NULL */

/* At exit: a test that checked and never asked for the verdict must not end with 0. A forked child
 * is left alone. */
static void check_guard(void) {
    if (check_asked || getpid() != check_process) {
        return;
    }
    fprintf(stderr, "the test ended without check_verdict() after %ld checks\n", check_count);
    fflush(NULL);
    _exit(1);
}

/* Counts one check and says whether its failure is to be printed: the first 50 of a process are. */
static inline bool check_fails(bool ok) {
    if (check_count++ == 0) {
        check_process = getpid();
        atexit(check_guard);
    }
    return !ok && check_failures++ < 50;
}

/* Prints rank, file:line, the expression and the message as one line, so that ranks do not cut each
 * other's. */
__attribute__((format(printf, 4, 5), unused)) static void check_print(const char *file,
                                                                      int line,
                                                                      const char *expression,
                                                                      const char *format,
                                                                      ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    fprintf(stderr, "%s%s%s%s:%d: %s%sfailed: %s%s%s\n", rank ? "rank " : "", rank ? rank : "",
            rank ? ": " : "", file, line, check_running ? check_running : "",
            check_running ? ": " : "", expression, *message ? ": " : "", message);
}

/* Passes when a and b differ by at most `relative` times the larger magnitude. Equal infinities
 * pass, NaN never does. */
static inline bool check_near(double a, double b, double relative) {
    return a == b || fabs(a - b) <= relative * fmax(fabs(a), fabs(b));
}

/* A value of CHECK_EQ, kept so that it can be compared and printed. */
typedef struct check_value {
    bool floating;
    long long integer;
    double number;
} check_value;
typedef struct check_shown {
    char s[32];
} check_shown;

static inline check_value check_of_integer(long long value) {
    return (check_value){false, value, (double)value};
}
static inline check_value check_of_double(double value) {
    return (check_value){true, 0, value};
}
#define CHECK_VALUE(a) \
    _Generic((a), double: check_of_double, float: check_of_double, default: check_of_integer)(a)

static inline bool check_equal(check_value a, check_value b) {
    return a.floating || b.floating ? a.number == b.number : a.integer == b.integer;
}
static inline check_shown check_text(check_value a) {
    check_shown text;
    if (a.floating) {
        snprintf(text.s, sizeof text.s, "%.17g", a.number);
    } else {
        snprintf(text.s, sizeof text.s, "%lld", a.integer);
    }
    return text;
}

/* Calls a case of a test: RUN(test_ties), RUN(test_route, seed). A failure inside it is printed
 * with the name of the case and its arguments as they are written here. */
#define RUN(name, ...)         \
    do {                       \
        check_running = #name; \
        name(__VA_ARGS__);     \
        check_running = NULL;  \
    } while (0)

#define CHECK(condition) CHECK_MSG(condition, "%s", "")
/* With a printf message, evaluated only when it is printed. */
#define CHECK_MSG(condition, ...)                                     \
    do {                                                              \
        if (check_fails(condition))                                   \
            check_print(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)
#define CHECK_NEAR(a, b, relative)                                                               \
    do {                                                                                         \
        double check_a = (a), check_b = (b);                                                     \
        CHECK_MSG(check_near(check_a, check_b, relative), "%s = %.17g, %s = %.17g", #a, check_a, \
                  #b, check_b);                                                                  \
    } while (0)
/* Integers of any width, bool, enumerators, or floating point; a failure prints both values. */
#define CHECK_EQ(a, b)                                                                          \
    do {                                                                                        \
        check_value check_a = CHECK_VALUE(a), check_b = CHECK_VALUE(b);                         \
        CHECK_MSG(check_equal(check_a, check_b), "%s = %s, %s = %s", #a, check_text(check_a).s, \
                  #b, check_text(check_b).s);                                                   \
    } while (0)
#define CHECK_STR(a, b)                                                                       \
    do {                                                                                      \
        const char *check_a = (a), *check_b = (b);                                            \
        CHECK_MSG(strcmp(check_a, check_b) == 0, "%s = \"%s\", %s = \"%s\"", #a, check_a, #b, \
                  check_b);                                                                   \
    } while (0)

/* Local verdict: prints the count, returns main's exit code. A test without a single check fails.
 */
static inline int check_verdict(void) {
    check_asked = true;
    printf("%ld checks, %ld failed\n", check_count, check_failures);
    if (check_count == 0) {
        printf("a test that checks nothing fails\n");
    }
    return check_failures > 0 || check_count == 0;
}

/* Collective verdict: the same exit code on every rank. A macro, so that mpi.h may be included
 * before or after this file. */
#define check_verdict_mpi(comm)                                                          \
    ({                                                                                   \
        long check_sum[2] = {check_failures, check_count};                               \
        int check_rank;                                                                  \
        check_asked = true;                                                              \
        MPI_Comm_rank(comm, &check_rank);                                                \
        MPI_Allreduce(MPI_IN_PLACE, check_sum, 2, MPI_LONG, MPI_SUM, comm);              \
        if (check_rank == 0)                                                             \
            printf("%ld checks on all ranks, %ld failed\n", check_sum[1], check_sum[0]); \
        check_sum[0] > 0 || check_sum[1] == 0;                                           \
    })

#endif
