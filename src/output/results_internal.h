/* results_internal.h: the parts of writing the folder of a run. */
#ifndef MOESIM_OUTPUT_RESULTS_INTERNAL_H
#define MOESIM_OUTPUT_RESULTS_INTERNAL_H

#include "base/lock.h"
#include "base/status.h"
#include "config/config.h"
#include "measure/metrics.h"
#include "output/files.h"
#include "output/matrix_history.h"
#include "world/comm.h"

enum { MOE_RESULTS_PATH_MAX = MOE_PATH_MAX + MOE_NAME_MAX + 8 };

/* --- results_folder.c: the folder itself; all local --- */

/* path = folder/name. */
void moe_results_path(const char *folder, const char *name, char path[MOE_RESULTS_PATH_MAX]);

/* Fails with a sentence made from errno. A full or broken disk is nobody's mistake and MOE_ERROR;
 * whatever else is in the way of a fresh folder is the user's to mend and MOE_USER. `what` is a
 * verb such as "write". */
int moe_results_folder_failed(moe_status *st, const char *what, const char *path);
/* name = folder without the slashes at its end. `option` is where the user named it. */
int moe_results_folder_name(char name[MOE_PATH_MAX],
                            const char *option,
                            const char *folder,
                            moe_status *st);
/* On rank 0: makes the folder that the user named, or empties it when `force` asks for that, and
 * locks it. */
int moe_results_folder_make(const char *name, bool force, moe_lock *lock, moe_status *st);
/* On rank 0: makes a folder runs/<config name>-<time> that did not exist, fills in its name and
 * locks it. */
int moe_results_folder_make_default(char name[MOE_PATH_MAX],
                                    const char *config_name,
                                    moe_lock *lock,
                                    moe_status *st);

/* --- results_arrays.c: arrays of the whole run; all collective --- */

/* comm_matrix.npy [layers, D, D] of the last step, or with many devices comm_matrix_sparse.npz
 * [layers * D, D]. */
int moe_results_write_matrix(const moe_comm *comm,
                             const char *folder,
                             const moe_step_metrics *last,
                             moe_status *st);
/* comm_matrix_steps.npy [written, layers, D, D]: the matrices that were kept of `steps` steps, and
 * those of the last step where it is not among them. `kept` is used on rank 0. */
int moe_results_write_matrix_history(const moe_comm *comm,
                                     const char *folder,
                                     const moe_matrix_history *kept,
                                     const moe_step_metrics *last,
                                     int64_t steps,
                                     moe_status *st);
/* expert_load.npy [steps, layers, N]; load is used on rank 0. */
int moe_results_write_expert_load(const moe_comm *comm,
                                  const char *folder,
                                  const int64_t *load,
                                  const moe_step_metrics *last,
                                  int64_t steps,
                                  moe_status *st);

#endif
