// The machine that the CUDA kernels are written for, an instruction a function. Tests run the same kernels on the CPU,
// with another header of these functions in place of this one (tests/kernels/emulator).
#pragma once

#ifdef GLIMT_EMULATED
#include "emulator/device.h"
#else

#include <cuda.h>
#include <cuda_runtime.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#define GLIMT_DEVICE __device__ __forceinline__

namespace glimt::ops {

GLIMT_DEVICE int thread() {
    return static_cast<int>(threadIdx.x);
}
GLIMT_DEVICE int block() {
    return static_cast<int>(blockIdx.x);
}
GLIMT_DEVICE int blocks() {
    return static_cast<int>(gridDim.x);
}
GLIMT_DEVICE int lane() {
    return static_cast<int>(threadIdx.x % 32);
}
GLIMT_DEVICE void sync() {
    __syncthreads();
}
GLIMT_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

GLIMT_DEVICE float as_float(uint32_t bits) {
    return __uint_as_float(bits);
}
GLIMT_DEVICE uint32_t as_bits(float value) {
    return __float_as_uint(value);
}
GLIMT_DEVICE float exp(float value) {
    return __expf(value);
}
GLIMT_DEVICE float quotient(float dividend, float divisor) {
    return __fdividef(dividend, divisor);
}
GLIMT_DEVICE float rsqrt(float value) {
    return rsqrtf(value);
}
GLIMT_DEVICE uint32_t pack_bf16(float first, float second) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}

GLIMT_DEVICE uint32_t read_word(const uint16_t* from) {
    return __ldg(reinterpret_cast<const uint32_t*>(from));
}
GLIMT_DEVICE void read_words(uint32_t (&to)[4], const uint16_t* from) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}
GLIMT_DEVICE void write_words(uint16_t* to, const uint32_t (&from)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                 "r"(from[3])
                 : "memory");
}

// ---- sm_80 and later ----

// Copies go on while the thread does; without `take` the place is filled with zeros.
GLIMT_DEVICE void copy_16_bytes(void* shared, const void* from, bool take) {
    using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
    Copy::copy(*static_cast<const cute::uint128_t*>(from), *static_cast<cute::uint128_t*>(shared), take);
}
GLIMT_DEVICE void commit_copies() {
    cute::cp_async_fence();
}
// Until all but the last kPending committed groups of this thread are there.
template <int kPending>
GLIMT_DEVICE void wait_copies() {
    cute::cp_async_wait<kPending>();
}

// Four 8x8 matrices; lane l gives row l % 8 of matrix l / 8.
GLIMT_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
    cute::SM75_U32x4_LDSM_N::copy(*static_cast<const cute::uint128_t*>(row), to[0], to[1], to[2], to[3]);
}
// c[4] += a (16 x 16) b (16 x 8) of the warp.
GLIMT_DEVICE void multiply_16x8x16(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2],
                                              c[3]);
}

// ---- sm_90a ----

struct FramesMap {
    CUtensorMap map;
};
struct WeightsMap {
    CUtensorMap map;
};

GLIMT_DEVICE unsigned char* align_shared(unsigned char* shared, int bytes) {
    return shared + (-cute::cast_smem_ptr_to_uint(shared) & (bytes - 1));
}

using Barrier = cutlass::arch::ClusterBarrier;
using BytesBarrier = cutlass::arch::ClusterTransactionBarrier;

GLIMT_DEVICE void barrier_init(uint64_t* barrier, int arrivals) {
    Barrier::init(barrier, arrivals);
}
// What one thread has initialized, all and TMA see after the next sync.
GLIMT_DEVICE void barriers_are_made() {
    cutlass::arch::fence_barrier_init();
}
GLIMT_DEVICE void barrier_wait(uint64_t* barrier, int parity) {
    Barrier::wait(barrier, parity);
}
GLIMT_DEVICE void barrier_arrive(uint64_t* barrier) {
    Barrier::arrive(barrier);
}
// Arrives, and has the round last until that many bytes are there.
GLIMT_DEVICE void barrier_expect(uint64_t* barrier, int bytes) {
    BytesBarrier::arrive_and_expect_tx(barrier, bytes);
}

