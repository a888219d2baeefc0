// causal_conv3d with TMA (im2col) and wgmma: sm_90a.
//
// A block stays and takes tile after tile. One thread of the third warpgroup brings steps to a ring of stages, a tile
// ahead where there is room; the other two warpgroups hold 64 pixels each, times all channels of the tile, for each of
// its frames: 192 registers of sums a thread.
#pragma once

#include "causal_conv3d/epilogue.h"

namespace glimt::conv {

struct HopperMaps {
    ops::FramesMap x, past;  // past: any that is valid, where there is no history
    ops::WeightsMap weight;
};

template <int kChannels, int kFrames>
struct Hopper {
    GLIMT_BOTH static constexpr TileShape shape() { return tile_shape(true, kChannels); }
    static constexpr int kInputs = shape().inputs(), kStages = shape().stages;
    static constexpr int kInputBytes = shape().input_bytes(), kWeightBytes = shape().weight_bytes();
    static constexpr int kStageBytes = shape().stage_bytes();
    static constexpr int kGroup = 128, kGroups = 2;  // threads of a warpgroup; warpgroups that multiply
    static constexpr int kRowBytes = 64, kSlice = 16;
    static_assert(shape().channels == kChannels && shape().frames == kFrames && shape().threads == 3 * kGroup);
    static_assert(shape().depth * kElementBytes == kRowBytes && shape().pixels == kGroups * 64);
    static_assert(kStageBytes % kStageAlign == 0 && kInputBytes % 512 == 0 && kWeightBytes % 512 == 0);

    using Sums = float[kFrames][kChannels / 2];

    // A place in the ring; the parity of its round.
    struct Turn {
        int stage = 0, round = 0;
        GLIMT_DEVICE void next() {
            stage = stage + 1 == kStages ? 0 : stage + 1;
            round ^= stage == 0;
        }
    };

    const Conv& p;
    const HopperMaps& maps;
    const Tiling& tiling;
    unsigned char* shared;  // at a multiple of kStageAlign

    GLIMT_DEVICE Hopper(const Conv& conv, const HopperMaps& tensor_maps, const Tiling& tiles, unsigned char* memory)
        : p(conv), maps(tensor_maps), tiling(tiles), shared(ops::align_shared(memory, kStageAlign)) {}

    GLIMT_DEVICE unsigned char* inputs(int stage) const { return shared + stage * kStageBytes; }
    GLIMT_DEVICE unsigned char* weights(int stage) const { return inputs(stage) + kInputs * kInputBytes; }
    GLIMT_DEVICE uint64_t* full(int stage) const {
        return reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes + stage * kBarrierBytes);
    }
    GLIMT_DEVICE uint64_t* empty(int stage) const { return full(stage) + 1; }

    GLIMT_DEVICE void run() const {
        if (ops::thread() == 0) {
            for (int stage = 0; stage < kStages; ++stage) {
                ops::barrier_init(full(stage), 1);
                ops::barrier_init(empty(stage), kGroups);
            }
            ops::barriers_are_made();
        }
        ops::sync();
        const int group = ops::thread() / kGroup;
        if (group == kGroups) {
            ops::give_registers<24>();
            if (ops::thread() == kGroups * kGroup) produce();
        } else {
            ops::take_registers<240>();
            consume(group);
        }
    }

    GLIMT_DEVICE void produce() const {
        const int steps = step_count(p, shape());
        Turn turn;
        for (int index = ops::block(); index < tiling.count; index += ops::blocks()) {
            const Tile tile = tile_at(p, shape(), tiling, index);
            Step step;
            for (int k = 0; k < steps; ++k, turn.next(), step.next(p, shape())) {
                ops::barrier_wait(empty(turn.stage), turn.round ^ 1);
                ops::barrier_expect(full(turn.stage), kStageBytes);
                load(tile, step, turn.stage);
            }
        }
    }

    GLIMT_DEVICE void load(const Tile& tile, const Step& step, int stage) const {
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
            const Source source = source_of(p, tile, i);
            const Base base = base_of(p, tile, source);
            ops::copy_frames(source.from == From::kPast ? maps.past : maps.x, full(stage),
                             inputs(stage) + i * kInputBytes, step.channel, base.column, base.line, base.frame,
                             base.batch, step.column, step.line);
        }
        ops::copy_weights(maps.weight, full(stage), weights(stage), step.channel, tile.channel,
                          step.line * kTaps + step.column);
    }

    GLIMT_DEVICE void consume(int group) const {
        Turn turn;
        for (int index = ops::block(); index < tiling.count; index += ops::blocks()) {
            Sums sums = {};
            add_up(tile_at(p, shape(), tiling, index), group, turn, sums);
            // Found anew: between, registers hold sums and little else.
            const Tile tile = tile_at(p, shape(), tiling, ops::found_anew(index));
            const int row = ops::found_anew(ops::thread()) / 32 * 16 + ops::lane() / 4;
            finish<kChannels>(p, tile, row, sums);
        }
    }

    GLIMT_DEVICE void add_up(const Tile& tile, int group, Turn& turn, Sums& sums) const {
        // The first input frame is the one that is missing, if any is.
        if (tile.frames == kFrames && source_of(p, tile, 0).from != From::kZeros)
            sum<true>(tile, group, turn, sums);
        else
            sum<false>(tile, group, turn, sums);
    }

    // Frames that do not exist are not multiplied with; where all do (kAll), nothing is asked.
    template <bool kAll>
    GLIMT_DEVICE void sum(const Tile& tile, int group, Turn& turn, Sums& sums) const {
        unsigned exist = 0;
        for (int i = 0; i < kInputs; ++i)
            exist |= (source_of(p, tile, i).from != From::kZeros) << i;
        const int steps = step_count(p, shape());
        int before = -1;
        for (int k = 0; k < steps; ++k, turn.next()) {
            ops::barrier_wait(full(turn.stage), turn.round);
            ops::hold(sums);
            if (kAll) ops::multiply_begin();
            const unsigned char* a = inputs(turn.stage) + group * 64 * kRowBytes;
            const unsigned char* b = weights(turn.stage);
#pragma unroll
            for (int slice = 0; slice < kRowBytes; slice += kSlice * kElementBytes)
#pragma unroll
                for (int t = 0; t < kTaps; ++t)
#pragma unroll
                    for (int f = 0; f < kFrames; ++f)
                        if (kAll || (f < tile.frames && (exist >> (f + t) & 1))) {
                            if (!kAll) ops::multiply_begin();  // in a branch of its own
                            ops::multiply_64<kChannels>(sums[f], a + (f + t) * kInputBytes + slice,
                                                        b + t * kWeightBytes + slice);
                        }
            ops::multiply_commit();
            ops::multiply_wait<1>();
            ops::hold(sums);
            if (before >= 0) release(before);
            before = turn.stage;
        }
        ops::multiply_wait<0>();
        ops::hold(sums);
        release(before);
    }

    GLIMT_DEVICE void release(int stage) const {
        if (ops::thread() % kGroup == 0) ops::barrier_arrive(empty(stage));
    }
};

}  // namespace glimt::conv
