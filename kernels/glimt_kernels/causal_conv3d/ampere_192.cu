#include "causal_conv3d/ampere.cuh"

namespace glimt::cuda {

template int launch_ampere<192, 1>(const conv::Conv&, void*);

}  // namespace glimt::cuda