GLIMT_DEVICE void copy_frames(const FramesMap& map, uint64_t* barrier, void* shared, int channel, int column, int line,
                              int frame, int batch, int right, int down) {
    cute::SM90_TMA_LOAD_IM2COL_5D::copy(&map.map, barrier, shared, channel, column, line, frame, batch,
                                        static_cast<uint16_t>(right), static_cast<uint16_t>(down), 0);
}
GLIMT_DEVICE void copy_weights(const WeightsMap& map, uint64_t* barrier, void* shared, int in, int out, int place) {
    constexpr auto kKeep = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_LAST);  // all blocks read them
    cute::SM90_TMA_LOAD_4D::copy(&map.map, barrier, kKeep, shared, in, out, place, 0);
}

template <int kRegisters>
GLIMT_DEVICE void give_registers() {
    cutlass::arch::warpgroup_reg_dealloc<kRegisters>();
}
template <int kRegisters>
GLIMT_DEVICE void take_registers() {
    cutlass::arch::warpgroup_reg_alloc<kRegisters>();
}

// The same value, of which the compiler knows nothing: what follows from it is computed again, not kept.
GLIMT_DEVICE int found_anew(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// The compiler may not move what it does with these registers over this point.
template <int kFrames, int kRegisters>
GLIMT_DEVICE void hold(float (&sums)[kFrames][kRegisters]) {
#pragma unroll
    for (int f = 0; f < kFrames; ++f)
#pragma unroll
        for (int i = 0; i < kRegisters; ++i)
            cute::warpgroup_fence_operand(sums[f][i]);
}
GLIMT_DEVICE void multiply_begin() {
    cute::warpgroup_arrive();
}
GLIMT_DEVICE void multiply_commit() {
    cute::warpgroup_commit_batch();
}
template <int kPending>
GLIMT_DEVICE void multiply_wait() {
    cute::warpgroup_wait<kPending>();
}

// A matrix in shared memory: rows of 64 bytes in TMA's 64-byte swizzle, groups of eight rows one after the other.
GLIMT_DEVICE uint64_t rows_of_64_bytes(const void* shared) {
    cute::GmmaDescriptor descriptor;
    descriptor.bitfield.start_address_ = static_cast<uint16_t>(cute::cast_smem_ptr_to_uint(shared) >> 4);
    descriptor.bitfield.leading_byte_offset_ = 1;  // not used in this layout
    descriptor.bitfield.stride_byte_offset_ = 8 * 64 >> 4;
    descriptor.bitfield.layout_type_ = static_cast<uint8_t>(cute::SM90::GMMA::LayoutType::B64);
    return descriptor;
}

template <class Instruction, size_t... kIndex>
GLIMT_DEVICE void multiply_64_as(float* c, uint64_t a, uint64_t b, std::index_sequence<kIndex...>) {
    Instruction::fma(a, b, c[kIndex]...);
}

// c += a (64 x 16) b (16 x kColumns) of the warpgroup, b given by its columns; done after the wait.
template <int kColumns>
GLIMT_DEVICE void multiply_64(float* c, const void* a, const void* b) {
    constexpr auto kMajor = cute::SM90::GMMA::Major::K;
    using Narrow = cute::SM90::GMMA::MMA_64x96x16_F32BF16BF16_SS<kMajor, kMajor>;
    using Wide = cute::SM90::GMMA::MMA_64x192x16_F32BF16BF16_SS<kMajor, kMajor>;
    static_assert(kColumns == 96 || kColumns == 192);
    using Instruction = std::conditional_t<kColumns == 96, Narrow, Wide>;
    multiply_64_as<Instruction>(c, rows_of_64_bytes(a), rows_of_64_bytes(b), std::make_index_sequence<kColumns / 2>());
}

}  // namespace glimt::ops

#endif
