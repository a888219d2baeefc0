// glimt_kernels._native: what Python may call. No torch header. Tensors on the CPU come as addresses (a DLPack view
// costs 3 us each, more than some of these kernels); the Python beside each kernel checks shapes, dtypes and strides.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "bind_conv.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#ifdef GLIMT_WITH_CUDA
#include "cuda/kernels.h"
#endif

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using Address = uintptr_t;
using View = std::tuple<Address, int64_t, int64_t>;                    // address, sample stride, token stride
using Rows = std::tuple<Address, int64_t, int64_t, Address, Address>;  // the same, weight, output

// Raised with every change of what is bound here; native.py compares.
constexpr int kInterface = 4;

// Floats worth a thread: about 10 us of work, twice what waking a thread costs.
constexpr int64_t kGrainFloats = 16384;

int64_t grain_rows(int64_t floats_per_row) {
    return floats_per_row > 0 ? kGrainFloats / floats_per_row + 1 : 1;
}

const float* in(Address address) {
    return reinterpret_cast<const float*>(address);
}
float* out(Address address) {
    return reinterpret_cast<float*>(address);
}

glimt::TokenView view(const View& v) {
    return {in(std::get<0>(v)), std::get<1>(v), std::get<2>(v)};
}

void rms_norm_silu(Address x, Address gamma, Address bias, Address to, int64_t rows, int64_t channels, float eps,
                   bool silu, int threads) {
    const glimt::RmsNormSilu args{in(x), in(gamma), in(bias), out(to), rows, channels, eps, silu};
    const auto kernel = glimt::kernels().rms_norm_silu;
    glimt::parallel_rows(rows, grain_rows(channels), threads, [&](int64_t b, int64_t e) { kernel(args, b, e); });
}

void qk_norm_rope(const Rows& q, const Rows& k, Address cos, Address sin, const std::array<int64_t, 4>& shape,
                  float eps, int threads) {
    const auto args = [&](const Rows& r) {
        return glimt::NormRope{in(std::get<0>(r)),
                               std::get<1>(r),
                               std::get<2>(r),
                               in(std::get<3>(r)),
                               out(std::get<4>(r)),
                               in(cos),
                               in(sin),
                               shape[1],
                               shape[2],
                               shape[3],
                               eps};
    };
    const glimt::NormRope queries = args(q), keys = args(k);
    const auto kernel = glimt::kernels().norm_rope;
    glimt::parallel_rows(shape[0] * shape[1], grain_rows(2 * shape[2] * shape[3]), threads, [&](int64_t b, int64_t e) {
        kernel(queries, b, e);
        kernel(keys, b, e);
    });
}

void ada_norm(const View& x, const View& residual, const View& gate, const View& scale, const View& shift, Address to,
              Address stream, const std::array<int64_t, 3>& shape, float eps, int threads) {
    const glimt::AdaNorm args{view(x), view(residual), view(gate), view(scale), view(shift),
                              out(to), out(stream),    shape[1],   shape[2],    eps};
    const auto kernel = glimt::kernels().ada_norm;
    glimt::parallel_rows(shape[0] * shape[1], grain_rows(shape[2]), threads,
                         [&](int64_t b, int64_t e) { kernel(args, b, e); });
}

glimt::FrameView frame_view(const float* data, const std::array<int64_t, 5>& shape,
                            const std::array<int64_t, 5>& strides) {
    return {data, shape[0], shape[2], shape[3], shape[4], strides[0], strides[1], strides[2], strides[3], strides[4]};
}

void frames_to_uint8(Address pixels, const std::array<int64_t, 5>& shape, const std::array<int64_t, 5>& strides,
                     Address to, int threads) {
    const glimt::FrameView frames = frame_view(in(pixels), shape, strides);
    const auto kernel = glimt::kernels().frames_to_uint8;
    uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
    glimt::parallel_rows(shape[0] * shape[2] * shape[3], grain_rows(3 * shape[4]), threads,
                         [&](int64_t b, int64_t e) { kernel(frames, bytes, b, e); });
}

