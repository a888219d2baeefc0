// The kernel of hopper.h, the maps that TMA takes, and the launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "causal_conv3d/hopper.h"
#include "causal_conv3d/launch.h"
#include "cutlass/cuda_host_adapter.hpp"

namespace glimt::cuda {

template <int kChannels, int kFrames>
__global__ void __launch_bounds__(conv::tile_shape(true, kChannels).threads, 1)
    conv_hopper(const __grid_constant__ conv::Conv p, const __grid_constant__ conv::HopperMaps maps,
                const __grid_constant__ conv::Tiling tiling) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char shared[];
    conv::Hopper<kChannels, kFrames>(p, maps, tiling, shared).run();
#endif
}

inline CUresult encode(const conv::Im2colMap& map, const void* data, CUtensorMap* into) {
    const uint32_t every[5] = {1, 1, 1, 1, 1};
    return CUTLASS_CUDA_DRIVER_WRAPPER_CALL(cuTensorMapEncodeIm2col)(
        into, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5u, const_cast<void*>(data), map.sizes, map.steps, map.lower, map.upper,
        map.channels, map.pixels, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

inline CUresult encode(const conv::WeightMap& map, const void* data, CUtensorMap* into) {
    const uint32_t every[4] = {1, 1, 1, 1};
    return CUTLASS_CUDA_DRIVER_WRAPPER_CALL(cuTensorMapEncodeTiled)(
        into, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4u, const_cast<void*>(data), map.sizes, map.steps, map.box, every,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

inline bool encode_all(const conv::Conv& p, conv::TileShape shape, conv::HopperMaps* maps) {
    using conv::From;
    const bool known = p.past_frames > 0;
    const From past = known ? From::kPast : From::kX;
    return encode(frames_map(p, shape, From::kX), p.x, &maps->x.map) == CUDA_SUCCESS &&
           encode(frames_map(p, shape, past), known ? p.past : p.x, &maps->past.map) == CUDA_SUCCESS &&
           encode(weight_map(p, shape), p.weight, &maps->weight.map) == CUDA_SUCCESS;
}

template <int kChannels, int kFrames>
int launch_hopper(const conv::Conv& p, void* stream) {
    constexpr conv::TileShape kTile = conv::tile_shape(true, kChannels);
    constexpr int kShared = conv::hopper_shared(kTile);
    conv::HopperMaps maps;
    if (!encode_all(p, kTile, &maps)) return cudaErrorInvalidValue;
    const auto kernel = conv_hopper<kChannels, kFrames>;
    int device = 0, processors = 0;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (code == cudaSuccess) code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (code != cudaSuccess) return code;
    const conv::Tiling tiling = conv::tiling_of(p, kTile);
    const auto blocks = static_cast<unsigned>(std::min(tiling.count, processors));
    kernel<<<blocks, kTile.threads, kShared, static_cast<cudaStream_t>(stream)>>>(p, maps, tiling);
    return cudaGetLastError();
}

}  // namespace glimt::cuda
