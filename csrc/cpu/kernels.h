// The CPU kernels, as plain functions over raw pointers: one table per instruction set. Each works on the rows
// [begin, end) of its arguments, so that any threading can be put around it.
#pragma once

#include <cstdint>

#include "frames.h"

namespace glimt {

struct RmsNormSilu {
    const float* x;  // [rows, channels]
    const float* gamma;
    const float* bias;  // or nullptr
    float* out;
    int64_t rows, channels;
    float eps;
    bool silu;
};

// Queries or keys of qk_norm_rope. A row is a token: `tokens` of them for each sample.
struct NormRope {
    const float* x;
    int64_t sample_stride, token_stride;
    const float* weight;
    float* out;
    const float* cos;  // [tokens, head_dim / 2]
    const float* sin;
    int64_t tokens, heads, head_dim;
    float eps;
};

// [samples, tokens, width] with a stride of 1 along width; a stride of 0 shares one row.
struct TokenView {
    const float* data;  // or nullptr
    int64_t sample_stride, token_stride;

    const float* row(int64_t sample, int64_t token) const {
        return data == nullptr ? nullptr : data + sample * sample_stride + token * token_stride;
    }
};

struct AdaNorm {
    TokenView x, residual, gate, scale, shift;
    float* out;
    float* stream;  // where residual + gate * x goes; nullptr without a residual
    int64_t tokens, width;
    float eps;
};

struct KernelTable {
    const char* isa;  // "baseline", "v3" (AVX2, FMA) or "v4" (AVX-512)
    void (*exp)(const float* x, float* out, int64_t count);
    void (*rms_norm_silu)(const RmsNormSilu&, int64_t begin, int64_t end);
    void (*norm_rope)(const NormRope&, int64_t begin, int64_t end);
    void (*ada_norm)(const AdaNorm&, int64_t begin, int64_t end);
    void (*frames_to_uint8)(const FrameView&, uint8_t* out, int64_t begin, int64_t end);  // rows of pixels
};

// The table in use: the best one this processor can run, unless select_isa() chose another.
const KernelTable& kernels();

// Names of the tables that this processor can run, worst first; nullptr ends the list.
const char* const* available_isas();

// Use the table of that name from now on; false if it was not built or this processor cannot run it.
bool select_isa(const char* name);

}  // namespace glimt
