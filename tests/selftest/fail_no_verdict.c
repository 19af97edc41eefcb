/* fail_no_verdict.c: returns 0 whatever its checks said, so the test must fail. With an argument it
 * asks for the verdict, and passes. */
#include "check.h"

int main(int argc, char **argv) {
    (void)argv;
    CHECK(argc > 0);
    if (argc > 1) {
        return check_verdict();
    }
    return 0;
}
