// The table of this target's operations.
#include "context.h"

#define JOIN(a, b) a##b
#define TABLE(target) JOIN(OPERATIONS_, target)

const mantou::Operations mantou::TABLE(MANTOU_TARGET) = {
#define X(name) name,
    MANTOU_OPERATIONS(X)
#undef X
};
