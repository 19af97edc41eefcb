/* status.c: keeps the first failure as one sentence, and ends the program on our own mistakes and
 * where memory is short. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void (*abort_hook)(int code);

/* Names and contents of files get into messages: whatever they hold, a message stays one printable
 * line. */
static void moe_status_one_line(char *text) {
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            *p = '?';
        }
    }
}

int moe_fail(moe_status *st, int code, const char *format, ...) {
    if (st->code != MOE_OK) {
        return st->code;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(st->message, sizeof st->message, format, arguments);
    va_end(arguments);
    moe_status_one_line(st->message);
    st->code = code;
    return code;
}

void moe_bug(const char *file, int line, const char *expression) {
    fprintf(stderr, "%s:%d: bug in moesim: %s does not hold\n", file, line, expression);
    fflush(stderr);
    if (abort_hook) {
        abort_hook(MOE_ERROR);
    }
    abort();
}

void moe_out_of_memory(const char *what, unsigned long long bytes) {
    fprintf(stderr, "out of memory: %llu bytes for %s cannot be had\n", bytes, what);
    fflush(stderr);
    if (abort_hook) {
        abort_hook(MOE_ERROR);
    }
    exit(MOE_ERROR);
}

void moe_set_abort_hook(void (*hook)(int code)) {
    abort_hook = hook;
}
