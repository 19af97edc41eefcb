/* topology.c: what this rank runs on, and its fair share of the host's cores.
 *
 * The ranks of a host deal its usable cores out among themselves in order, each
 * moe_topology_share of them. Launchers often bind a rank to one core even when it has threads for
 * four; such a rank is widened to its slice. A binding that is wide enough is kept, and a host with
 * more threads than cores is left to the scheduler (a rank bound to less than the host is then
 * unbound). A described machine (HWLOC_SYNTHETIC, HWLOC_XMLFILE) gives the same answers anywhere;
 * nothing is bound on it. */
#include "world/topology.h"

#include <hwloc.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int moe_topology_share(int cores, int local_rank, int local_size, int asked) {
    if (asked > 0) {
        return asked;
    }
    if (cores < local_size) {
        return 1;
    }
    return cores / local_size + (local_rank < cores % local_size);
}

/* What counts as a core: hardware threads on machines that do not tell their cores. */
static hwloc_obj_type_t core_type(hwloc_topology_t machine) {
    return hwloc_get_nbobjs_by_type(machine, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
}

/* Counts the objects of a type that the set touches. *only becomes the index of the object if there
 * is exactly one, else -1. */
static int count_objects(hwloc_topology_t machine,
                         hwloc_obj_type_t type,
                         hwloc_const_bitmap_t set,
                         int *only) {
    int count = 0;
    *only = -1;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(machine, type, o));) {
        if (!hwloc_bitmap_intersects(o->cpuset, set)) {
            continue;
        }
        *only = count == 0 ? (int)o->logical_index : -1;
        count++;
    }
    return count;
}

/* This rank's slice: as many cores as it has threads, behind those of the lower ranks of the host;
 * or every core, where the slice would pass the last one. */
static void slice_of(
    hwloc_topology_t machine, const moe_comm *comm, int cores, int asked, hwloc_bitmap_t slice) {
    int first = 0, count = moe_topology_share(cores, comm->local_rank, comm->local_size, asked);
    for (int r = 0; r < comm->local_rank; r++) {
        first += moe_topology_share(cores, r, comm->local_size, asked);
    }
    hwloc_bitmap_zero(slice);
    if (first + count > cores) {
        hwloc_bitmap_copy(slice, hwloc_topology_get_allowed_cpuset(machine));
    }
    for (int i = first; i < first + count && first + count <= cores; i++) {
        hwloc_bitmap_or(slice, slice,
                        hwloc_get_obj_by_type(machine, core_type(machine), (unsigned)i)->cpuset);
    }
}

static bool oversubscribed(const moe_comm *comm, int cores, int asked) {
    int64_t threads = 0;
    for (int r = 0; r < comm->local_size; r++) {
        threads += moe_topology_share(cores, r, comm->local_size, asked);
    }
    return threads > cores;
}

/* `set` becomes the cores that this rank ends up on: the launcher's binding, or the slice that it
 * is widened to, or on a described machine the slice. It is the calling thread's binding that
 * OpenMP threads inherit. */
static void settle(hwloc_topology_t machine,
                   const moe_comm *comm,
                   int asked,
                   const moe_topology *t,
                   hwloc_bitmap_t set) {
    int only, all = hwloc_get_nbobjs_by_type(machine, core_type(machine));
    hwloc_bitmap_t slice = hwloc_bitmap_alloc();
    slice_of(machine, comm, all < t->host_cores ? all : t->host_cores, asked, slice);
    if (t->oversubscribed) {
        hwloc_bitmap_copy(slice, hwloc_topology_get_allowed_cpuset(machine));
    }

    bool known = !t->synthetic && hwloc_get_cpubind(machine, set, HWLOC_CPUBIND_THREAD) == 0 &&
                 !hwloc_bitmap_iszero(set);
    if (!known) {
        hwloc_bitmap_copy(set, t->synthetic ? slice : hwloc_topology_get_allowed_cpuset(machine));
    }
    int bound = count_objects(machine, core_type(machine), set, &only);
    int wanted = t->threads < all ? t->threads : all;
    if (known && bound < wanted && hwloc_set_cpubind(machine, slice, HWLOC_CPUBIND_PROCESS) == 0) {
        hwloc_bitmap_copy(set, slice);
    }
    hwloc_bitmap_free(slice);
}

