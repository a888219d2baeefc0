// Compiled once per instruction set with -DGLIMT_ISA=<name>. Nothing here may be shared between translation units (no
// standard library templates): the linker would keep one copy, perhaps the one this processor cannot run.
#include "cpu/kernels.h"

#define GLIMT_STRING2(x) #x
#define GLIMT_STRING(x) GLIMT_STRING2(x)
#define GLIMT_JOIN2(a, b) a##b
#define GLIMT_JOIN(a, b) GLIMT_JOIN2(a, b)

namespace glimt {

extern const KernelTable GLIMT_JOIN(table_, GLIMT_ISA);
const KernelTable GLIMT_JOIN(table_, GLIMT_ISA) = {GLIMT_STRING(GLIMT_ISA), 4};

}  // namespace glimt
