/* screen.h: the stream that a run writes its text to, which may be a terminal, and what may be
 * written there: colours, block characters, columns. */
#ifndef MOESIM_OUTPUT_SCREEN_H
#define MOESIM_OUTPUT_SCREEN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "output/generated_text.h"

typedef struct moe_screen {
    FILE *out;
    bool color, terminal, quiet;
    bool full;            /* the ending tells everything; otherwise what one wants to know first */
    bool utf8;            /* block characters can be shown; ASCII otherwise */
    int width;            /* text is broken at this column */
    int columns;          /* of the terminal; INT_MAX when there is none */
    int64_t steps_seen;   /* calls of moe_terminal_step so far */
    double drawn;         /* when the line of the progress was drawn last; 0: never */
    moe_text_stream text; /* that is being generated */
} moe_screen;

/* Local. Looks at the stream (isatty), at NO_COLOR, TERM and COLUMNS, at the locale's character
 * set, and at the width of the terminal. What is piped has 80 columns. */
moe_screen moe_screen_of(FILE *out, bool quiet);

enum moe_paint { MOE_PLAIN, MOE_BOLD, MOE_DIM, MOE_GREEN, MOE_YELLOW, MOE_RED };
/* Local. The escape sequence of a paint, or "" where there is no colour. MOE_PLAIN ends every
 * paint.
 */
const char *moe_screen_paint(const moe_screen *s, enum moe_paint paint);

/* Local. Writes a heading: an empty line, then the text in bold. */
void moe_screen_heading(const moe_screen *s, const char *format, ...) MOE_PRINTF(2, 3);
/* Local. Writes a label, padded to `indent` columns, and a text after it. The text is broken
 * between words at the screen's width, and its later lines are indented. A tab is shown as a blank
 * at which no line is broken. */
void moe_screen_wrapped(const moe_screen *s, int indent, const char *label, const char *format, ...)
    MOE_PRINTF(4, 5);

/* A table whose columns stand at fixed places. Where a terminal is narrower than the table, columns
 * are left out; what is piped has all of them. */
typedef struct moe_table {
    int width;
    struct {
        int at, width;
    } least[8]; /* columns that may go, the least important one first; ends with width 0 */
} moe_table;
/* Local. Writes a line of the table, which is ASCII. A newline at its end stays. */
void moe_screen_row(const moe_screen *s, const moe_table *table, const char *format, ...)
    MOE_PRINTF(3, 4);

#endif
