/* status.h: the one convention for errors, of which moesim has three kinds.
 *
 *   - Our own mistake: MOE_ASSERT, which is on in every build, prints file:line and ends every
 * rank.
 *   - The user's mistake: a function returns a code other than MOE_OK and leaves one sentence in a
 *     moe_status. The caller passes it up, moe_comm_agree (world/comm.h) makes all ranks agree, and
 *     the program exits with the code.
 *   - The platform's failure: errors of MPI end the program, those of files become MOE_ERROR.
 *
 * A moe_status holds the FIRST failure: later ones do not overwrite it. Codes are exit codes. */
#ifndef MOESIM_BASE_STATUS_H
#define MOESIM_BASE_STATUS_H

#if defined(__GNUC__)
#define MOE_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define MOE_PRINTF(f, a)
#endif

enum moe_code {
    MOE_OK = 0,
    MOE_ERROR = 1,     /* anything else: disk full, out of memory */
    MOE_USER = 2,      /* the user's mistake */
    MOE_RUN_FAILED = 3 /* the run failed its own checks: conservation, NaN */
};

typedef struct moe_status {
    int code;           /* enum moe_code */
    char message[1024]; /* one sentence, no newline at the end */
} moe_status;

/* Local. Keeps a failure in st, which must not be NULL, unless it holds one already. Returns
 * st->code. */
int moe_fail(moe_status *st, int code, const char *format, ...) MOE_PRINTF(3, 4);

/* Local. What MOE_ASSERT calls: prints "file:line: expression" and calls the hook below, or abort
 * where there is none. Does not return. */
_Noreturn void moe_bug(const char *file, int line, const char *expression);
/* Local. Prints one sentence about memory that cannot be had, and calls the hook. Does not return.
 */
_Noreturn void moe_out_of_memory(const char *what, unsigned long long bytes);
/* Local. Installs the function that ends all ranks with an exit code; comm.c has it. */
void moe_set_abort_hook(void (*hook)(int code));

#define MOE_ASSERT(expression) ((expression) ? (void)0 : moe_bug(__FILE__, __LINE__, #expression))

#endif
