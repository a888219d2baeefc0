// qk_norm_rope, float32: per token, one pass for the mean square, one that scales and turns each head's pairs.
#pragma once

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace glimt {
namespace {

// A pair (a, b) turns into (a cos - b sin, b cos + a sin).
const float kSigns[16] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};

inline void norm_rope_head(const NormRope& a, const float* x, const float* weight, int64_t token, float factor,
                           float* out) {
    const float* cos = a.cos + token * (a.head_dim / 2);
    const float* sin = a.sin + token * (a.head_dim / 2);
    const Vec signs = load(kSigns);
    int64_t i = 0;
    for (; i + kWidth <= a.head_dim; i += kWidth) {
        const Vec y = load(x + i) * splat(factor) * load(weight + i);
        const Vec other = swap_pairs(y) * signs;
        store(out + i, fma(y, load_twice(cos + i / 2), other * load_twice(sin + i / 2)));
    }
    for (; i < a.head_dim; i += 2) {
        const float first = x[i] * factor * weight[i];
        const float second = x[i + 1] * factor * weight[i + 1];
        out[i] = first * cos[i / 2] - second * sin[i / 2];
        out[i + 1] = first * sin[i / 2] + second * cos[i / 2];
    }
}

void norm_rope_rows(const NormRope& a, int64_t begin, int64_t end) {
    const int64_t width = a.heads * a.head_dim;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t token = row % a.tokens;
        const float* x = a.x + row / a.tokens * a.sample_stride + token * a.token_stride;
        const auto square = [](Vec v) { return v * v; };
        const float squares = sum_over(
            width, [&](int64_t i) { return square(load(x + i)); },
            [&](int64_t i, int64_t n) { return square(load_first(x + i, n)); });
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + a.eps);
        for (int64_t at = 0; at < width; at += a.head_dim)
            norm_rope_head(a, x + at, a.weight + at, token, factor, a.out + row * width + at);
    }
}

}  // namespace
}  // namespace glimt
