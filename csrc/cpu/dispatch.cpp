// Chooses the instruction set at run time, so that one build runs on every processor of its architecture.
#include <atomic>
#include <cstring>

#include "cpu/kernels.h"

namespace glimt {

extern const KernelTable table_baseline;
#ifdef GLIMT_HAVE_V3
extern const KernelTable table_v3;
#endif
#ifdef GLIMT_HAVE_V4
extern const KernelTable table_v4;
#endif

namespace {

struct Tables {
    const KernelTable* tables[3];
    const char* names[4];
    int count = 0;

    void add(const KernelTable& table) {
        tables[count] = &table;
        names[count] = table.isa;
        names[++count] = nullptr;
    }

    Tables() {
        add(table_baseline);
#if defined(GLIMT_HAVE_V3) || defined(GLIMT_HAVE_V4)
        __builtin_cpu_init();
        const bool v3 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#ifdef GLIMT_HAVE_V3
        if (v3) add(table_v3);
#endif
#ifdef GLIMT_HAVE_V4
        if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl"))
            add(table_v4);
#endif
#endif
    }
};

const Tables& all() {
    static const Tables tables;
    return tables;
}

std::atomic<const KernelTable*> current{nullptr};

}  // namespace

const KernelTable& kernels() {
    const KernelTable* table = current.load(std::memory_order_acquire);
    if (table == nullptr) {
        table = all().tables[all().count - 1];
        current.store(table, std::memory_order_release);
    }
    return *table;
}

const char* const* available_isas() {
    return all().names;
}

bool select_isa(const char* name) {
    for (int i = 0; i < all().count; ++i) {
        if (std::strcmp(all().names[i], name) == 0) {
            current.store(all().tables[i], std::memory_order_release);
            return true;
        }
    }
    return false;
}

}  // namespace glimt
