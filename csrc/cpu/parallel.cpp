#include "cpu/parallel.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif

namespace glimt {
namespace {

int64_t pieces_of(int64_t count, int64_t grain, int threads) {
    return std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, std::max(threads, 1));
}

}  // namespace

#ifdef _OPENMP

const char* threading() {
    return "OpenMP";
}

void parallel_for(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context) {
    const int64_t pieces = omp_in_parallel() ? 1 : pieces_of(count, grain, threads);
    if (count <= 0) return;
    if (pieces == 1) return body(context, 0, count);
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(pieces))
    for (int64_t i = 0; i < pieces; ++i)
        body(context, count * i / pieces, count * (i + 1) / pieces);
}

#else

const char* threading() {
    return "std::thread";
}

void parallel_for(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context) {
    const int64_t pieces = pieces_of(count, grain, threads);
    if (count <= 0) return;
    std::vector<std::thread> others;
    for (int64_t i = 1; i < pieces; ++i)
        others.emplace_back(body, context, count * i / pieces, count * (i + 1) / pieces);
    body(context, 0, count / pieces);
    for (std::thread& other : others)
        other.join();
}

#endif

}  // namespace glimt
