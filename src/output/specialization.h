/* specialization.h: the specialisation that train/specialization.h measured, as files and as a
 * section on the screen. */
#ifndef MOESIM_OUTPUT_SPECIALIZATION_H
#define MOESIM_OUTPUT_SPECIALIZATION_H

#include "output/screen.h"
#include "train/specialization.h"
#include "world/comm.h"

/* Collective. Writes specialization.json and domain_load.npy (int64 [layers, domains, N]) into the
 * folder of a run. */
int moe_specialization_write(const moe_comm *comm,
                             const moe_specialization *s,
                             const moe_config *c,
                             const char *folder,
                             moe_status *st);

/* Local. Prints the section. */
void moe_specialization_show(const moe_screen *screen,
                             const moe_specialization *s,
                             const moe_config *c);

#endif
