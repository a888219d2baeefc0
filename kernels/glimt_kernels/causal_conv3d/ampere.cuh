// The kernel of ampere.h and its launch.
#pragma once

#include <cuda_runtime.h>

#include "causal_conv3d/ampere.h"
#include "causal_conv3d/launch.h"

namespace glimt::cuda {

template <int kChannels, int kFrames>
__global__ void __launch_bounds__(conv::tile_shape(false, kChannels).threads, 1)
    conv_ampere(const __grid_constant__ conv::Conv p, const __grid_constant__ conv::Tiling tiling) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) unsigned char shared[];
    conv::Ampere<kChannels, kFrames>(p, tiling, shared).run();
#endif
}

template <int kChannels, int kFrames>
int launch_ampere(const conv::Conv& p, void* stream) {
    constexpr conv::TileShape kTile = conv::tile_shape(false, kChannels);
    constexpr int kShared = conv::ampere_shared(kTile);
    const auto kernel = conv_ampere<kChannels, kFrames>;
    const cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (code != cudaSuccess) return code;
    const conv::Tiling tiling = conv::tiling_of(p, kTile);
    const auto blocks = static_cast<unsigned>(tiling.count);
    kernel<<<blocks, kTile.threads, kShared, static_cast<cudaStream_t>(stream)>>>(p, tiling);
    return cudaGetLastError();
}

}  // namespace glimt::cuda
