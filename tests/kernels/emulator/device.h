// The instructions of csrc/cuda/device.h as NVIDIA's PTX manual describes them, on emulator::Machine.
#pragma once

#include <cmath>

#include "causal_conv3d/geometry.h"
#include "emulator/machine.h"

#define GLIMT_DEVICE inline

namespace glimt::ops {

using emulator::Machine;

inline Machine& machine() {
    return *Machine::current;
}
inline int thread() {
    return machine().thread;
}
inline int block() {
    return machine().block;
}
inline int blocks() {
    return machine().blocks;
}
inline int lane() {
    return thread() % 32;
}
inline int found_anew(int value) {
    return value;
}
inline void sync() {
    machine().meet(machine().all, thread(), "sync", nullptr, [](const auto&) {});
}

template <class Offer, class Act>
void with_warp(const char* what, Offer& offer, Act act) {
    machine().meet(machine().warps[thread() / 32], lane(), what, &offer, [&](const std::vector<void*>& offers) {
        Offer* all[32];
        for (int i = 0; i < 32; ++i)
            all[i] = static_cast<Offer*>(offers[i]);
        act(all);
    });
}

inline uint32_t shuffle_xor(uint32_t value, int mask) {
    struct Offer {
        uint32_t value, got;
        int mask;
    } offer{value, 0, mask};
    with_warp("shuffle", offer, [](Offer** all) {
        for (int i = 0; i < 32; ++i)
            all[i]->got = all[i ^ all[i]->mask]->value;
    });
    return offer.got;
}

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float exp(float value) {
    return std::exp(value);
}
inline float quotient(float dividend, float divisor) {
    return dividend / divisor;
}
inline float rsqrt(float value) {
    return 1.0f / std::sqrt(value);
}

// To the nearest, halves to even.
inline uint32_t bf16_bits(float value) {
    const uint32_t bits = as_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // NaN: the sum below could carry it into an infinity
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float first, float second) {
    return bf16_bits(first) | bf16_bits(second) << 16;
}

inline void check_aligned(const void* place, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(place) % bytes) machine().fail("global memory: not aligned");
}
inline uint32_t read_word(const uint16_t* from) {
    check_aligned(from, 4);
    return from[0] | static_cast<uint32_t>(from[1]) << 16;
}
inline void read_words(uint32_t (&to)[4], const uint16_t* from) {
    check_aligned(from, 16);
    std::memcpy(to, from, 16);
}
inline void write_words(uint16_t* to, const uint32_t (&from)[4]) {
    check_aligned(to, 16);
    std::memcpy(to, from, 16);
}

// ---- sm_80 and later ----

inline void copy_16_bytes(void* shared, const void* from, bool take) {
    unsigned char* to = machine().in_shared(shared, 16, 16);
    check_aligned(from, 16);
    machine().me().copies.push_back([=] { take ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); });
}
inline void commit_copies() {
    auto& me = machine().me();
    me.groups.push_back(std::move(me.copies));
    me.copies.clear();
}
template <int kPending>
void wait_copies() {
    auto& groups = machine().me().groups;
    for (; groups.size() > kPending; groups.pop_front())
        for (const auto& copy : groups.front())
            copy();
}

inline float bf16_at(const unsigned char* place) {
    uint16_t bits;
    std::memcpy(&bits, place, 2);
    return as_float(static_cast<uint32_t>(bits) << 16);
}

inline void load_matrices(uint32_t (&to)[4], const void* row) {
    struct Offer {
        const unsigned char* row;
        uint32_t* to;
    } offer{machine().in_shared(row, 16, 16), to};
    with_warp("load matrices", offer, [](Offer** all) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            unsigned banks = 0;
            for (int i = 0; i < 8; ++i)
                banks |= 1u << (all[8 * matrix + i]->row - machine().shared) / 16 % 8;
            machine().conflicts += banks != 0xff;
            for (int l = 0; l < 32; ++l)
                std::memcpy(all[l]->to + matrix, all[8 * matrix + l / 4]->row + l % 4 * 4, 4);
        }
    });
}

