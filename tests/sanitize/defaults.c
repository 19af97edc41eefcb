/* defaults.c: linked into every program of a sanitizer build only: its options and what it must overlook, so that such a program can be run
 * by hand or under mpirun without any environment. ASAN_OPTIONS, LSAN_OPTIONS, UBSAN_OPTIONS and TSAN_OPTIONS still win. */

#ifndef MOESIM_SANITIZE_THREAD

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "abort_on_error=1:detect_leaks=1"; }

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "print_stacktrace=1"; }

const char *__lsan_default_options(void);
const char *__lsan_default_options(void) { return "print_suppressions=0:fast_unwind_on_malloc=0"; }

/* Allocations that the libraries below moesim keep until the process ends (Open MPI 4.1, PMIx, hwloc, libevent). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libmpi.so\nleak:libopen-rte.so\nleak:libopen-pal.so\nleak:mca_\nleak:libpmix\nleak:libevent\nleak:libhwloc\nleak:libltdl\nleak:libdl\n";
}

/* Open MPI unloads its plugins at the end of a run, and LeakSanitizer then no longer knows whose allocations it sees: they stay mapped. */
int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}

#else

/* Libraries without instrumentation are not looked into; the first race ends the program. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "ignore_noninstrumented_modules=1:halt_on_error=1"; }

const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) {
    return "called_from_lib:libmpi.so\ncalled_from_lib:libopen-pal.so\ncalled_from_lib:libopen-rte.so\ncalled_from_lib:libpmix.so\n"
           "called_from_lib:libopenblas.so\n";
}

#endif
