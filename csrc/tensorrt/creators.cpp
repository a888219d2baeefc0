// The plugins' creators, the folder of kernels, and the two functions by which TensorRT finds them.
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "tensorrt/plugin.h"

namespace glimt::tensorrt {
namespace {

// The nodes of an exported graph. A name is registered whether or not the manifest has kernels of it: a missing one is
// then an error of the build, and not silently the node's portable function.
constexpr std::array<OpName, 6> kOps = {{{"attention", "scale"},
                                         {"attention_bias", "scale"},
                                         {"qk_norm_rope", "eps"},
                                         {"ada_norm", "eps"},
                                         {"layer_norm", "eps"},
                                         {"rms_norm", "eps"}}};

trt::ILoggerFinder* g_finder = nullptr;

std::string folder_path() {
    if (const char* said = std::getenv("GLIMT_KERNELS")) return said;
    Dl_info info{};
    const bool found = dladdr(reinterpret_cast<const void*>(&folder_path), &info) != 0 && info.dli_fname != nullptr;
    const std::string library = found ? info.dli_fname : "";
    const size_t end = library.rfind('/');
    return (end == std::string::npos ? "." : library.substr(0, end)) + "/glimt_kernels";
}

const trt::PluginField* field_of(const trt::PluginFieldCollection& all, const char* name, trt::PluginFieldType type) {
    for (int32_t i = 0; i < all.nbFields; ++i)
        if (std::strcmp(all.fields[i].name, name) == 0 && all.fields[i].type == type && all.fields[i].data != nullptr)
            return &all.fields[i];
    return nullptr;
}

class Creator final : public trt::IPluginCreatorV3One {
  public:
    explicit Creator(OpName op) : op_(op), field_{op.attribute, nullptr, trt::PluginFieldType::kFLOAT32, 1} {
        fields_.nbFields = 1;
        fields_.fields = &field_;
    }
    Creator(const Creator&) = delete;
    Creator& operator=(const Creator&) = delete;

    trt::IPluginV3* createPlugin(trt::AsciiChar const*, trt::PluginFieldCollection const* fields,
                                 trt::TensorRTPhase phase) noexcept override {
        try {
            return make(fields, phase);
        } catch (const std::exception& error) {
            log_error(std::string("glimt plugin ") + op_.op + ": " + error.what());
            return nullptr;
        }
    }

    trt::PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
    trt::AsciiChar const* getPluginName() const noexcept override { return op_.op; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    trt::IPluginV3* make(const trt::PluginFieldCollection* fields, trt::TensorRTPhase phase) const {
        if (fields == nullptr) throw manifest::Error("it is made without fields");
        const trt::PluginField* value = field_of(*fields, op_.attribute, trt::PluginFieldType::kFLOAT32);
        if (value == nullptr || value->length != 1)
            throw manifest::Error(std::string("its attribute ") + op_.attribute + ", one float, is missing");
        const std::shared_ptr<const Folder> kernels = folder();
        if (phase == trt::TensorRTPhase::kRUNTIME) check_digest(*fields, *kernels);
        float attribute = 0;
        std::memcpy(&attribute, value->data, sizeof attribute);
        return new KernelPlugin(op_, attribute, kernels);
    }

    // An engine was built for the kernels of one manifest, and was timed and checked with these.
    static void check_digest(const trt::PluginFieldCollection& fields, const Folder& kernels) {
        const trt::PluginField* field = field_of(fields, kKernelsField, trt::PluginFieldType::kCHAR);
        const std::string built(field == nullptr ? "" : static_cast<const char*>(field->data),
                                field == nullptr ? 0 : static_cast<size_t>(field->length));
        if (built != kernels.manifest.digest)
            throw manifest::Error("the engine was built with the kernels " + built.substr(0, 12) + ", those of " +
                                  kernels.path + " are " + kernels.manifest.digest.substr(0, 12) +
                                  "; build the engine anew, or set GLIMT_KERNELS to the folder it was built with");
    }

    OpName op_;
    trt::PluginField field_;
    trt::PluginFieldCollection fields_ = {};
};

}  // namespace

std::shared_ptr<const Folder> folder() {
    static std::mutex mutex;
    static std::shared_ptr<const Folder> read;  // none while it cannot be read: the next call tries again
    const std::lock_guard<std::mutex> lock(mutex);
    if (read == nullptr) {
        const std::string path = folder_path();
        read = std::make_shared<const Folder>(Folder{path, manifest::read_manifest(path)});
    }
    return read;
}

void set_logger_finder(trt::ILoggerFinder* finder) noexcept {
    g_finder = finder;
}

void log_error(const std::string& text) noexcept {
    trt::ILogger* logger = nullptr;
    if (g_finder != nullptr) logger = g_finder->findLogger();
    if (logger != nullptr)
        logger->log(trt::ILogger::Severity::kERROR, text.c_str());
    else
        std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace glimt::tensorrt

#define GLIMT_EXPORT extern "C" __attribute__((visibility("default")))

// Called by IPluginRegistry::loadLibrary.
GLIMT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    glimt::tensorrt::set_logger_finder(finder);
}

GLIMT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    using glimt::tensorrt::Creator;
    using glimt::tensorrt::kOps;
    static Creator creators[] = {Creator(kOps[0]), Creator(kOps[1]), Creator(kOps[2]),
                                 Creator(kOps[3]), Creator(kOps[4]), Creator(kOps[5])};
    static nvinfer1::IPluginCreatorInterface* const all[] = {&creators[0], &creators[1], &creators[2],
                                                             &creators[3], &creators[4], &creators[5]};
    static_assert(std::size(all) == kOps.size());
    count = static_cast<int32_t>(std::size(all));
    return all;
}
