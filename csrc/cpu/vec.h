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
typedef float LooseVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

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

// kWidth / 2 floats, each twice: a a b b ... Intrinsics, since GCC has no portable shuffle before version 12.
inline Vec load_twice(const float* p) {
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(lanes, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), lanes);
#else
    return Vec{p[0], p[0], p[1], p[1]};
#endif
}

// Neighbours in each other's place: b a d c ...
inline Vec swap_pairs(Vec v) {
#if defined(__AVX512F__)
    return _mm512_permute_ps(v, 0xB1);
#elif defined(__AVX2__)
    return _mm256_permute_ps(v, 0xB1);
#else
    return Vec{v[1], v[0], v[3], v[2]};
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

// x * (high + low), where low is what high lacks of a wider number: one rounding that counts.
inline Vec times(Vec x, Vec high, Vec low) {
#if defined(__FMA__)
    return fma(x, high, x * low);
#else
    typedef double WideVec __attribute__((vector_size(kWidth * 8)));
    const WideVec factor = __builtin_convertvector(high, WideVec) + __builtin_convertvector(low, WideVec);
    return __builtin_convertvector(__builtin_convertvector(x, WideVec) * factor, Vec);
#endif
}

// The sum of the lanes, halves added to halves: the same order at every width.
inline float sum(Vec v) {
#if defined(__AVX512F__)
    const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
    const __m256 w = v;
#endif
#if defined(__AVX2__)
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
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

// Sum over a row: `f(i)` gives the summands of a whole vector at i, `f_first(i, n)` those of its first n floats, 0
// after. In blocks of 8 additions to each of 4 partial sums: short chains, so rounding errors stay few and independent.
template <class F, class G>
inline float sum_over(int64_t count, F f, G f_first) {
    Vec total{};
    int64_t i = 0;
    while (i + 4 * kWidth <= count) {
        Vec s0{}, s1{}, s2{}, s3{};
        for (int k = 0; k < 8 && i + 4 * kWidth <= count; ++k, i += 4 * kWidth) {
            s0 += f(i);
            s1 += f(i + kWidth);
            s2 += f(i + 2 * kWidth);
            s3 += f(i + 3 * kWidth);
        }
        total += (s0 + s1) + (s2 + s3);
    }
    for (; i + kWidth <= count; i += kWidth)
        total += f(i);
    if (i < count) total += f_first(i, count - i);
    return sum(total);
}

}  // namespace
}  // namespace glimt
