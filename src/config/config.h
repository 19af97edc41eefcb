/* config.h: the configuration of a run: from a file and the command line to the struct of
 * sections.h, complete for a number of ranks, and back to text.
 *
 * A configuration goes through three steps. moe_config_defaults fills in the defaults of the list
 * in keys.def. moe_config_parse reads the file on top of them, and moe_config_set each --set of the
 * command line. moe_config_resolve then completes it for a number of ranks: a preset supplies what
 * was not given, zeros become numbers, and combinations without a meaning are refused. All of them
 * are pure functions of their arguments, so every rank parses the same bytes and gets the same
 * answer. */
#ifndef MOESIM_CONFIG_CONFIG_H
#define MOESIM_CONFIG_CONFIG_H

#include <stdio.h>

#include "base/status.h"
#include "config/sections.h"

/* --- making one --- */

/* Local. Sets every key to its default. */
void moe_config_defaults(moe_config *c);

/* Local, pure. Reads `length` bytes of INI text on top of *c; file_name stands in messages as
 * "file:line". Refuses, with MOE_USER and one sentence: an unknown section or key (the nearest
 * known one is named), a value that is not allowed, a key that is given twice, a line that is too
 * long. */
int moe_config_parse(moe_config *c,
                     const char *bytes,
                     int64_t length,
                     const char *file_name,
                     moe_status *st);

/* Local. Takes one "section.key=value" of the command line. It wins over the file, and a later one
 * over an earlier one. Refuses what moe_config_parse would. */
int moe_config_set(moe_config *c, const char *assignment, moe_status *st);

/* Local. Completes *c for this number of ranks, once: the preset supplies the keys that were not
 * given; segmentation, devices, groups and comm_limit are derived; combinations without a meaning,
 * and features that do not exist yet, are refused with MOE_USER and a sentence that names the key,
 * where its value came from, the value and what is allowed. */
int moe_config_resolve(moe_config *c, int32_t ranks, moe_status *st);

/* Local. For a resolved configuration whose recorded routing has k experts for each token: top_k
 * becomes k, or has to equal k when router.top_k was given. The combination is checked again and
 * comm_limit derived again. */
int moe_config_recorded_top_k(moe_config *c, int32_t k, moe_status *st);

/* Local. For a resolved configuration whose recording has `steps` steps: run.steps becomes that
 * where it was not given, and may not be more where it was. */
int moe_config_recorded_steps(moe_config *c, int64_t steps, moe_status *st);

/* --- asking one --- */

/* Local. True when the key came from the file or from --set, not from a default or a preset. */
bool moe_config_given(const moe_config *c, enum moe_key_id key);

/* Local. The most experts that one token may have under a resolved configuration: top_k, or all
 * experts where experts choose their tokens. */
int32_t moe_config_most_experts(const moe_config *c);

/* Local. Whether the scores of a token sum to 1 by definition, and whether its weights are those of
 * the same function over the chosen experts alone: the columns sums_to_one and over_chosen of
 * router/scores.h, which a rule between keys needs here. */
bool moe_config_scores_sum_to_one(const moe_config *c);
bool moe_config_weights_over_chosen(const moe_config *c);

/* Local. The most distinct devices on which topk_group groups of a resolved configuration lie
 * (docs/method.md section 2): M where groups are devices, M D/G where each group has whole devices
 * of its own, and what the borders give where they run through devices. */
int32_t moe_config_group_span(const moe_config *c);

/* Local. The name of a value of an enum key, for reports:
 * moe_config_enum_name(MOE_KEY(router, score_func), MOE_SCORE_SIGMOID) is "sigmoid". */
const char *moe_config_enum_name(enum moe_key_id key, int value);

/* Local. Prints a resolved configuration as INI. Parsed and resolved again it is the same
 * configuration. A key that overrides its preset is marked. */
void moe_config_print(const moe_config *c, FILE *out);

/* Local. Prints the list of keys and of presets: what moesim --keys shows. */
void moe_config_print_keys(FILE *out);

#endif
