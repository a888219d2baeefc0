// frames_to_uint8 on the GPU: pixels in [-1, 1], any strides, to packed uint8 RGB frames. A block takes lines of
// frames, a thread pixels of a line: the three channel reads of a warp are each coalesced, and it writes 96 consecutive
// bytes. A line's place costs three 64-bit divisions, once for the line and not for each pixel.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace glimt::cuda {
namespace {

__device__ __forceinline__ unsigned char to_byte(float x) {
    // fminf/fmaxf drop a NaN: it becomes 0, as in the CPU kernel.
    const float unit = fminf(fmaxf(x * 0.5f + 0.5f, 0.0f), 1.0f);
    return static_cast<unsigned char>(__float2int_rn(__fmul_rn(unit, 255.0f)));
}

__global__ void frames_to_uint8_kernel(FrameView in, unsigned char* __restrict__ out, int64_t lines) {
    for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
        const int64_t y = line % in.height;
        const int64_t frame = line / in.height % in.frames;
        const int64_t sample = line / in.height / in.frames;
        const float* from = in.data + sample * in.stride_b + frame * in.stride_f + y * in.stride_h;
        unsigned char* to = out + line * in.width * 3;
        for (int64_t x = threadIdx.x; x < in.width; x += blockDim.x) {
#pragma unroll
            for (int c = 0; c < 3; ++c)
                to[3 * x + c] = to_byte(__ldg(from + x * in.stride_w + c * in.stride_c));
        }
    }
}

}  // namespace

int frames_to_uint8(const FrameView& in, unsigned char* out, void* stream) {
    constexpr int kThreads = 128;
    constexpr int64_t kMaxBlocks = 1 << 20;
    const int64_t lines = in.batch * in.frames * in.height;
    if (lines * in.width == 0) return cudaSuccess;
    const auto blocks = static_cast<unsigned>(lines < kMaxBlocks ? lines : kMaxBlocks);
    frames_to_uint8_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(in, out, lines);
    return cudaGetLastError();
}

const char* error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace glimt::cuda
