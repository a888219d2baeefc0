// What of the CUDA driver a launch needs, found at run time in libcuda.so.1: nothing of CUDA is needed to build this,
// and a library that holds it loads on a machine without a driver.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace glimt::tensorrt {

using Stream = void*;  // CUstream, which cudaStream_t is too

// A cubin in one context's memory, and its kernel. Gone with the last of its owners.
class Module;

// The chip of the current context: 89 for compute capability 8.9. Throws std::runtime_error without one.
int current_capability();

// Loads a cubin into the current context, or gives the one that is there already: clones of a plugin, and the layers of
// a model, share it. `digest` stands for the content. Throws std::runtime_error with the driver's reason.
std::shared_ptr<const Module> load(const std::string& digest, std::string_view content, const std::string& entry,
                                   int64_t shared_bytes);

// Whether a module belongs to the current context.
bool is_here(const Module& module);

// cuLaunchKernel; nullptr, or the driver's reason. Allocates nothing.
const char* start(const Module& module, int64_t grid, int64_t threads, int64_t shared_bytes, void** params,
                  Stream stream);

}  // namespace glimt::tensorrt
