// causal_conv3d with cp.async and mma.sync: sm_80 and all that have neither wgmma nor its successors for this.
//
// Of a step, a thread copies one 16-byte piece (half a pixel's slice) of each input frame, so it finds its pixel once
// for the whole tile. A warp holds 16 pixels times all channels of the tile, for each of its frames.
#pragma once

#include "causal_conv3d/epilogue.h"

namespace glimt::conv {

template <int kChannels, int kFrames>
struct Ampere {
    GLIMT_BOTH static constexpr TileShape shape() { return tile_shape(false, kChannels); }
    static constexpr int kInputs = shape().inputs(), kThreads = shape().threads, kStages = shape().stages;
    static constexpr int kInputBytes = shape().input_bytes(), kWeightBytes = shape().weight_bytes();
    static constexpr int kStageBytes = shape().stage_bytes();
    static_assert(shape().channels == kChannels && shape().frames == kFrames && shape().depth == 16);
    static_assert(shape().pixels * 2 == kThreads && kThreads == 8 * 32);

    using Sums = float[kFrames][kChannels / 2];

    const Conv& p;
    unsigned char* shared;
    Tile tile;
    const uint16_t* frames[kInputs];  // null: zeros
    int taps;

    GLIMT_DEVICE Ampere(const Conv& conv, const Tiling& tiling, unsigned char* memory)
        : p(conv), shared(memory), tile(tile_at(conv, shape(), tiling, ops::block())), taps(taps_in_use(conv, tile)) {
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
            const Source source = source_of(p, tile, i);
            const uint16_t* x = p.x + tile.batch * p.x_batch + source.frame * p.x_frame;
            const uint16_t* past = p.past + tile.batch * p.past_batch + source.frame * p.past_frame;
            frames[i] = source.from == From::kX ? x : source.from == From::kPast ? past : nullptr;
        }
    }

    GLIMT_DEVICE unsigned char* inputs(int stage) const { return shared + stage * kStageBytes; }
    GLIMT_DEVICE unsigned char* weights(int stage) const { return inputs(stage) + kInputs * kInputBytes; }

    GLIMT_DEVICE void load(const Step& step, int stage) const {
        const int row = ops::thread() / 2, piece = ops::thread() % 2;
        const int64_t from = input_at(p, step, tile.pixel + row);
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
            const bool there = frames[i] != nullptr && from >= 0;
            ops::copy_16_bytes(inputs(stage) + i * kInputBytes + swizzled_32(row, piece),
                               there ? frames[i] + from + 8 * piece : p.x, there);
        }
        constexpr int kPieces = kTaps * kChannels * 2;
        for (int j = ops::thread(); j < kPieces; j += kThreads) {
            const int tap = j / (2 * kChannels), channel = j / 2 % kChannels;
            ops::copy_16_bytes(weights(stage) + tap * kWeightBytes + swizzled_32(channel, piece),
                               p.weight + weight_at(p, step, tile.channel + channel, tap) + 8 * piece, true);
        }
    }

    GLIMT_DEVICE void multiply(int stage, Sums& sums) const {
        const int lane = ops::lane(), warp = ops::thread() / 32;
        // Lanes 0 to 15 give the rows of the left halves, 16 to 31 those of the right.
        const unsigned char* a_row = inputs(stage) + swizzled_32(warp * 16 + lane % 16, lane / 16);
        uint32_t a[kInputs][4];
#pragma unroll
        for (int i = 0; i < kInputs; ++i)
            ops::load_matrices(a[i], a_row + i * kInputBytes);
        // Of weights, a quarter of the lanes each: eight channels' left halves, right halves, the next eight's.
        const int b_row = lane % 8 + lane / 16 * 8, b_piece = lane / 8 % 2;
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
            if (!(taps >> t & 1)) continue;
            const unsigned char* tap = weights(stage) + t * kWeightBytes + swizzled_32(b_row, b_piece);
#pragma unroll
            for (int n = 0; n < kChannels; n += 16) {
                uint32_t b[4];
                ops::load_matrices(b, tap + n * 32);
#pragma unroll
                for (int f = 0; f < kFrames; ++f) {
                    ops::multiply_16x8x16(sums[f] + n / 2, a[f + t], b[0], b[1]);
                    ops::multiply_16x8x16(sums[f] + n / 2 + 4, a[f + t], b[2], b[3]);
                }
            }
        }
    }

    GLIMT_DEVICE void run() const {
        Sums sums = {};
        const int steps = step_count(p, shape());
        Step step;
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s, step.next(p, shape())) {
            load(step, s);  // there are nine steps at least
            ops::commit_copies();
        }
        for (int k = 0, stage = 0; k < steps; ++k) {
            ops::wait_copies<kStages - 2>();
            ops::sync();  // the stage is there for all, and the one before it is free
            if (k + kStages - 1 < steps) load(step, stage == 0 ? kStages - 1 : stage - 1);
            step.next(p, shape());
            ops::commit_copies();
            multiply(stage, sums);
            stage = stage + 1 == kStages ? 0 : stage + 1;
        }
        const int row = ops::thread() / 32 * 16 + ops::lane() / 4;
        finish<kChannels>(p, tile, row, sums);
    }
};

}  // namespace glimt::conv
