/* results_tokens.c: what each rank knows about its own tokens, written by all ranks together:
 * chosen experts, weights, and tensors. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "output/results.h"
#include "output/results_internal.h"

/* Writes [layers, T, K] from this rank's [layers][T_local][K] values, one piece for each layer. */
static int write_by_token(const moe_comm *comm,
                          const moe_results *r,
                          enum moe_result file,
                          enum moe_dtype dtype,
                          const int64_t shape[3],
                          const moe_batch *batch,
                          const void *values,
                          moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX];
    int64_t local = batch->num_tokens * shape[2];
    moe_npy_piece *pieces = moe_alloc(shape[0], sizeof *pieces, "pieces of an array");
    for (int64_t l = 0; l < shape[0]; l++) {
        const char *at = (const char *)values + (size_t)(l * local) * moe_dtype_size(dtype);
        pieces[l] = (moe_npy_piece){at, (l * shape[1] + batch->first_token) * shape[2], local};
    }
    moe_results_path(r->folder, moe_result_files[file].name, path);
    moe_comm_write_npy(comm, path, dtype, 3, shape, pieces, local > 0 ? shape[0] : 0, st);
    moe_free(pieces);
    return st->code;
}

/* Spreads the rows of a layer to k columns. Tokens with fewer experts are filled up with expert -1,
 * weight 0, not kept, server -1. */
static void spread(const moe_routing *routing,
                   int64_t k,
                   int32_t *idx,
                   float *weight,
                   uint8_t *kept,
                   int32_t *server) {
    for (int64_t t = 0; t < routing->num_tokens; t++) {
        int64_t begin = routing->row_offset[t], count = routing->row_offset[t + 1] - begin;
        MOE_ASSERT(count <= k);
        for (int64_t j = 0; j < k; j++) {
            idx[t * k + j] = j < count ? routing->expert[begin + j] : -1;
            weight[t * k + j] = j < count ? (float)routing->weight[begin + j] : 0;
            server[t * k + j] = j >= count        ? -1
                                : routing->server ? routing->server[begin + j]
                                                  : routing->expert[begin + j];
            kept[t * k + j] = server[t * k + j] >= 0;
        }
    }
}

int moe_results_routing(const moe_comm *comm,
                        const moe_results *r,
                        const moe_config *c,
                        const moe_batch *batch,
                        const moe_routing *routing,
                        moe_status *st) {
    int64_t shape[3] = {moe_config_moe_layers(c), batch->num_tokens_global,
                        moe_config_most_experts(c)},
            words = batch->num_tokens * shape[2];
    int32_t *idx = moe_alloc(shape[0] * words, sizeof *idx, "topk_idx");
    float *weight = moe_alloc(shape[0] * words, sizeof *weight, "topk_weight");
    uint8_t *kept = moe_alloc(shape[0] * words, sizeof *kept, "kept");
    int32_t *server = moe_alloc(shape[0] * words, sizeof *server, "served_idx");
    for (int64_t l = 0; l < shape[0]; l++) {
        spread(&routing[l], shape[2], idx + l * words, weight + l * words, kept + l * words,
               server + l * words);
    }

    int code = write_by_token(comm, r, MOE_RESULT_TOPK_IDX, MOE_I32, shape, batch, idx, st);
    if (code == MOE_OK) {
        code = write_by_token(comm, r, MOE_RESULT_TOPK_WEIGHT, MOE_F32, shape, batch, weight, st);
    }
    if (code == MOE_OK) {
        code = write_by_token(comm, r, MOE_RESULT_KEPT, MOE_U8, shape, batch, kept, st);
    }
    moe_free(idx);
    moe_free(weight);
    if (code == MOE_OK && c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE) {
        code = write_by_token(comm, r, MOE_RESULT_SERVED_IDX, MOE_I32, shape, batch, server, st);
    }
    moe_free(kept);
    moe_free(server);
    return code;
}

int moe_results_tensor(const moe_comm *comm,
                       const moe_results *r,
                       const char *name,
                       const moe_batch *batch,
                       const void *rows,
                       int64_t columns,
                       size_t element_size,
                       moe_status *st) {
    char path[MOE_RESULTS_PATH_MAX], file[MOE_NAME_MAX + 8];
    int64_t shape[2] = {batch->num_tokens_global, columns};
    moe_npy_piece piece = {rows, batch->first_token * columns, batch->num_tokens * columns};
    MOE_ASSERT(strlen(name) <= MOE_NAME_MAX &&
               (element_size == sizeof(float) || element_size == sizeof(double)));
    snprintf(file, sizeof file, "%s.npy", name);
    MOE_ASSERT(moe_result_file_is_known(file));
    moe_results_path(r->folder, file, path);
    return moe_comm_write_npy(comm, path, element_size == sizeof(float) ? MOE_F32 : MOE_F64, 2,
                              shape, &piece, piece.count > 0, st);
}
