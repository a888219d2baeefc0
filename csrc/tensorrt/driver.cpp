#include "tensorrt/driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace glimt::tensorrt {
namespace {

// The driver's C interface: opaque handles, int results (0 is success), stable since CUDA 4.
using Handle = void*;
constexpr int kMajor = 75, kMinor = 76;       // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kMaxDynamicShared = 8;          // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int64_t kSharedUnasked = 48 << 10;  // more must be asked for

struct Driver {
    int (*cuCtxGetCurrent)(Handle*);
    int (*cuCtxGetDevice)(int*);
    int (*cuDeviceGetAttribute)(int*, int, int);
    int (*cuModuleLoadData)(Handle*, const void*);
    int (*cuModuleUnload)(Handle);
    int (*cuModuleGetFunction)(Handle*, Handle, const char*);
    int (*cuFuncSetAttribute)(Handle, int, int);
    int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**,
                          void**);
    int (*cuGetErrorString)(int, const char**);
};

template <typename F>
void find(void* library, const char* name, F& to) {
    to = reinterpret_cast<F>(dlsym(library, name));
    if (to == nullptr) throw std::runtime_error(std::string("the CUDA driver has no ") + name + "; update it");
}

Driver open_driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error("there is no CUDA driver here (libcuda.so.1 could not be loaded)");
    Driver d{};
    find(library, "cuCtxGetCurrent", d.cuCtxGetCurrent);
    find(library, "cuCtxGetDevice", d.cuCtxGetDevice);
    find(library, "cuDeviceGetAttribute", d.cuDeviceGetAttribute);
    find(library, "cuModuleLoadData", d.cuModuleLoadData);
    find(library, "cuModuleUnload", d.cuModuleUnload);
    find(library, "cuModuleGetFunction", d.cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", d.cuFuncSetAttribute);
    find(library, "cuLaunchKernel", d.cuLaunchKernel);
    find(library, "cuGetErrorString", d.cuGetErrorString);
    return d;
}

const Driver& driver() {
    static const Driver found = open_driver();
    return found;
}

const char* reason(int code) {
    const char* text = nullptr;
    return driver().cuGetErrorString(code, &text) == 0 && text != nullptr ? text : "an unknown error of the driver";
}

void check(int code, const std::string& what) {
    if (code != 0) throw std::runtime_error(what + ": " + reason(code) + " (" + std::to_string(code) + ")");
}

Handle current_context() {
    Handle context = nullptr;
    check(driver().cuCtxGetCurrent(&context), "cuCtxGetCurrent");
    if (context == nullptr) throw std::runtime_error("no CUDA context is current on this thread");
    return context;
}

}  // namespace

class Module {
  public:
    Module(Handle context, std::string_view content, const std::string& entry, int64_t shared_bytes)
        : context_(context) {
        check(driver().cuModuleLoadData(&module_, content.data()), "a cubin could not be loaded");
        try {
            check(driver().cuModuleGetFunction(&function_, module_, entry.c_str()), "a cubin has no " + entry);
            if (shared_bytes > kSharedUnasked)
                check(driver().cuFuncSetAttribute(function_, kMaxDynamicShared, static_cast<int>(shared_bytes)),
                      std::to_string(shared_bytes) + " bytes of shared memory");
        } catch (...) {
            driver().cuModuleUnload(module_);
            throw;
        }
    }
    ~Module() { driver().cuModuleUnload(module_); }  // fails where the context is gone, and so is the module then
    Module(const Module&) = delete;
    Module& operator=(const Module&) = delete;

    Handle context() const { return context_; }
    Handle function() const { return function_; }

  private:
    Handle context_, module_ = nullptr, function_ = nullptr;
};

int current_capability() {
    current_context();
    int device = 0, major = 0, minor = 0;
    check(driver().cuCtxGetDevice(&device), "cuCtxGetDevice");
    check(driver().cuDeviceGetAttribute(&major, kMajor, device), "cuDeviceGetAttribute");
    check(driver().cuDeviceGetAttribute(&minor, kMinor, device), "cuDeviceGetAttribute");
    return 10 * major + minor;
}

std::shared_ptr<const Module> load(const std::string& digest, std::string_view content, const std::string& entry,
                                   int64_t shared_bytes) {
    static std::mutex mutex;
    static std::map<std::pair<Handle, std::string>, std::weak_ptr<const Module>> loaded;
    const Handle context = current_context();
    const std::lock_guard<std::mutex> lock(mutex);
    std::weak_ptr<const Module>& place = loaded[{context, digest}];
    std::shared_ptr<const Module> module = place.lock();
    if (module == nullptr) place = module = std::make_shared<const Module>(context, content, entry, shared_bytes);
    return module;
}

bool is_here(const Module& module) {
    return current_context() == module.context();
}

const char* start(const Module& module, int64_t grid, int64_t threads, int64_t shared_bytes, void** params,
                  Stream stream) {
    const int code =
        driver().cuLaunchKernel(module.function(), static_cast<unsigned>(grid), 1, 1, static_cast<unsigned>(threads), 1,
                                1, static_cast<unsigned>(shared_bytes), stream, params, nullptr);
    return code == 0 ? nullptr : reason(code);
}

}  // namespace glimt::tensorrt
