// Which of the instantiated kernels takes a call.
#include "causal_conv3d/launch.h"

#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace glimt::cuda {

int causal_conv3d(const conv::Conv& p, void* stream) {
    if (conv::tiling_of(p, conv::tile_shape(false, p.out)).count == 0) return cudaSuccess;
    int device = 0, major = 0, minor = 0;
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (code != cudaSuccess) return code;
    const bool hopper = major == 9 && minor == 0;  // sm_90a is for this chip alone
    if (p.out == 96) return hopper ? launch_hopper<96, 4>(p, stream) : launch_ampere<96, 2>(p, stream);
    return hopper ? launch_hopper<192, 2>(p, stream) : launch_ampere<192, 1>(p, stream);
}

}  // namespace glimt::cuda
