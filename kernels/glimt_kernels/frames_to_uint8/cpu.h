// frames_to_uint8 on the CPU. A row is one line of one frame. The result is exact, so the order of operations is too:
// x / 2 + 1 / 2, clamp, times 255 (rounded to float), round to integer, halves to even.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace glimt {
namespace {

typedef uint8_t ByteVec __attribute__((vector_size(kWidth)));

inline ByteVec to_bytes(Vec x) {
    Vec unit = x * 0.5f + 0.5f;
    unit = unit > 0.0f ? unit : Vec{};  // a NaN becomes 0
    unit = unit < 1.0f ? unit : splat(1.0f);
    const Vec shifted = unit * 255.0f + 8388608.0f;  // + 2^23 rounds to an integer, in the low bits
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return __builtin_convertvector(bits & 255, ByteVec);
}

// count floats that lie together -> as many bytes.
inline void convert_run(const float* x, uint8_t* out, int64_t count) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
        const ByteVec bytes = to_bytes(load(x + i));
        std::memcpy(out + i, &bytes, sizeof bytes);
    }
    if (i < count) {
        const ByteVec bytes = to_bytes(load_first(x + i, count - i));
        for (int64_t k = 0; i + k < count; ++k)
            out[i + k] = bytes[k];
    }
}

// One line whose pixels lie `step` floats apart in each of three planes.
inline void convert_planes(const float* line, int64_t plane, int64_t step, int64_t width, uint8_t* out) {
    constexpr int64_t kRun = 256;
    float gathered[kRun];
    uint8_t bytes[3][kRun];
    for (int64_t x = 0; x < width; x += kRun) {
        const int64_t count = width - x < kRun ? width - x : kRun;
        for (int c = 0; c < 3; ++c) {
            const float* from = line + c * plane + x * step;
            if (step != 1) {
                for (int64_t i = 0; i < count; ++i)
                    gathered[i] = from[i * step];
                from = gathered;
            }
            convert_run(from, bytes[c], count);
        }
        uint8_t* to = out + 3 * x;
        for (int64_t i = 0; i < count; ++i)
            for (int c = 0; c < 3; ++c)
                to[3 * i + c] = bytes[c][i];
    }
}

void frames_to_uint8_rows(const FrameView& in, uint8_t* out, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t y = row % in.height, frame = row / in.height % in.frames, sample = row / in.height / in.frames;
        const float* line = in.data + sample * in.stride_b + frame * in.stride_f + y * in.stride_h;
        uint8_t* to = out + row * in.width * 3;
        if (in.stride_c == 1 && in.stride_w == 3)
            convert_run(line, to, 3 * in.width);
        else
            convert_planes(line, in.stride_c, in.stride_w, in.width, to);
    }
}

}  // namespace
}  // namespace glimt
