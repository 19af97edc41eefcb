/* rehearsal.h: what the router does with a few tokens, before the model is made: how many rows and
 * pairs each rank will send and receive. An estimate of memory that supposes an even load is off by
 * as much as the load is uneven. */
#ifndef MOESIM_RUN_REHEARSAL_H
#define MOESIM_RUN_REHEARSAL_H

#include "data/input.h"
#include "predict/memory.h"
#include "run/model_files.h"
#include "world/comm.h"

/* Collective. Runs router, capacity and exchange of the configured model, whose experts give back
 * what they get, on a sample of the `tokens` tokens of the first steps; on all of them where they
 * were recorded or stand in files. load [ranks] receives what each rank sends and receives; the
 * same on all ranks. false, and load stays as it is: nothing was rehearsed, because the gate is too
 * large for a quick look, or the sample cannot be routed. Takes at most `room` bytes for a moment,
 * and changes nothing but in->step. */
bool moe_rehearse(const moe_comm *comm,
                  const moe_config *c,
                  moe_input *in,
                  const moe_model_files *files,
                  int64_t tokens,
                  int64_t room,
                  moe_memory_load *load);

#endif
