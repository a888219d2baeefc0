// The CPU kernels, as plain functions over raw pointers: one table per instruction set.
#pragma once

#include <cstdint>

namespace glimt {

struct KernelTable {
    const char* isa;  // "baseline", "v3" (AVX2, FMA) or "v4" (AVX-512)
    int vector_floats;
};

// The table in use: the best one this processor can run, unless select_isa() chose another.
const KernelTable& kernels();

// Names of the tables that this processor can run, worst first; nullptr ends the list.
const char* const* available_isas();

// Use the table of that name from now on; false if it was not built or this processor cannot run it.
bool select_isa(const char* name);

// Longest vector of any table: buffers are padded for it.
constexpr int64_t kMaxVectorFloats = 16;

}  // namespace glimt
