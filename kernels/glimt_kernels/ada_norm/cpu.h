// ada_norm and gated_ada_norm, float32: mean, then variance about it (never E[x^2] - mean^2), then the modulation. The
// two later passes read the row from the first-level cache.
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

inline float squares_about(const float* x, float mean, int64_t width) {
    const auto square = [](Vec v) { return v * v; };
    return sum_over(
        width, [&](int64_t i) { return square(load(x + i) - splat(mean)); },
        // Lanes past the row hold mean - mean: nothing.
        [&](int64_t i, int64_t n) {
            Vec v = load_first(x + i, n) - splat(mean);
            for (int64_t lane = n; lane < kWidth; ++lane)
                v[lane] = 0;
            return square(v);
        });
}

inline void modulate(const float* x, const float* scale, const float* shift, float mean, float factor, float* out,
                     int64_t width) {
    const auto apply = [=](Vec v, Vec by, Vec plus) { return fma((v - splat(mean)) * splat(factor), 1.0f + by, plus); };
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth)
        store(out + i, apply(load(x + i), load(scale + i), load(shift + i)));
    if (i < width) {
        const int64_t n = width - i;
        store_first(out + i, apply(load_first(x + i, n), load_first(scale + i, n), load_first(shift + i, n)), n);
    }
}

void ada_norm_rows(const AdaNorm& a, int64_t begin, int64_t end) {
    const float width = static_cast<float>(a.width);
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
        const float mean = total / width;
        const float factor = 1.0f / std::sqrt(squares_about(x, mean, a.width) / width + a.eps);
        modulate(x, a.scale.row(sample, token), a.shift.row(sample, token), mean, factor, a.out + row * a.width,
                 a.width);
    }
}

}  // namespace
}  // namespace glimt
