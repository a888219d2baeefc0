// What the CUDA kernels of causal_conv3d work on: tiles of the output, steps of the sum, where each frame is read, the
// maps of tensors that TMA takes, shared memory. No CUDA: kernels, their launcher and Python (tests, `glimt info`) ask
// the same functions.
//
// A tile is `pixels` consecutive pixels of a frame, for up to `frames` consecutive frames and `channels` output
// channels. Its sum runs over 9 places in space times slices of `depth` input channels; a step brings the slice of
// frames + 2 input frames, shifted to that place, and three slices of weights. So each input frame is read once and
// serves up to three output frames.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GLIMT_BOTH __host__ __device__ __forceinline__
#else
#define GLIMT_BOTH inline
#endif

namespace glimt::conv {

constexpr int kTaps = 3;          // frames, lines and columns that an output pixel sees
constexpr int kPlaces = 9;        // in space
constexpr int kElementBytes = 2;  // bfloat16
constexpr int kMapAlign = 16;     // bytes: TMA and 128-bit copies

// A call. Channels are innermost in memory, lines and columns of a frame lie together; steps are in elements.
struct Conv {
    const uint16_t* x;       // [batch, frames, height, width, in]
    const uint16_t* past;    // [batch, past_frames, height, width, in]: what came before x
    const uint16_t* weight;  // [out, 3, 3, 3, in]
    const uint16_t* bias;    // [out], or null
    const uint16_t* plus;    // [batch, frames, height, width, out], or null: added
    const uint16_t* gamma;   // [out], or null: no norm
    uint16_t* y;             // [batch, frames, height, width, out], or null where only `normed` is wanted
    uint16_t* normed;        // the same, with gamma: silu(rms_norm(y) * gamma)
    int batch, frames, past_frames, height, width, in, out;
    int64_t x_batch, x_frame, past_batch, past_frame, plus_batch, plus_frame;
};

struct TileShape {
    int pixels, channels, frames, depth;
    int stages, threads;

    GLIMT_BOTH constexpr int inputs() const { return frames + kTaps - 1; }
    GLIMT_BOTH constexpr int input_bytes() const { return pixels * depth * kElementBytes; }     // of one frame
    GLIMT_BOTH constexpr int weight_bytes() const { return channels * depth * kElementBytes; }  // of one tap in time
    GLIMT_BOTH constexpr int stage_bytes() const { return inputs() * input_bytes() + kTaps * weight_bytes(); }
};

// Shared memory beside the stages: two barriers a stage, and what it takes to start at a multiple of 1024 bytes.
constexpr int kBarrierBytes = 16;
constexpr int kStageAlign = 1024;

// sm_90a: TMA brings a step, two warpgroups of 64 pixels each multiply, a third warpgroup's thread drives TMA.
constexpr TileShape kHopper96{128, 96, 4, 32, 3, 384};
constexpr TileShape kHopper192{128, 192, 2, 32, 3, 384};
// All others: cp.async, eight warps of 16 pixels each. Three stages fit the 99 KB of sm_86, sm_89 and sm_120.
constexpr TileShape kAmpere96{128, 96, 2, 16, 3, 256};
constexpr TileShape kAmpere192{128, 192, 1, 16, 3, 256};

constexpr int hopper_shared(TileShape s) {
    return s.stages * (s.stage_bytes() + kBarrierBytes) + kStageAlign;
}
constexpr int ampere_shared(TileShape s) {
    return s.stages * s.stage_bytes();
}

// The tile for an output of `out` channels; 384 are two of 192.
GLIMT_BOTH constexpr TileShape tile_shape(bool hopper, int out) {
    return out % 192 == 0 ? (hopper ? kHopper192 : kAmpere192) : (hopper ? kHopper96 : kAmpere96);
}

struct Tile {
    int batch, frame, frames;  // its first frame, and how many it has (fewer at the end)
    int pixel, channel;        // its first ones
};

GLIMT_BOTH constexpr int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// How many tiles there are along each axis, innermost first. Blocks of channels are innermost: those that read the same
// input run at the same time.
struct Tiling {
    int blocks, columns, groups, count;  // of channels, of pixels, of frames; in all
};

inline Tiling tiling_of(const Conv& p, TileShape s) {
    const int blocks = p.out / s.channels, columns = ceil_div(p.height * p.width, s.pixels);
    const int groups = ceil_div(p.frames, s.frames);
    return {blocks, columns, groups, p.batch * groups * columns * blocks};
}

GLIMT_BOTH Tile tile_at(const Conv& p, TileShape s, const Tiling& tiling, int index) {
    Tile tile{};
    tile.channel = index % tiling.blocks * s.channels;
    index /= tiling.blocks;
    tile.pixel = index % tiling.columns * s.pixels;
    index /= tiling.columns;
    tile.frame = index % tiling.groups * s.frames;
    tile.batch = index / tiling.groups;
    tile.frames = p.frames - tile.frame < s.frames ? p.frames - tile.frame : s.frames;
    return tile;
}

struct Step {
    int line = 0, column = 0;  // 0, 1, 2: the pixel above or to the left, its own, the one below or to the right
    int channel = 0;           // first of the slice

