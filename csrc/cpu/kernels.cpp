// Compiled once per instruction set with -DGLIMT_ISA=<name>. Nothing here may be shared between translation units (no
// standard library templates): the linker would keep one copy, perhaps the one this processor cannot run.
#include "cpu/kernels.h"

#include "cpu/vec.h"

// The kernels themselves stand beside their references.
#include "ada_norm/cpu.h"
#include "frames_to_uint8/cpu.h"
#include "qk_norm_rope/cpu.h"
#include "rms_norm_silu/cpu.h"

#define GLIMT_STRING2(x) #x
#define GLIMT_STRING(x) GLIMT_STRING2(x)
#define GLIMT_JOIN2(a, b) a##b
#define GLIMT_JOIN(a, b) GLIMT_JOIN2(a, b)

namespace glimt {
namespace {

void exp_array(const float* x, float* out, int64_t count) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth)
        store(out + i, exp(load(x + i)));
    if (i < count) store_first(out + i, exp(load_first(x + i, count - i)), count - i);
}

}  // namespace

extern const KernelTable GLIMT_JOIN(table_, GLIMT_ISA);
const KernelTable GLIMT_JOIN(table_, GLIMT_ISA) = {
    GLIMT_STRING(GLIMT_ISA), exp_array, rms_norm_silu_rows, norm_rope_rows, ada_norm_rows, frames_to_uint8_rows,
};

}  // namespace glimt
