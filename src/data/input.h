/* input.h: brings the files that the configuration names to the ranks that need them (rank 0 reads,
 * every rank gets its share), and makes the hidden vectors of a step. */
#ifndef MOESIM_DATA_INPUT_H
#define MOESIM_DATA_INPUT_H

#include "base/npy.h"
#include "config/config.h"
#include "data/batch.h"
#include "world/comm.h"

/* T counts the tokens of this rank. What a source does not have is NULL or 0. */
typedef struct moe_input {
    int64_t num_tokens_global; /* tokens of a step of recorded logits or routing; else 0 */
    int64_t num_steps;         /* that the recorded routing has */
    int64_t step;              /* of the recording, the one that moe_input_begin_step chose */
    uint8_t *text;             /* [text_length] the whole text, on every rank; the files of a folder
                                  stand in the order of their paths */
    int64_t text_length;
    int32_t num_domains;
    int64_t *domain_offset;       /* [num_domains + 1] domain i (a file or folder) has the bytes
                                     domain_offset[i] .. domain_offset[i+1] - 1 of the text */
    void *logits;                 /* [steps][layers][T,N] float or double */
    enum moe_dtype logits_dtype;  /* MOE_F32 or MOE_F64 */
    bool logits_look_like_shares; /* each row lies in [0,1] and sums to 1: were they meant? */
    int32_t *routing;             /* [steps][layers][T,K] */
    int32_t routing_k;            /* K */
    real *weights;                /* [steps][layers][T,K] */
    double *scores;               /* [steps][layers][T,N] */
    int64_t odd_scores;    /* rows of scores, of all ranks, that should sum to 1 and do not */
    double odd_scores_sum; /* the sum of the first of them */
    uint8_t *mask;         /* [T] or [steps][T], 1 = the token counts; NULL = all count */
    bool mask_has_steps;
    int64_t num_counted;   /* tokens of all ranks that mask counts, where there is a mask; of
                              several steps the most */
    int64_t *boundary;     /* [num_sequences + 1] first tokens of sequences, then the number of
                              all tokens, on every rank; NULL: data.sequence_length */
    int64_t num_sequences; /* of boundary */
    double *bias;          /* [layers][N] on every rank */
    int32_t *expert_at; /* [layers][slots] placement.file: the expert in each slot, on every rank */
} moe_input;

/* Collective. Reads and checks every file that the resolved configuration *c names: shape, dtype,
 * NaN, ids in range, no expert twice in a token, memory. A recording of several layers has the
 * shape [layers,T,..] or [layers x T,..], one of several steps [steps,layers,T,..]. Settles
 * c->run.steps with the recording's steps (moe_config_recorded_steps) and c->router.top_k with a
 * recorded routing's K (moe_config_recorded_top_k). A failure is agreed by all ranks, its sentence
 * names the key and the file, and nothing is left allocated. The caller owns *in: moe_input_free.
 */
int moe_input_read(const moe_comm *comm, moe_config *c, moe_input *in, moe_status *st);
void moe_input_free(moe_input *in);

/* Collective. The part of it in input_layout.c: data.boundaries, on every rank. */
int moe_input_read_boundaries(const moe_comm *comm,
                              const moe_config *c,
                              moe_input *in,
                              moe_status *st);

/* Collective. The part of it in placement_file.c: placement.file, on every rank. */
int moe_input_read_placement(const moe_comm *comm,
                             const moe_config *c,
                             moe_input *in,
                             moe_status *st);

/* Local. What can only be checked once the number of tokens is known: that the boundaries end
 * there. The same on every rank. */
int moe_input_check(const moe_input *in, const moe_config *c, int64_t tokens, moe_status *st);

/* Collective. Lays out `tokens` tokens of the global batch over devices and ranks, with the
 * boundaries and the mask of the input, which has to outlive *b. The caller owns *b:
 * moe_batch_free. */
void moe_input_layout(const moe_input *in,
                      const moe_config *c,
                      const moe_comm *comm,
                      int64_t tokens,
                      moe_batch *b);

/* Local. How many of `tokens` tokens are routed, and the length of the longest sequence. */
int64_t moe_input_routed(const moe_input *in, const moe_config *c, int64_t tokens);
int64_t moe_input_longest_sequence(const moe_input *in, const moe_config *c, int64_t tokens);

/* Collective. From now on the input is that of a step: which part of a recording the layers read
 * (in->step), and the mask of *b, which moe_input_layout has laid out. */
void moe_input_begin_step(moe_input *in, const moe_comm *comm, int64_t step, moe_batch *b);

/* Local. x [T,H] of a step from the source that the configuration names: random topics, windows of
 * the text (which also fills b->byte), or, where the files have no hidden states, keyed vectors. */
void moe_input_vectors(const moe_input *in,
                       const moe_config *c,
                       int64_t step,
                       moe_batch *b,
                       real *x);

#endif
