/* format.h: how numbers look on the screen. */
#ifndef MOESIM_OUTPUT_FORMAT_H
#define MOESIM_OUTPUT_FORMAT_H

#include <stdint.h>

/* A number as text, returned by value: printf("%s", moe_format_bytes(n).s). */
typedef struct moe_formatted {
    char s[40];
} moe_formatted;

/* All functions are local. */

/* 12,345 */
moe_formatted moe_format_count(int64_t n);

/* 1.50 KiB */
moe_formatted moe_format_bytes(int64_t n);

/* 12.3 ms, 1.24 s, 3 min 20 s */
moe_formatted moe_format_seconds(double seconds);

/* Fixed point; "-" where the value is not defined. */
moe_formatted moe_format_number(double value, int decimals);

/* A number in few columns: two decimals less from 100 on, none from 1000 on, 1.2e+06 from a million
 * on. */
moe_formatted moe_format_short(double value, int decimals);

/* The same text with tabs for blanks, so that moe_screen_wrapped keeps number and unit on one line.
 */
moe_formatted moe_format_glued(moe_formatted text);

#endif
