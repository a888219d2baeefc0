// The launches of causal_conv3d, each instantiated in a file of its own. Each returns a cudaError_t (0: launched).
#pragma once

#include "causal_conv3d/geometry.h"

namespace glimt::cuda {

template <int kChannels, int kFrames>
int launch_ampere(const conv::Conv& p, void* stream);

template <int kChannels, int kFrames>
int launch_hopper(const conv::Conv& p, void* stream);

}  // namespace glimt::cuda