inline void multiply_16x8x16(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Offer {
        float* c;
        uint32_t a[4], b[2];
    } offer{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    with_warp("multiply", offer, [](Offer** all) {
        const auto half = [](uint32_t word, int which) { return as_float(which ? word & 0xffff0000u : word << 16); };
        float a[16][16], b[16][8];
        for (int k = 0; k < 16; ++k) {
            for (int row = 0; row < 16; ++row)
                a[row][k] = half(all[row % 8 * 4 + k % 8 / 2]->a[row / 8 + k / 8 * 2], k % 2);
            for (int column = 0; column < 8; ++column)
                b[k][column] = half(all[column * 4 + k % 8 / 2]->b[k / 8], k % 2);
        }
        for (int row = 0; row < 16; ++row) {
            float sums[8] = {};
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column)
                    sums[column] += a[row][k] * b[k][column];
            for (int column = 0; column < 8; ++column)
                all[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2] += sums[column];
        }
    });
}

// ---- sm_90a ----

struct FramesMap {
    conv::Im2colMap map;
    const uint16_t* data;
};
struct WeightsMap {
    conv::WeightMap map;
    const uint16_t* data;
};

inline unsigned char* align_shared(unsigned char* shared, int bytes) {
    return shared + (-reinterpret_cast<uintptr_t>(shared) & (bytes - 1));
}

inline emulator::Barrier& barrier_at(uint64_t* place) {
    const auto found = machine().barriers.find(place);
    if (found == machine().barriers.end()) machine().fail("a barrier that was not initialized");
    return found->second;
}
inline void turn_if_full(emulator::Barrier& barrier) {
    if (barrier.came < barrier.needed || barrier.bytes != 0) return;
    barrier.came = 0;
    ++barrier.rounds;
}
inline void barrier_init(uint64_t* barrier, int arrivals) {
    machine().in_shared(barrier, 8, 8);
    machine().barriers[barrier].needed = arrivals;
}
inline void barriers_are_made() {}
inline void barrier_wait(uint64_t* barrier, int parity) {
    machine().wait({&barrier_at(barrier).rounds, 1, static_cast<unsigned>(parity)});
}
inline void barrier_arrive(uint64_t* barrier) {
    if (++barrier_at(barrier).came > barrier_at(barrier).needed) machine().fail("a barrier with too many arrivals");
    turn_if_full(barrier_at(barrier));
}
inline void barrier_expect(uint64_t* barrier, int bytes) {
    barrier_at(barrier).bytes += bytes;
    barrier_arrive(barrier);
}
inline void bytes_came(uint64_t* barrier, int bytes) {
    barrier_at(barrier).bytes -= bytes;
    turn_if_full(barrier_at(barrier));
}

// Bits 4 and 5 of an address in shared memory change with bits 7 and 8.
inline unsigned char* swizzle_64(unsigned char* place) {
    const auto at = reinterpret_cast<uintptr_t>(place);
    return reinterpret_cast<unsigned char*>(at ^ (at >> 3 & 0x30));
}

// Copies box elements in order, `element(i, to)`; TMA's boxes with this swizzle begin at a multiple of 512 bytes.
template <class Element>
void copy_box(void* shared, int rows, uint64_t* barrier, Element element) {
    unsigned char* to = machine().in_shared(shared, rows * 64, 512);
    for (int row = 0; row < rows; ++row)
        for (int k = 0; k < 32; ++k)
            element(row, k, swizzle_64(to + row * 64 + k * 2));
    bytes_came(barrier, rows * 64);
}

inline void copy_frames(const FramesMap& frames, uint64_t* barrier, void* shared, int channel, int column, int line,
                        int frame, int batch, int right, int down) {
    const conv::Im2colMap& map = frames.map;
    const int first[3] = {map.lower[0], map.lower[1], map.lower[2]};
    int last[3], at[4] = {column, line, frame, batch};
    for (int i = 0; i < 3; ++i) {
        last[i] = static_cast<int>(map.sizes[i + 1]) + map.upper[i] - 1;
        if (at[i] < first[i] || at[i] > last[i]) machine().fail("TMA: the base pixel is outside its box");
    }
    if (map.channels != 32) machine().fail("TMA: a box of 32 channels is written");
    int row_before = -1;
    copy_box(shared, map.pixels, barrier, [&](int row, int k, unsigned char* to) {
        if (row != row_before && row > 0) {  // the next base pixel
            for (int i = 0; i < 3 && ++at[i] > last[i]; ++i) {
                at[i] = first[i];
                if (i == 2) ++at[3];
            }
        }
        row_before = row;
        const int64_t place[5] = {channel + k, at[0] + right, at[1] + down, at[2], at[3]};
        bool inside = true;
        int64_t byte = place[0] * 2;
        for (int i = 0; i < 5; ++i) {
            inside = inside && place[i] >= 0 && place[i] < static_cast<int64_t>(map.sizes[i]);
            if (i > 0) byte += place[i] * static_cast<int64_t>(map.steps[i - 1]);
        }
        const uint16_t zero = 0;
        std::memcpy(
            to, inside ? reinterpret_cast<const char*>(frames.data) + byte : reinterpret_cast<const char*>(&zero), 2);
    });
}

