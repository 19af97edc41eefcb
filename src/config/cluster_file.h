/* cluster_file.h: the file that cluster.file names: the cluster that times are predicted for, as in
 * configs/clusters. It is a configuration with the section [cluster] alone. */
#ifndef MOESIM_CONFIG_CLUSTER_FILE_H
#define MOESIM_CONFIG_CLUSTER_FILE_H

#include <stdbool.h>

#include "base/status.h"
#include "config/sections.h"

/* Local. Whether the file has anything to say to a configuration that is parsed and not resolved: a
 * file is named, and it was named by --set or leaves some key of [cluster] open. A resolved
 * configuration has every key, so that it can be run again where the file no longer is. */
bool moe_cluster_file_is_needed(const moe_config *c);

/* Local, pure. Takes the keys of the file's `length` bytes. A key that the configuration gives
 * wins; where cluster.file was given by --set, only a key that was given by --set does. MOE_USER
 * and one sentence about what moe_config_parse refuses, a key of another section, and a bandwidth
 * or speed that the file leaves out, because the prediction would silently be that of the default.
 */
int moe_cluster_file_apply(moe_config *c, const char *bytes, int64_t length, moe_status *st);

#endif
