/* fail_serial.c: one check fails, so the test must. With an argument it passes. */
#include "check.h"

int main(int argc, char **argv) {
    (void)argv;
    CHECK_EQ(1 + 1, 2);
    CHECK_MSG(argc > 1, "this failure is wanted: it proves that a failing check fails the test");
    return check_verdict();
}
