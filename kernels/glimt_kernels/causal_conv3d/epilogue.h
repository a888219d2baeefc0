// What becomes of a finished sum: bias, residual, RMS norm over the channels, SiLU, and the writes.
//
// Both matrix instructions leave a row of the result with the four lanes of a quad: lane q holds columns 8 i + 2 q and
// 8 i + 2 q + 1 of every block i of eight. Memory wants 16 bytes a lane, so four blocks at a time are transposed inside
// the quad: lane q then has all of block q.
#pragma once

#include <cmath>

#include "causal_conv3d/geometry.h"
#include "cuda/device.h"

namespace glimt::conv {

// Two channels of bfloat16 in a word, the first in the low half.
GLIMT_DEVICE float low(uint32_t word) {
    return ops::as_float(word << 16);
}
GLIMT_DEVICE float high(uint32_t word) {
    return ops::as_float(word & 0xffff0000u);
}
GLIMT_DEVICE float silu(float y) {
    return ops::quotient(y, 1.0f + ops::exp(-y));
}

// sqrt(channels) / max(||y||, 1e-12)
GLIMT_DEVICE float norm_factor(float squares, int channels) {
    return sqrtf(static_cast<float>(channels)) * ops::rsqrt(squares < 1e-24f ? 1e-24f : squares);
}

// Word j of lane q goes to word q of lane j. Its own inverse.
GLIMT_DEVICE void transpose_in_quad(uint32_t (&w)[4]) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit <<= 1) {
        const bool mine = ops::lane() & bit;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j & bit) continue;
            const uint32_t got = ops::shuffle_xor(mine ? w[j] : w[j | bit], bit);
            (mine ? w[j] : w[j | bit]) = got;
        }
    }
}

// One row of a tile: acc[4 i + v], acc[4 i + v + 1] are a lane's two columns of block i, of `kChannels` / 8 blocks.
template <int kChannels>
struct RowOf {
    static_assert(kChannels % 32 == 0);
    static constexpr int kBlocks = kChannels / 8;

    const Conv& p;
    int64_t at;       // element of its first channel in y and normed
    int64_t plus_at;  // in plus
    int channel;      // the first of the tile
    bool exists;      // false for rows behind the last pixel, which take part in the exchanges all the same

    GLIMT_DEVICE int quad() const { return ops::lane() & 3; }

    template <class Combine>
    GLIMT_DEVICE void each(float* acc, Combine combine) const {
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)
            combine(channel + 8 * i + 2 * quad(), acc[4 * i], acc[4 * i + 1]);
    }

    GLIMT_DEVICE void add_bias(float* acc) const {
        each(acc, [&](int at_channel, float& a, float& b) {
            const uint32_t word = ops::read_word(p.bias + at_channel);
            a += low(word), b += high(word);
        });
    }

    GLIMT_DEVICE void add_plus(float* acc) const {
#pragma unroll
        for (int four = 0; four < kBlocks; four += 4) {
            uint32_t w[4] = {};
            if (exists) ops::read_words(w, p.plus + plus_at + 8 * (four + quad()));
            transpose_in_quad(w);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                acc[4 * (four + j)] += low(w[j]), acc[4 * (four + j) + 1] += high(w[j]);
        }
    }

    GLIMT_DEVICE void write(uint16_t* to, const float* acc) const {
#pragma unroll
        for (int four = 0; four < kBlocks; four += 4) {
            uint32_t w[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                w[j] = ops::pack_bf16(acc[4 * (four + j)], acc[4 * (four + j) + 1]);
            transpose_in_quad(w);
            if (exists) ops::write_words(to + at + 8 * (four + quad()), w);
        }
    }

    // Of what y is rounded to, whether it is wanted or not.
    GLIMT_DEVICE void norm_and_silu(float* acc) const {
        float squares = 0;
        each(acc, [&](int, float& a, float& b) {
            const uint32_t word = ops::pack_bf16(a, b);
            a = low(word), b = high(word);
            squares += a * a + b * b;
        });
        squares += ops::as_float(ops::shuffle_xor(ops::as_bits(squares), 1));
        squares += ops::as_float(ops::shuffle_xor(ops::as_bits(squares), 2));
        const float factor = norm_factor(squares, kChannels);
        each(acc, [&](int at_channel, float& a, float& b) {
            const uint32_t word = ops::read_word(p.gamma + at_channel);
            a = silu(a * factor * low(word)), b = silu(b * factor * high(word));
        });
    }
};

// A lane's rows of all frames of a tile: `row` and `row` + 8; sums[f][4 i + 2 v ...] are those of row + 8 v.
template <int kChannels, int kFrames>
GLIMT_DEVICE void finish(const Conv& p, const Tile& tile, int row, float (&sums)[kFrames][kChannels / 2]) {
    const int pixels = p.height * p.width, first = tile.pixel + row;
    const int64_t start = output_at(p, tile, 0, first), plus_start = plus_at(p, tile, 0, first);
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
        if (f >= tile.frames) break;
#pragma unroll
        for (int v = 0; v < 2; ++v) {
            const int64_t at = start + (int64_t{f} * pixels + 8 * v) * p.out;
            const int64_t plus = plus_start + f * p.plus_frame + 8 * v * p.out;
            const RowOf<kChannels> one{p, at, plus, tile.channel, first + 8 * v < pixels};
            float* mine = sums[f] + 2 * v;
            if (p.bias) one.add_bias(mine);
            if (p.plus) one.add_plus(mine);
            if (p.y) one.write(p.y, mine);
            if (p.gamma) {
                one.norm_and_silu(mine);
                one.write(p.normed, mine);
            }
        }
    }
}

}  // namespace glimt::conv
