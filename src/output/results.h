/* results.h: the folder of a run: config.ini, metrics.jsonl, summary.json and the .npy files that
 * files.def lists and docs/results.md describes. Rank 0 writes texts, metrics.jsonl flushed step by
 * step; arrays are written by all ranks together. A failure to write, such as a full disk, is
 * MOE_ERROR and agreed by all ranks. */
#ifndef MOESIM_OUTPUT_RESULTS_H
#define MOESIM_OUTPUT_RESULTS_H

#include <stdbool.h>
#include <stdio.h>

#include "base/lock.h"
#include "config/config.h"
#include "data/batch.h"
#include "measure/metrics.h"
#include "output/matrix_history.h"
#include "output/over_steps.h"
#include "output/overlap.h"
#include "output/summary.h"
#include "output/training_history.h"
#include "router/routing.h"
#include "train/checkpoint.h"
#include "world/comm.h"
#include "world/topology.h"

typedef struct moe_results {
    char folder[MOE_PATH_MAX];
    FILE *metrics;                         /* metrics.jsonl, on rank 0 only */
    moe_run_times times;                   /* of the steps written so far */
    moe_peak device_peak;                  /* of the steps of a forward run */
    moe_over_steps over_steps;             /* set by moe_results_close, on rank 0 */
    moe_overlap overlap;                   /* of this rank, since the program began */
    moe_overlap *overlaps;                 /* [ranks] set by moe_results_close */
    moe_training_history training_history; /* the same on every rank */
    moe_training_facts facts;              /* set by the caller before moe_results_close */
    moe_generation_metrics generation;     /* of a run that generates; the caller says what of */
    int64_t *expert_load;                  /* [steps][layers][N] on rank 0 */
    int64_t expert_load_capacity;
    moe_matrix_history matrix_history; /* of some steps, on rank 0 */
    moe_lock lock;                     /* of a new run's folder, on rank 0 */
} moe_results;

/* Collective. Makes the folder and its parents, writes config.ini and opens metrics.jsonl. A folder
 * that exists and is not empty is refused (MOE_USER) unless force is set; then the files that
 * moesim writes are removed, checkpoints too, and others stay. Nothing is removed or written
 * through a link in the folder, and with force the folder itself must not be one. A folder that
 * another run writes to, that cannot be made or written to is MOE_USER too, a full disk MOE_ERROR.
 * The folder is locked until moe_results_free. folder NULL stands for runs/<config
 * name>-<YYYYmmdd-HHMMSS>, made unique. */
int moe_results_open(const moe_comm *comm,
                     const moe_config *c,
                     const char *folder,
                     bool force,
                     moe_results *out,
                     moe_status *st);

/* Local. Refuses (MOE_USER) a folder that the user named in --out and that moesim could not make or
 * write to. It makes nothing, so that --check can call it, and a run before its first step. */
int moe_results_check_folder(const char *folder, bool force, moe_status *st);

/* Local. Makes a folder, with its parents, for other files than those of a run. One that exists and
 * is not empty is refused (MOE_USER) unless force is set; what is in it stays. `option` is where
 * the user named it. */
int moe_results_make_folder(const char *option, const char *folder, bool force, moe_status *st);

/* Collective. Appends the step's line to metrics.jsonl and flushes it. */
int moe_results_step(const moe_comm *comm,
                     moe_results *r,
                     const moe_config *c,
                     const moe_step_metrics *step,
                     moe_status *st);

/* Collective. Locks the folder of a run that is to go on, so that no other run writes to it. What
 * is no folder is left to whoever reads it. The caller releases the lock, which rank 0 holds, after
 * the run. */
int moe_results_lock(const moe_comm *comm, const char *folder, moe_lock *lock, moe_status *st);

/* A run goes on from a checkpoint in these steps: {0} -> moe_results_history -> moe_checkpoint_read
 * with its blobs -> moe_results_reopen. A checkpoint is written in these: moe_results_sync ->
 * moe_results_history -> moe_checkpoint_write with its blobs. */
enum { MOE_RESULTS_BLOBS = 4 };
/* Local. What *r knows of the first `step` steps (times, loads of experts, training history, device
 * matrices), as blobs of a checkpoint that point into *r. It makes room for what is to be read. The
 * blobs hold until the next step. */
void moe_results_history(const moe_comm *comm,
                         moe_results *r,
                         const moe_config *c,
                         int64_t step,
                         moe_blob blobs[MOE_RESULTS_BLOBS]);
/* Local. Whether what was read into the blobs can be the history of a run after `step` steps; else
 * MOE_USER with `path` in front. Checksums do not say that, because anybody can make them. */
int moe_results_check_history(const moe_results *r,
                              const moe_blob blobs[MOE_RESULTS_BLOBS],
                              int64_t step,
                              const char *path,
                              moe_status *st);
/* Collective. Puts metrics.jsonl on disk, so that a checkpoint is never ahead of it. */
int moe_results_sync(const moe_comm *comm, const moe_results *r, moe_status *st);
/* Collective. Opens the folder of a run that goes on after `step` steps, whose history *r has. Cuts
 * metrics.jsonl back to the lines of these steps (a torn line goes too; MOE_USER when one is
 * missing), renews config.ini, and removes summary.json. Where this fails early, the folder is as
 * it was. */
int moe_results_reopen(const moe_comm *comm,
                       const moe_config *c,
                       const char *folder,
                       int64_t step,
                       moe_results *r,
                       moe_status *st);
/* Collective. Whether the folder holds a run that has made `steps` steps (0: as many as its own
 * configuration says) and has written its summary. */
bool moe_results_finished(const moe_comm *comm, const char *folder, int64_t steps);

/* Collective. Closes metrics.jsonl, writes comm_matrix.npy, comm_matrix_steps.npy and
 * expert_load.npy, and summary.json last and at once: a folder with a summary.json is that of a
 * finished run. topologies [size] is used on rank 0. What *r holds of the steps stays until
 * moe_results_free. */
int moe_results_close(const moe_comm *comm,
                      moe_results *r,
                      const moe_config *c,
                      const moe_step_metrics *last,
                      const moe_topology *topologies,
                      double seconds,
                      moe_status *st);

/* Local. Frees what *r holds, also when a run ends without moe_results_close, because a step could
 * not be written, and unlocks the folder of a new run. */
void moe_results_free(moe_results *r);

/* Collective. Writes rank 0's text into the folder, whole or not at all. `name` is one of
 * files.def.
 */
int moe_results_write_text(const moe_comm *comm,
                           const moe_results *r,
                           const char *name,
                           const char *text,
                           moe_status *st);

/* Collective. Writes topk_idx.npy int32 [layers,T,K] (-1: none), topk_weight.npy float32 and
 * kept.npy uint8 (1: an expert serves it) of the same shape; with overflow = next_choice also
 * served_idx.npy int32, the expert that serves it (-1: dropped). routing [layers] is that of this
 * rank. */
int moe_results_routing(const moe_comm *comm,
                        const moe_results *r,
                        const moe_config *c,
                        const moe_batch *batch,
                        const moe_routing *routing,
                        moe_status *st);

/* Collective. Writes name.npy [T_global, columns] from each rank's rows [T, columns], as float32 or
 * float64 by element_size. `name` is an array of files.def, or one of its layers ("y_layer0"). */
int moe_results_tensor(const moe_comm *comm,
                       const moe_results *r,
                       const char *name,
                       const moe_batch *batch,
                       const void *rows,
                       int64_t columns,
                       size_t element_size,
                       moe_status *st);

#endif
