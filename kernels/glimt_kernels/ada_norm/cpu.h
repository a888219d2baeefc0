// ada_norm and gated_ada_norm, float32: the sum of a row, the deviations from its mean, the modulation. The two later
// passes read the row from the first-level cache.
#pragma once

#include <cmath>

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace glimt {
namespace {

// stream = residual + gate * x, a missing gate being 1; returns the sum of the row.
inline float add_branch(const float* x, const float* residual, const float* gate, float* stream, int64_t width) {
    const auto added = [gate](Vec r, Vec b, Vec g) { return gate == nullptr ? r + b : fma(g, b, r); };
    return sum_over(
        width,
        [&](int64_t i) {
            const Vec v = added(load(residual + i), load(x + i), gate == nullptr ? Vec{} : load(gate + i));
            store(stream + i, v);
            return v;
        },
        [&](int64_t i, int64_t n) {
            const Vec g = gate == nullptr ? Vec{} : load_first(gate + i, n);
            const Vec v = added(load_first(residual + i, n), load_first(x + i, n), g);
            store_first(stream + i, v, n);
            return v;
        });
}

inline float sum_of(const float* x, int64_t width) {
    return sum_over(
        width, [&](int64_t i) { return load(x + i); }, [&](int64_t i, int64_t n) { return load_first(x + i, n); });
}

struct Moments {
    float mean, rest;  // the mean is mean + rest: what one float cannot hold of it
    float factor;      // 1 / sqrt(variance + eps)
};

// Mean and variance by the corrected two-pass algorithm (Chan, Golub, LeVeque 1983): the deviations from the rounded
// mean should sum to 0; what they sum to is the rounding, which matters when the mean is large beside the deviations.
inline Moments moments(const float* x, float total, int64_t width, float eps) {
    const float count = static_cast<float>(width), mean = total / count;
    Vec d0{}, d1{}, s0{}, s1{};
    int64_t i = 0;
    for (; i + 2 * kWidth <= width; i += 2 * kWidth) {
        const Vec u = load(x + i) - splat(mean), v = load(x + i + kWidth) - splat(mean);
        d0 += u;
        d1 += v;
        s0 = fma(u, u, s0);
        s1 = fma(v, v, s1);
    }
    for (; i < width; i += kWidth) {
        const int64_t n = width - i < kWidth ? width - i : kWidth;
        Vec v = (n == kWidth ? load(x + i) : load_first(x + i, n)) - splat(mean);
        for (int64_t lane = n; lane < kWidth; ++lane)
            v[lane] = 0;
        d0 += v;
        s0 = fma(v, v, s0);
    }
    const float rest = sum(d0 + d1) / count;
    const float variance = sum(s0 + s1) / count - rest * rest;
    // Not max(variance, 0): a NaN must stay one.
    return {mean, rest, 1.0f / std::sqrt((variance < 0 ? 0 : variance) + eps)};
}

inline void modulate(const float* x, const float* scale, const float* shift, const Moments& m, float* out,
                     int64_t width) {
    const Vec mean = splat(m.mean), rest = splat(m.rest), factor = splat(m.factor);
    const auto apply = [=](Vec v, Vec by, Vec plus) { return fma(((v - mean) - rest) * factor, 1.0f + by, plus); };
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth)
        store(out + i, apply(load(x + i), load(scale + i), load(shift + i)));
    if (i < width) {
        const int64_t n = width - i;
        store_first(out + i, apply(load_first(x + i, n), load_first(scale + i, n), load_first(shift + i, n)), n);
    }
}

void ada_norm_rows(const AdaNorm& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t sample = row / a.tokens, token = row % a.tokens;
        const float* x = a.x.row(sample, token);
        float total;
        if (a.stream == nullptr) {
            total = sum_of(x, a.width);
        } else {
            float* stream = a.stream + row * a.width;
            total = add_branch(x, a.residual.row(sample, token), a.gate.row(sample, token), stream, a.width);
            x = stream;
        }
        const Moments m = moments(x, total, a.width, a.eps);
        modulate(x, a.scale.row(sample, token), a.shift.row(sample, token), m, a.out + row * a.width, a.width);
    }
}

}  // namespace
}  // namespace glimt
