/* results_arrays.c: the matrices and loads of the run, which all ranks write together. */
#include "base/alloc.h"
#include "base/sparse.h"
#include "output/npz.h"
#include "output/results_internal.h"

/* Collective. Each rank writes the matrices of some layers. */
static int write_array(const moe_comm *comm,
                       const char *path,
                       const moe_step_metrics *last,
                       moe_status *st) {
    int64_t devices = last->devices, size = devices * devices;
    int64_t shape[3] = {last->num_layers, devices, devices};
    int64_t most = last->num_layers / comm->size + 1, mine = 0;
    moe_npy_piece *pieces = moe_alloc(most, sizeof *pieces, "pieces of the matrix");
    int64_t *cells = moe_alloc(most * size, sizeof *cells, "the device matrix");
    for (int32_t l = comm->rank; l < last->num_layers; l += comm->size) {
        moe_sparse_to_array(&last->layer[l].matrix, cells + mine * size, last->devices,
                            last->devices);
        pieces[mine] = (moe_npy_piece){cells + mine * size, l * size, size};
        mine++;
    }
    moe_comm_write_npy(comm, path, MOE_I64, 3, shape, pieces, mine, st);
    moe_free(cells);
    moe_free(pieces);
    return st->code;
}

/* Collective. Rank 0 writes it. */
static int write_list(const moe_comm *comm,
                      const char *path,
                      const moe_step_metrics *last,
                      moe_status *st) {
    if (comm->rank == 0) {
        const moe_sparse **matrix =
            moe_alloc(last->num_layers, sizeof *matrix, "the device matrix");
        for (int32_t l = 0; l < last->num_layers; l++) {
            matrix[l] = &last->layer[l].matrix;
        }
        moe_npz_write_sparse(path, matrix, last->num_layers, last->devices, last->devices, st);
        moe_free(matrix);
    }
    return moe_comm_agree(comm, st);
}

int moe_results_write_matrix(const moe_comm *comm,
                             const char *folder,
                             const moe_step_metrics *last,
                             moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    moe_results_path(folder, moe_result_files[moe_result_matrix(last->devices)].name, path);
    return last->devices <= MOE_MATRIX_DEVICES ? write_array(comm, path, last, st)
                                               : write_list(comm, path, last, st);
}

int moe_results_write_matrix_history(const moe_comm *comm,
                                     const char *folder,
                                     const moe_matrix_history *kept,
                                     const moe_step_metrics *last,
                                     int64_t steps,
                                     moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    int32_t layers = last->num_layers, devices = last->devices;
    int64_t step[MOE_MATRICES + 1], stride,
        written = moe_matrix_history_steps(layers, devices, steps, step);
    int64_t num_kept = moe_matrix_history_kept(layers, devices, steps, &stride);
    int64_t layer = (int64_t)devices * devices;
    int64_t size = layers * layer;
    int64_t shape[4] = {written, layers, devices, devices}, num = 0;
    if (written == 0) {
        return MOE_OK;
    }
    moe_npy_piece *pieces = moe_alloc(layers + 1, sizeof *pieces, "pieces of the matrices");
    int64_t *cells = moe_alloc(size, sizeof *cells, "the device matrices of a step");
    if (comm->rank == 0) {
        pieces[num++] = (moe_npy_piece){kept->rows, 0, num_kept * size};
        for (int32_t l = 0; written > num_kept && l < layers; l++) {
            moe_sparse_to_array(&last->layer[l].matrix, cells + l * layer, devices, devices);
            pieces[num++] = (moe_npy_piece){cells + l * layer, num_kept * size + l * layer, layer};
        }
    }
    moe_results_path(folder, moe_result_files[MOE_RESULT_COMM_MATRIX_STEPS].name, path);
    moe_comm_write_npy(comm, path, MOE_I64, 4, shape, pieces, num, st);
    moe_free(cells);
    moe_free(pieces);
    return st->code;
}

int moe_results_write_expert_load(const moe_comm *comm,
                                  const char *folder,
                                  const int64_t *load,
                                  const moe_step_metrics *last,
                                  int64_t steps,
                                  moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    int64_t shape[3] = {steps, last->num_layers, last->num_experts};
    moe_npy_piece all = {load, 0, shape[0] * shape[1] * shape[2]};
    moe_results_path(folder, moe_result_files[MOE_RESULT_EXPERT_LOAD].name, path);
    return moe_comm_write_npy(comm, path, MOE_I64, 3, shape, &all, comm->rank == 0, st);
}
