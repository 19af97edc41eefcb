/* presets.h: published systems as lists of settings, for router.preset. */
#ifndef MOESIM_CONFIG_PRESETS_H
#define MOESIM_CONFIG_PRESETS_H

#include "config/table.h"

typedef struct moe_preset {
    const char *name;
    const moe_setting *settings; /* ends with MOE_KEY_NONE */
    const char *description;     /* lines: where the figures come from, what is left out */
} moe_preset;

extern const moe_preset moe_presets[];
extern const int moe_num_presets;

/* Local. The preset of that name, or NULL. */
const moe_preset *moe_preset_find(const char *name);

/* Local. The value, as text, that the preset gives the key; NULL when it says nothing about it. */
const char *moe_preset_value(const moe_preset *preset, enum moe_key_id key);

#endif