inline void copy_weights(const WeightsMap& weights, uint64_t* barrier, void* shared, int in, int out, int place) {
    const conv::WeightMap& map = weights.map;
    if (map.box[0] != 32 || map.box[2] != 1) machine().fail("TMA: another box of weights");
    const int rows = static_cast<int>(map.box[1] * map.box[3]);
    copy_box(shared, rows, barrier, [&](int row, int k, unsigned char* to) {
        const uint64_t at[4] = {static_cast<uint64_t>(in) + k, static_cast<uint64_t>(out) + row % map.box[1],
                                static_cast<uint64_t>(place), row / map.box[1]};
        for (int i = 0; i < 4; ++i)
            if (at[i] >= map.sizes[i]) machine().fail("TMA: weights outside the tensor");
        const uint64_t byte = at[0] * 2 + at[1] * map.steps[0] + at[2] * map.steps[1] + at[3] * map.steps[2];
        std::memcpy(to, reinterpret_cast<const char*>(weights.data) + byte, 2);
    });
}

template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}
template <int kFrames, int kRegisters>
void hold(float (&)[kFrames][kRegisters]) {}
inline void multiply_begin() {}

template <class Offer, class Act>
void with_warpgroup(const char* what, Offer& offer, Act act) {
    const int group = thread() / 128;
    machine().meet(machine().groups[group], thread() % 128, what, &offer, [&](const std::vector<void*>& offers) {
        std::vector<Offer> all;
        for (void* one : offers)
            all.push_back(*static_cast<Offer*>(one));
        act(machine().warpgroups[group], all);
    });
}

inline void multiply_commit() {
    int nothing = 0;
    with_warpgroup("commit", nothing, [](emulator::Warpgroup& group, const auto&) {
        group.groups.push_back(std::move(group.products));
        group.products.clear();
    });
}
template <int kPending>
void multiply_wait() {
    int nothing = 0;
    with_warpgroup("wait", nothing, [](emulator::Warpgroup& group, const auto&) {
        for (; group.groups.size() > kPending; group.groups.pop_front())
            for (const auto& product : group.groups.front())
                product();
    });
}

// Element (row, k) of a matrix of 64-byte rows that begins at `start`; a start inside a row moves along it.
inline float element_of(const unsigned char* start, int row, int k) {
    return bf16_at(swizzle_64(const_cast<unsigned char*>(start) + row * 64 + k * 2));
}

template <int kColumns>
void multiply_64(float* c, const void* a, const void* b) {
    struct Offer {
        float* c;
        const unsigned char *a, *b;
    } offer{c, machine().in_shared(a, 16, 16), machine().in_shared(b, 16, 16)};
    with_warpgroup("multiply", offer, [](emulator::Warpgroup& group, const std::vector<Offer>& all) {
        for (const Offer& one : all)
            if (one.a != all[0].a || one.b != all[0].b) machine().fail("a warpgroup's threads give other matrices");
        group.products.push_back([all] {
            float a[64][16], b[16][kColumns];
            for (int k = 0; k < 16; ++k) {
                for (int row = 0; row < 64; ++row)
                    a[row][k] = element_of(all[0].a, row, k);
                for (int column = 0; column < kColumns; ++column)
                    b[k][column] = element_of(all[0].b, column, k);
            }
            for (int row = 0; row < 64; ++row) {
                float sums[kColumns] = {};
                for (int k = 0; k < 16; ++k)
                    for (int column = 0; column < kColumns; ++column)
                        sums[column] += a[row][k] * b[k][column];
                for (int column = 0; column < kColumns; ++column) {
                    const int lane = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
                    all[lane].c[column / 8 * 4 + row % 16 / 8 * 2 + column % 2] += sums[column];
                }
            }
        });
    });
}

}  // namespace glimt::ops
