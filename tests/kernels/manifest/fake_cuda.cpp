// A CUDA driver that is none, for the tests of the plugins: it remembers what it is asked for. Built as libcuda.so.1.
//
// FAKE_CAPABILITY: of its one chip, 89; FAKE_FAILS: the name of a function that fails. Modules and functions are
// numbers.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using Handle = void*;
Handle handle(intptr_t number) {
    return reinterpret_cast<Handle>(number);
}

bool fails(const char* name) {
    const char* which = std::getenv("FAKE_FAILS");
    return which != nullptr && std::strcmp(which, name) == 0;
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default")))

// The last launch, and counts; read by the host. `fake_sizes`: bytes of each parameter, which the host knows.
extern "C" {
intptr_t fake_context = 1, fake_loaded = 0, fake_alive = 0, fake_launches = 0, fake_asked_shared = 0;
unsigned fake_grid = 0, fake_threads = 0, fake_shared = 0;
intptr_t fake_function = 0, fake_stream = 0;
int fake_sizes[64] = {};
unsigned char fake_params[1024] = {};
char fake_content[256] = {}, fake_entry[64] = {};
}

FAKE int cuCtxGetCurrent(Handle* to) {
    *to = handle(fake_context);
    return fails("cuCtxGetCurrent") ? 3 : 0;
}
FAKE int cuCtxGetDevice(int* to) {
    *to = 0;
    return 0;
}
FAKE int cuDeviceGetAttribute(int* to, int attribute, int) {
    const char* said = std::getenv("FAKE_CAPABILITY");
    const int capability = said == nullptr ? 89 : std::atoi(said);
    *to = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
    return 0;
}
FAKE int cuModuleLoadData(Handle* to, const void* content) {
    if (fails("cuModuleLoadData")) return 209;
    std::strncpy(fake_content, static_cast<const char*>(content), sizeof fake_content - 1);
    ++fake_alive;
    *to = handle(++fake_loaded);
    return 0;
}
FAKE int cuModuleUnload(Handle) {
    --fake_alive;
    return 0;
}
FAKE int cuModuleGetFunction(Handle* to, Handle module, const char* entry) {
    if (fails("cuModuleGetFunction")) return 500;
    std::strncpy(fake_entry, entry, sizeof fake_entry - 1);
    *to = handle(1000 + reinterpret_cast<intptr_t>(module));
    return 0;
}
FAKE int cuFuncSetAttribute(Handle, int attribute, int value) {
    if (fails("cuFuncSetAttribute")) return 1;
    if (attribute == 8) fake_asked_shared = value;
    return 0;
}
FAKE int cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                        unsigned shared, Handle stream, void** params, void** extra) {
    if (fails("cuLaunchKernel") || y * z * ty * tz != 1 || extra != nullptr) return 1;
    ++fake_launches;
    fake_function = reinterpret_cast<intptr_t>(function);
    fake_stream = reinterpret_cast<intptr_t>(stream);
    fake_grid = x;
    fake_threads = tx;
    fake_shared = shared;
    unsigned char* at = fake_params;
    for (int i = 0; fake_sizes[i] > 0; at += fake_sizes[i++])
        std::memcpy(at, params[i], static_cast<size_t>(fake_sizes[i]));
    return 0;
}
FAKE int cuGetErrorString(int code, const char** to) {
    *to = code == 209 ? "no kernel image is available" : code == 500 ? "named symbol not found" : "invalid argument";
    return 0;
}
