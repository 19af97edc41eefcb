/* results_parts.h: what the files of the results share. Layer 4 (show). Private to results*.c and timeline.c. */
#ifndef MOESIM_RESULTS_PARTS_H
#define MOESIM_RESULTS_PARTS_H

#include "moesim/status.h"

/* Local. Writes text beside path, puts it on disk and renames it into place: path never stands for half a text. MOE_ERROR or MOE_USER when it cannot
 * be written. */
int moe_results_write_whole(const char *path, const char *text, moe_status *st);

#endif
