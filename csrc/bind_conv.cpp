// causal_conv3d: the geometry of its CUDA kernels, which every build has, and their launch.
#include "bind_conv.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "causal_conv3d/geometry.h"
#ifdef GLIMT_WITH_CUTLASS
#include "cuda/kernels.h"
#endif

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace glimt {
namespace {

// batch, frames, frames of history, height, width, channels in, channels out; then the elements from sample to sample
// and from frame to frame of x, of the history and of what is added.
using Sizes = std::array<int64_t, 13>;
// x, past, weight, bias, plus, gamma, y, normed; 0 where there is none.
using Addresses = std::array<uintptr_t, 8>;

conv::Conv conv_of(const Sizes& n, const Addresses& at) {
    const auto size = [&](int i) { return static_cast<int>(n[i]); };
    const auto in = [&](int i) { return reinterpret_cast<const uint16_t*>(at[i]); };
    const auto out = [&](int i) { return reinterpret_cast<uint16_t*>(at[i]); };
    return {in(0),   in(1),   in(2),   in(3),   in(4), in(5), out(6), out(7), size(0), size(1), size(2),
            size(3), size(4), size(5), size(6), n[7],  n[8],  n[9],   n[10],  n[11],   n[12]};
}

conv::Conv shape_of(const Sizes& n, bool norm) {
    Addresses none{};
    none[5] = norm;  // whether there is a norm is all that is asked of it
    return conv_of(n, none);
}

std::string refusal(const Sizes& n, bool norm) {
    for (int i = 0; i < 7; ++i)
        if (n[i] != static_cast<int>(n[i])) return "sizes are counted in 32 bits";
    const char* reason = conv::refusal(shape_of(n, norm));
    return reason ? reason : "";
}

std::vector<int> tiling(const Sizes& n, bool hopper) {
    const conv::Conv p = shape_of(n, false);
    const conv::TileShape s = conv::tile_shape(hopper, p.out);
    return {s.pixels,
            s.channels,
            s.frames,
            s.threads,
            hopper ? conv::hopper_shared(s) : conv::ampere_shared(s),
            conv::step_count(p, s),
            conv::tiling_of(p, s).count};
}

conv::Tile tile_of(const conv::Conv& p, bool hopper, int index) {
    const conv::TileShape s = conv::tile_shape(hopper, p.out);
    return conv::tile_at(p, s, conv::tiling_of(p, s), index);
}

std::vector<int> tile(const Sizes& n, bool hopper, int index) {
    const conv::Tile found = tile_of(shape_of(n, false), hopper, index);
    return {found.batch, found.frame, found.frames, found.pixel, found.channel};
}

// For each input frame of the tile, 0: zeros, 1: history, 2: x, and the frame there; then the taps in use, as bits.
std::tuple<std::vector<std::array<int, 2>>, int> sources(const Sizes& n, bool hopper, int index) {
    const conv::Conv p = shape_of(n, false);
    const conv::Tile found = tile_of(p, hopper, index);
    std::vector<std::array<int, 2>> all;
    for (int i = 0; i < conv::tile_shape(hopper, p.out).inputs(); ++i) {
        const conv::Source source = conv::source_of(p, found, i);
        all.push_back({static_cast<int>(source.from), source.frame});
    }
    return {all, conv::taps_in_use(p, found)};
}

// The sizes and steps (in bytes, the first left out) that TMA is told of x, of the history and of the weights.
using Map = std::tuple<std::vector<uint64_t>, std::vector<uint64_t>>;
std::vector<Map> maps(const Sizes& n) {
    const conv::Conv p = shape_of(n, false);
    const conv::TileShape s = conv::tile_shape(true, p.out);
    const auto of = [](const auto& map) {
        return Map{{std::begin(map.sizes), std::end(map.sizes)}, {std::begin(map.steps), std::end(map.steps)}};
    };
    return {of(frames_map(p, s, conv::From::kX)), of(frames_map(p, s, conv::From::kPast)), of(weight_map(p, s))};
}

#ifdef GLIMT_WITH_CUTLASS
void launch(const Sizes& n, const Addresses& at, uintptr_t stream) {
    const std::string reason = refusal(n, at[5] != 0);
    if (!reason.empty()) throw nb::value_error(("causal_conv3d on CUDA: " + reason).c_str());
    int code = 0;
    {
        nb::gil_scoped_release release;
        code = cuda::causal_conv3d(conv_of(n, at), reinterpret_cast<void*>(stream));
    }
    if (code != 0) throw std::runtime_error(std::string("causal_conv3d on CUDA: ") + cuda::error_string(code));
}
#endif

}  // namespace

void bind_causal_conv3d(nb::module_& m) {
    m.def("causal_conv3d_refusal", refusal, "sizes"_a, "norm"_a, "Why the CUDA kernels cannot take a call, or ''.");
    m.def("causal_conv3d_tiling", tiling, "sizes"_a, "hopper"_a);
    m.def("causal_conv3d_tile", tile, "sizes"_a, "hopper"_a, "index"_a);
    m.def("causal_conv3d_sources", sources, "sizes"_a, "hopper"_a, "index"_a);
    m.def("causal_conv3d_maps", maps, "sizes"_a);
#ifdef GLIMT_WITH_CUTLASS
    m.def("causal_conv3d_archs", [] { return std::string(GLIMT_CONV_ARCHS); }, "Chips with its CUDA kernels.");
    m.def("causal_conv3d_cuda", launch, "sizes"_a, "addresses"_a, "stream"_a);
#else
    m.def("causal_conv3d_archs", [] { return std::string(); }, "Chips with its CUDA kernels: none in this build.");
#endif
}

}  // namespace glimt
