/* vector.h: MOE_CLONES in front of a function compiles it for several vector widths, of which the
 * right one is picked when the program starts. Such functions hold loops without fused multiply-add
 * (-ffp-contract=off) whose sums have a fixed order, so that every clone gives the same bits.
 * MOE_PART stands in front of a function that becomes part of each clone that calls it. */
#ifndef MOESIM_BASE_VECTOR_H
#define MOESIM_BASE_VECTOR_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MOE_CLONES
#endif

#if defined(__GNUC__)
#define MOE_PART static inline __attribute__((always_inline))
#else
#define MOE_PART static inline
#endif

/* Four doubles side by side. A comparison of two such vectors keeps each lane's, so a largest value
 * is found four at a time; compilers make no vectors of that by themselves, as NaN and -0 would
 * depend on the order. */
typedef double moe_double4 __attribute__((vector_size(32), aligned(sizeof(double)), may_alias));

/* kept = the larger of kept and x [4], lane by lane; kept where they are equal or not numbers. */
static inline void moe_double4_larger(moe_double4 *kept, const double *x) {
    typedef long long mask __attribute__((vector_size(32)));
    const moe_double4 other = *(const moe_double4 *)x;
    const mask is_larger = other > *kept;
    *kept = (moe_double4)(((mask)other & is_larger) | ((mask)*kept & ~is_larger));
}

#endif
