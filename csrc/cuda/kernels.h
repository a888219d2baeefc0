// CUDA kernels, as launches on an explicit stream. Each returns a cudaError_t (0: launched).
#pragma once

#include "causal_conv3d/geometry.h"
#include "frames.h"

namespace glimt::cuda {

// `stream` is a cudaStream_t; `out` holds batch * frames * height * width * 3 bytes on the same device.
int frames_to_uint8(const FrameView& in, unsigned char* out, void* stream);

// What conv::refusal takes; only where the headers of CUTLASS were found (GLIMT_WITH_CUTLASS).
int causal_conv3d(const conv::Conv& p, void* stream);

const char* error_string(int code);

}  // namespace glimt::cuda
