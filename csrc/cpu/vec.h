// Vectors of floats as wide as the instruction set this file is compiled for. Everything has internal linkage: two
// translation units compiled for different processors must not share a function.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace glimt {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef float HalfVec __attribute__((vector_size(kWidth * 2)));
typedef float LooseVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef float LooseHalfVec __attribute__((vector_size(kWidth * 2), aligned(4), may_alias));

inline Vec load(const float* p) {
    return *reinterpret_cast<const LooseVec*>(p);
}
inline void store(float* p, Vec v) {
    *reinterpret_cast<LooseVec*>(p) = v;
}
inline Vec splat(float x) {
    return x - Vec{};
}

// The first n < kWidth floats; the other lanes are 0 and their memory is not touched.
inline Vec load_first(const float* p, int64_t n) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
    Vec v{};
    for (int64_t i = 0; i < n; ++i)
        v[i] = p[i];
    return v;
#endif
}

inline void store_first(float* p, Vec v, int64_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#else
    for (int64_t i = 0; i < n; ++i)
        p[i] = v[i];
#endif
}

// a * b + c, in one rounding where the processor can. Written out, never left to the compiler (-ffp-contract=off), so
// that where a rounding happens is decided here.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

inline float sum(Vec v) {
    float lanes[kWidth];
    store(lanes, v);
    for (int half = kWidth / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

// e^x for x in [-87.3, 88.3], clamped to it outside; NaN stays NaN. Relative error below 1e-7
// (tests/kernels/test_exp.py). x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that r is nearly exact; e^r by
// the minimax polynomial of Cephes (expf); 2^n by its exponent bits.
inline Vec exp(Vec x) {
    x = x > splat(88.3762626f) ? splat(88.3762626f) : x;
    x = x < splat(-87.3365402f) ? splat(-87.3365402f) : x;
    const Vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const Vec shifted = fma(x, splat(1.44269504f), shift);
    const Vec n = shifted - shift;
    Vec r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127 << 23);  // the shift drops all but n
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

inline Vec silu(Vec x) {
    return x / (1.0f + exp(-x));
}

// Sum over a row of f(i-th vector). `f(i)` reads a whole vector at i, `f_first(i, n)` its first n floats, the rest 0.
// Four partial sums: shorter chains of additions, faster and more exact.
template <class F, class G>
inline float sum_over(int64_t count, F f, G f_first) {
    Vec s0{}, s1{}, s2{}, s3{};
    int64_t i = 0;
    for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
        s0 += f(i);
        s1 += f(i + kWidth);
        s2 += f(i + 2 * kWidth);
        s3 += f(i + 3 * kWidth);
    }
    for (; i + kWidth <= count; i += kWidth)
        s0 += f(i);
    if (i < count) s1 += f_first(i, count - i);
    return sum((s0 + s1) + (s2 + s3));
}

}  // namespace
}  // namespace glimt
