/* report.h: what a run says on the screen. Layer 4 (show). Rank 0 only; pure text from records.
 * Clean when piped (no colour, no control characters); NO_COLOR respected; width of the terminal
 * respected (80 when piped). */
#ifndef MOESIM_OUTPUT_TERMINAL_H
#define MOESIM_OUTPUT_TERMINAL_H

#include <stdbool.h>
#include <stdio.h>

#include "config/config.h"
#include "measure/metrics.h"
#include "output/screen.h"
#include "output/training_history.h"
#include "predict/memory.h"
#include "world/topology.h"

/* What runs where: model, router, exchange, data, then hosts, ranks, threads, devices per rank,
 * cores; memory estimate; warnings. */
void moe_terminal_header(const moe_screen *s,
                         const moe_config *c,
                         const moe_topology *topologies,
                         int ranks,
                         int64_t memory_bytes_per_rank,
                         int64_t memory_available);
/* The header's lines on training, right after it: task, optimiser, parameters, and what the memory
 * is for. */
void moe_terminal_training(const moe_screen *s,
                           const moe_config *c,
                           const moe_training_facts *facts,
                           const moe_memory *memory);
/* First call prints the column heads of the table by step; then one row a step (each
 * `output.every`-th, and the last of run.steps). A validation between two rows is shown in the next
 * one. */
void moe_terminal_step(moe_screen *s, const moe_config *c, const moe_step_metrics *step);
/* Progress on long work, on a terminal only: "step 12/200  3.1 steps/s  1 min left"; erased by the
 * next row. seconds: since the first of the steps that were reported (a resumed run has done others
 * before). */
void moe_terminal_progress(const moe_screen *s, int64_t done, int64_t total, double seconds);
/* Of training, right before the ending: quality, balance and traffic of the first step beside the
 * mean of the last ones; says so when the loss rose. */
void moe_terminal_outcome(const moe_screen *s,
                          const moe_config *c,
                          const moe_training_history *h,
                          const moe_training_facts *facts);
/* The ending: three losses beside their balanced value, volume beside what it would have been
 * without device limit and without deduplication, load per device and the D x D matrix as text
 * graphics, self-checks, where the results are. */
void moe_terminal_end(const moe_screen *s,
                      const moe_config *c,
                      const moe_step_metrics *last,
                      const char *folder,
                      double seconds);

#endif
