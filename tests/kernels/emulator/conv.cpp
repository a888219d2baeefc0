// causal_conv3d's CUDA kernels on the CPU, for ctypes.
#include "causal_conv3d/ampere.h"
#include "causal_conv3d/hopper.h"

namespace {

using namespace glimt;

template <class Kernel>
int64_t run_blocks(int blocks, int threads, size_t bytes, unsigned seed, Kernel kernel) {
    emulator::Machine machine(threads, bytes, seed);
    machine.blocks = blocks;
    for (machine.block = 0; machine.block < blocks; ++machine.block)
        machine.run([&] { kernel(machine.shared); });
    return machine.conflicts;
}

template <int kChannels, int kFrames>
int64_t run_ampere(const conv::Conv& p, unsigned seed) {
    constexpr conv::TileShape kTile = conv::tile_shape(false, kChannels);
    const conv::Tiling tiling = conv::tiling_of(p, kTile);
    return run_blocks(tiling.count, kTile.threads, conv::ampere_shared(kTile), seed,
                      [&](unsigned char* shared) { conv::Ampere<kChannels, kFrames>(p, tiling, shared).run(); });
}

template <int kChannels, int kFrames>
int64_t run_hopper(const conv::Conv& p, unsigned seed, int blocks) {
    constexpr conv::TileShape kTile = conv::tile_shape(true, kChannels);
    const conv::Tiling tiling = conv::tiling_of(p, kTile);
    const conv::From past = p.past_frames > 0 ? conv::From::kPast : conv::From::kX;
    const conv::HopperMaps maps{{frames_map(p, kTile, conv::From::kX), p.x},
                                {frames_map(p, kTile, past), p.past_frames > 0 ? p.past : p.x},
                                {weight_map(p, kTile), p.weight}};
    return run_blocks(tiling.count < blocks ? tiling.count : blocks, kTile.threads, conv::hopper_shared(kTile), seed,
                      [&](unsigned char* shared) { conv::Hopper<kChannels, kFrames>(p, maps, tiling, shared).run(); });
}

}  // namespace

// The number of bank conflicts, or -1 with what went wrong in `why`.
extern "C" int64_t emulate(const conv::Conv* p, int hopper, unsigned seed, int blocks, char* why, int why_bytes) {
    try {
        if (const char* reason = conv::refusal(*p)) throw emulator::Failure(reason);
        if (p->out % 192 == 0) return hopper ? run_hopper<192, 2>(*p, seed, blocks) : run_ampere<192, 1>(*p, seed);
        return hopper ? run_hopper<96, 4>(*p, seed, blocks) : run_ampere<96, 2>(*p, seed);
    } catch (const emulator::Failure& failure) {
        std::strncpy(why, failure.what(), why_bytes - 1);
        return -1;
    }
}