#ifdef GLIMT_WITH_CUDA
using CudaPixels = nb::ndarray<const float, nb::ndim<5>, nb::device::cuda>;
using CudaFrames = nb::ndarray<uint8_t, nb::shape<-1, -1, -1, -1, 3>, nb::c_contig, nb::device::cuda>;

// The stream is passed as a number: DLPack's own has no way through nanobind.
void frames_to_uint8_cuda(const CudaPixels& pixels, const CudaFrames& frames, Address stream) {
    std::array<int64_t, 5> shape, strides;
    for (size_t i = 0; i < 5; ++i) {
        shape[i] = static_cast<int64_t>(pixels.shape(i));
        strides[i] = pixels.stride(i);
    }
    if (shape[1] != 3 || frames.size() != pixels.size()) throw nb::value_error("frames_to_uint8: shapes do not fit");
    const glimt::FrameView view = frame_view(pixels.data(), shape, strides);
    int code = 0;
    {
        nb::gil_scoped_release release;
        code = glimt::cuda::frames_to_uint8(view, frames.data(), reinterpret_cast<void*>(stream));
    }
    if (code != 0) {
        const std::string what = std::string("frames_to_uint8 on CUDA: ") + glimt::cuda::error_string(code);
        throw std::runtime_error(what);
    }
}
#endif

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const char* const* name = glimt::available_isas(); *name != nullptr; ++name)
        names.emplace_back(*name);
    return names;
}

void select_isa(const std::string& name) {
    if (!glimt::select_isa(name.c_str())) throw nb::value_error(("no such instruction set here: " + name).c_str());
}

}  // namespace

NB_MODULE(_native, m) {
    using Free = nb::call_guard<nb::gil_scoped_release>;
    m.doc() = "Native kernels of glimt_kernels; call them through the package, which checks their arguments.";
    m.def("interface", [] { return kInterface; }, "Version of what this module offers.");
    m.def("isa", [] { return std::string(glimt::kernels().isa); }, "Instruction set in use.");
    m.def("isas", isas, "Instruction sets that this processor can run, worst first.");
    m.def("select_isa", select_isa, "name"_a, "Use another instruction set from now on (tests, measurements).");
    m.def("threading", [] { return std::string(glimt::threading()); }, "What runs loops in parallel.");
    m.def(
        "exp", [](Address x, Address to, int64_t count) { glimt::kernels().exp(in(x), out(to), count); }, "x"_a,
        "out"_a, "count"_a, "The vectorized e^x that SiLU uses (to measure its error).");
    m.def("rms_norm_silu", rms_norm_silu, "x"_a, "gamma"_a, "bias"_a, "out"_a, "rows"_a, "channels"_a, "eps"_a,
          "silu"_a, "threads"_a, Free());
    m.def("qk_norm_rope", qk_norm_rope, "q"_a, "k"_a, "cos"_a, "sin"_a, "shape"_a, "eps"_a, "threads"_a, Free());
    m.def("ada_norm", ada_norm, "x"_a, "residual"_a, "gate"_a, "scale"_a, "shift"_a, "out"_a, "stream"_a, "shape"_a,
          "eps"_a, "threads"_a, Free());
    m.def("frames_to_uint8", frames_to_uint8, "pixels"_a, "shape"_a, "strides"_a, "out"_a, "threads"_a, Free());
    glimt::bind_causal_conv3d(m);
#ifdef GLIMT_WITH_CUDA
    m.def("cuda_archs", [] { return std::string(GLIMT_CUDA_ARCHS); }, "Chips with compiled CUDA kernels.");
    m.def("frames_to_uint8_cuda", frames_to_uint8_cuda, "pixels"_a.noconvert(), "out"_a.noconvert(), "stream"_a);
#else
    m.def("cuda_archs", [] { return std::string(); }, "Chips with compiled CUDA kernels: none, built without CUDA.");
#endif
}
