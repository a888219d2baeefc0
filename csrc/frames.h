#pragma once

#include <cstdint>

namespace glimt {

// Float pixels [batch, 3, frames, height, width] with any strides (counted in elements).
struct FrameView {
    const float* data;
    int64_t batch, frames, height, width;
    int64_t stride_b, stride_c, stride_f, stride_h, stride_w;
};

}  // namespace glimt
