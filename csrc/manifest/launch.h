// The rules of a manifest, applied to a call. Nothing here allocates or throws: it may run on a stream's path.
#pragma once

#include <array>
#include <cstdint>

#include "manifest/manifest.h"

namespace glimt::manifest {

struct Shape {
    const int64_t* sizes;
    size_t axes;
};

// What cuLaunchKernel is handed: blocks (0: launch nothing), and the parameters as one buffer, argument i at
// offsets[i].
struct Launch {
    int64_t grid = 0;
    size_t bytes = 0;
    alignas(16) std::array<unsigned char, kMaxParamBytes> params;
    std::array<size_t, kMaxArguments> offsets;
};

using Sizes = std::array<int64_t, kMaxSizes>;

// Each gives nullptr, or why the kernel does not take the call. Shapes and addresses are those of inputs, then outputs.

// The sizes that vary. `wildcards`: a negative size is one that is not known yet, and fits everything.
const char* bind(const Kernel& kernel, const Shape* shapes, size_t count, Sizes& sizes, bool wildcards = false);

// Whether all requirements hold.
const char* admits(const Kernel& kernel, const Sizes& sizes);

// `attributes` in the order of kernel.attributes.
const char* launch(const Kernel& kernel, const Shape* shapes, size_t count, const uint64_t* addresses,
                   const double* attributes, Launch& to);

}  // namespace glimt::manifest
