/* parent.h: a rank that ends with whoever started it. */
#ifndef MOESIM_BASE_PARENT_H
#define MOESIM_BASE_PARENT_H

/* Local. From now on this process ends (status 1) soon after its parent does, when it is one of
 * several that a launcher such as mpirun started. A launcher that is killed cannot end its ranks,
 * and a rank that waits in a message would never look. */
void moe_parent_watch(void);

#endif
