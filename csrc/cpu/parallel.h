// Loops over rows on several threads.
#pragma once

#include <cstdint>

namespace glimt {

// "OpenMP" or "std::thread".
const char* threading();

// body(context, begin, end) over [0, count) in at most `threads` pieces of at least `grain` each. On the calling thread
// alone when one piece is enough, or when the caller is inside a parallel region already. The body must not throw.
void parallel_for(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t), void* context);

// The same for a callable f(begin, end).
template <class F>
void parallel_rows(int64_t count, int64_t grain, int threads, F f) {
    parallel_for(
        count, grain, threads, [](void* g, int64_t begin, int64_t end) { (*static_cast<F*>(g))(begin, end); }, &f);
}

}  // namespace glimt
