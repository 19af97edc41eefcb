/* generator.h: continues prompts with a trained language model, one byte of every sequence at a
 * time.
 *
 *     prefill   all tokens of all prompts go through the layers at once, as in a forward run, and
 *               fill the cache (attention/cache.h); the last one of each prompt gives a new byte
 *     decode    the new byte of each sequence goes through the layers alone, and gives the next
 *
 * Both are expert parallel: the tokens of a pass are dispatched to the experts' devices and their
 * results come back, a prompt's worth or a single token of every sequence. A prompt that is shorter
 * than the longest is filled up with padding, which is not routed and which nothing attends to.
 * Sequences lie on devices as in a batch: sequence s is on device s / sequences_per_device. */
#ifndef MOESIM_GENERATE_GENERATOR_H
#define MOESIM_GENERATE_GENERATOR_H

#include "data/prompts.h"
#include "model/stack.h"
#include "train/task.h"

typedef struct moe_generator {
    moe_stack *stack;          /* not owned, as are the next two */
    moe_batch *prompts;        /* the batch of prefill */
    moe_context *context;      /* its batch is that of prefill, then that of decode */
    moe_batch tokens;          /* the batch of decode: a token of each sequence */
    moe_parameters parameters; /* of the layers and of the task, without gradients */
    moe_task task;
    int64_t sequences;      /* of this rank */
    int64_t first_sequence; /* global id */
    int64_t room;           /* bytes of a sequence: the longest prompt, and what is added */
    uint8_t *text;          /* [sequences, room] */
    int64_t *length;        /* [sequences] bytes so far */
    uint8_t *counted;       /* [tokens of prefill] 0: padding; NULL: there is none */
    real *hidden, *normed;  /* [sequences,H] what the last byte of each became */
    real *logits;           /* [sequences,256] of the next byte */
} moe_generator;

/* Collective. batch is that of the stack's context: whole sequences of as many tokens as the
 * longest prompt. new_bytes are added to each of them. What it points to has to outlive *g. Owner:
 * the caller, moe_generator_free. */
void moe_generator_init(moe_generator *g,
                        moe_stack *stack,
                        moe_batch *batch,
                        const moe_prompts *prompts,
                        int64_t new_bytes);
void moe_generator_free(moe_generator *g);

/* Collective. One pass through the layers and the next byte of each sequence: with step 0 prefill,
 * with every later step the decode of the byte before. metrics and the observer's failure are those
 * of moe_stack_forward. */
int moe_generator_step(moe_generator *g,
                       int64_t step,
                       const moe_observer *observer,
                       moe_step_metrics *metrics,
                       moe_status *st);

/* Collective. Gives rank 0 all sequences in their order: text [all sequences, room] and length [all
 * sequences], which are written on every rank. */
void moe_generator_gather(const moe_generator *g, uint8_t *text, int64_t *length);

#endif
