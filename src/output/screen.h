/* screen.h: the stream that a report is written to, and how numbers look on it. Layer 4 (show). */
#ifndef MOESIM_OUTPUT_SCREEN_H
#define MOESIM_OUTPUT_SCREEN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

typedef struct moe_screen {
    FILE *out;
    bool color, terminal, quiet;
    bool utf8;          /* block characters can be shown; ASCII otherwise */
    int width;          /* columns that text is broken at */
    int columns;        /* of the terminal; INT_MAX when there is none */
    int64_t steps_seen; /* calls of moe_terminal_step so far */
    double validation;  /* latest validation loss that no row has shown yet, NaN = none */
} moe_screen;

/* Local. Looks at the stream (isatty), NO_COLOR, TERM=dumb, the locale's character set, COLUMNS /
 * TIOCGWINSZ (80 when piped). */
moe_screen moe_screen_of(FILE *out, bool quiet);

enum moe_paint { MOE_PLAIN, MOE_BOLD, MOE_DIM, MOE_GREEN, MOE_YELLOW, MOE_RED };
/* Local. The escape sequence, or "" where there is no colour. MOE_PLAIN ends every paint. */
const char *moe_screen_paint(const moe_screen *s, enum moe_paint paint);

/* Local. A heading: an empty line, then the text in bold. */
void moe_screen_heading(const moe_screen *s, const char *format, ...) MOE_PRINTF(2, 3);
/* Local. Text after a label that is padded to `indent` columns, broken between words at the
 * screen's width, later lines indented. A tab is shown as a blank at which no line is broken. */
void moe_screen_wrapped(const moe_screen *s, int indent, const char *label, const char *format, ...)
    MOE_PRINTF(4, 5);

/* A table whose columns stand at fixed places: its width, and the columns that go first where a
 * terminal is narrower, least important first, up to one of width 0. What is piped has all columns.
 */
typedef struct moe_table {
    int width;
    struct {
        int at, width;
    } least[8];
} moe_table;
/* Local. A line of the table, ASCII; a newline at its end stays. */
void moe_screen_row(const moe_screen *s, const moe_table *table, const char *format, ...)
    MOE_PRINTF(3, 4);

/* A number as text, by value: printf("%s", moe_format_bytes(n).s). */
typedef struct moe_formatted {
    char s[40];
} moe_formatted;
moe_formatted moe_format_count(int64_t n);                   /* 12,345 */
moe_formatted moe_format_bytes(int64_t n);                   /* 1.50 KiB */
moe_formatted moe_format_seconds(double seconds);            /* 12.3 ms, 1.24 s, 3 min 20 s */
moe_formatted moe_format_number(double value, int decimals); /* fixed point; "-" where the value is
                                                         not defined */
moe_formatted moe_format_glued(moe_formatted text); /* blanks become tabs: number and unit stay on
                                           one line (moe_screen_wrapped) */

#endif