static int64_t cache_bytes(hwloc_topology_t machine,
                           hwloc_const_bitmap_t set,
                           hwloc_obj_type_t type) {
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(machine, type, o));) {
        if (hwloc_bitmap_intersects(o->cpuset, set)) {
            return (int64_t)o->attr->cache.size;
        }
    }
    return 0;
}

/* The kernel's total, or the cgroup's limit. The sum over NUMA nodes can leave out memory that was
 * added while the machine ran. */
static int64_t memory_of(hwloc_topology_t machine, bool synthetic) {
    int64_t limit = synthetic ? -1 : moe_memory_limit();
    return limit >= 0 ? limit : (int64_t)hwloc_get_root_obj(machine)->total_memory;
}

static void describe(hwloc_topology_t machine, hwloc_const_bitmap_t set, moe_topology *t) {
    t->bound_cores = count_objects(machine, core_type(machine), set, &t->core);
    count_objects(machine, HWLOC_OBJ_PACKAGE, set, &t->package);
    count_objects(machine, HWLOC_OBJ_NUMANODE, set, &t->numa);
    t->l2_bytes = cache_bytes(machine, set, HWLOC_OBJ_L2CACHE);
    t->l3_bytes = cache_bytes(machine, set, HWLOC_OBJ_L3CACHE);
    t->memory_bytes = memory_of(machine, t->synthetic);
    hwloc_obj_t package = hwloc_get_obj_by_type(machine, HWLOC_OBJ_PACKAGE, 0);
    const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    snprintf(t->processor, sizeof t->processor, "%s", model ? model : "");
}

/* Where hwloc could not look at the machine: fills in the number of processors that the operating
 * system tells, and nothing else. */
static void describe_blind(const moe_comm *comm, int asked, moe_topology *t) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    t->package = t->numa = t->core = -1;
    t->host_cores = t->host_pus = online > 0 ? (int)online : 1;
    t->threads = moe_topology_share(t->host_cores, comm->local_rank, comm->local_size, asked);
    t->oversubscribed = oversubscribed(comm, t->host_cores, asked);
    t->memory_bytes = moe_memory_limit();
}

static void look(hwloc_topology_t machine, const moe_comm *comm, int asked, moe_topology *t) {
    t->synthetic = !hwloc_topology_is_thissystem(machine);
    t->host_cores = hwloc_get_nbobjs_by_type(machine, core_type(machine));
    t->host_pus = hwloc_get_nbobjs_by_type(machine, HWLOC_OBJ_PU);
    int quota = t->synthetic ? 0 : moe_core_quota();
    if (quota > 0 && quota < t->host_cores) {
        t->host_cores = quota;
    }
    t->threads = moe_topology_share(t->host_cores, comm->local_rank, comm->local_size, asked);
    t->oversubscribed = oversubscribed(comm, t->host_cores, asked);

    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    settle(machine, comm, asked, t, set);
    describe(machine, set, t);
    hwloc_bitmap_free(set);
}

void moe_topology_init(const moe_comm *comm, int threads_asked, moe_topology *out) {
    hwloc_topology_t machine;
    memset(out, 0, sizeof *out);
    out->num_gemm = moe_gemm_kernels_of(out->gemm);
    if (gethostname(out->host, sizeof out->host - 1) != 0) {
        snprintf(out->host, sizeof out->host, "unknown");
    }
    bool made = hwloc_topology_init(&machine) == 0;
    if (made && hwloc_topology_load(machine) == 0) {
        look(machine, comm, threads_asked, out);
    } else {
        describe_blind(comm, threads_asked, out);
    }
    if (made) {
        hwloc_topology_destroy(machine);
    }
    omp_set_num_threads(out->threads);
}
