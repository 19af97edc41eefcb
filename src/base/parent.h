/* parent.h: a rank that ends with whoever started it. */
#ifndef MOESIM_BASE_PARENT_H
#define MOESIM_BASE_PARENT_H

#include <stdbool.h>

/* Local. Whether a launcher such as mpirun or srun started this process, which then is one of
 * several. */
bool moe_parent_is_launcher(void);

/* Local. From now on this process ends (status 1) soon after its parent does, when a launcher
 * started it. A launcher that is killed cannot end its ranks,
 * and a rank that waits in a message would never look. */
void moe_parent_watch(void);

#endif
