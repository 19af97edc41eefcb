/* input.h: brings files to the ranks that need them: rank 0 reads, everybody gets its share. Layer
 * 3 (act). */
#ifndef MOESIM_DATA_INPUT_H
#define MOESIM_DATA_INPUT_H

#include "config/config.h"
#include "data/data.h"
#include "world/comm.h"

typedef struct moe_input {
    int64_t num_tokens_global; /* T of logits and routing; 0 for synthetic and text */
    uint8_t *text;
    int64_t text_length; /* source text: all bytes, on every rank; files of a folder in sorted path
                            order */
    int32_t num_domains;
    int64_t *domain_offset; /* source text: domain i (a file or folder) has the bytes offset[i] ..
                               offset[i+1] - 1 */
    enum moe_dtype logits_dtype;
    void *logits; /* source logits: [layers][T,N] of this rank, float or double (dtype kept) */
    int32_t *routing;
    int32_t routing_k; /* source routing: [layers][T,K] of this rank */
    real *weights;     /* [layers][T,K] or NULL */
    double *scores;    /* [layers][T,N] or NULL */
    uint8_t *mask;     /* [T] 1 = counted, or NULL */
    double *bias;      /* [N] on every rank, or NULL */
} moe_input;

/* Collective. c is resolved. Reads and checks everything that it names (shape, dtype, NaN, ids in
 * range, no duplicates within a token, memory); the sentence names the key and the file. Settles
 * c->router.top_k with a recorded routing's K (moe_config_recorded_top_k). A recording of several
 * layers is [layers,T,..] or [layers x T,..]. On failure, agreed by all ranks, nothing is left
 * allocated. */
int moe_input_read(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st);
void moe_input_free(moe_input *in);

#endif
