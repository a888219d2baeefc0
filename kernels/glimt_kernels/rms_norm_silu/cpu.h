// rms_norm_silu, float32: one pass over each row for its norm, one (from the first-level cache) to write it.
#pragma once

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace glimt {
namespace {

template <bool kBias, bool kSilu>
void rms_norm_silu_rows_as(const RmsNormSilu& a, int64_t begin, int64_t end) {
    const int64_t channels = a.channels;
    const double root = std::sqrt(static_cast<double>(channels));
    // The factor in two floats: rounded to one it would be wrong for a whole row alike.
    const auto finish = [](Vec x, Vec factor, Vec rest, Vec gamma, Vec bias) {
        Vec y = times(x, factor, rest) * gamma;
        if (kBias) y += bias;
        return kSilu ? silu(y) : y;
    };
    for (int64_t row = begin; row < end; ++row) {
        const float* x = a.x + row * channels;
        float* out = a.out + row * channels;
        const auto square = [](Vec v) { return v * v; };
        const double norm = std::sqrt(static_cast<double>(sum_over(
            channels, [&](int64_t i) { return square(load(x + i)); },
            [&](int64_t i, int64_t n) { return square(load_first(x + i, n)); })));
        // Not max(norm, eps): a NaN must stay one.
        const double exact = root / (norm < a.eps ? a.eps : norm);
        const Vec factor = splat(static_cast<float>(exact));
        const Vec rest = splat(static_cast<float>(exact - factor[0]));
        int64_t i = 0;
        for (; i + kWidth <= channels; i += kWidth)
            store(out + i, finish(load(x + i), factor, rest, load(a.gamma + i), kBias ? load(a.bias + i) : Vec{}));
        if (i < channels) {
            const int64_t n = channels - i;
            const Vec bias = kBias ? load_first(a.bias + i, n) : Vec{};
            store_first(out + i, finish(load_first(x + i, n), factor, rest, load_first(a.gamma + i, n), bias), n);
        }
    }
}

void rms_norm_silu_rows(const RmsNormSilu& a, int64_t begin, int64_t end) {
    if (a.bias != nullptr)
        a.silu ? rms_norm_silu_rows_as<true, true>(a, begin, end) : rms_norm_silu_rows_as<true, false>(a, begin, end);
    else
        a.silu ? rms_norm_silu_rows_as<false, true>(a, begin, end) : rms_norm_silu_rows_as<false, false>(a, begin, end);
}

}  // namespace
}  // namespace glimt
