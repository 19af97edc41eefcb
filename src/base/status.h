/* status.h: the one convention for errors. Layer 0 (base).
 *
 * Three kinds of error exist in moesim:
 *   - our bug: MOE_ASSERT, always on (Release too), prints file:line and ends every rank;
 *   - the user's mistake: a function returns a code != MOE_OK and leaves one sentence in a
 * moe_status; the caller passes it up, moe_comm_agree (comm.h) makes all ranks agree, main exits
 * with the code;
 *   - the platform's (MPI, a full disk): MPI errors stay fatal, file errors become MOE_ERROR.
 * A moe_status holds the FIRST failure: later ones do not overwrite it. The codes are the exit
 * codes. */
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

/* Local. Records a failure in st unless it already holds one; returns st->code. st must not be
 * NULL. */
int moe_fail(moe_status *st, int code, const char *format, ...) MOE_PRINTF(3, 4);

/* Local. Called by MOE_ASSERT: prints "file:line: expression" and calls the hook (MPI_Abort once
 * comm is up), else abort(). Does not return. */
_Noreturn void moe_bug(const char *file, int line, const char *expression);
/* Local. Called when memory that was promised cannot be had: one sentence, then the hook. Does not
 * return. */
_Noreturn void moe_out_of_memory(const char *what, unsigned long long bytes);
/* Local. comm.c installs a function that ends all ranks with the given exit code. */
void moe_set_abort_hook(void (*hook)(int code));

#define MOE_ASSERT(expression) ((expression) ? (void)0 : moe_bug(__FILE__, __LINE__, #expression))

#endif
