#include "causal_conv3d/hopper.cuh"

namespace glimt::cuda {

template int launch_hopper<192, 2>(const conv::Conv&, void*);

}  // namespace glimt::cuda
