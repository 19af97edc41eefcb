/* calibrate.h: moesim --calibrate OUT.ini: measures this host and writes a cluster file for it. */
#ifndef MOESIM_RUN_CALIBRATE_H
#define MOESIM_RUN_CALIBRATE_H

#include "base/status.h"
#include "world/comm.h"

/* Collective. A rank is a device, with its share of the cores. Measures the products of experts by
 * rows, memory, exchanges by bytes and ranks, and what a step costs beside these, fits the keys of
 * [cluster] to them, and writes the file. Then makes steps of other sizes and prints the median of
 * 20 of each beside the predicted time. Takes some seconds. MOE_USER where the file exists and
 * `force` is not set, or cannot be written, which is tried before anything is measured. */
int moe_calibrate(const moe_comm *comm, const char *path, bool force, moe_status *st);

#endif
