#include "causal_conv3d/hopper.cuh"

namespace glimt::cuda {

template int launch_hopper<96, 4>(const conv::Conv&, void*);

}  // namespace glimt::cuda
