/* chart.h: loads as bars, and a device matrix as numbers or shades, in plain text. */
#ifndef MOESIM_OUTPUT_CHART_H
#define MOESIM_OUTPUT_CHART_H

#include <stdint.h>

#include "base/sparse.h"
#include "output/format.h"
#include "output/screen.h"

/* All functions are local. */

/* Prints a bar of `share` (0 .. 1) of `width` columns, padded with blanks to that width. */
void moe_chart_bar(const moe_screen *s, double share, int width);

enum { MOE_MOST_BLOCKS = 16 };

/* Neighbouring devices that are shown as one line, so that there are at most MOE_MOST_BLOCKS lines.
 */
typedef struct moe_chart_blocks {
    int32_t devices, size, count;
    bool by_node;
} moe_chart_blocks;

/* A block for each device up to 16 devices; above that a block for each node where this gives 2 to
 * 16 blocks; otherwise equal blocks. */
moe_chart_blocks moe_chart_blocks_of(int32_t devices, int32_t devices_per_node);
/* The name of a block: "dev 3", "dev 8-15". */
moe_formatted moe_chart_block_name(const moe_chart_blocks *b, int32_t block);

/* Prints a bar for each block. Its length is proportional to the mean of `load` [D] in the block,
 * and the mean of all devices is marked above. Beside it stand the value, its ratio to the mean,
 * the fullest device of a block that has several, and `rows` [D], the rows received. */
void moe_chart_bars(const moe_screen *s,
                    const moe_chart_blocks *b,
                    const int64_t *load,
                    const int64_t *rows);

/* Prints matrix [D,D], sources in rows, summed by blocks and with sums at the margins: as numbers
 * where they fit the width, otherwise as shades by the ratio to the mean cell, with a legend. */
void moe_chart_matrix(const moe_screen *s, const moe_chart_blocks *b, const moe_sparse *matrix);

#endif
