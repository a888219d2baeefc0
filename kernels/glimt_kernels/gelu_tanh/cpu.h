// gelu_tanh, float32: tanh by the exponential of SiLU, x (1 + tanh u) / 2 = x / (1 + e^(-2u)).
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace glimt {
namespace {

inline Vec gelu_tanh(Vec x) {
    const Vec u = fma(x * x * x, splat(0.044715f), x);
    return x / (1.0f + exp(u * splat(-1.5957691216f)));  // 2 sqrt(2 / pi)
}

void gelu_tanh_rows(const GeluTanh& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* x = a.x + row * a.channels;
        float* out = a.out + row * a.channels;
        int64_t i = 0;
        for (; i + kWidth <= a.channels; i += kWidth) {
            const Vec bias = a.bias == nullptr ? Vec{} : load(a.bias + i);
            store(out + i, gelu_tanh(load(x + i) + bias));
        }
        if (i < a.channels) {
            const int64_t n = a.channels - i;
            const Vec bias = a.bias == nullptr ? Vec{} : load_first(a.bias + i, n);
            store_first(out + i, gelu_tanh(load_first(x + i, n) + bias), n);
        }
    }
}

}  // namespace
}  // namespace glimt
