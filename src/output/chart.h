/* chart.h: loads as bars, and a device matrix as numbers or shades, in plain text. */
#ifndef MOESIM_OUTPUT_CHART_H
#define MOESIM_OUTPUT_CHART_H

#include <stdint.h>

#include "output/format.h"
#include "output/screen.h"

/* Local. A bar of `share` (0 .. 1) of `width` columns, padded with blanks to width. */
void moe_chart_bar(const moe_screen *s, double share, int width);

enum { MOE_MOST_BLOCKS = 16 };

typedef struct moe_chart_blocks { /* neighbouring devices shown as one line, so that there are at
                               most 16 lines */
    int32_t devices, size, count;
    bool by_node;
} moe_chart_blocks;

/* Local. One device a block up to 16 devices; then a node a block where that gives 2 to 16, else
 * equal blocks. */
moe_chart_blocks moe_chart_blocks_of(int32_t devices, int32_t devices_per_node);
/* Local. "dev 3", "dev 8-15". */
moe_formatted moe_chart_block_name(const moe_chart_blocks *b, int32_t block);

/* Local. One bar per block, length proportional to the mean of `load` [D] in the block, the mean of
 * all marked above; beside it the value, its ratio to the mean, the fullest device of the block (if
 * it has several) and `rows` [D], the rows received. */
void moe_chart_bars(const moe_screen *s,
                    const moe_chart_blocks *b,
                    const int64_t *load,
                    const int64_t *rows);

/* Local. matrix [D*D], source in rows: sums by blocks, with sums at the margins; numbers where they
 * fit the width, else shades by ratio to the mean cell, with a legend. */
void moe_chart_matrix(const moe_screen *s, const moe_chart_blocks *b, const int64_t *matrix);

#endif
