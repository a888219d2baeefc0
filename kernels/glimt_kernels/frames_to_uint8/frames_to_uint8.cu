// frames_to_uint8 on the GPU: pixels in [-1, 1], any strides, to packed uint8 RGB frames. One thread per output pixel:
// the three channel reads of a warp are each coalesced, and it writes 96 consecutive bytes.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace glimt::cuda {
namespace {

__device__ __forceinline__ unsigned char to_byte(float x) {
    // fminf/fmaxf drop a NaN: it becomes 0, as in the CPU kernel.
    const float unit = fminf(fmaxf(x * 0.5f + 0.5f, 0.0f), 1.0f);
    return static_cast<unsigned char>(__float2int_rn(unit * 255.0f));
}

__global__ void frames_to_uint8_kernel(FrameView in, unsigned char* __restrict__ out, int64_t pixels) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pixels; i += step) {
        const int64_t x = i % in.width;
        const int64_t y = i / in.width % in.height;
        const int64_t f = i / (in.width * in.height) % in.frames;
        const int64_t b = i / (in.width * in.height * in.frames);
        const float* at = in.data + b * in.stride_b + f * in.stride_f + y * in.stride_h + x * in.stride_w;
#pragma unroll
        for (int c = 0; c < 3; ++c)
            out[i * 3 + c] = to_byte(__ldg(at + c * in.stride_c));
    }
}

}  // namespace

int frames_to_uint8(const FrameView& in, unsigned char* out, void* stream) {
    constexpr int kThreads = 256;
    constexpr int64_t kMaxBlocks = 1 << 20;
    const int64_t pixels = in.batch * in.frames * in.height * in.width;
    if (pixels == 0) return cudaSuccess;
    const int64_t blocks = (pixels + kThreads - 1) / kThreads;
    frames_to_uint8_kernel<<<static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0,
                             static_cast<cudaStream_t>(stream)>>>(in, out, pixels);
    return cudaGetLastError();
}

const char* error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace glimt::cuda
