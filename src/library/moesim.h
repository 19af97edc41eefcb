/* moesim.h: libmoesim, the part of moesim that decides and computes, without MPI: router, balance
 * losses, capacity, placement, and the rows and bytes that an exchange would move.
 *
 * A moesim_layer is one Mixture-of-Experts layer with the tokens of all devices. It is made from
 * settings, which are the keys of a configuration (docs/configuration.md); arrays are given to it
 * by name, moesim_layer_route routes the tokens, and results are asked for by name. With the same
 * settings, arrays and results are those of the program moesim:
 *
 *     char error[MOESIM_ERROR_MAX];
 *     moesim_layer *layer = moesim_layer_new("router.top_k = 2\ncluster.devices = 4", error);
 *     moesim_array logits = {.type = MOESIM_F32, .num_dims = 2, .shape = {512, 8}, .data = z};
 *     if (!layer || moesim_layer_set(layer, "logits", &logits, error) ||
 *         moesim_layer_route(layer, error)) {
 *         puts(error);
 *     }
 *     moesim_array chosen;
 *     moesim_layer_get(layer, "topk_idx", &chosen, error);
 *
 * Functions that return int return 0, or 1 after a mistake, which `error` then holds as one
 * sentence. `error` has room for MOESIM_ERROR_MAX bytes, or is NULL. Layers are independent of each
 * other; one layer is for one thread at a time. libmoesim computes weights in single precision, as
 * moesim does, libmoesim-f64 in double, as moesim-f64 does; scores and losses are double in both,
 * and both have this header. docs/library.md lists all arrays and results. */
#ifndef MOESIM_H
#define MOESIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MOESIM_API __attribute__((visibility("default")))
#else
#define MOESIM_API
#endif

enum { MOESIM_ERROR_MAX = 1024, MOESIM_MAX_DIMS = 3 };

enum moesim_type { MOESIM_U8 = 1, MOESIM_I32 = 2, MOESIM_I64 = 3, MOESIM_F32 = 4, MOESIM_F64 = 5 };

/* An array in C order: the last index runs fastest. */
typedef struct moesim_array {
    int32_t type; /* of enum moesim_type */
    int32_t num_dims;
    int64_t shape[MOESIM_MAX_DIMS];
    const void *data;
} moesim_array;

typedef struct moesim_layer moesim_layer;

/* The version of the library, as "0.1.0". */
MOESIM_API const char *moesim_version(void);

/* A layer with these settings, one "section.key = value" in each line; what is not set has its
 * default. Returns NULL after a mistake: an unknown key, a value that is not allowed, a key that
 * says nothing about routing. Keys that contradict each other are refused by moesim_layer_route.
 * The caller frees the layer with moesim_layer_free, which takes NULL too. */
MOESIM_API moesim_layer *moesim_layer_new(const char *settings, char *error);
MOESIM_API void moesim_layer_free(moesim_layer *layer);

/* Changes settings of the layer, written as above. A later value wins over an earlier one. After a
 * mistake none of them is changed. */
MOESIM_API int moesim_layer_change(moesim_layer *layer, const char *settings, char *error);

/* Gives an array to the layer, which copies it; an array of the same name that was given before is
 * forgotten, and `array` = NULL only forgets it.
 *
 *   logits      F32 or F64 [T,N]  -inf disables an expert
 *   routing     I32 [T,K]         experts that were chosen elsewhere, -1 = none
 *   weights     F64 [T,K]         beside routing: their combine weights
 *   scores      F64 [T,N]         beside routing: the scores, in place of those of the logits
 *   mask        U8 [T]            0 marks padding
 *   bias        F64 [N]           the balancing bias on the selection scores
 *   boundaries  I64 [B+1]         first tokens of the sequences, then T
 *   expert_at   I32 [slots]       the expert in each slot, for placement.policy = file
 *
 * Without logits and routing the tokens are synthetic ones, as data.source = synthetic makes them
 * in the first step of a run. */
MOESIM_API int moesim_layer_set(moesim_layer *layer,
                                const char *name,
                                const moesim_array *array,
                                char *error);

/* Routes the tokens: who chooses whom, who is dropped, which rows that makes, and all losses. */
MOESIM_API int moesim_layer_route(moesim_layer *layer, char *error);

/* A result of the last moesim_layer_route by its name (moesim_list("results", i)). result->data is
 * the layer's and lasts until it routes again or is freed. */
MOESIM_API int moesim_layer_get(moesim_layer *layer,
                                const char *name,
                                moesim_array *result,
                                char *error);

/* What the balancer `policy` (a value of placement.policy that places by load, or "optimal") makes
 * of the loads of one layer.
 *
 *   nodes    divides devices; groups divides num_experts
 *   load     [num_experts] tokens of each expert
 *   pairs    [num_experts, num_experts] tokens that chose both, or NULL: some balancers need it
 *   expert   [devices * slots_per_device] becomes the expert in each slot, device by device
 *   served   the same size: the tokens that each slot serves; may be NULL */
MOESIM_API int moesim_place(const char *policy,
                            int32_t num_experts,
                            int32_t devices,
                            int32_t nodes,
                            int32_t groups,
                            int32_t slots_per_device,
                            const double *load,
                            const double *pairs,
                            int32_t *expert,
                            double *served,
                            char *error);

/* The i-th word of a list, or NULL behind its end: "keys" of settings; "arrays" that a layer takes;
 * "results"; "losses", "scopes", "levels" (how far a row travels) and "phases" (of a predicted
 * time), which are the places of results' dimensions. */
MOESIM_API const char *moesim_list(const char *what, int32_t i);

#ifdef __cplusplus
}
#endif

#endif