    GLIMT_BOTH void next(const Conv& p, TileShape s) {
        channel += s.depth;
        if (channel < p.in) return;
        channel = 0;
        if (++column < kTaps) return;
        column = 0;
        ++line;
    }
};

GLIMT_BOTH int step_count(const Conv& p, TileShape s) {
    return kPlaces * (p.in / s.depth);
}

// Where a frame is read. Input frame `i` of a tile is `i + tile.frame - 2`, counted from the first of x; output frame
// `f` of it sees, by tap `t` in time, input frame `f + t`.
enum class From : int { kZeros = 0, kPast = 1, kX = 2 };
struct Source {
    From from;
    int frame;
};

GLIMT_BOTH Source source_of(const Conv& p, const Tile& tile, int input) {
    const int frame = tile.frame + input - (kTaps - 1);
    if (frame >= p.frames || frame < -p.past_frames) return {From::kZeros, 0};
    if (frame < 0) return {From::kPast, frame + p.past_frames};
    return {From::kX, frame};
}

// The taps in time (bits) by which any output frame of the tile sees a frame that exists; the others add zeros.
GLIMT_BOTH int taps_in_use(const Conv& p, const Tile& tile) {
    int taps = 0;
    for (int t = 0; t < kTaps; ++t)
        for (int f = 0; f < tile.frames; ++f)
            if (source_of(p, tile, f + t).from != From::kZeros) taps |= 1 << t;
    return taps;
}

// The element of a frame's input that pixel `pixel` sees at a step, or -1 outside the picture: zeros.
GLIMT_BOTH int64_t input_at(const Conv& p, const Step& step, int pixel) {
    const int h = pixel / p.width + step.line - 1, w = pixel % p.width + step.column - 1;
    if (pixel >= p.height * p.width || h < 0 || h >= p.height || w < 0 || w >= p.width) return -1;
    return (int64_t{1} * h * p.width + w) * p.in + step.channel;
}

// The first of a slice of weights; the next output channel is `27 * in` further.
GLIMT_BOTH int64_t weight_at(const Conv& p, const Step& step, int channel, int tap) {
    const int place = step.line * kTaps + step.column;
    return ((int64_t{1} * channel * kTaps + tap) * kPlaces + place) * p.in + step.channel;
}

// The first output channel of a tile at a pixel of a frame of a sample: outputs lie together, `plus` may not.
GLIMT_BOTH int64_t output_at(const Conv& p, const Tile& tile, int frame, int pixel) {
    const int64_t frames = int64_t{1} * tile.batch * p.frames + tile.frame + frame;
    return (frames * p.height * p.width + pixel) * p.out + tile.channel;
}
GLIMT_BOTH int64_t plus_at(const Conv& p, const Tile& tile, int frame, int pixel) {
    return tile.batch * p.plus_batch + (tile.frame + frame) * p.plus_frame + int64_t{1} * pixel * p.out + tile.channel;
}

// cuTensorMapEncodeIm2col of frames: channels, columns, lines, frames, samples. Base pixels run over the box from
// `lower` to size + `upper` - 1 and carry on in the next line, frame and sample; the step's place is added to each,
// and what then lies outside the tensor is zero. Base frames begin at -1, so that a frame of zeros can be asked for.
struct Im2colMap {
    uint64_t sizes[5];
    uint64_t steps[4];          // bytes, of all but the first
    int lower[3], upper[3];     // columns, lines, frames
    uint32_t channels, pixels;  // of a box
};
constexpr int kNoFrame = -1;

GLIMT_BOTH Im2colMap frames_map(const Conv& p, TileShape s, From from) {
    const bool past = from == From::kPast;
    const uint64_t pixel = uint64_t{1} * p.in * kElementBytes;
    const uint64_t frames = past ? p.past_frames : p.frames;
    const uint64_t frame_step = past ? p.past_frame : p.x_frame, batch_step = past ? p.past_batch : p.x_batch;
    const uint64_t width = p.width, height = p.height, in = p.in, batch = p.batch;
    return {{in, width, height, frames, batch},
            {pixel, pixel * width, frame_step * kElementBytes, batch_step * kElementBytes},
            {-1, -1, kNoFrame},
            {-1, -1, 0},
            static_cast<uint32_t>(s.depth),
            static_cast<uint32_t>(s.pixels)};
}

// The base pixel of a box: column, line, frame, sample.
struct Base {
    int column, line, frame, batch;
};

GLIMT_BOTH Base base_of(const Conv& p, const Tile& tile, const Source& source) {
    const int frame = source.from == From::kZeros ? kNoFrame : source.frame;
    return {tile.pixel % p.width - 1, tile.pixel / p.width - 1, frame, tile.batch};
}

// cuTensorMapEncodeTiled of weights: input channels, output channels, places, taps; a box is one place, all taps.
struct WeightMap {
    uint64_t sizes[4];
    uint64_t steps[3];
    uint32_t box[4];
};

GLIMT_BOTH WeightMap weight_map(const Conv& p, TileShape s) {
    const uint64_t in = p.in, slice = in * kElementBytes;
    return {{in, static_cast<uint64_t>(p.out), kPlaces, kTaps},
            {slice * kTaps * kPlaces, slice, slice * kPlaces},
            {static_cast<uint32_t>(s.depth), static_cast<uint32_t>(s.channels), 1, kTaps}};
}

// Byte of a 16-byte piece of a row in shared memory, as TMA's 64-byte swizzle has it (rows of 64 bytes), and by the
// same idea for rows of 32 bytes: the eight rows that one matrix load reads lie in different banks.
GLIMT_BOTH constexpr int swizzled_64(int row, int piece) {
    return row * 64 + (piece ^ (row >> 1 & 3)) * 16;
}
GLIMT_BOTH constexpr int swizzled_32(int row, int piece) {
    return row * 32 + (piece ^ (row >> 2 & 1)) * 16;
}

// Why a call cannot run, or null.
inline const char* refusal(const Conv& p) {
    if (p.out != 96 && p.out != 192 && p.out != 384) return "it writes 96, 192 or 384 channels";
    if (p.in <= 0 || p.in % 32 != 0) return "it reads a multiple of 32 channels";
    if (p.past_frames < 0 || p.past_frames >= kTaps) return "it takes at most two frames of history";
    if (p.gamma != nullptr && p.out > 192) return "a tile holds at most 192 channels, the norm needs all of them";
    if (p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0) return "sizes are negative";
    // Counted in 32 bits. TMA takes coordinates of 32 bits and steps below 2^40 bytes.
    if (int64_t{1} * p.height * p.width * (p.in > p.out ? p.in : p.out) >= int64_t{1} << 31)
        return "a frame has 2^31 elements or more";
    if (int64_t{1} * p.batch * p.frames * ceil_div(p.height * p.width, 128) * 4 >= int64_t{1} << 31)
        return "there are 2^31 tiles or more";
    if ((p.x_frame | p.x_batch | p.past_frame | p.past_batch | p.plus_frame | p.plus_batch) % 8 != 0)
        return "frames and samples must be a multiple of 8 elements apart";
    return nullptr;
}

}  // namespace glimt::conv
