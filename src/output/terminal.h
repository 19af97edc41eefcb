/* terminal.h: what a run says on the screen. All functions are local, write on rank 0 only, and
 * write nothing when the screen is quiet. What is piped has no colour and no control characters. */
#ifndef MOESIM_OUTPUT_TERMINAL_H
#define MOESIM_OUTPUT_TERMINAL_H

#include <stdbool.h>
#include <stdio.h>

#include "config/config.h"
#include "data/input.h"
#include "measure/generation.h"
#include "measure/metrics.h"
#include "output/screen.h"
#include "output/training_history.h"
#include "predict/memory.h"
#include "world/topology.h"

/* What a run may compute though its figures may not be what was meant: as warnings, below the
 * header. */
void moe_terminal_warnings(const moe_screen *s, const moe_config *c, const moe_input *input);

/* The header: model, router, exchange, data; then hosts, ranks, threads, devices per rank, cores;
 * memory estimate; warnings. */
void moe_terminal_header(const moe_screen *s,
                         const moe_config *c,
                         const moe_topology *topologies,
                         int ranks,
                         const moe_memory *memory,
                         int64_t memory_available);
/* The header's lines on training, right after it: task, optimiser, parameters, and what the memory
 * is for. */
void moe_terminal_training(const moe_screen *s,
                           const moe_config *c,
                           const moe_training_facts *facts,
                           const moe_memory *memory);
/* What the new placements of a run moved, all together; nothing where there were none. */
void moe_terminal_rebalance(const moe_screen *s, const moe_config *c, const moe_step_metrics *last);

/* The table by step. The first call prints the column heads; then there is a row for each
 * `output.every`-th step and for the last of run.steps. A validation between two rows is shown in
 * the next one. */
void moe_terminal_step(moe_screen *s, const moe_config *c, const moe_step_metrics *step);
/* The progress of long work, on a terminal only: "step 12/200  3.1 steps/s  1 min left". The next
 * row erases it. `seconds` is the time since the first of the steps that were shown, because a
 * resumed run has made others before. */
void moe_terminal_progress(const moe_screen *s, int64_t done, int64_t total, double seconds);
/* The same within a step that takes long, after each layer: "step 1/1, layer 12/58, backward", at
 * most twice a second; `now` is moe_comm_time(). */
void moe_terminal_layer(moe_screen *s,
                        const moe_config *c,
                        int64_t step,
                        int32_t layer,
                        bool backward,
                        double now);
/* How training went, right before the ending: quality, balance and traffic of the first step beside
 * the mean of the last ones. It says so when the loss rose. */
void moe_terminal_outcome(const moe_screen *s,
                          const moe_config *c,
                          const moe_training_history *h,
                          const moe_training_facts *facts);
/* The ending. Of a screen that is not `full`: a sentence with the busiest device and the saving,
 * the losses, devices per token, the volume, the load of each device, how many self-checks passed,
 * and where the results are; about forty lines. Of a full one, the losses beside their values at
 * balance, the volume beside what it would have been without device limit and without
 * deduplication, the load of each device and the D x D matrix as text graphics, self-checks, times,
 * and where the results are. */
void moe_terminal_end(const moe_screen *s,
                      const moe_config *c,
                      const moe_step_metrics *last,
                      const char *folder,
                      double seconds);

/* The text of a sequence that is being generated: its bytes from `from` on; 0 for the prompt and
 * the first new byte. */
void moe_terminal_generated(moe_screen *s, const uint8_t *text, int64_t length, int64_t from);
/* The ending of a run that generates: the other sequences, decode beside prefill, self-checks and
 * where the results are. */
void moe_terminal_generation(moe_screen *s,
                             const moe_config *c,
                             const moe_generation_metrics *g,
                             const moe_generated_texts *all,
                             const moe_step_metrics *last,
                             const char *folder,
                             double seconds);

#endif
